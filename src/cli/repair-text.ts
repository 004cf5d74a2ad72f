import { toHex } from '../format/qcow2/repair/hash.ts';
import type { Patch } from '../format/qcow2/repair/step.ts';
import type { RepairResult } from '../op/repair.ts';
import { oneLine } from './output.ts';

/** Bytes of a change that are shown. */
const SHOWN = 16;

/** A planned change as a line: where, what, the bytes before and after, and why. */
export function patchLine(patch: Patch): string {
  const { at, structure, before, bytes, why } = patch;
  return `Change: 0x${at.toString(16)} ${structure}: ${bytesText(before)} -> ${bytesText(bytes)}: ${oneLine(why)}\n`;
}

function bytesText(bytes: Uint8Array): string {
  if (bytes.length === 0) return '(past the end)';
  const more = bytes.length > SHOWN ? `... (${String(bytes.length)} bytes)` : '';
  return toHex(bytes.subarray(0, SHOWN)) + more;
}

/** A planned change for programs. */
export interface PlannedChange {
  readonly offset: number;
  readonly length: number;
  readonly structure: string;
  readonly old: string;
  readonly new: string;
  readonly why: string;
}

/** A planned change in the shape of JSON; long ones with their first bytes only. */
export function plannedChange({ at, structure, before, bytes, why }: Patch): PlannedChange {
  return {
    offset: at,
    length: bytes.length,
    structure,
    old: toHex(before.subarray(0, SHOWN)),
    new: toHex(bytes.subarray(0, SHOWN)),
    why,
  };
}

/** What a repair did, in front of what the check after it says; `compatible` as qemu-img, which is silent where nothing was. */
export function repairText(done: RepairResult, compatible: boolean): string {
  const lines = done.steps.map((step) => `Done: ${step}.`);
  lines.push(...snapshotLines(done, 'Dropped'));
  for (const { message } of done.left) lines.push(`Not repaired: ${oneLine(message)}`);
  if (done.changes === 0) {
    if (!compatible) lines.push('Nothing was changed.');
  } else {
    // The words that scripts look for are those of qemu-img.
    lines.push('The following inconsistencies were found and repaired:', '');
    lines.push(`    ${String(done.leaksFixed)} leaked clusters`);
    lines.push(`    ${String(done.corruptionsFixed)} corruptions`, '');
    lines.push('Double checking the fixed image now...');
  }
  return lines.map((line) => `${line}\n`).join('');
}

/** What a repair would do. */
export function dryRunText(planned: RepairResult): string {
  const lines = planned.steps.map((step, index) => `Step ${String(index + 1)}: ${step}.`);
  lines.push(...snapshotLines(planned, 'Would be dropped'));
  for (const { message } of planned.left) lines.push(`Would stay: ${oneLine(message)}`);
  if (planned.changes === 0) lines.push('A repair would change nothing.');
  else {
    const { corruptions, leaks, checkErrors } = planned.after;
    const found = [
      ...(corruptions > 0 ? [`${String(corruptions)} errors`] : []),
      ...(leaks > 0 ? [`${String(leaks)} leaked clusters`] : []),
      ...(checkErrors > 0 ? [`${String(checkErrors)} things that cannot be checked`] : []),
    ];
    lines.push(`${String(planned.changes)} changes are planned; nothing was changed.`);
    lines.push(`A check would find ${found.length === 0 ? 'no errors' : found.join(', ')} then.`);
  }
  return lines.map((line) => `${line}\n`).join('');
}

function snapshotLines({ snapshots }: RepairResult, dropped: string): string[] {
  return [
    ...snapshots.mended.map((what) => `Mended: ${oneLine(what)}`),
    ...snapshots.dropped.map((what) => `${dropped}: ${oneLine(what)}`),
  ];
}
