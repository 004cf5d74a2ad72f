import { formatSize } from '../core/size.ts';
import type { Cell, StepResult } from '../benchmark/cell.ts';
import type { StudyDifference } from '../benchmark/compare.ts';
import type { Environment } from '../benchmark/environment.ts';
import type { Plan, Slot } from '../benchmark/plan.ts';
import { median } from '../benchmark/statistics.ts';
import type { Study } from '../benchmark/study.ts';
import { controlConfidence } from '../benchmark/verdict.ts';
import { percent, times, wayOf } from '../benchmark/verdict-words.ts';

/** Before it begins: what is measured, on what, and how. */
export function planText(plan: Plan, environment: Environment): string {
  const { fileSystem, source, kernel, load, queue } = environment;
  const way = plan.cached ? 'through the page cache' : 'past the page cache (O_DIRECT)';
  return `Allocation study, preset ${plan.preset}: ${String(plan.rounds)} rounds, disks of ${formatSize(plan.size)}, ${way}, seed ${String(plan.seed)}
Good for: ${plan.goodFor}.
On ${fileSystem ?? 'an unknown file system'} of ${source ?? 'an unknown device'}, kernel ${kernel}, scheduler ${queue['scheduler'] ?? '?'}, write cache ${queue['write_cache'] ?? '?'}, load ${load.toFixed(2)}
${wayOf(environment)}
`;
}

/** One line of progress. */
export function cellText(done: number, total: number, next: Slot | undefined, seconds: number): string {
  if (next === undefined) return '';
  const left = done === 0 ? '' : `, ${String(Math.ceil((seconds / done) * (total - done)))} s left`;
  const part = String(Math.floor((done / total) * 100)).padStart(2);
  return `${part} %  round ${String(next.round + 1)}: ${next.subject.id}, ${next.scenario.id}${left}`;
}

/** Steps of the guest that write data. */
const WRITES: ReadonlySet<StepResult['step']> = new Set(['first', 'rewrite', 'fill', 'rest', 'again']);

/** The table and the verdict. */
export function studyText({ plan, cells, reduced, conclusion, seconds }: Study): string {
  const rows: string[][] = [];
  for (const { id: scenario } of plan.scenarios) {
    for (const { id: subject } of plan.subjects) {
      const own = cells.filter(
        (cell) => cell.subject === subject && cell.scenario === scenario && cell.void === null,
      );
      const created = `${(median(own.map((cell) => cell.created)) * 1000).toFixed(1)} ms`;
      const extents = median(own.map(({ after }) => after?.extents ?? NaN));
      const names = [...new Set(own.flatMap(({ steps }) => steps.map(({ step }) => step)))];
      if (own.length === 0) rows.push([scenario, subject, 'void', ...Array.from({ length: 7 }, () => '-')]);
      else if (names.length === 0)
        rows.push(
          [scenario, subject, '', created, '', '', '', '', '', String(extents)],
          [scenario, subject, 'quiet', settledText(own)],
        );
      for (const name of names) {
        const steps = own.flatMap((cell) => cell.steps.filter(({ step }) => step === name));
        const of = (value: (step: (typeof steps)[number]) => number): number => median(steps.map(value));
        const device = of(({ step, deviceBytes, bytes }) =>
          deviceBytes === null || bytes === 0 || !WRITES.has(step) ? NaN : deviceBytes / bytes,
        );
        rows.push([
          ...[scenario, subject, name, created],
          ...[micro(of(({ latency }) => latency.p50)), micro(of(({ latency }) => latency.p99 ?? NaN))],
          ...[
            micro(of(({ latency }) => latency.max)),
            `${formatSize(of(({ bytes, seconds: took }) => bytes / took))}/s`,
          ],
          ...[
            Number.isFinite(device) ? device.toFixed(2) : WRITES.has(name) ? '?' : '-',
            Number.isFinite(extents) ? String(extents) : '?',
          ],
        ]);
      }
    }
  }
  const head = [
    'phase',
    'subject',
    'step',
    'created',
    'p50',
    'p99',
    'max',
    'throughput',
    'device',
    'extents',
  ];
  const verdicts = conclusion.verdict.map(
    ({ format, lines }) => `${format}\n${lines.map((line) => `  ${line}\n`).join('')}`,
  );
  const engines = [...new Set(cells.flatMap(({ steps }) => steps.map(({ engine }) => engine)))].join(', ');
  const less = reduced.map(
    (one) =>
      `Fewer requests: ${one.scenario}, ${one.step}: ${String(one.requests)} of ${String(one.of)} for each image, as the slowest has no time for more.\n`,
  );
  const busy = cells.filter(({ quiet, scenario }) => quiet === null && scenario !== 'create').length;
  const others =
    busy === 0
      ? ''
      : `Before ${String(busy)} of ${String(cells.length)} images it could not be seen that the device was quiet.\n`;
  return `${table([head, ...rows])}
${less.join('')}${others}Medians of rounds. "quiet" is creation until the device is quiet, "device" bytes that the device was sent for each byte written by the guest. Engines: ${engines}.

Verdict (intervals of at least 95 %, of controls ${percent(controlConfidence(plan.rounds))}; differences under ${String(conclusion.margin * 100)} % count as none)
${verdicts.join('')}
Took ${seconds.toFixed(0)} s; nothing is left behind.
`;
}

/** Creation until the device is quiet. */
function settledText(cells: readonly Cell[]): string {
  const seconds = median(cells.map(({ created, quiet }) => (quiet === null ? NaN : created + quiet)));
  return Number.isFinite(seconds) ? `${(seconds * 1000).toFixed(1)} ms` : '-';
}

function micro(nanoseconds: number): string {
  return Number.isFinite(nanoseconds) ? `${(nanoseconds / 1000).toFixed(nanoseconds < 1e5 ? 1 : 0)} µs` : '-';
}

/** Rows in columns as wide as their widest cell. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, at) => Math.max(...rows.map((row) => (row[at] ?? '').length)));
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, at) => cell.padEnd(widths[at] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}

/** Two studies side by side. */
export function differenceText(differs: readonly string[], found: readonly StudyDifference[]): string {
  const rows = found.map(({ subject, scenario, step, a, b, ratio, finding, why }) => [
    ...[scenario, subject, step ?? 'create', micro(a * 1e9), micro(b * 1e9), times(ratio)],
    why === undefined ? finding : `${finding}: ${why}`,
  ]);
  const warned = differs.map((line) => `Differs in ${line}\n`).join('');
  return `${warned}${table([['phase', 'subject', 'step', 'A', 'B', 'B by A', 'B is'], ...rows])}`;
}
