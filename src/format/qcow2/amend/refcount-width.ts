import { divUp } from '../../../core/align.ts';
import { hex, setU64, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import { stopIfAborted, type Working } from '../../../core/working.ts';
import { geometryOf, type Geometry } from '../geometry.ts';
import { HeaderOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import { getRefcount, maxRefcount, setRefcount } from '../refcount.ts';
import type { ClusterRun } from '../write/allocator.ts';
import { switchHeader } from '../write/place.ts';
import type { Reloadable, WholeTables } from '../write/whole.ts';
import type { Qcow2Writer } from '../write/writer.ts';

/** Bytes of the header from the place of the refcount table to the width of refcounts: what changes at once. */
const SWITCHED = HeaderOffset.refcountOrder + 4 - HeaderOffset.refcountTableOffset;

/**
 * Sees whether the image can have refcounts `2 ** order` bits wide. Changes nothing.
 * @throws SpindleError LIMIT when a refcount, or the table, does not fit
 */
export async function checkWidth(
  writer: Qcow2Writer,
  whole: WholeTables,
  order: number,
  working: Working,
): Promise<void> {
  const geometry = widthOf(whole, order);
  const max = maxRefcount(order);
  const used = new Set<number>();
  await eachCount(writer, whole, working, (cluster, count) => {
    if (count > max) throw overflow(cluster * geometry.clusterSize, count, geometry.refcountBits);
    used.add(Math.floor(cluster / geometry.refcountsPerBlock));
  });
  const { clusterSize, refcountsPerBlock } = geometry;
  // The new clusters lie behind the others at worst.
  const last = [...used].reduce((largest, index) => Math.max(largest, index), 0);
  const more = divUp(used.size + divUp((last + 1) * TABLE_ENTRY, clusterSize), refcountsPerBlock);
  tableClustersFor(geometry, last + 1 + more);
}

function widthOf({ metadata }: WholeTables, order: number): Geometry {
  const { clusterBits, extendedL2 } = metadata.geometry;
  return geometryOf(clusterBits, order, extendedL2);
}

function overflow(offset: number, count: number, bits: number): SpindleError {
  return new SpindleError(
    'LIMIT',
    `the cluster at ${hex(offset)} has ${String(count)} references, more than a refcount of ${String(bits)} bits can count`,
  );
}

/** Clusters of a refcount table of so many entries. @throws SpindleError LIMIT */
function tableClustersFor({ clusterSize, refcountBits }: Geometry, entries: number): number {
  const clusters = divUp(entries * TABLE_ENTRY, clusterSize);
  if (clusters * clusterSize <= Limit.REFCOUNT_TABLE) return clusters;
  throw new SpindleError(
    'LIMIT',
    `refcounts of ${String(refcountBits)} bits would need a refcount table larger than 8 MiB`,
  );
}

/** Tells a cluster and its refcount, which is not zero. */
type Tell = (cluster: number, count: number) => void;

/** Tells all refcounts, in order. */
async function eachCount(
  writer: Qcow2Writer,
  whole: WholeTables,
  working: Working,
  tell: Tell,
): Promise<void> {
  const { refcountsPerBlock } = whole.metadata.geometry;
  for (const { index } of writer.refcounts.blocks()) {
    stopIfAborted(working.signal);
    const first = index * refcountsPerBlock;
    tellBlock(whole, await writer.refcounts.counts(index), first, first, first + refcountsPerBlock, tell);
  }
}

/** Tells the refcounts of clusters `from` up to `to`, in order. */
async function countsBetween(
  writer: Qcow2Writer,
  whole: WholeTables,
  from: number,
  to: number,
  tell: Tell,
): Promise<void> {
  const { refcountsPerBlock } = whole.metadata.geometry;
  for (let index = Math.floor(from / refcountsPerBlock); index * refcountsPerBlock < to; index++) {
    const first = index * refcountsPerBlock;
    const end = Math.min(to, first + refcountsPerBlock);
    tellBlock(whole, await writer.refcounts.counts(index), first, Math.max(from, first), end, tell);
  }
}

/** Tells some of the refcounts of a block that describes the clusters from `first` on. */
function tellBlock(
  { metadata }: WholeTables,
  block: DataView | null,
  first: number,
  from: number,
  to: number,
  tell: Tell,
): void {
  if (block === null) return;
  const { refcountOrder, refcountBits } = metadata.geometry;
  const perWord = 64 / refcountBits;
  for (let cluster = from; cluster < to;) {
    const at = cluster - first;
    const word = (at / perWord) * 8;
    // Most of a block may be empty.
    if (at % perWord === 0 && block.getUint32(word) === 0 && block.getUint32(word + 4) === 0) {
      cluster += perWord;
      continue;
    }
    const count = getRefcount(block, refcountOrder, at);
    if (count !== 0) tell(cluster, count);
    cluster++;
  }
}

/**
 * Gives the image refcounts `2 ** order` bits wide. The new ones stand beside the old ones until one write to the header
 * takes them into use; only then the old ones are freed. A power cut leaves the one or the other, and leaks at most.
 * @throws SpindleError LIMIT, NO_SPACE, ABORTED with the old refcounts in use
 */
export async function changeWidth(image: Reloadable, order: number, working: Working): Promise<void> {
  const old = await image.writer().alone(async (whole) => {
    const writer = image.writer();
    const places = new NewPlaces(writer, whole, widthOf(whole, order));
    try {
      await places.take(working);
      await build(writer, whole, places, working);
    } catch (error) {
      await places.giveBack().catch(() => undefined);
      throw error;
    }
    // Asked only now: making room may have moved them.
    const blocks = writer.refcounts.blocks();
    const { table } = writer.refcounts;
    await switchWidth(whole, places);
    return { blocks, table };
  });
  await image.reload();
  await image.writer().alone(async (whole) => {
    const { clusterSize } = whole.metadata.geometry;
    const { allocator } = image.writer();
    for (const { offset } of old.blocks) allocator.give(offset / clusterSize, 1);
    allocator.give(old.table.offset / clusterSize, old.table.clusters);
    await whole.flush();
  });
}

/** The clusters of refcounts of another width. The old refcounts count them, so that a power cut leaks them at worst. */
class NewPlaces {
  readonly geometry: Geometry;
  /** The host cluster of each new block, by its number. */
  readonly blocks = new Map<number, number>();
  /** The clusters of the table. */
  table: ClusterRun = { start: 0, count: 0 };
  readonly #writer: Qcow2Writer;
  readonly #whole: WholeTables;

  constructor(writer: Qcow2Writer, whole: WholeTables, geometry: Geometry) {
    this.#writer = writer;
    this.#whole = whole;
    this.geometry = geometry;
  }

  /** Takes clusters until there are blocks for all that is counted, these clusters too. */
  async take(working: Working): Promise<void> {
    const { allocator } = this.#writer;
    for (;;) {
      const missing = await this.#missing(working);
      for (const index of missing) {
        const run = await allocator.take(1);
        await this.#claim(run, 'refcount block');
        this.blocks.set(index, run.start);
      }
      const last = [...this.blocks.keys()].reduce((largest, index) => Math.max(largest, index), 0);
      const clusters = tableClustersFor(this.geometry, last + 1);
      if (clusters > this.table.count) {
        await this.#giveTable();
        const run = await allocator.takeTogether(clusters);
        await this.#claim(run, 'refcount table');
        this.table = run;
      } else if (missing.length === 0) return;
    }
  }

  /** Numbers of the blocks that still have no place. */
  async #missing(working: Working): Promise<number[]> {
    const missing = new Set<number>();
    await eachCount(this.#writer, this.#whole, working, (cluster) => {
      const index = Math.floor(cluster / this.geometry.refcountsPerBlock);
      if (!this.blocks.has(index)) missing.add(index);
    });
    return [...missing];
  }

  async #claim({ start, count }: ClusterRun, kind: 'refcount block' | 'refcount table'): Promise<void> {
    const { clusterSize } = this.geometry;
    await this.#whole.reach((start + count) * clusterSize);
    this.#writer.kinds.claimNew(start * clusterSize, count * clusterSize, kind);
  }

  async #giveTable(): Promise<void> {
    const { clusterSize } = this.geometry;
    const { start, count } = this.table;
    if (count === 0) return;
    this.table = { start: 0, count: 0 };
    this.#writer.kinds.release(start * clusterSize, count * clusterSize);
    await this.#writer.allocator.takeBack({ start, count });
  }

  /** Gives all of it back: nothing points to it. */
  async giveBack(): Promise<void> {
    await this.#giveTable();
    for (const start of this.blocks.values()) {
      this.#writer.kinds.release(start * this.geometry.clusterSize, this.geometry.clusterSize);
      await this.#writer.allocator.takeBack({ start, count: 1 });
    }
    await this.#whole.flush();
  }
}

/** Writes the new blocks and the new table, durably. Nothing points to them yet. */
async function build(
  writer: Qcow2Writer,
  whole: WholeTables,
  { geometry, blocks, table: place }: NewPlaces,
  working: Working,
): Promise<void> {
  const { clusterSize, refcountsPerBlock, refcountOrder } = geometry;
  const table = new Uint8Array(place.count * clusterSize);
  let done = 0;
  for (const [index, host] of blocks) {
    const bytes = new Uint8Array(clusterSize);
    const view = viewOf(bytes);
    const first = index * refcountsPerBlock;
    stopIfAborted(working.signal);
    await countsBetween(writer, whole, first, first + refcountsPerBlock, (cluster, count) => {
      setRefcount(view, refcountOrder, cluster - first, count);
    });
    await whole.storage.write(bytes, host * clusterSize);
    setU64(viewOf(table), index * TABLE_ENTRY, host * clusterSize);
    working.onProgress?.(++done, blocks.size);
  }
  await whole.storage.write(table, place.start * clusterSize);
  await whole.storage.flush();
}

async function switchWidth(whole: WholeTables, { geometry, table }: NewPlaces): Promise<void> {
  const bytes = new Uint8Array(SWITCHED);
  const view = viewOf(bytes);
  // What is not the cache's to write goes out first: the old refcounts may have moved.
  await whole.flush();
  await readPadded(whole.storage, bytes, HeaderOffset.refcountTableOffset);
  setU64(view, 0, table.start * geometry.clusterSize);
  view.setUint32(HeaderOffset.refcountTableClusters - HeaderOffset.refcountTableOffset, table.count);
  view.setUint32(HeaderOffset.refcountOrder - HeaderOffset.refcountTableOffset, geometry.refcountOrder);
  await switchHeader(whole, bytes, HeaderOffset.refcountTableOffset);
}
