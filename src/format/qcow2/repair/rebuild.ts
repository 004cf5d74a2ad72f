import { divUp } from '../../../core/align.ts';
import { hex, setU64, viewOf } from '../../../core/bytes.ts';
import { isSpindleError, SpindleError } from '../../../core/errors.ts';
import { readAvailable } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { HeaderOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import { setRefcount } from '../refcount.ts';
import { findPlace, freeClusters, noSpace } from './free-space.ts';
import type { Scan } from './scan.ts';
import type { Patch, RepairStep } from './step.ts';
import type { Place, Targets } from './targets.ts';

/** The new refcount table, and its blocks. Clusters. */
interface Structure extends Place {
  readonly first: number;
  readonly tableClusters: number;
  /** Where each block is: behind the table if there is room for all together. */
  readonly blocks: readonly number[];
  /** Entries of the table that have a block, ascending. */
  readonly indices: readonly number[];
}

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
  const count = structure.tableClusters + structure.blocks.length;
  const end = structure.blocks.reduce(
    (last, block) => Math.max(last, (block + 1) * clusterSize),
    at + structure.tableClusters * clusterSize,
  );
  return {
    build: {
      name: 'build',
      title: `write all refcounts anew, to ${String(count)} free clusters at ${hex(at)}`,
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
  const { refcountsPerBlock } = scan.context.metadata.geometry;
  const needed = new Set<number>();
  for (const cluster of targets.used())
    if (targets.final(cluster) > 0) needed.add(Math.floor(cluster / refcountsPerBlock));
  try {
    return layOutTogether(storage, scan, targets, grows, needed);
  } catch (error) {
    if (grows || !isSpindleError(error, 'NO_SPACE')) throw error;
    return layOutScattered(storage, scan, targets, needed);
  }
}

function layOutTogether(
  storage: Storage,
  scan: Scan,
  targets: Targets,
  grows: boolean,
  needed: ReadonlySet<number>,
): Structure {
  const { refcountsPerBlock } = scan.context.metadata.geometry;
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
    const { indices, table } = tableFor(scan, all);
    if (table + indices.length <= count) {
      const tableClusters = count - indices.length;
      const blocks = indices.map((_, block) => first + tableClusters + block);
      return {
        ...{ first, tableClusters, indices, blocks },
        has: (cluster) => cluster >= first && cluster < first + count,
      };
    }
    // Only ever more: each round may move the place, which may need another block.
    count = table + indices.length;
  }
}

/** Where an image cannot grow and has no room in one piece: the table in one, each block wherever there is a cluster. */
function layOutScattered(
  storage: Storage,
  scan: Scan,
  targets: Targets,
  needed: ReadonlySet<number>,
): Structure {
  const { refcountsPerBlock } = scan.context.metadata.geometry;
  const all = new Set(needed);
  for (;;) {
    const before = all.size;
    const { indices, table } = tableFor(scan, all);
    const first = findPlace(storage, scan, targets, table, false);
    const blocks: number[] = [];
    for (const cluster of freeClusters(storage, scan, targets)) {
      if (cluster >= first && cluster < first + table) continue;
      if (blocks.length === indices.length) break;
      blocks.push(cluster);
    }
    if (blocks.length < indices.length) throw noSpace(table + indices.length);
    for (let cluster = first; cluster < first + table; cluster++)
      all.add(Math.floor(cluster / refcountsPerBlock));
    for (const block of blocks) all.add(Math.floor(block / refcountsPerBlock));
    if (all.size > before) continue;
    const taken = new Set(blocks);
    return {
      ...{ first, tableClusters: table, indices, blocks },
      has: (cluster) => taken.has(cluster) || (cluster >= first && cluster < first + table),
    };
  }
}

/** The blocks of `all`, ascending, and the clusters of a table for them. @throws SpindleError LIMIT */
function tableFor(scan: Scan, all: ReadonlySet<number>): { indices: number[]; table: number } {
  const { clusterSize } = scan.context.metadata.geometry;
  const indices = [...all].sort((a, b) => a - b);
  const table = divUp(((indices.at(-1) ?? 0) + 1) * TABLE_ENTRY, clusterSize);
  if (table * clusterSize > Limit.REFCOUNT_TABLE)
    throw new SpindleError('LIMIT', 'a refcount table for all clusters in use would be larger than 8 MiB');
  return { indices, table };
}

async function* buildPatches(
  storage: Storage,
  scan: Scan,
  targets: Targets,
  { first, tableClusters, indices, blocks }: Structure,
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
    const at = (blocks[block] ?? 0) * clusterSize;
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
      setU64(view, ((indices[next] ?? 0) - from) * TABLE_ENTRY, (blocks[next] ?? 0) * clusterSize);
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
