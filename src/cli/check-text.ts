import type { CheckResult } from '../format/qcow2/check/check.ts';
import type { CheckProblem } from '../format/qcow2/check/problem.ts';
import { oneLine } from './output.ts';

const WORD = { corruption: 'ERROR', leak: 'Leak', error: 'UNCHECKED' } as const;

/** One finding as a line. */
export function problemLine(problem: CheckProblem): string {
  const { kind, times, message } = problem;
  const word = times === 0 ? 'Note' : WORD[kind];
  return `${word}: ${oneLine(message)}${times > 1 ? ` (counts ${String(times)} times)` : ''}\n`;
}

/** The verdict and the statistics. The words that scripts look for are those of qemu-img. */
export function checkText(result: CheckResult): string {
  const { corruptions, leaks, checkErrors, totalClusters, allocatedClusters } = result;
  const lines: string[] = [];
  if (corruptions > 0) {
    lines.push(`${String(corruptions)} errors were found on the image.`);
    lines.push('The image is damaged: do not write to it, and copy what can be read.');
  }
  if (leaks > 0) {
    lines.push(`${String(leaks)} leaked clusters were found on the image.`);
    lines.push('They waste space and harm nothing else.');
  }
  if (checkErrors > 0) lines.push(`${String(checkErrors)} things could not be checked.`);
  if (lines.length === 0) lines.push('No errors were found on the image.');
  if (totalClusters > 0 && allocatedClusters > 0) {
    lines.push(
      [
        `${String(allocatedClusters)}/${String(totalClusters)} = ${share(allocatedClusters, totalClusters)} allocated`,
        `${share(result.fragmentedClusters, allocatedClusters)} fragmented`,
        `${share(result.compressedClusters, allocatedClusters)} compressed clusters`,
      ].join(', '),
    );
  }
  if (result.imageEndOffset > 0) lines.push(`Image end offset: ${String(result.imageEndOffset)}`);
  return lines.map((line) => `${line}\n`).join('');
}

/** A share in percent with two digits; from the middle between two to the even one, as printf does. */
function share(part: number, of: number): string {
  const hundredths = (10000 * part) / of;
  const below = Math.floor(hundredths);
  const isMiddle = hundredths - below === 0.5;
  const rounded = isMiddle && below % 2 === 0 ? below : Math.round(hundredths);
  return `${(rounded / 100).toFixed(2)}%`;
}
