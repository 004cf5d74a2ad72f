import { divUp } from '../../core/align.ts';
import { SUBCLUSTERS, TABLE_ENTRY } from './layout.ts';

/** What follows from the cluster size, the refcount order and the kind of L2 entries. Sizes in bytes. */
export interface Geometry {
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly extendedL2: boolean;
  readonly subclusterSize: number;
  /** Bytes of an L2 entry: 8, or 16 with extended L2. */
  readonly l2EntrySize: number;
  /** Entries of an L2 table, which is one cluster. */
  readonly l2Entries: number;
  /** Guest bytes that one L1 entry, so one L2 table, covers. */
  readonly l1Coverage: number;
  readonly refcountOrder: number;
  readonly refcountBits: number;
  /** Clusters that one refcount block describes. */
  readonly refcountsPerBlock: number;
  /** Entries of one cluster of the refcount table. */
  readonly refcountTableEntriesPerCluster: number;
}

/** The geometry of an image. */
export function geometryOf(clusterBits: number, refcountOrder: number, extendedL2: boolean): Geometry {
  const clusterSize = 2 ** clusterBits;
  const l2EntrySize = extendedL2 ? 16 : 8;
  const l2Entries = clusterSize / l2EntrySize;
  const refcountBits = 2 ** refcountOrder;
  return {
    clusterBits,
    clusterSize,
    extendedL2,
    subclusterSize: extendedL2 ? clusterSize / SUBCLUSTERS : clusterSize,
    l2EntrySize,
    l2Entries,
    l1Coverage: clusterSize * l2Entries,
    refcountOrder,
    refcountBits,
    refcountsPerBlock: (clusterSize * 8) / refcountBits,
    refcountTableEntriesPerCluster: clusterSize / TABLE_ENTRY,
  };
}

/** L1 entries that a virtual size needs. */
export function l1SizeFor(geometry: Geometry, size: number): number {
  return divUp(size, geometry.l1Coverage);
}

/**
 * Clusters of the refcount blocks and of the refcount table that describe themselves and `others` more clusters, when
 * the image is laid out without gaps. Solved by iteration: each new block may need another.
 */
export function refcountClustersFor(geometry: Geometry, others: number): { blocks: number; table: number } {
  let blocks = 0;
  let table = 1;
  for (;;) {
    const nextBlocks = divUp(others + blocks + table, geometry.refcountsPerBlock);
    const nextTable = Math.max(1, divUp(nextBlocks, geometry.refcountTableEntriesPerCluster));
    if (nextBlocks === blocks && nextTable === table) return { blocks, table };
    blocks = nextBlocks;
    table = nextTable;
  }
}
