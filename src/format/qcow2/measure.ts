import { alignUp, divUp } from '../../core/align.ts';
import { luksLength } from '../crypto/luks-create.ts';
import type { BitmapEntry } from './bitmap.ts';
import { bitmapTableSize } from './bitmap.ts';
import { bytesOf } from '../../core/bytes.ts';
import type { Qcow2CreateOptions } from './create.ts';
import { geometryOf, l1SizeFor, refcountClustersFor } from './geometry.ts';
import { BitmapOffset, TABLE_ENTRY } from './layout.ts';

/** How long an image file may become. Bytes. */
export interface Qcow2Length {
  /** With its tables and the data that there is now; the tables count for the whole disk. */
  readonly required: number;
  /** With every cluster of the disk in it. */
  readonly fullyAllocated: number;
}

/**
 * The length of a new image that holds `dataClusters` clusters of data: the tables of a full image, with the clusters
 * that hold no data taken away. Data in an external data file counts too, and LUKS takes whole clusters.
 */
export function measureQcow2(options: Qcow2CreateOptions, dataClusters: number): Qcow2Length {
  const { size, clusterSize, preallocation, encryption } = options;
  const geometry = geometryOf(Math.log2(clusterSize), Math.log2(options.refcountBits), options.extendedL2);
  const disk = divUp(size, clusterSize);
  const l2 = l1SizeFor(geometry, size);
  const l1 = divUp(l2 * TABLE_ENTRY, clusterSize);
  const described = 1 + l1 + l2 + disk;
  const refcounts = refcountClustersFor(geometry, described);
  const luks = encryption?.format === 'luks' ? divUp(luksLength(encryption.luks), clusterSize) : 0;
  const all = described + refcounts.blocks + refcounts.table + luks;
  const thick = preallocation === 'full' || preallocation === 'falloc';
  return {
    required: (all - disk + (thick ? disk : dataClusters)) * clusterSize,
    fullyAllocated: all * clusterSize,
  };
}

/**
 * Bytes that the bitmaps of an image with a disk of `size` bytes take in an image with other clusters, if all of each
 * bitmap is stored.
 */
export function measureBitmaps(bitmaps: readonly BitmapEntry[], size: number, clusterSize: number): number {
  let clusters = 0;
  let directory = 0;
  for (const { name, granularityBits } of bitmaps) {
    const table = bitmapTableSize(size, granularityBits, clusterSize);
    clusters += table + divUp(table * TABLE_ENTRY, clusterSize);
    directory += alignUp(BitmapOffset.extra + bytesOf(name).length, 8);
  }
  return (clusters + divUp(directory, clusterSize)) * clusterSize;
}
