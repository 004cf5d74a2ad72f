import { alignUp } from '../../core/align.ts';
import { getU64, textOf, viewOf } from '../../core/bytes.ts';
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
