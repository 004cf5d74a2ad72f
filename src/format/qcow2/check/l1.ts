import { hex, hex64 } from '../../../core/bytes.ts';
import { l1Reserved, offsetOf } from '../entry.ts';
import { Limit, TABLE_ENTRY } from '../layout.ts';
import type { CheckContext } from './context.ts';
import type { L2Tables } from './l2-tables.ts';
import { readTables, type Piece } from './read-tables.ts';
import type { StoredRefcounts } from './stored.ts';
import { sortSpans, sweep } from './sweep.ts';

/** Checks the active L1 table and collects the L2 tables that it points to. Its own clusters are counted elsewhere. */
export async function checkActiveL1(
  context: CheckContext,
  stored: StoredRefcounts,
  tables: L2Tables,
): Promise<void> {
  const { l1TableOffset, l1Size } = context.metadata.header;
  const { l1Coverage, clusterSize } = context.metadata.geometry;
  const end = Math.min(l1TableOffset + l1Size * TABLE_ENTRY, context.fileSize);
  const pieces: Piece[] = l1TableOffset < end ? [{ at: l1TableOffset, end }] : [];
  for await (const parts of readTables(context.storage, pieces, context.signal)) {
    for (const { at, view, length, error } of parts) {
      if (view === null) {
        context.unreadable('L1 table', at, error);
        continue;
      }
      for (let i = 0; i < length; i += TABLE_ENTRY) {
        const hi = view.getUint32(i);
        const lo = view.getUint32(i + 4);
        if (hi === 0 && lo === 0) continue;
        const index = (at - l1TableOffset + i) / TABLE_ENTRY;
        const offset = offsetOf(hi, lo);
        const guest = index * l1Coverage;
        checkEntry(context, hi, lo, at + i, 1, guest);
        if (offset < context.storage.size) tables.addActive(offset, index);
        if (offset === 0) continue;
        const one = stored.isOne(Math.floor(offset / clusterSize));
        if (one < 0 || one === hi >>> 31) continue;
        context.log.corruption(1, () => ({
          code: 'COPIED_WRONG',
          structure: 'L1 entry',
          message: `L1 entry ${String(index)} (guest offset ${hex(guest)}): the copied flag is ${hi >>> 31 === 1 ? 'set' : 'clear'}, but the refcount of its L2 table at ${hex(offset)} is ${one === 1 ? '1' : 'not 1'}`,
          hostOffset: offset,
          guestOffset: guest,
          repair: 'flag',
        }));
      }
    }
  }
}

/**
 * Checks the L1 tables of all snapshots and collects their L2 tables. Where the tables of several snapshots overlap,
 * each entry is read once and counted for all.
 */
export async function checkSnapshotL1s(context: CheckContext, tables: L2Tables): Promise<void> {
  const { clusterSize } = context.metadata.geometry;
  const spans: Piece[] = [];
  context.metadata.snapshots.forEach((snapshot, index) => {
    const { l1TableOffset: at, l1Size } = snapshot;
    const name = `snapshot ${String(index + 1)} ('${snapshot.name}')`;
    if (Math.floor(at / clusterSize) * clusterSize !== at) {
      context.log.corruption(1, () => ({
        code: 'SNAPSHOT_L1_UNALIGNED',
        structure: 'snapshot table',
        message: `${name}: its L1 table at ${hex(at)} is not cluster aligned`,
        hostOffset: at,
        repair: 'none',
      }));
      return;
    }
    if (l1Size * TABLE_ENTRY > Limit.L1_TABLE) {
      context.log.corruption(1, () => ({
        code: 'SNAPSHOT_L1_TOO_LARGE',
        structure: 'snapshot table',
        message: `${name}: an L1 table of ${String(l1Size)} entries is larger than 32 MiB`,
        hostOffset: at,
        repair: 'none',
      }));
      return;
    }
    const end = at + l1Size * TABLE_ENTRY;
    context.regions.push({ structure: 'L1 table of a snapshot', at, end });
    spans.push({ at, end: Math.min(end, context.fileSize) });
  });
  const { starts, ends } = sortSpans(spans);
  for await (const parts of readTables(context.storage, sweep(starts, ends), context.signal)) {
    for (const { piece, at, view, length, error } of parts) {
      if (view === null) {
        context.unreadable('L1 table of a snapshot', at, error);
        continue;
      }
      const times = piece.opened - piece.closed;
      for (let i = 0; i < length; i += TABLE_ENTRY) {
        const hi = view.getUint32(i);
        const lo = view.getUint32(i + 4);
        if (hi === 0 && lo === 0) continue;
        checkEntry(context, hi, lo, at + i, times);
        const offset = offsetOf(hi, lo);
        if (offset < context.storage.size) tables.addShared(offset, times);
      }
    }
  }
}

/** What holds for entries of any L1 table; `at` is the host offset of the entry, `times` the tables it belongs to. */
function checkEntry(
  context: CheckContext,
  hi: number,
  lo: number,
  at: number,
  times: number,
  guest?: number,
): void {
  const { clusterSize } = context.metadata.geometry;
  const where = guest === undefined ? {} : { guestOffset: guest };
  if (l1Reserved(hi, lo)) {
    context.log.corruption(times, () => ({
      code: 'L1_RESERVED',
      structure: 'L1 entry',
      message: `L1 entry at ${hex(at)}: reserved bits are set in ${hex64(hi, lo)}`,
      hostOffset: at,
      ...where,
      repair: 'entry',
    }));
  }
  const offset = offsetOf(hi, lo);
  if ((lo & (clusterSize - 1) & ~511) !== 0) {
    context.log.corruption(times, () => ({
      code: 'L2_UNALIGNED',
      structure: 'L1 entry',
      message: `L1 entry at ${hex(at)}: its L2 table at ${hex(offset)} is not cluster aligned`,
      hostOffset: at,
      ...where,
      repair: 'none',
    }));
  }
  context.count('L2 table', offset, clusterSize, times, guest);
}
