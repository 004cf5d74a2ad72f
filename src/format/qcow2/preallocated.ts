import { divUp, isAligned } from '../../core/align.ts';
import { viewOf } from '../../core/bytes.ts';
import { readAvailable, readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import { refcountBlockOffset } from './refcount-table.ts';
import type { Metadata } from './metadata.ts';
import { getRefcount } from './refcount.ts';
import { TABLE_ENTRY } from './layout.ts';

/**
 * Whether an image claims clearly more clusters than the host has allocated for its file: it was preallocated with
 * metadata only, and its data clusters may be holes. The threshold is qemu's (a ninth more, and at least two), so that
 * both call the same images preallocated. Stops counting at the threshold.
 */
export async function looksPreallocated(storage: Storage, metadata: Metadata): Promise<boolean> {
  if (storage.allocatedSize === undefined) return false;
  const { geometry, header } = metadata;
  const real = Math.floor((await storage.allocatedSize()) / geometry.clusterSize);
  const threshold = Math.max(Math.floor((real * 10) / 9), real + 2);
  const end = divUp(storage.size, geometry.clusterSize);
  if (end < threshold) return false;
  const table = viewOf(
    await readAvailable(
      storage,
      header.refcountTableOffset,
      header.refcountTableClusters * geometry.clusterSize,
    ),
  );
  const block = new Uint8Array(geometry.clusterSize);
  const view = viewOf(block);
  let used = 0;
  for (let index = 0; index * geometry.refcountsPerBlock < end; index++) {
    if ((index + 1) * TABLE_ENTRY > table.byteLength) break;
    const offset = refcountBlockOffset(table, index);
    if (offset === 0 || !isAligned(offset, geometry.clusterSize)) continue;
    await readPadded(storage, block, offset);
    const count = Math.min(geometry.refcountsPerBlock, end - index * geometry.refcountsPerBlock);
    for (let i = 0; i < count; i++) {
      if (getRefcount(view, geometry.refcountOrder, i) !== 0 && ++used >= threshold) return true;
    }
  }
  return false;
}
