import { printable, SpindleError } from '../core/errors.ts';
import type { MapEntry } from '../op/map.ts';

/** One entry as a line of JSON; the lines are joined by commas. */
export function mapJsonLine(entry: MapEntry): string {
  const { start, length, depth, present, zero, data, compressed, offset, host, shared } = entry;
  const words = Object.entries({
    start,
    length,
    depth,
    present,
    zero,
    data,
    compressed,
    offset,
    host,
    shared,
  })
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => `"${key}": ${JSON.stringify(value)}`);
  return `{ ${words.join(', ')}}`;
}

/** The heading of the table for people. */
export function mapHeading(host: boolean): string {
  return row('Offset', 'Length', 'Mapped to', host ? 'On the host' : undefined, 'File');
}

/**
 * An entry as a row of the table, or undefined where there is nothing to show: the table has the data that is in some
 * file, and with `host` all that the host has something for.
 * @throws SpindleError UNSUPPORTED for data that is not plain bytes in a file, which this table cannot express
 */
export function mapRow(entry: MapEntry, host: boolean): string | undefined {
  const { start, length, data, zero, compressed, offset, file = '' } = entry;
  if (!host) {
    if (data && offset === undefined) {
      const what = compressed ? 'compressed' : 'encrypted';
      throw new SpindleError(
        'UNSUPPORTED',
        `there is ${what} data at offset ${String(start)}, which has no place in this table; use --output json`,
      );
    }
    return data && !zero ? row(hex(start), hex(length), hex(offset ?? 0), undefined, file) : undefined;
  }
  if (offset === undefined && !compressed && !data) return undefined;
  const state = `${entry.host ?? (compressed ? 'compressed' : '-')}${entry.shared === true ? ', shared' : ''}`;
  return row(hex(start), hex(length), offset === undefined ? '-' : hex(offset), state, file);
}

function row(start: string, length: string, offset: string, host: string | undefined, file: string): string {
  const left = [start, length, offset].map((text) => text.padEnd(16)).join('');
  return `${left}${host === undefined ? '' : host.padEnd(20)}${printable(file)}\n`;
}

/** Zero has no prefix, as printf has it. */
function hex(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`;
}
