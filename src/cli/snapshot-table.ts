import { printable } from '../core/errors.ts';
import { formatSize } from '../core/size.ts';
import type { Snapshot } from '../format/qcow2/snapshot.ts';

/** The table of internal snapshots, with its heading; nothing where there are none. Dates are local time. */
export function snapshotTable(snapshots: readonly Snapshot[]): string[] {
  if (snapshots.length === 0) return [];
  return [
    'Snapshot list:',
    row('ID', 'TAG', 'VM_SIZE', 'DATE', 'VM_CLOCK', 'ICOUNT'),
    ...snapshots.map((snapshot) =>
      row(
        printable(snapshot.id),
        printable(snapshot.name),
        formatSize(snapshot.vmStateSize),
        localDate(snapshot.dateSeconds),
        clock(snapshot.vmClock),
        snapshot.icount === null ? '--' : String(snapshot.icount),
      ),
    ),
  ];
}

function row(id: string, tag: string, size: string, date: string, vmClock: string, icount: string): string {
  const left = `${id.padEnd(7)} ${tag.padEnd(16)} ${size.padStart(8)}`;
  return `${left} ${date.padStart(19)} ${vmClock.padStart(15)} ${icount.padStart(10)}`;
}

function localDate(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = [date.getFullYear(), date.getMonth() + 1, date.getDate()].map(twoDigits).join('-');
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(twoDigits).join(':')}`;
}

function twoDigits(value: number): string {
  return String(value).padStart(2, '0');
}

/** Nanoseconds as hours, minutes, seconds and thousandths. */
function clock(nanoseconds: bigint): string {
  const thousandths = nanoseconds / 1_000_000n;
  const seconds = thousandths / 1000n;
  const parts = [(seconds / 60n) % 60n, seconds % 60n].map((part) => String(part).padStart(2, '0'));
  const hours = String(seconds / 3600n).padStart(4, '0');
  return `${hours}:${parts.join(':')}.${String(thousandths % 1000n).padStart(3, '0')}`;
}
