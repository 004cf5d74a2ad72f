import { divUp } from '../../../core/align.ts';
import { hex, setU64, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import { stopIfAborted, type Working } from '../../../core/working.ts';
import { geometryOf, type Geometry } from '../geometry.ts';
import { HeaderOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import { getRefcount, maxRefcount, setRefcount } from '../refcount.ts';
import { switchHeader } from '../write/place.ts';
import type { Reloadable, WholeTables } from '../write/whole.ts';
import type { Qcow2Writer } from '../write/writer.ts';

/** Where refcounts of another width go: behind everything, first the blocks, then the table. */
interface WidthPlan {
  readonly geometry: Geometry;
  /** The first cluster of the new blocks. */
  readonly start: number;
  /** Which clusters each new block describes, ascending. */
  readonly blocks: readonly number[];
  readonly tableClusters: number;
}

/** Bytes of the header from the place of the refcount table to the width of refcounts: what changes at once. */
const SWITCHED = HeaderOffset.refcountOrder + 4 - HeaderOffset.refcountTableOffset;

/**
 * Plans refcounts `2 ** order` bits wide. Changes nothing.
 * @throws SpindleError LIMIT when a refcount, or the table, does not fit
 */
export async function planWidth(
  writer: Qcow2Writer,
  whole: WholeTables,
  order: number,
  working: Working,
): Promise<WidthPlan> {
  const { geometry: old } = whole.metadata;
  const geometry = geometryOf(old.clusterBits, order, old.extendedL2);
  const { clusterSize, refcountsPerBlock } = geometry;
  const max = maxRefcount(order);
  const used = new Set<number>();
  let end = 0;
  let last = 0;
  for (const { index } of writer.refcounts.blocks()) {
    stopIfAborted(working.signal);
    const counts = await writer.refcounts.counts(index);
    const first = index * old.refcountsPerBlock;
    for (let i = 0; counts !== null && i < old.refcountsPerBlock; i++) {
      const count = getRefcount(counts, old.refcountOrder, i);
      if (count === 0) continue;
      if (count > max) throw overflow((first + i) * clusterSize, count, geometry.refcountBits);
      used.add(Math.floor((first + i) / refcountsPerBlock));
      end = first + i + 1;
      last = Math.floor((first + i) / refcountsPerBlock);
    }
  }
  // What lies behind the last cluster that counts may be lost data all the same, as long as the file has it.
  const start = whole.storage.can.resize ? Math.max(end, divUp(writer.usedEnd, clusterSize)) : end;
  for (let size = 0; ;) {
    if (size > 0) last = Math.max(last, Math.floor((start + size - 1) / refcountsPerBlock));
    for (let index = Math.floor(start / refcountsPerBlock); size > 0 && index <= last; index++)
      used.add(index);
    const tableClusters = divUp((last + 1) * TABLE_ENTRY, clusterSize);
    if (tableClusters * clusterSize > Limit.REFCOUNT_TABLE) {
      throw new SpindleError(
        'LIMIT',
        `refcounts of ${String(geometry.refcountBits)} bits would need a refcount table larger than 8 MiB`,
      );
    }
    const needed = used.size + tableClusters;
    if (needed === size) {
      return { geometry, start, blocks: [...used].sort((a, b) => a - b), tableClusters };
    }
    size = needed;
  }
}

function overflow(offset: number, count: number, bits: number): SpindleError {
  return new SpindleError(
    'LIMIT',
    `the cluster at ${hex(offset)} has ${String(count)} references, more than a refcount of ${String(bits)} bits can count`,
  );
}

/**
 * Gives the image refcounts `2 ** order` bits wide. The new ones stand beside the old ones until one write to the header
 * takes them into use; only then the old ones are freed. A power cut leaves the one or the other, and leaks at most.
 * @throws SpindleError LIMIT before anything is changed; NO_SPACE, ABORTED with the image as it was
 */
export async function changeWidth(image: Reloadable, order: number, working: Working): Promise<void> {
  const old = await image.writer().alone(async (whole) => {
    const writer = image.writer();
    const plan = await planWidth(writer, whole, order, working);
    const blocks = writer.refcounts.blocks();
    const { table } = writer.refcounts;
    try {
      await build(writer, whole, plan, working);
    } catch (error) {
      await whole.cut(plan.start * plan.geometry.clusterSize).catch(() => undefined);
      throw error;
    }
    await switchWidth(whole, plan);
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

/** Writes the new blocks and the new table. Nothing points to them yet. */
async function build(
  writer: Qcow2Writer,
  whole: WholeTables,
  plan: WidthPlan,
  working: Working,
): Promise<void> {
  const { start, blocks, tableClusters } = plan;
  const { clusterSize, refcountsPerBlock, refcountOrder } = plan.geometry;
  const end = start + blocks.length + tableClusters;
  const table = new Uint8Array(tableClusters * clusterSize);
  writer.kinds.check(start * clusterSize, (end - start) * clusterSize);
  await whole.reach(end * clusterSize);
  for (const [number, index] of blocks.entries()) {
    stopIfAborted(working.signal);
    const bytes = new Uint8Array(clusterSize);
    const view = viewOf(bytes);
    const first = index * refcountsPerBlock;
    await eachCount(writer, whole, first, first + refcountsPerBlock, (cluster, count) => {
      setRefcount(view, refcountOrder, cluster - first, count);
    });
    for (let at = Math.max(first, start); at < Math.min(first + refcountsPerBlock, end); at++)
      setRefcount(view, refcountOrder, at - first, 1);
    const offset = (start + number) * clusterSize;
    await whole.storage.write(bytes, offset);
    setU64(viewOf(table), index * TABLE_ENTRY, offset);
    working.onProgress?.(number + 1, blocks.length);
  }
  await whole.storage.write(table, (start + blocks.length) * clusterSize);
  await whole.storage.flush();
}

/** Tells the refcounts that are not zero of clusters `from` up to `to`. */
async function eachCount(
  writer: Qcow2Writer,
  whole: WholeTables,
  from: number,
  to: number,
  tell: (cluster: number, count: number) => void,
): Promise<void> {
  const { refcountsPerBlock, refcountOrder } = whole.metadata.geometry;
  for (let at = from; at < to;) {
    const index = Math.floor(at / refcountsPerBlock);
    const first = index * refcountsPerBlock;
    const end = Math.min(to, first + refcountsPerBlock);
    const counts = await writer.refcounts.counts(index);
    for (let cluster = at; counts !== null && cluster < end; cluster++) {
      const count = getRefcount(counts, refcountOrder, cluster - first);
      if (count !== 0) tell(cluster, count);
    }
    at = end;
  }
}

async function switchWidth(whole: WholeTables, plan: WidthPlan): Promise<void> {
  const { geometry, start, blocks, tableClusters } = plan;
  const bytes = new Uint8Array(SWITCHED);
  const view = viewOf(bytes);
  await readPadded(whole.storage, bytes, HeaderOffset.refcountTableOffset);
  setU64(view, 0, (start + blocks.length) * geometry.clusterSize);
  view.setUint32(HeaderOffset.refcountTableClusters - HeaderOffset.refcountTableOffset, tableClusters);
  view.setUint32(HeaderOffset.refcountOrder - HeaderOffset.refcountTableOffset, geometry.refcountOrder);
  await switchHeader(whole, bytes, HeaderOffset.refcountTableOffset);
}
