import { out } from './output.ts';
import type { ProgressForm } from './progress.ts';
import { progressTo } from './progress.ts';

/** Milliseconds between two figures. */
const INTERVAL = 100;

/** What hears of progress; a second call may print the figure at once. */
export type Progress = (done: number, total: number) => void;

/**
 * Progress as scripts know it from qemu-img, on standard output: `    (12.34/100%)` and a carriage return, `end` at the
 * end.
 */
function percentTo(end: string): Progress {
  let next = 0;
  let finished = false;
  return (done, total) => {
    const last = done >= total;
    const now = performance.now();
    if (finished || (now < next && !last)) return;
    next = now + INTERVAL;
    finished = last;
    out(figure(done, total) + (last ? end : ''));
  };
}

function figure(done: number, total: number): string {
  return `    (${(total === 0 ? 100 : (done / total) * 100).toFixed(2)}/100%)\r`;
}

/**
 * Progress in the wanted form. SIGUSR1 asks for one figure now, in the form of `-p`, on standard output, whatever form
 * there is. `end` ends that of `-p`.
 */
export function progressOf(
  flags: {
    readonly p?: boolean;
    readonly quiet?: boolean;
    readonly progress: ProgressForm;
  },
  end = '\n',
): Progress {
  const shown =
    flags.quiet === true ? undefined : flags.p === true ? percentTo(end) : progressTo(flags.progress);
  let latest: readonly [number, number] = [0, 1];
  const onSignal = (): void => {
    out(`${figure(...latest)}\n`);
  };
  process.on('SIGUSR1', onSignal);
  return (done, total) => {
    latest = [done, total];
    shown?.(done, total);
  };
}
