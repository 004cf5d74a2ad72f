import { divUp } from '../../../core/align.ts';
import { hex, setU64, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readAvailable } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { HeaderOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import { setRefcount } from '../refcount.ts';
import type { Scan } from './scan.ts';
import { Spans } from './spans.ts';
import type { Patch, RepairStep } from './step.ts';
import type { Place, Targets } from './targets.ts';

/** The new refcount table, and behind it its blocks. */
interface Structure extends Place {
  readonly tableClusters: number;
  /** Entries of the table that have a block, ascending. */
  readonly indices: readonly number[];
}

/** Clusters of a file that are looked at for free space at most. */
const SEARCH = 2 ** 26;

/**
 * The steps that write all refcounts anew: into clusters that nothing refers to, preferably behind the end of the file,
 * and then the header. The old structures lie idle afterwards.
 * @throws SpindleError LIMIT, NO_SPACE when there is no place for them
 */
export function planRebuild(
  storage: Storage,
  scan: Scan,
  targets: Targets,
  grows: boolean,
): { build: RepairStep; change: RepairStep } {
  const structure = layOut(storage, scan, targets, grows);
  targets.rebuild(structure);
  const { clusterSize } = scan.context.metadata.geometry;
  const at = structure.first * clusterSize;
  const end = (structure.first + structure.count) * clusterSize;
  return {
    build: {
      name: 'build',
      title: `write all refcounts anew, to ${String(structure.count)} free clusters at ${hex(at)}`,
      ...(end > storage.size ? { size: end } : {}),
      patches: () => buildPatches(storage, scan, targets, structure),
    },
    change: {
      name: 'switch',
      title: 'let the header point to the new refcount table',
      patches: () => switchPatch(storage, at, structure.tableClusters),
    },
  };
}

function layOut(storage: Storage, scan: Scan, targets: Targets, grows: boolean): Structure {
  const { refcountsPerBlock, clusterSize } = scan.context.metadata.geometry;
  const needed = new Set<number>();
  for (const cluster of targets.used())
    if (targets.final(cluster) > 0) needed.add(Math.floor(cluster / refcountsPerBlock));
  let count = needed.size + 1;
  for (;;) {
    const first = findPlace(storage, scan, targets, count, grows);
    const all = new Set(needed);
    // A file that grows takes in what lay past its end.
    for (const page of scan.context.beyond.pages()) {
      for (let cluster = page; cluster < page + scan.context.beyond.pageSize; cluster++) {
        if (cluster < first + count && scan.context.beyond.get(cluster) > 0)
          all.add(Math.floor(cluster / refcountsPerBlock));
      }
    }
    const last = Math.floor((first + count - 1) / refcountsPerBlock);
    for (let index = Math.floor(first / refcountsPerBlock); index <= last; index++) all.add(index);
    const indices = [...all].sort((a, b) => a - b);
    const entries = (indices.at(-1) ?? 0) + 1;
    const table = divUp(entries * TABLE_ENTRY, clusterSize);
    if (table * clusterSize > Limit.REFCOUNT_TABLE) {
      throw new SpindleError('LIMIT', 'a refcount table for all clusters in use would be larger than 8 MiB');
    }
    if (table + indices.length <= count)
      return { first, count, tableClusters: count - indices.length, indices };
    // Only ever more: each round may move the place, which may need another block.
    count = table + indices.length;
  }
}

/** The first of `count` clusters that nothing refers to, not even from past the end of the file. */
function findPlace(storage: Storage, scan: Scan, targets: Targets, count: number, grows: boolean): number {
  const { context, own } = scan;
  const { clusterSize } = context.metadata.geometry;
  const end = Math.max(context.fileClusters, context.clusters);
  if (grows && context.beyondEnds === 0) return end;
  const whole = Math.min(Math.floor(storage.size / clusterSize), SEARCH);
  for (let cluster = 1, free = 0; cluster < whole; cluster++) {
    const isFree =
      context.references.get(cluster) === 0 && own.get(cluster) === 0 && targets.final(cluster) === 0;
    free = isFree ? free + 1 : 0;
    if (free === count) return cluster - count + 1;
  }
  if (!grows)
    throw new SpindleError(
      'NO_SPACE',
      `there are no ${String(count)} free clusters in a row for new refcounts`,
    );
  const spans = new Spans(context.beyondSpans, clusterSize);
  for (let first = end, next = end; first + count <= context.beyondLimit; next++) {
    if (next === first + count) {
      const taken = spans.touching(first * clusterSize, next * clusterSize);
      if (taken < 0) return first;
      first = taken / clusterSize;
      next = first - 1;
    } else if (context.beyond.get(next) > 0) first = next + 1;
  }
  return divUp(context.beyondEnds, clusterSize);
}

async function* buildPatches(
  storage: Storage,
  scan: Scan,
  targets: Targets,
  { first, tableClusters, indices }: Structure,
): AsyncGenerator<Patch> {
  const { clusterSize, refcountOrder, refcountsPerBlock } = scan.context.metadata.geometry;
  for (let block = 0; block < indices.length; block++) {
    const bytes = new Uint8Array(clusterSize);
    const view = viewOf(bytes);
    const start = (indices[block] ?? 0) * refcountsPerBlock;
    for (let i = 0; i < refcountsPerBlock; i++) {
      const refcount = targets.final(start + i);
      if (refcount > 0) setRefcount(view, refcountOrder, i, refcount);
    }
    const at = (first + tableClusters + block) * clusterSize;
    const why = `refcounts of the clusters from ${hex(start * clusterSize)} on`;
    yield {
      at,
      bytes,
      before: await readAvailable(storage, at, clusterSize),
      structure: 'new refcount block',
      why,
    };
  }
  let next = 0;
  for (let cluster = 0; cluster < tableClusters; cluster++) {
    const bytes = new Uint8Array(clusterSize);
    const view = viewOf(bytes);
    const from = (cluster * clusterSize) / TABLE_ENTRY;
    const to = from + clusterSize / TABLE_ENTRY;
    for (; next < indices.length && (indices[next] ?? 0) < to; next++)
      setU64(view, ((indices[next] ?? 0) - from) * TABLE_ENTRY, (first + tableClusters + next) * clusterSize);
    const at = (first + cluster) * clusterSize;
    const why = `where ${String(indices.length)} refcount blocks are`;
    yield {
      at,
      bytes,
      before: await readAvailable(storage, at, clusterSize),
      structure: 'new refcount table',
      why,
    };
  }
}

async function* switchPatch(storage: Storage, at: number, clusters: number): AsyncGenerator<Patch> {
  const length = HeaderOffset.nbSnapshots - HeaderOffset.refcountTableOffset;
  const bytes = new Uint8Array(length);
  setU64(viewOf(bytes), 0, at);
  viewOf(bytes).setUint32(8, clusters);
  const before = await readAvailable(storage, HeaderOffset.refcountTableOffset, length);
  const why = `the refcount table is at ${hex(at)}`;
  yield { at: HeaderOffset.refcountTableOffset, bytes, before, structure: 'header', why };
}
