import { viewOf } from '../../../core/bytes.ts';
import { alignUp, isAligned } from '../../../core/align.ts';
import { formatError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { hasCluster, readBitmapTable } from '../bitmap-table.ts';
import type { BitmapEntry } from '../bitmap.ts';
import { BitmapFlag, TABLE_ENTRY } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { refcountBlockOffset } from '../refcount-table.ts';
import { L1Table } from '../tables.ts';
import type { ClusterKinds } from './cluster-kinds.ts';

/**
 * Notes where the metadata of an image lies: what is known without reading more than is read at opening anyway, and what
 * the tables of its bitmaps say.
 * @throws SpindleError CORRUPT when structures overlap, BAD_ENTRY, BAD_BITMAP, LIMIT
 */
export async function claimMetadata(
  kinds: ClusterKinds,
  metadata: Metadata,
  l1: L1Table,
  refcountTable: Uint8Array,
  storage: Storage,
): Promise<void> {
  const { header, geometry, known, snapshots, snapshotTableSize, bitmaps } = metadata;
  const { clusterSize } = geometry;
  kinds.claim(0, clusterSize, 'header');
  kinds.claim(header.refcountTableOffset, refcountTable.length, 'refcount table');
  kinds.claim(header.l1TableOffset, header.l1Size * TABLE_ENTRY, 'L1 table');
  kinds.claim(header.snapshotsOffset, snapshotTableSize, 'snapshot table');
  for (const { l1TableOffset, l1Size } of snapshots) {
    kinds.claim(l1TableOffset, l1Size * TABLE_ENTRY, 'L1 table of a snapshot');
  }
  // Bitmaps that are out of date have no place of their own any more.
  if (known.bitmaps !== undefined && bitmaps.length > 0) {
    kinds.claim(known.bitmaps.directoryOffset, known.bitmaps.directorySize, 'bitmap directory');
  }
  if (known.crypto !== undefined) kinds.claim(known.crypto.offset, known.crypto.length, 'encryption header');
  const table = viewOf(refcountTable);
  for (let index = 0; index * TABLE_ENTRY < table.byteLength; index++) {
    const offset = refcountBlockOffset(table, index);
    if (offset !== 0 && isAligned(offset, clusterSize)) kinds.claim(offset, clusterSize, 'refcount block');
  }
  for (let index = 0; index < l1.entries; index++) {
    const offset = l1.l2Offset(index);
    if (offset !== 0) kinds.claim(offset, clusterSize, 'L2 table');
  }
  for (const bitmap of bitmaps) await claimBitmap(kinds, bitmap, clusterSize, storage);
}

/** What a bitmap that was in use says may be wrong: of it only what can be true is noted, and nothing is complained of. */
async function claimBitmap(
  kinds: ClusterKinds,
  bitmap: BitmapEntry,
  clusterSize: number,
  storage: Storage,
): Promise<void> {
  const { name, tableOffset, tableSize, flags } = bitmap;
  const inUse = (flags & BitmapFlag.IN_USE) !== 0;
  const fileEnd = alignUp(storage.size, clusterSize);
  const claim = (at: number, length: number, kind: 'bitmap table' | 'bitmap data'): boolean => {
    let free = at + length <= fileEnd;
    for (let part = at; free && part < at + length; part += clusterSize) {
      free = kinds.kindAt(part) === undefined;
    }
    if (free) kinds.claim(at, length, kind);
    else if (!inUse) {
      const message = `bitmap '${name}' lies over other metadata, or past the end of the file; check the image`;
      throw formatError('CORRUPT', kind, message, { offset: at });
    }
    return free;
  };
  if (!claim(tableOffset, alignUp(tableSize * TABLE_ENTRY, clusterSize), 'bitmap table')) return;
  const table = await readBitmapTable(storage, bitmap, clusterSize, inUse ? 'clear' : 'refuse');
  for (const entry of table) if (hasCluster(entry)) claim(entry, clusterSize, 'bitmap data');
}

/**
 * Notes where the L2 tables of all internal snapshots lie; reads the L1 table of each.
 * @throws SpindleError CORRUPT when structures overlap; BAD_ENTRY, IO
 */
export async function claimSnapshots(
  kinds: ClusterKinds,
  storage: Storage,
  metadata: Metadata,
): Promise<void> {
  const { clusterSize } = metadata.geometry;
  const seen = new Set<number>();
  let total = 0;
  for (const { l1TableOffset, l1Size, name } of metadata.snapshots) {
    total += l1Size * TABLE_ENTRY;
    // Tables do not share space, so that more than the file holds is damage, and need not be read.
    if (total > storage.size || !isAligned(l1TableOffset, clusterSize))
      throw formatError('CORRUPT', `snapshot '${name}'`, 'its L1 table cannot be where it should be', {
        offset: l1TableOffset,
      });
    const l1 = await L1Table.readWhole(storage, l1TableOffset, l1Size, clusterSize);
    for (
      let index = l1.nextUsed(0, l1.entries);
      index < l1.entries;
      index = l1.nextUsed(index + 1, l1.entries)
    ) {
      const table = l1.l2Offset(index);
      if (seen.has(table)) continue;
      seen.add(table);
      kinds.claimInactive(table);
    }
  }
}
