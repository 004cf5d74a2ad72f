import { alignUp, divUp, isAligned } from '../../core/align.ts';
import { getU64, setU64, textOf, viewOf } from '../../core/bytes.ts';
import { formatError, isSpindleError, type SpindleError } from '../../core/errors.ts';
import { BITMAP_TYPE_DIRTY, BitmapFlag, BitmapOffset, Limit } from './layout.ts';

/** One persistent bitmap, as its directory entry tells. Offsets in bytes. */
export interface BitmapEntry {
  readonly name: string;
  /** The name as it stands in the directory. */
  readonly nameBytes: Uint8Array;
  readonly tableOffset: number;
  /** Entries. */
  readonly tableSize: number;
  readonly flags: number;
  /** Guest bytes of one bit, as a power of two. */
  readonly granularityBits: number;
  /** Host offset of the directory entry. */
  readonly offset: number;
}

/** Table entries that a bitmap needs: one for each cluster of its bits. */
export function bitmapTableSize(virtualSize: number, granularityBits: number, clusterSize: number): number {
  return divUp(divUp(divUp(virtualSize, 2 ** granularityBits), 8), clusterSize);
}

/**
 * Decodes the whole bitmap directory, which lies at host offset `offset` and must hold exactly `count` entries.
 * Bitmaps in use are taken with less care: only their place has to make sense, so that they can be removed.
 * @throws SpindleError BAD_BITMAP, LIMIT
 */
export function decodeDirectory(
  bytes: Uint8Array,
  offset: number,
  count: number,
  clusterSize: number,
  virtualSize: number,
): BitmapEntry[] {
  const view = viewOf(bytes);
  const entries: BitmapEntry[] = [];
  const names = new Set<string>();
  let at = 0;
  while (at < bytes.length) {
    if (at + BitmapOffset.extra > bytes.length) throw bad('directory entry cut short', offset + at);
    const nameLength = view.getUint16(at + BitmapOffset.nameLength);
    const extraLength = view.getUint32(at + BitmapOffset.extraLength);
    const length = alignUp(BitmapOffset.extra + extraLength + nameLength, 8);
    if (at + length > bytes.length) throw bad('directory entry cut short', offset + at);
    if (entries.length === count) throw bad('more directory entries than bitmaps', offset + at);
    if (extraLength !== 0) throw bad('extra data that spindle does not know', offset + at);
    const nameAt = at + BitmapOffset.extra;
    const nameBytes = bytes.slice(nameAt, nameAt + nameLength);
    const entry: BitmapEntry = {
      name: textOf(nameBytes),
      nameBytes,
      tableOffset: tableOffset(view, at, offset),
      tableSize: view.getUint32(at + BitmapOffset.tableSize),
      flags: view.getUint32(at + BitmapOffset.flags),
      granularityBits: view.getUint8(at + BitmapOffset.granularityBits),
      offset: offset + at,
    };
    if (entry.tableSize > Limit.BITMAP_TABLE || entry.tableSize * clusterSize > Limit.BITMAP_DATA) {
      throw formatError(
        'LIMIT',
        'bitmap directory',
        `a bitmap table of ${String(entry.tableSize)} entries is too large`,
        {
          offset: offset + at,
        },
      );
    }
    const problem = entryProblem(
      entry,
      view.getUint8(at + BitmapOffset.type),
      nameLength,
      clusterSize,
      virtualSize,
    );
    if (problem !== null) throw bad(problem, offset + at);
    const key = String.fromCharCode(...nameBytes);
    if (names.has(key)) throw bad(`two bitmaps named '${entry.name}'`, offset + at);
    names.add(key);
    entries.push(entry);
    at += length;
  }
  if (entries.length !== count) {
    throw bad(`${String(entries.length)} directory entries for ${String(count)} bitmaps`, offset);
  }
  return entries;
}

/** What a directory entry says of a bitmap. */
export type BitmapFields = Pick<
  BitmapEntry,
  'nameBytes' | 'tableOffset' | 'tableSize' | 'flags' | 'granularityBits'
>;

/** Bytes of the directory entry of a bitmap with this name. */
export function directoryEntrySize(nameBytes: Uint8Array): number {
  return alignUp(BitmapOffset.extra + nameBytes.length, 8);
}

/** The bytes of a bitmap directory. */
export function encodeDirectory(bitmaps: readonly BitmapFields[]): Uint8Array {
  const bytes = new Uint8Array(
    bitmaps.reduce((sum, { nameBytes }) => sum + directoryEntrySize(nameBytes), 0),
  );
  const view = viewOf(bytes);
  let at = 0;
  for (const bitmap of bitmaps) {
    setU64(view, at + BitmapOffset.tableOffset, bitmap.tableOffset);
    view.setUint32(at + BitmapOffset.tableSize, bitmap.tableSize);
    view.setUint32(at + BitmapOffset.flags, bitmap.flags);
    view.setUint8(at + BitmapOffset.type, BITMAP_TYPE_DIRTY);
    view.setUint8(at + BitmapOffset.granularityBits, bitmap.granularityBits);
    view.setUint16(at + BitmapOffset.nameLength, bitmap.nameBytes.length);
    bytes.set(bitmap.nameBytes, at + BitmapOffset.extra);
    at += directoryEntrySize(bitmap.nameBytes);
  }
  return bytes;
}

function tableOffset(view: DataView, at: number, offset: number): number {
  try {
    return getU64(view, at + BitmapOffset.tableOffset);
  } catch (error) {
    if (!isSpindleError(error, 'LIMIT')) throw error;
    throw bad('a table offset of 2^53 or more', offset + at);
  }
}

/** What is wrong with a directory entry, or null. */
function entryProblem(
  entry: BitmapEntry,
  type: number,
  nameLength: number,
  clusterSize: number,
  virtualSize: number,
): string | null {
  const { tableSize, granularityBits, flags } = entry;
  if (type !== BITMAP_TYPE_DIRTY) return `bitmap type ${String(type)} is unknown`;
  if ((flags & ~BitmapFlag.KNOWN) !== 0) return 'flags that spindle does not know';
  if (nameLength > Limit.BITMAP_NAME) return `a bitmap name of ${String(nameLength)} bytes is too long`;
  if (
    granularityBits < Limit.MIN_BITMAP_GRANULARITY_BITS ||
    granularityBits > Limit.MAX_BITMAP_GRANULARITY_BITS
  ) {
    return `granularity_bits is ${String(granularityBits)}, must be 9 to 31`;
  }
  if (tableSize === 0) return 'an empty bitmap table';
  if (entry.tableOffset === 0 || !isAligned(entry.tableOffset, clusterSize))
    return 'a bitmap table that is not cluster aligned';
  if ((flags & BitmapFlag.IN_USE) === 0) {
    const needed = bitmapTableSize(virtualSize, granularityBits, clusterSize);
    if (tableSize !== needed) {
      return `a bitmap table of ${String(tableSize)} entries where the virtual size needs ${String(needed)}`;
    }
  }
  return null;
}

function bad(message: string, offset: number): SpindleError {
  return formatError('BAD_BITMAP', 'bitmap directory', message, { offset });
}
