import { alignDown } from '../../../core/align.ts';
import { COPIED } from '../entry.ts';
import { SECTOR } from '../layout.ts';
import { sliceSizeOf, type L1Table } from '../tables.ts';
import { NOWHERE, readEntry, sameEntry, type L2Entry } from './l2-editor.ts';
import { Rank } from './ordered-cache.ts';
import type { WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/**
 * Records in the bitmaps that the disk is about to become what `target` refers to, with `size` bytes: the clusters that
 * the two tables do not map to the same place, and all that the disk grows by. Bitmaps are ready for the new size then.
 * Runs inside {@link Qcow2Writer.alone}.
 * @throws SpindleError LIMIT, UNSUPPORTED before anything is changed
 */
export async function recordSwitch(
  writer: Qcow2Writer,
  whole: WholeTables,
  target: L1Table,
  size: number,
): Promise<void> {
  const { bitmaps } = writer.options;
  if (bitmaps === undefined) return;
  const { geometry, size: old } = whole.metadata;
  const { l1Coverage, clusterSize, l2EntrySize, extendedL2 } = geometry;
  const next = alignDown(size, SECTOR);
  await bitmaps.prepareSize(next);
  if (next > old) bitmaps.resize(next);
  const active = writer.editor.l1;
  const sliceSize = sliceSizeOf(geometry);
  const slice = async (table: number, at: number): Promise<DataView | null> =>
    table === 0 ? null : (await writer.cache.page(table + at, sliceSize, Rank.L2)).view;
  const entry = (view: DataView | null, within: number): L2Entry => {
    if (view === null) return NOWHERE;
    const found = readEntry(view, within, extendedL2);
    return { ...found, hi: (found.hi & ~COPIED) >>> 0 };
  };
  for (let index = 0; index * l1Coverage < next; index++) {
    const [before, after] = [active, target].map((l1) => (index < l1.entries ? l1.l2Offset(index) : 0));
    if (before === undefined || after === undefined || before === after) continue;
    for (let at = 0; at < clusterSize; at += sliceSize) {
      const [now, then] = [await slice(before, at), await slice(after, at)];
      for (let within = 0; within < sliceSize; within += l2EntrySize) {
        if (sameEntry(entry(now, within), entry(then, within))) continue;
        await bitmaps.record(index * l1Coverage + ((at + within) / l2EntrySize) * clusterSize, clusterSize);
      }
    }
  }
}
