import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { runTool } from '../../storage/tool.ts';

/*
 * The reports of the lvm2 tools, which they give as JSON.
 */

/** A row of a report: what was asked for, as text. */
export type Row = Readonly<Record<string, string | undefined>>;

/** Milliseconds that LVM may take. */
const LVM_TIME = 120_000;

/** What lvm2 says where a volume group is full. */
const FULL = /insufficient (free space|suitable allocatable extents)|not enough free extents/i;

/** Runs a tool of lvm2 with options, and with names that none of them can be taken for. @throws SpindleError NO_SPACE, TOOL_MISSING, TOOL_FAILED, TOOL_TIMEOUT */
export async function lvm(
  program: string,
  options: readonly string[],
  ...names: readonly string[]
): Promise<{ stdout: string }> {
  try {
    return await runTool(program, [...options, ...(names.length === 0 ? [] : ['--', ...names])], {
      timeout: LVM_TIME,
    });
  } catch (error) {
    if (!isSpindleError(error, 'TOOL_FAILED') || !FULL.test(error.message)) throw error;
    throw new SpindleError('NO_SPACE', error.message, { cause: error });
  }
}

/** The rows of kind `kind` in what a tool printed with `--reportformat json`. @throws SpindleError TOOL_FAILED */
export function parseReport(text: string, kind: 'lv' | 'vg' | 'pv'): Row[] {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new SpindleError('TOOL_FAILED', `the report of lvm2 is no JSON: ${text.slice(0, 100)}`, {
      cause: error,
    });
  }
  const { report } = parsed as { report?: unknown };
  const rows = Array.isArray(report)
    ? (report as Readonly<Record<string, unknown>>[]).flatMap((part) => part[kind])
    : [];
  return rows.filter((row) => typeof row === 'object' && row !== null) as Row[];
}

/** Asks `lvs`, `vgs` or `pvs` for some columns; sizes come in bytes. */
export async function report(
  kind: 'lv' | 'vg' | 'pv',
  columns: readonly string[],
  names: readonly string[],
): Promise<Row[]> {
  const form = ['--reportformat', 'json', '--units', 'b', '--nosuffix', '--options', columns.join(',')];
  const { stdout } = await lvm(`${kind}s`, form, ...names);
  return parseReport(stdout, kind);
}

/** The bytes in a column. */
export function bytesIn(row: Row, column: string): number {
  const value = Number(row[column]);
  return Number.isFinite(value) ? value : 0;
}

/** Where a segment lies: `/dev/vdb(0),/dev/vdc(25)`, each with its first extent. */
export function parseDevices(text: string): { device: string; extent: number }[] {
  return Array.from(text.matchAll(/([^,()]+)\((\d+)\)/g), ([, device = '', extent]) => ({
    device,
    extent: Number(extent),
  })).filter(({ device }) => device.startsWith('/'));
}
