import { alignUp } from '../../core/align.ts';
import { bytesOf, getU64, setU64, textOf, viewOf } from '../../core/bytes.ts';
import { formatError, isSpindleError } from '../../core/errors.ts';
import { Limit, SnapshotExtra, SnapshotOffset } from './layout.ts';

/** One internal snapshot. Offsets and sizes are bytes. */
export interface Snapshot {
  readonly l1TableOffset: number;
  /** Entries. */
  readonly l1Size: number;
  readonly id: string;
  readonly name: string;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  /** Guest clock in nanoseconds. */
  readonly vmClock: bigint;
  readonly vmStateSize: number;
  /** Virtual size at the time of the snapshot; null where the entry does not say. */
  readonly diskSize: number | null;
  /** Instruction count; null where there is none. */
  readonly icount: bigint | null;
  /** All extra data, also what spindle does not know. */
  readonly extra: Uint8Array;
  /** Bytes of the entry in the table, without the padding after it. */
  readonly entryLength: number;
}

const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

/**
 * Decodes the snapshot table entry at the start of `bytes`, which lies at host offset `offset`. Returns the number of
 * bytes needed when `bytes` is too short.
 * @throws SpindleError BAD_SNAPSHOT, LIMIT
 */
export function decodeSnapshot(bytes: Uint8Array, offset: number): Snapshot | number {
  if (bytes.length < SnapshotOffset.extra) return SnapshotOffset.extra;
  const view = viewOf(bytes);
  const idLength = view.getUint16(SnapshotOffset.idLength);
  const nameLength = view.getUint16(SnapshotOffset.nameLength);
  const extraLength = view.getUint32(SnapshotOffset.extraLength);
  if (extraLength > Limit.SNAPSHOT_EXTRA) {
    throw formatError(
      'BAD_SNAPSHOT',
      'snapshot table',
      `${String(extraLength)} bytes of extra data; at most 1024 are allowed`,
      {
        field: 'extraLength',
        offset: offset + SnapshotOffset.extraLength,
      },
    );
  }
  const entryLength = SnapshotOffset.extra + extraLength + idLength + nameLength;
  if (bytes.length < entryLength) return entryLength;
  const extra = bytes.slice(SnapshotOffset.extra, SnapshotOffset.extra + extraLength);
  const idAt = SnapshotOffset.extra + extraLength;
  const extraView = viewOf(extra);
  const u64 = (source: DataView, at: number, field: string): number => {
    try {
      return getU64(source, at);
    } catch (error) {
      if (!isSpindleError(error, 'LIMIT')) throw error;
      throw formatError('LIMIT', 'snapshot table', `${field} is 2^53 or more`, { field, offset });
    }
  };
  const icount =
    extraLength >= SnapshotExtra.icount + 8 ? extraView.getBigUint64(SnapshotExtra.icount) : NO_ICOUNT;
  return {
    l1TableOffset: u64(view, SnapshotOffset.l1TableOffset, 'the offset of the L1 table'),
    l1Size: view.getUint32(SnapshotOffset.l1Size),
    id: textOf(bytes.subarray(idAt, idAt + idLength)),
    name: textOf(bytes.subarray(idAt + idLength, entryLength)),
    dateSeconds: view.getUint32(SnapshotOffset.dateSeconds),
    dateNanoseconds: view.getUint32(SnapshotOffset.dateNanoseconds),
    vmClock: view.getBigUint64(SnapshotOffset.vmClock),
    vmStateSize:
      extraLength >= SnapshotExtra.vmStateSize + 8
        ? u64(extraView, SnapshotExtra.vmStateSize, 'the VM state size')
        : view.getUint32(SnapshotOffset.vmStateSize),
    diskSize:
      extraLength >= SnapshotExtra.diskSize + 8
        ? u64(extraView, SnapshotExtra.diskSize, 'the disk size')
        : null,
    icount: icount === NO_ICOUNT ? null : icount,
    extra,
    entryLength,
  };
}

/** Bytes from the start of one entry to the start of the next. */
export function snapshotStride(snapshot: Snapshot): number {
  return alignUp(snapshot.entryLength, 8);
}

/** Bytes of extra data that every entry has when spindle has written it. */
const WHOLE_EXTRA = 24;

/** What a new entry says. */
export interface SnapshotFields {
  readonly id: string;
  readonly name: string;
  readonly date: Date;
  readonly l1TableOffset: number;
  /** Entries. */
  readonly l1Size: number;
  /** Bytes. */
  readonly diskSize: number;
}

/** The entry of a new snapshot of a disk alone: no VM state, a clock and an instruction count of zero. */
export function encodeSnapshot(fields: SnapshotFields): Uint8Array {
  const id = bytesOf(fields.id);
  const name = bytesOf(fields.name);
  const idAt = SnapshotOffset.extra + WHOLE_EXTRA;
  const bytes = new Uint8Array(idAt + id.length + name.length);
  const view = viewOf(bytes);
  const milliseconds = Math.max(0, fields.date.getTime());
  setU64(view, SnapshotOffset.l1TableOffset, fields.l1TableOffset);
  view.setUint32(SnapshotOffset.l1Size, fields.l1Size);
  view.setUint16(SnapshotOffset.idLength, id.length);
  view.setUint16(SnapshotOffset.nameLength, name.length);
  view.setUint32(SnapshotOffset.dateSeconds, Math.floor(milliseconds / 1000));
  view.setUint32(SnapshotOffset.dateNanoseconds, Math.floor(milliseconds % 1000) * 1_000_000);
  view.setUint32(SnapshotOffset.extraLength, WHOLE_EXTRA);
  setU64(view, SnapshotOffset.extra + SnapshotExtra.diskSize, fields.diskSize);
  bytes.set(id, idAt);
  bytes.set(name, idAt + id.length);
  return bytes;
}

/**
 * An entry with at least the extra data that spindle knows; what it did not say is said as it was understood, the disk
 * size as `size`. Everything else stays as it is, to the byte.
 */
export function withWholeExtra(entry: Uint8Array, snapshot: Snapshot, size: number): Uint8Array {
  const known = snapshot.extra.length;
  if (known >= WHOLE_EXTRA) return entry;
  const idAt = SnapshotOffset.extra + known;
  const bytes = new Uint8Array(entry.length + WHOLE_EXTRA - known);
  bytes.set(entry.subarray(0, SnapshotOffset.extra));
  bytes.set(entry.subarray(idAt), SnapshotOffset.extra + WHOLE_EXTRA);
  const view = viewOf(bytes);
  view.setUint32(SnapshotOffset.extraLength, WHOLE_EXTRA);
  setU64(view, SnapshotOffset.extra + SnapshotExtra.vmStateSize, snapshot.vmStateSize);
  setU64(view, SnapshotOffset.extra + SnapshotExtra.diskSize, snapshot.diskSize ?? size);
  view.setBigUint64(SnapshotOffset.extra + SnapshotExtra.icount, snapshot.icount ?? NO_ICOUNT);
  return bytes;
}

/** The snapshot table of these entries, each at a multiple of eight bytes. */
export function encodeSnapshotTable(entries: readonly Uint8Array[]): Uint8Array {
  const places: number[] = [];
  let end = 0;
  for (const entry of entries) {
    const at = alignUp(end, 8);
    places.push(at);
    end = at + entry.length;
  }
  const table = new Uint8Array(end);
  entries.forEach((entry, index) => {
    table.set(entry, places[index]);
  });
  return table;
}
