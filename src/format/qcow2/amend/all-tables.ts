import { formatError } from '../../../core/errors.ts';
import { stopIfAborted, type Working } from '../../../core/working.ts';
import { sliceSizeOf } from '../tables.ts';
import { isCompressed, readEntry, type L2Entry } from '../write/l2-editor.ts';
import { Rank } from '../write/ordered-cache.ts';
import { readL1 } from '../write/snapshots.ts';
import type { WholeTables } from '../write/whole.ts';
import type { Qcow2Writer } from '../write/writer.ts';

/** An L2 table of the disk, or of snapshots, or of both. */
export interface AnyTable {
  /** Host offset. */
  readonly at: number;
  /** Guest offset of its first entry. */
  readonly guest: number;
  /** Only the active disk refers to it, and says so. */
  readonly own: boolean;
}

/** Every L2 table once, with those of internal snapshots. @throws SpindleError BAD_SNAPSHOT, BAD_ENTRY */
export async function allTables(writer: Qcow2Writer, whole: WholeTables): Promise<AnyTable[]> {
  const { snapshots, geometry } = whole.metadata;
  const { l1 } = writer.editor;
  const found = new Map<number, AnyTable>();
  for (
    let index = l1.nextUsed(0, l1.entries);
    index < l1.entries;
    index = l1.nextUsed(index + 1, l1.entries)
  ) {
    const at = l1.l2Offset(index);
    found.set(at, { at, guest: index * geometry.l1Coverage, own: l1.copied(index) });
  }
  for (const snapshot of snapshots) {
    const other = await readL1(whole, snapshot);
    const end = other.entries;
    for (let index = other.nextUsed(0, end); index < end; index = other.nextUsed(index + 1, end)) {
      const at = other.l2Offset(index);
      if (!found.has(at)) found.set(at, { at, guest: index * geometry.l1Coverage, own: false });
    }
  }
  return [...found.values()];
}

/** The entries of the slice at host offset `at` of a table, each with its number in the slice. */
export async function entriesAt(writer: Qcow2Writer, whole: WholeTables, at: number): Promise<L2Entry[]> {
  const { l2EntrySize, extendedL2 } = whole.metadata.geometry;
  const size = sliceSizeOf(whole.metadata.geometry);
  const { view } = await writer.cache.page(at, size, Rank.L2);
  return Array.from({ length: size / l2EntrySize }, (_, i) => readEntry(view, i * l2EntrySize, extendedL2));
}

/** Whether any entry of any table is such a one. Throws for the entry that `refuse` throws for. */
export async function anyEntry(
  writer: Qcow2Writer,
  whole: WholeTables,
  working: Working,
  is: (entry: L2Entry, at: number) => boolean,
): Promise<boolean> {
  const { clusterSize, l2EntrySize } = whole.metadata.geometry;
  const size = sliceSizeOf(whole.metadata.geometry);
  for (const table of await allTables(writer, whole)) {
    for (let at = table.at; at < table.at + clusterSize; at += size) {
      stopIfAborted(working.signal);
      const entries = await entriesAt(writer, whole, at);
      if (entries.some((entry, index) => is(entry, at + index * l2EntrySize))) return true;
    }
  }
  return false;
}

/** @throws SpindleError BAD_ENTRY for a version 2 image with an entry that version 3 would read as zeroes */
export async function refuseHiddenZeroes(
  writer: Qcow2Writer,
  whole: WholeTables,
  working: Working,
): Promise<void> {
  await anyEntry(writer, whole, working, (entry, offset) => {
    if (isCompressed(entry) || entry.lo % 2 === 0) return false;
    throw formatError(
      'BAD_ENTRY',
      'L2 entry',
      'a zero cluster, which version 2 does not have; check the image',
      { offset },
    );
  });
}
