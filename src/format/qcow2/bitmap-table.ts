import { isAligned } from '../../core/align.ts';
import { setU64, viewOf } from '../../core/bytes.ts';
import { formatError } from '../../core/errors.ts';
import { readAvailable } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import type { BitmapEntry } from './bitmap.ts';
import { bitmapReserved, offsetOf, offsetTooLarge } from './entry.ts';
import { TABLE_ENTRY } from './layout.ts';

/** Entry of a bitmap table: all bits of the chunk are clear. */
export const ALL_CLEAR = 0;
/** Entry of a bitmap table: all bits of the chunk are set. */
export const ALL_SET = 1;

/**
 * A bitmap table in memory: one entry for each chunk, the bits that one cluster holds. {@link ALL_CLEAR},
 * {@link ALL_SET}, or the host offset of the cluster in bytes.
 */
export type BitmapTable = Float64Array;

/** Bytes of a bitmap table that are read at a time; a multiple of an entry. */
const READ = 1024 * 1024;

/**
 * Reads the table of a bitmap. What lies past the end of the file is clear. A bad entry throws, unless `damaged` says
 * that it counts as clear.
 * @throws SpindleError BAD_BITMAP
 */
export async function readBitmapTable(
  storage: Storage,
  { name, tableOffset, tableSize }: Pick<BitmapEntry, 'name' | 'tableOffset' | 'tableSize'>,
  clusterSize: number,
  damaged: 'refuse' | 'clear' = 'refuse',
): Promise<BitmapTable> {
  const table = new Float64Array(tableSize);
  for (let first = 0; first < tableSize; first += READ / TABLE_ENTRY) {
    const at = tableOffset + first * TABLE_ENTRY;
    const view = viewOf(await readAvailable(storage, at, Math.min(READ, (tableSize - first) * TABLE_ENTRY)));
    for (let i = 0; i + TABLE_ENTRY <= view.byteLength; i += TABLE_ENTRY) {
      const [hi, lo] = [view.getUint32(i), view.getUint32(i + 4)];
      const offset = offsetOf(hi, lo);
      const bad = bitmapReserved(hi, lo) || offsetTooLarge(hi) || !isAligned(offset, clusterSize);
      if (bad && damaged === 'refuse') {
        throw formatError('BAD_BITMAP', 'bitmap table', `bitmap '${name}' has a bad entry`, {
          offset: at + i,
        });
      }
      table[first + i / TABLE_ENTRY] = bad ? ALL_CLEAR : offset === 0 ? lo & 1 : offset;
    }
  }
  return table;
}

/** The bytes of a bitmap table. */
export function encodeBitmapTable(table: BitmapTable): Uint8Array {
  const bytes = new Uint8Array(table.length * TABLE_ENTRY);
  const view = viewOf(bytes);
  for (let i = 0; i < table.length; i++) setU64(view, i * TABLE_ENTRY, table[i] ?? 0);
  return bytes;
}

/** Whether an entry points to a cluster of bits. */
export function hasCluster(entry: number): boolean {
  return entry !== ALL_CLEAR && entry !== ALL_SET;
}
