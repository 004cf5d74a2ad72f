import { isAligned } from '../../../core/align.ts';
import { setU64, viewOf } from '../../../core/bytes.ts';
import { formatError, SpindleError } from '../../../core/errors.ts';
import { COPIED, compressedPlace, offsetOf } from '../entry.ts';
import { TABLE_ENTRY } from '../layout.ts';
import { sliceSizeOf, type L1Table } from '../tables.ts';
import type { ClusterRun } from './allocator.ts';
import { isCompressed, readEntry } from './l2-editor.ts';
import { Rank } from './ordered-cache.ts';
import { flagged, type Shadow } from './shadow.ts';
import type { WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** Runs of clusters given back after which they are freed, so that the list stays short. */
const MOST_GIVEN = 50_000;

/** Tells the L1 entries that are to be left alone. */
export type Skip = (index: number) => boolean;

/**
 * Works on all that an L1 table refers to: its L2 tables, and the clusters that they refer to. Every path from an L1
 * table to a cluster counts as one reference. Runs inside {@link Qcow2Writer.alone}.
 */
export class Tree {
  readonly #writer: Qcow2Writer;
  readonly #whole: WholeTables;
  readonly #sliceSize: number;

  constructor(writer: Qcow2Writer, whole: WholeTables) {
    this.#writer = writer;
    this.#whole = whole;
    this.#sliceSize = sliceSizeOf(whole.metadata.geometry);
  }

  /** Calls `work` for every L2 table, those that `skip` names excepted. */
  async #each(l1: L1Table, skip: Skip, work: (table: number, index: number) => Promise<void>): Promise<void> {
    const end = l1.entries;
    for (let index = l1.nextUsed(0, end); index < end; index = l1.nextUsed(index + 1, end)) {
      if (!skip(index)) await work(l1.l2Offset(index), index);
      if (this.#writer.cache.full || this.#writer.allocator.pending > MOST_GIVEN) await this.#whole.flush();
    }
  }

  /** Host offsets of the slices of an L2 table. */
  #slices(table: number): number[] {
    const { clusterSize } = this.#whole.metadata.geometry;
    return Array.from({ length: clusterSize / this.#sliceSize }, (_, i) => table + i * this.#sliceSize);
  }

  /** What a slice refers to, in the order of its entries. @throws SpindleError BAD_ENTRY */
  async #references(at: number): Promise<Reference[]> {
    const page = await this.#writer.cache.page(at, this.#sliceSize, Rank.L2);
    const { l2EntrySize, extendedL2, clusterSize, clusterBits } = this.#whole.metadata.geometry;
    const found: Reference[] = [];
    for (let within = 0; within < this.#sliceSize; within += l2EntrySize) {
      const entry = readEntry(page.view, within, extendedL2);
      if (isCompressed(entry)) {
        const place = compressedPlace(entry.hi, entry.lo, clusterBits);
        if (place === null) throw badEntry(at + within, 'a compressed cluster out of reach');
        const first = Math.floor(place.offset / clusterSize);
        const last = Math.floor((place.offset + place.length - 1) / clusterSize);
        found.push({ start: first, count: last - first + 1, compressed: true });
        continue;
      }
      const offset = offsetOf(entry.hi, entry.lo);
      if (offset === 0 || this.#whole.external) continue;
      if (!isAligned(offset, clusterSize))
        throw badEntry(at + within, 'a host offset that is not cluster aligned');
      const start = offset / clusterSize;
      const before = found[found.length - 1];
      if (before !== undefined && !before.compressed && before.start + before.count === start) before.count++;
      else found.push({ start, count: 1, compressed: false });
    }
    return found;
  }

  /**
   * Sees that everything can be referred to once more. Changes nothing.
   * @throws SpindleError LIMIT when refcounts are too narrow, CORRUPT when something counts as free, BAD_ENTRY
   */
  async checkRoom(l1: L1Table, skip: Skip): Promise<void> {
    const { refcounts } = this.#writer;
    const scan = refcounts.scan();
    // Streams share clusters, so theirs are counted; nothing else of one tree may share.
    const shared = new Map<number, number>();
    const check = async ({ start, count }: ClusterRun, times: number): Promise<void> => {
      for (let cluster = start; cluster < start + count; cluster++) {
        const found = scan.get(cluster);
        const now = found instanceof Promise ? await found : found;
        if (now === 0) throw this.#free(cluster);
        if (now + times > refcounts.max) throw this.#narrow();
      }
    };
    const { clusterSize } = this.#whole.metadata.geometry;
    await this.#each(l1, skip, async (table) => {
      await check({ start: table / clusterSize, count: 1 }, 1);
      for (const slice of this.#slices(table)) {
        for (const { start, count, compressed } of await this.#references(slice)) {
          if (!compressed) await check({ start, count }, 1);
          else for (let i = start; i < start + count; i++) shared.set(i, (shared.get(i) ?? 0) + 1);
        }
      }
    });
    for (const [cluster, times] of shared) await check({ start: cluster, count: 1 }, times);
  }

  /** Adds `delta` to what `shadow` counts for an L2 table and for all that it refers to. */
  async countIn(shadow: Shadow, table: number, delta: 1 | -1): Promise<void> {
    const { clusterSize } = this.#whole.metadata.geometry;
    shadow.count({ start: table / clusterSize, count: 1 }, delta);
    for (const slice of this.#slices(table))
      for (const run of await this.#references(slice)) shadow.count(run, delta);
  }

  /**
   * Adds a reference to everything, and takes the copied flags from the entries of the L2 tables. For a tree that is not
   * the active one: what the active disk refers to as well has no copied flag already.
   */
  async share(l1: L1Table, skip: Skip): Promise<void> {
    const { refcounts } = this.#writer;
    const { clusterSize } = this.#whole.metadata.geometry;
    await this.#each(l1, skip, async (table) => {
      await refcounts.change(table / clusterSize, 1, 1);
      for (const slice of this.#slices(table)) {
        for (const { start, count } of await this.#references(slice)) await refcounts.change(start, count, 1);
        await this.#unflag(slice);
      }
    });
  }

  /** Gives back the reference of an L1 table to everything below it, when no pointer to the L1 table is on disk any more. */
  async release(l1: L1Table, skip: Skip): Promise<void> {
    const { clusterSize } = this.#whole.metadata.geometry;
    await this.#each(l1, skip, (table) => this.releaseTable(table / clusterSize));
  }

  /** Gives back one L2 table, a cluster number, and all that it refers to. */
  async releaseTable(cluster: number): Promise<void> {
    const { allocator } = this.#writer;
    for (const slice of this.#slices(cluster * this.#whole.metadata.geometry.clusterSize)) {
      for (const { start, count } of await this.#references(slice)) allocator.give(start, count);
    }
    allocator.give(cluster, 1);
  }

  /** Clears the copied flags in a slice. */
  async #unflag(at: number): Promise<void> {
    const { l2EntrySize, extendedL2 } = this.#whole.metadata.geometry;
    const changes: { readonly within: number; readonly hi: number }[] = [];
    const { view } = await this.#writer.cache.page(at, this.#sliceSize, Rank.L2);
    for (let within = 0; within < this.#sliceSize; within += l2EntrySize) {
      const entry = readEntry(view, within, extendedL2);
      const offset = offsetOf(entry.hi, entry.lo);
      if (isCompressed(entry) || offset === 0) continue;
      const hi = flagged(entry.hi, false);
      if (hi !== entry.hi) changes.push({ within, hi });
    }
    if (changes.length === 0) return;
    // Nothing else runs, but the page may have left memory.
    const page = await this.#writer.cache.page(at, this.#sliceSize, Rank.L2);
    for (const { within, hi } of changes) {
      page.view.setUint32(within, hi);
      this.#writer.cache.mark(page, within, within + 4);
    }
  }

  #narrow(): SpindleError {
    const bits = String(this.#whole.metadata.geometry.refcountBits);
    return new SpindleError(
      'LIMIT',
      `refcounts of ${bits} bits cannot count another reference to the data of the disk; the image needs wider refcounts`,
    );
  }

  #free(cluster: number): SpindleError {
    return formatError(
      'CORRUPT',
      'refcount',
      'a cluster that is in use is counted as free; check the image',
      {
        offset: cluster * this.#whole.metadata.geometry.clusterSize,
      },
    );
  }
}

interface Reference {
  readonly start: number;
  count: number;
  readonly compressed: boolean;
}

/** Skips no L1 entry. */
export const NOTHING: Skip = () => false;

function badEntry(offset: number, message: string): SpindleError {
  return formatError('BAD_ENTRY', 'L2 entry', message, { offset });
}

/** The bytes of an L1 table of `entries` entries that refers to what `l1` does; copied flags as `copied` says. */
export function encodeL1(l1: L1Table, entries: number, copied: (index: number) => boolean): Uint8Array {
  const bytes = new Uint8Array(entries * TABLE_ENTRY);
  const view = viewOf(bytes);
  const end = Math.min(entries, l1.entries);
  for (let index = l1.nextUsed(0, end); index < end; index = l1.nextUsed(index + 1, end)) {
    setU64(view, index * TABLE_ENTRY, l1.l2Offset(index));
    if (copied(index))
      view.setUint32(index * TABLE_ENTRY, (view.getUint32(index * TABLE_ENTRY) | COPIED) >>> 0);
  }
  return bytes;
}
