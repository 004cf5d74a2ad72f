import { printColumns } from '../table.ts';
import type { Measured } from './job.ts';

/** The most memory that any job may take, bytes. */
const MEMORY = 256 * 1024 ** 2;

/** Prints what was measured, one line a job, with its bar and whether it was met. */
export function printPeers(results: readonly Measured[]): void {
  printColumns(
    ['#', 'job', 'rival', 'ours', 'rival', 'ratio', 'bar', '', 'CPU', 'rival', 'MiB', 'rival'],
    results.map(({ row, what, ours, rival, ratio, bar }) => [
      String(row),
      what,
      rival.name,
      seconds(ours.seconds),
      seconds(rival.seconds),
      ratio.toFixed(3),
      bar === undefined ? '' : `<= ${String(bar)}`,
      verdict(ratio, bar, ours.memory),
      seconds(ours.cpu),
      seconds(rival.cpu),
      (ours.memory / 1024 ** 2).toFixed(0),
      (rival.memory / 1024 ** 2).toFixed(0),
    ]),
  );
}

function verdict(ratio: number, bar: number | undefined, memory: number): string {
  if (memory > MEMORY) return 'TOO MUCH MEMORY';
  if (bar === undefined) return '';
  return ratio <= bar ? 'met' : 'NOT MET';
}

function seconds(value: number): string {
  return `${value.toFixed(value < 10 ? 3 : 1)} s`;
}
