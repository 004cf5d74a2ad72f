import { divUp } from '../../../core/align.ts';
import { setU64, viewOf } from '../../../core/bytes.ts';
import { formatError, SpindleError } from '../../../core/errors.ts';
import { COPIED, offsetOf } from '../entry.ts';
import { HeaderOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import { getRefcount, setRefcount } from '../refcount.ts';
import { sliceSizeOf, type L1Table } from '../tables.ts';
import type { ClusterRun } from './allocator.ts';
import type { MetadataKind } from './cluster-kinds.ts';
import { Deltas } from './deltas.ts';
import { isCompressed, readEntry } from './l2-editor.ts';
import { Rank } from './ordered-cache.ts';
import type { RefcountScan } from './refcounts.ts';
import type { Reloadable, WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** The snapshot table that the header will name. */
export interface SnapshotTablePlace {
  readonly count: number;
  readonly offset: number;
}

/**
 * Changes refcounts and copied flags at the same instant. A copied flag says that a refcount is one, but the two stand
 * in different places, and whichever is written first contradicts the other until the second is there. So nothing that
 * is in use is written to: the L2 tables, refcount blocks, L1 table and refcount table that change are written anew to
 * clusters that are free, and one write of 36 bytes, within the first sector, shows all of them at once. A power cut
 * before it leaves the image as it was, one after it the new state; clusters that either does not use count as free in
 * it, so that nothing leaks.
 *
 * Runs inside {@link Qcow2Writer.alone}, with everything durable. After {@link commit} the tables in memory are out of
 * date and the metadata has to be read anew; without it nothing has happened.
 */
export class Shadow {
  readonly #writer: Qcow2Writer;
  readonly #whole: WholeTables;
  readonly #deltas: Deltas;
  /** The refcounts as they are: nothing is changed while this runs. */
  readonly #refcounts: RefcountScan;
  readonly #l1: L1Table;
  /** A cluster that is put together before it is written. */
  readonly #scratch: Uint8Array;
  /** Where L2 tables moved, by their L1 index. */
  readonly #moved = new Map<number, number>();
  /** Clusters that the new state does not use any more. */
  readonly #left: number[] = [];
  readonly #usedEnd: number;
  readonly #punch: boolean;
  #cursor = 0;
  #shown = false;

  constructor(writer: Qcow2Writer, whole: WholeTables, { punch, atOnce }: Reloadable) {
    this.#punch = punch;
    this.#writer = writer;
    this.#whole = whole;
    this.#l1 = writer.editor.l1;
    this.#deltas = new Deltas(whole.metadata.geometry.refcountsPerBlock, atOnce);
    this.#usedEnd = writer.usedEnd;
    this.#refcounts = writer.refcounts.scan();
    this.#scratch = new Uint8Array(whole.metadata.geometry.clusterSize);
  }

  /** Whether so much has gathered in memory that it should be committed. */
  get full(): boolean {
    return this.#deltas.full;
  }

  /** Adds `delta` to the refcounts of clusters. */
  count({ start, count }: ClusterRun, delta: number): void {
    for (let cluster = start; cluster < start + count; cluster++) this.#deltas.add(cluster, delta);
  }

  #refcount(cluster: number): number | Promise<number> {
    const delta = this.#deltas.get(cluster);
    const now = this.#refcounts.get(cluster);
    return now instanceof Promise ? now.then((value) => value + delta) : now + delta;
  }

  /**
   * Makes the copied flags of the active L2 table number `index` what the refcounts will be then, in a copy of the table
   * where one differs. The changes to the refcounts of what it refers to come before this. `references` is how many of
   * the references to the table are to lead to the copy; all others stay with the old one.
   */
  async reflag(index: number, references: number): Promise<void> {
    const { geometry } = this.#whole.metadata;
    const { clusterSize, l2EntrySize, extendedL2 } = geometry;
    const table = this.#l1.l2Offset(index);
    const sliceSize = sliceSizeOf(geometry);
    const changes: { readonly at: number; readonly hi: number }[] = [];
    for (let at = 0; at < clusterSize; at += sliceSize) {
      const { bytes } = await this.#writer.cache.page(table + at, sliceSize, Rank.L2);
      const view = viewOf(bytes);
      for (let within = 0; within < sliceSize; within += l2EntrySize) {
        const entry = readEntry(view, within, extendedL2);
        const offset = offsetOf(entry.hi, entry.lo);
        if (isCompressed(entry) || offset === 0) continue;
        const found = this.#refcount(offset / clusterSize);
        const hi = flagged(entry.hi, (found instanceof Promise ? await found : found) === 1);
        if (hi !== entry.hi) changes.push({ at: at + within, hi });
      }
    }
    if (changes.length > 0) await this.#move(index, table, references, changes);
  }

  async #move(
    index: number,
    table: number,
    references: number,
    changes: readonly { readonly at: number; readonly hi: number }[],
  ): Promise<void> {
    const { geometry } = this.#whole.metadata;
    const { clusterSize } = geometry;
    const sliceSize = sliceSizeOf(geometry);
    const copy = this.#scratch;
    for (let at = 0; at < clusterSize; at += sliceSize)
      copy.set((await this.#writer.cache.page(table + at, sliceSize, Rank.L2)).bytes, at);
    const view = viewOf(copy);
    for (const { at, hi } of changes) view.setUint32(at, hi);
    const place = await this.write(copy, 'L2 table');
    this.count({ start: place / clusterSize, count: 1 }, references - 1);
    this.count({ start: table / clusterSize, count: 1 }, -references);
    this.#moved.set(index, place);
  }

  /** Writes a table to free clusters that lie together, which get a reference; its host offset, 0 for an empty one. */
  async write(bytes: Uint8Array, kind: MetadataKind): Promise<number> {
    if (bytes.length === 0) return 0;
    const run = await this.#reserve(bytes.length, kind);
    await this.#put(bytes, run);
    return run.start * this.#whole.metadata.geometry.clusterSize;
  }

  /** Gives up the reference to the clusters of a table. */
  give(at: number, length: number): void {
    const { clusterSize } = this.#whole.metadata.geometry;
    if (at !== 0 && length > 0)
      this.count({ start: at / clusterSize, count: divUp(length, clusterSize) }, -1);
  }

  /** Finds clusters in one run that are free now and that nothing of this change has taken. */
  async #reserve(length: number, kind: MetadataKind): Promise<ClusterRun> {
    const { refcounts, kinds } = this.#writer;
    const { clusterSize } = this.#whole.metadata.geometry;
    const count = divUp(length, clusterSize);
    let run = { start: this.#cursor, count: 0 };
    for (let from = this.#cursor; run.count < count; from = run.start + run.count) {
      const found = await refcounts.findFree(from, count - run.count);
      const follows = run.count > 0 && found.start === run.start + run.count;
      run = follows ? { start: run.start, count: run.count + found.count } : found;
    }
    this.#cursor = run.start + count;
    kinds.claim(run.start * clusterSize, count * clusterSize, kind);
    await this.#whole.reach((run.start + count) * clusterSize);
    this.count({ start: run.start, count }, 1);
    return { start: run.start, count };
  }

  async #put(bytes: Uint8Array, run: ClusterRun): Promise<void> {
    const { clusterSize } = this.#whole.metadata.geometry;
    await this.#whole.storage.write(bytes, run.start * clusterSize);
    this.#writer.cache.noteWritten();
  }

  /**
   * Shows everything at once, with `snapshots` as the snapshot table where it is given.
   * @throws SpindleError LIMIT, CORRUPT, NO_SPACE with nothing changed; IO
   */
  async commit(snapshots?: SnapshotTablePlace): Promise<void> {
    const { storage, metadata } = this.#whole;
    const { header, geometry } = metadata;
    const { clusterSize } = geometry;
    const l1Bytes = this.#l1.entries * TABLE_ENTRY;
    const l1 = l1Bytes === 0 ? null : await this.#reserve(l1Bytes, 'L1 table');
    this.give(header.l1TableOffset, l1Bytes);
    const table = await this.#placeRefcounts();
    const alone = async (at: number): Promise<boolean> => (await this.#refcount(at / clusterSize)) === 1;
    if (l1 !== null) await this.#put(await this.#encodeL1(alone), l1);
    const bytes = new Uint8Array(HeaderOffset.incompatibleFeatures - HeaderOffset.l1Size);
    const view = viewOf(bytes);
    view.setUint32(0, header.l1Size);
    setU64(
      view,
      HeaderOffset.l1TableOffset - HeaderOffset.l1Size,
      l1 === null ? header.l1TableOffset : l1.start * clusterSize,
    );
    setU64(view, HeaderOffset.refcountTableOffset - HeaderOffset.l1Size, table.start * clusterSize);
    view.setUint32(HeaderOffset.refcountTableClusters - HeaderOffset.l1Size, table.count);
    view.setUint32(HeaderOffset.nbSnapshots - HeaderOffset.l1Size, snapshots?.count ?? header.nbSnapshots);
    setU64(
      view,
      HeaderOffset.snapshotsOffset - HeaderOffset.l1Size,
      snapshots?.offset ?? header.snapshotsOffset,
    );
    await storage.flush();
    this.#shown = true;
    await storage.write(bytes, HeaderOffset.l1Size);
    await storage.flush();
    // What is done stays done where this fails.
    if (this.#punch) await this.#punchLeft().catch(() => undefined);
  }

  async #punchLeft(): Promise<void> {
    const { storage, metadata } = this.#whole;
    const { clusterSize } = metadata.geometry;
    const left = this.#left.sort((a, b) => a - b);
    for (let i = 0; i < left.length;) {
      const start = left[i] ?? 0;
      let count = 1;
      while (left[i + count] === start + count) count++;
      i += count;
      const length = Math.min((start + count) * clusterSize, storage.size) - start * clusterSize;
      if (length > 0) await storage.discard(start * clusterSize, length);
    }
  }

  /** Whether the header may name what was written: then nothing can be taken back. */
  get shown(): boolean {
    return this.#shown;
  }

  /** After a failure: takes back the room that the file was given, unless the header may name what lies there. */
  async abandon(): Promise<void> {
    if (!this.#shown) await this.#whole.cut(this.#usedEnd).catch(() => undefined);
  }

  /** What the active L1 table will be, for a snapshot: without copied flags. */
  l1ForSnapshot(): Promise<Uint8Array> {
    return this.#encodeL1(() => Promise.resolve(false));
  }

  async #encodeL1(copied: (table: number) => Promise<boolean>): Promise<Uint8Array> {
    const bytes = new Uint8Array(this.#l1.entries * TABLE_ENTRY);
    const view = viewOf(bytes);
    const end = this.#l1.entries;
    for (let index = this.#l1.nextUsed(0, end); index < end; index = this.#l1.nextUsed(index + 1, end)) {
      const table = this.#moved.get(index) ?? this.#l1.l2Offset(index);
      setU64(view, index * TABLE_ENTRY, table);
      if (!(await copied(table))) continue;
      view.setUint32(index * TABLE_ENTRY, (view.getUint32(index * TABLE_ENTRY) | COPIED) >>> 0);
    }
    return bytes;
  }

  /** Writes new refcount blocks for all that changes, and a new table of blocks. */
  async #placeRefcounts(): Promise<ClusterRun> {
    const { refcounts } = this.#writer;
    const { clusterSize } = this.#whole.metadata.geometry;
    const old = refcounts.table;
    this.count({ start: old.offset / clusterSize, count: old.clusters }, -1);
    const places = new Map<number, ClusterRun>();
    let table: ClusterRun | undefined;
    let most = 0;
    for (;;) {
      // The place of a block may change a block that did not change before.
      while (places.size < this.#deltas.blocks.length) {
        const index = this.#deltas.blocks[places.size] ?? 0;
        most = Math.max(most, index + 1);
        places.set(index, await this.#reserve(clusterSize, 'refcount block'));
        const before = refcounts.blockAt(index);
        if (before !== 0) this.count({ start: before / clusterSize, count: 1 }, -1);
      }
      const wanted = Math.max(old.clusters, divUp(most * TABLE_ENTRY, clusterSize));
      if (table !== undefined && table.count >= wanted) break;
      if (wanted * clusterSize > Limit.REFCOUNT_TABLE) {
        throw new SpindleError('LIMIT', 'the refcount table cannot grow beyond 8 MiB');
      }
      if (table !== undefined) this.count(table, -1);
      table = await this.#reserve(wanted * clusterSize, 'refcount table');
    }
    const bytes = new Uint8Array(table.count * clusterSize);
    refcounts.copyTable(bytes);
    for (const [index, run] of places) {
      setU64(viewOf(bytes), index * TABLE_ENTRY, run.start * clusterSize);
      await this.#put(await this.#newBlock(index), run);
    }
    await this.#put(bytes, table);
    return table;
  }

  async #newBlock(index: number): Promise<Uint8Array> {
    const { refcounts, cache } = this.#writer;
    const { clusterSize, refcountOrder, refcountsPerBlock } = this.#whole.metadata.geometry;
    const before = refcounts.blockAt(index);
    const bytes = this.#scratch;
    if (before === 0) bytes.fill(0);
    else bytes.set((await cache.page(before, clusterSize, Rank.REFCOUNT_BLOCK)).bytes);
    const view = viewOf(bytes);
    for (const [within, delta] of this.#deltas.inBlock(index)) {
      const value = getRefcount(view, refcountOrder, within) + delta;
      if (value < 0) {
        throw formatError(
          'CORRUPT',
          'refcount',
          'a cluster that is in use is counted as free; check the image',
          {
            offset: (index * refcountsPerBlock + within) * clusterSize,
          },
        );
      }
      if (value > refcounts.max)
        throw new SpindleError('LIMIT', 'the refcounts of the image are too narrow for another reference');
      if (value === 0 && delta < 0) this.#left.push(index * refcountsPerBlock + within);
      setRefcount(view, refcountOrder, within, value);
    }
    return bytes;
  }
}

/** The high half of an entry with its copied flag set or clear. */
export function flagged(hi: number, copied: boolean): number {
  return (copied ? hi | COPIED : hi & ~COPIED) >>> 0;
}
