import { alignDown, alignUp } from '../../../core/align.ts';
import { hex } from '../../../core/bytes.ts';
import { bitmapReserved, offsetOf } from '../entry.ts';
import { TABLE_ENTRY } from '../layout.ts';
import type { CheckContext } from './context.ts';
import { readTables } from './read-tables.ts';
import { sortSpans, sweep } from './sweep.ts';

/** Names the regions whose place the header and its extensions tell. Those of snapshots come with their L1 tables. */
export function findRegions(context: CheckContext): void {
  const { header, geometry, known, bitmaps, snapshotTableSize, snapshotProblem } = context.metadata;
  const add = (structure: string, at: number, length: number): void => {
    context.regions.push({ structure, at, end: at + length });
  };
  add('header', 0, geometry.clusterSize);
  add('L1 table', header.l1TableOffset, header.l1Size * TABLE_ENTRY);
  if (snapshotProblem === null) add('snapshot table', header.snapshotsOffset, snapshotTableSize);
  add('refcount table', header.refcountTableOffset, header.refcountTableClusters * geometry.clusterSize);
  if (known.crypto !== undefined) add('encryption header', known.crypto.offset, known.crypto.length);
  if (known.bitmaps !== undefined && bitmaps.length > 0) {
    add('bitmap directory', known.bitmaps.directoryOffset, known.bitmaps.directorySize);
    for (const bitmap of bitmaps) add('bitmap table', bitmap.tableOffset, bitmap.tableSize * TABLE_ENTRY);
  }
}

/** Counts the clusters of all regions: each cluster once for each region, however many overlap. */
export function countRegions(context: CheckContext): void {
  const { clusterSize } = context.metadata.geometry;
  const spans = [];
  for (const { structure, at, end } of context.regions) {
    if (end === at) continue;
    if (context.isBeyondEnd(at, end - at)) context.beyondEnd(structure, at, end - at, 1);
    else spans.push({ at: alignDown(at, clusterSize), end: alignUp(end, clusterSize) });
  }
  const { starts, ends } = sortSpans(spans);
  for (const { at, end, opened, closed } of sweep(starts, ends)) {
    context.count('metadata', at, end - clusterSize - at, opened - closed);
    // The last cluster may lie half past the end of the file, which its region, unrounded, does not.
    const last = end / clusterSize - 1;
    context.references.add(last, opened - closed);
    if (last >= context.clusters) context.clusters = last + 1;
  }
}

/** Counts the data of bitmaps. Where tables overlap, each entry is read once and counted for all. */
export async function checkBitmaps(context: CheckContext): Promise<void> {
  const { clusterSize } = context.metadata.geometry;
  const { starts, ends } = sortSpans(
    context.metadata.bitmaps.map(({ tableOffset, tableSize }) => ({
      at: tableOffset,
      end: Math.min(tableOffset + tableSize * TABLE_ENTRY, context.fileSize),
    })),
  );
  for await (const parts of readTables(context.storage, sweep(starts, ends), context.signal)) {
    for (const { piece, at, view, length, error } of parts) {
      if (view === null) {
        context.unreadable('bitmap table', at, error);
        continue;
      }
      const times = piece.opened - piece.closed;
      for (let i = 0; i < length; i += TABLE_ENTRY) {
        const hi = view.getUint32(i);
        const lo = view.getUint32(i + 4);
        const offset = offsetOf(hi, lo);
        if (bitmapReserved(hi, lo) || (lo & (clusterSize - 1) & ~511) !== 0) {
          context.log.corruption(times, () => ({
            code: 'BITMAP_ENTRY',
            structure: 'bitmap table',
            message: `bitmap table entry at ${hex(at + i)}: reserved bits are set, or its cluster is not aligned`,
            hostOffset: at + i,
            repair: 'none',
          }));
        } else if (offset !== 0) context.count('bitmap data', offset, clusterSize, times);
      }
    }
  }
}
