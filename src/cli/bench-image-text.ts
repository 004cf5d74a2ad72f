import type { Flow, ImageBench, ImageFigures } from '../benchmark/image.ts';
import type { ImageBenchPlan } from '../benchmark/image-plan.ts';
import { poolSize } from '../benchmark/environment.ts';
import { needed, type Bucket } from '../benchmark/recorder.ts';
import { formatSize } from '../core/size.ts';
import { oneLine } from './output.ts';
import { table } from './study-text.ts';

/** What will be done. */
export function startText(plan: ImageBenchPlan, files: readonly string[]): string {
  const { access, step, sizes, offset, range, write, readPercent, data, seed, count, duration, depth } = plan;
  const weights = sizes.reduce((sum, { weight }) => sum + weight, 0);
  const lengths = sizes
    .map(({ size, weight }) =>
      sizes.length === 1
        ? formatSize(size)
        : `${formatSize(size)} (${((weight / weights) * 100).toFixed(0)} %)`,
    )
    .join(', ');
  const kind =
    !write || readPercent === 100
      ? 'read'
      : readPercent === 0
        ? 'write'
        : `${String(readPercent)} % read, the rest write`;
  const what = data === 'noise' ? 'noise' : data === 0 ? 'zeroes' : `the byte ${String(data)}`;
  const amount = [
    ...(count === null ? [] : [`${String(count)} requests`]),
    ...(duration === null ? [] : [`${String(duration)} s`]),
  ].join(' or ');
  const where =
    range === null
      ? offset === 0
        ? ''
        : ` from ${String(offset)} on`
      : ` within ${formatSize(range)} from ${String(offset)} on`;
  return `${String(files.length)} image${files.length === 1 ? '' : 's'}, ${amount} each, ${String(depth)} at a time: ${kind}, ${access}${access === 'strided' ? ` by ${formatSize(step)}` : ''}${where}, of ${lengths}${write && readPercent < 100 ? `, with ${what}` : ''}, seed ${String(seed)}
`;
}

/** The table, and the histogram of all requests. */
export function benchText({ images, total, cpuSeconds }: ImageBench): string {
  const rows = [
    ...images.flatMap((figures) => rowsOf(oneLine(figures.path), figures)),
    ...(images.length === 1 ? [] : rowsOf('all', total)),
  ];
  const head = ['image', '', 'requests', 'per second', 'throughput', 'p50', 'p90', 'p99', 'p99.9', 'max'];
  const { flushes, flushSeconds, seconds, all } = total;
  const few =
    all.requests < needed(0.999)
      ? `- stands where there are too few requests: p99 needs ${String(needed(0.99))}, p99.9 ${String(needed(0.999))}.\n`
      : '';
  const flushed = flushSeconds === null ? '' : `, and ${flushSeconds.toFixed(3)} s for the flush at the end`;
  const between = flushes === 0 ? '' : `, ${String(flushes)} flush${flushes === 1 ? '' : 'es'} in between`;
  return `${table([head, ...rows])}${few}
${histogramText(all.histogram)}
Took ${seconds.toFixed(3)} s${flushed}${between}; ${cpuSeconds.toFixed(2)} s of processor time. Requests go through spindle's driver: the event loop of Node is in every figure, and up to ${String(poolSize())} threads carry them to the host.
`;
}

function rowsOf(name: string, { all, reads, writes }: ImageFigures): string[][] {
  const mixed = reads.requests > 0 && writes.requests > 0;
  const flows: [string, Flow][] = mixed
    ? [
        ['read', reads],
        ['write', writes],
        ['both', all],
      ]
    : [[writes.requests > 0 ? 'write' : 'read', all]];
  return flows.map(([kind, { requests, requestsPerSecond, bytesPerSecond, latency }], at) => [
    ...[at === 0 ? name : '', kind, String(requests), requestsPerSecond.toFixed(0)],
    ...[
      `${formatSize(bytesPerSecond)}/s`,
      ...[latency.p50, latency.p90, latency.p99, latency.p999].map(time),
    ],
    time(latency.max),
  ]);
}

/** `850 ns`, `12.3 µs`, `4.5 ms`, `1.2 s`. */
function time(nanoseconds: number | null): string {
  if (nanoseconds === null) return '-';
  const [unit, name] =
    nanoseconds < 1e3
      ? [1, 'ns']
      : nanoseconds < 1e6
        ? [1e3, 'µs']
        : nanoseconds < 1e9
          ? [1e6, 'ms']
          : [1e9, 's'];
  const value = nanoseconds / unit;
  return `${value.toFixed(value < 100 && unit !== 1 ? 1 : 0)} ${name}`;
}

const BAR = 40;

/** A line for each doubling of the latency. */
export function histogramText(buckets: readonly Bucket[]): string {
  const octaves = new Map<number, number>();
  for (const { from, count } of buckets) {
    const octave = Math.floor(Math.log2(from) + 1e-9);
    octaves.set(octave, (octaves.get(octave) ?? 0) + count);
  }
  if (octaves.size === 0) return '';
  const [first, last] = [Math.min(...octaves.keys()), Math.max(...octaves.keys())];
  const counts = Array.from({ length: last - first + 1 }, (_, at) => octaves.get(first + at) ?? 0);
  const [sum, most] = [counts.reduce((all, count) => all + count, 0), Math.max(...counts)];
  const lines = counts.map((count, at) => {
    const [from, to] = [time(2 ** (first + at)), time(2 ** (first + at + 1))];
    // What there is at all is to be seen, however rare.
    const bar = '#'.repeat(count === 0 ? 0 : Math.max(1, Math.round((count / most) * BAR)));
    const part = `${((count / sum) * 100).toFixed(2)} %`;
    return `${from.padStart(9)} to ${to.padStart(9)}  ${bar.padEnd(BAR)} ${part.padStart(8)}  ${String(count)}\n`;
  });
  return `Latency of all requests\n${lines.join('')}`;
}
