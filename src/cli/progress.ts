import { isatty } from 'node:tty';
import { Option } from 'commander';
import { formatSize } from '../core/size.ts';
import { complain, overwrite } from './output.ts';

/** How progress is shown: `auto` is a line on a terminal, and nothing elsewhere. */
export type ProgressForm = 'auto' | 'json' | 'none';

/** `--progress auto|json|none`. */
export function progressOption(): Option {
  return new Option('--progress <FORM>', 'on standard error: a line on a terminal, lines of JSON, or nothing')
    .choices(['auto', 'json', 'none'])
    .default('auto');
}

/** Milliseconds between two reports; short work shows nothing. */
const INTERVAL = 500;

/** Hears how far work is, in bytes, and shows it. Undefined where nobody would see it. */
export function progressTo(form: ProgressForm): ((done: number, total: number) => void) | undefined {
  if (form === 'none' || (form === 'auto' && !isatty(2))) return undefined;
  const start = performance.now();
  let next = start + (form === 'json' ? 0 : INTERVAL);
  let shown = false;
  return (done, total) => {
    const now = performance.now();
    const last = done >= total;
    if (now < next && !(last && (shown || form === 'json'))) return;
    next = now + INTERVAL;
    shown = true;
    const rate = done / Math.max(now - start, 1) / 1000;
    if (form === 'json') complain(JSON.stringify({ done, total, bytesPerSecond: Math.round(rate * 1e6) }));
    else overwrite(last ? '' : barLine(done, total, rate * 1e6));
  };
}

/** `[=====     ] 47 %  9.4 GiB of 20 GiB, 1.2 GiB/s, 9 s left`. */
function barLine(done: number, total: number, rate: number): string {
  const part = done / total;
  const bar = '='.repeat(Math.floor(part * 30)).padEnd(30);
  const left = Math.ceil((total - done) / Math.max(rate, 1));
  const amounts = `${formatSize(done)} of ${formatSize(total)}, ${formatSize(rate)}/s`;
  return `[${bar}] ${String(Math.floor(part * 100)).padStart(2)} %  ${amounts}, ${String(left)} s left`;
}
