import { max, min } from 'd3-array';
import { scaleBand, scaleLinear, scaleLog } from 'd3-scale';
import { area, curveStepAfter, line } from 'd3-shape';
import { formatSize } from '../core/size.ts';
import type { Cell, StepResult } from '../benchmark/cell.ts';
import { bucketStart, median, mergedHistogram, type Histogram } from '../benchmark/statistics.ts';
import type { Drill } from '../benchmark/drill/drill.ts';
import type { Study } from '../benchmark/study.ts';
import { controlConfidence } from '../benchmark/verdict.ts';
import { percent, times, wayOf } from '../benchmark/verdict-words.ts';
import { drillSection } from './drill.ts';
import { PAGE } from './style.ts';
import { axis, chart, colourOf, duration, escaped, label, MARGIN, WIDTH, type Chart } from './svg.ts';

type Step = StepResult['step'];

/** All charts of a study. */
export function chartsOf(study: Study): Chart[] {
  const formats = [...new Set(study.plan.subjects.map(({ format }) => format))];
  return formats.flatMap((format) => [
    ...study.plan.scenarios.flatMap(({ id, title }) => {
      const names = new Set(of(study, format, id).flatMap(({ steps }) => steps.map(({ step }) => step)));
      if (names.size === 0) return [];
      const pair = names.has('rewrite') ? (['first', 'rewrite'] as const) : [...names].slice(-2);
      return [
        latencies(study, format, id, `${format}, ${title}: latency, ${pair.join(' beside ')}`, pair),
        ...(names.has('first')
          ? [overTime(study, format, id, `${format}, ${title}: mean latency over the time of first writes`)]
          : []),
      ];
    }),
    ...cost(study, format),
    space(study, format),
  ]);
}

function of({ cells }: Study, format: string, scenario: string): Cell[] {
  return cells.filter(
    (cell) => cell.void === null && cell.scenario === scenario && cell.subject.startsWith(format),
  );
}

function subjectsOf({ plan }: Study, format: string): string[] {
  return plan.subjects.filter((subject) => subject.format === format).map(({ id }) => id);
}

/** Without the format, which the title says. */
function short(subject: string): string {
  return subject.replace(/^(raw|qcow2)-/, '').replace(/^control$/, 'control');
}

function stepsOf(cells: readonly Cell[], subject: string, step: Step): StepResult[] {
  return cells
    .filter((cell) => cell.subject === subject)
    .flatMap(({ steps }) => steps.filter((one) => one.step === step));
}

/** A row for each subject and step: the distribution, and marks at p50 and p99. */
function latencies(
  study: Study,
  format: string,
  scenario: string,
  title: string,
  names: readonly Step[],
): Chart {
  const cells = of(study, format, scenario);
  const rows = subjectsOf(study, format)
    .flatMap((subject) =>
      names.map((step) => {
        const steps = stepsOf(cells, subject, step);
        return { subject, step, histogram: mergedHistogram(steps.map(({ histogram }) => histogram)), steps };
      }),
    )
    .filter(({ histogram }) => histogram.length > 0);
  const values = rows.flatMap(({ histogram }) => histogram.map(([bucket]) => bucketStart(bucket) / 1e9));
  const height = MARGIN.top + rows.length * 30 + MARGIN.bottom;
  const x = scaleLog(
    [(min(values) ?? 1e-6) / 1.1, (max(values) ?? 1) * 1.2],
    [MARGIN.left, WIDTH - MARGIN.right],
  );
  const bottom = height - MARGIN.bottom;
  const [least = 1, most = 1] = x.domain();
  const ticks = x.ticks(4).filter((tick) => /^1(e|$)/.test(tick.toExponential()) || most / least < 30);
  const drawn = rows.map(({ subject, step, histogram, steps }, row) => {
    const base = MARGIN.top + row * 30 + 27;
    const peak = max(histogram, ([, count]) => count) ?? 1;
    const shape = area<Histogram[number]>()
      .x(([bucket]) => x(bucketStart(bucket) / 1e9))
      .y0(base)
      .y1(([, count]) => base - (count / peak) * 24)
      .curve(curveStepAfter);
    const closed: Histogram = [...histogram, [(histogram.at(-1)?.[0] ?? 0) + 1, 0]];
    const at = (part: 'p50' | 'p99'): number =>
      median(steps.map(({ latency }) => latency[part] ?? NaN)) / 1e9;
    const p50 = x(at('p50')).toFixed(1);
    const name = step === names[0] ? short(subject) : '';
    return `<g class="${colourOf(subject)}">${label(4, base - 4, name)}${label(MARGIN.left - 6, base - 4, step === 'first' || step === 'rewrite' ? (step === 'first' ? '1st' : 're') : step.slice(0, 4), 'text-anchor="end" class="quiet"')}<path class="${step === names[0] ? 'fill' : 'pale'}" d="${shape(closed) ?? ''}"><title>${escaped(`${subject}, ${step}: p50 ${duration(at('p50'))}, p99 ${Number.isFinite(at('p99')) ? duration(at('p99')) : 'not known'}`)}</title></path><line stroke="var(--ink,#1f2328)" stroke-width="1.5" x1="${p50}" x2="${p50}" y1="${String(base - 25)}" y2="${String(base)}"/></g>`;
  });
  return chart(
    `${format}-${scenario}-latency`,
    title,
    height,
    axis(ticks, x, bottom, MARGIN.top, duration) +
      drawn.join('') +
      label(MARGIN.left, bottom + 30, 'the line is the median', 'class="quiet"'),
  );
}

/** Lines of mean latency over the part of the step that is done. */
function overTime(study: Study, format: string, scenario: string, title: string): Chart {
  const cells = of(study, format, scenario);
  const lines = subjectsOf(study, format).map((subject) => {
    const steps = stepsOf(cells, subject, 'first');
    const parts = steps[0]?.series.length ?? 0;
    const mean = Array.from(
      { length: parts },
      (_, at) => median(steps.map(({ series }) => series[at] ?? 0).filter((value) => value > 0)) / 1e9,
    );
    return { subject, mean };
  });
  const values = lines.flatMap(({ mean }) => mean.filter((value) => value > 0));
  const height = 230;
  const [left, bottom] = [58, height - MARGIN.bottom];
  const x = scaleLinear([0, 23], [left, WIDTH - MARGIN.right]);
  const y = scaleLog([(min(values) ?? 1e-6) / 1.1, (max(values) ?? 1) * 1.1], [bottom, MARGIN.top + 18]);
  const [low = 1, high = 1] = y.domain();
  const ticks =
    high / low > 30
      ? y.ticks(4).filter((tick) => /^1(e|$)/.test(tick.toExponential()))
      : [low, Math.sqrt(low * high), high];
  const drawn = lines.map(({ subject, mean }, at) => {
    const path =
      line<number>(
        (_, index) => x(index),
        (value) => y(value),
      ).defined((value) => value > 0)(mean) ?? '';
    const where = 4 + at * ((WIDTH - 8) / lines.length);
    return `<g class="${colourOf(subject)}"><path class="stroke" d="${path}"/><rect class="fill" x="${where.toFixed(1)}" y="${String(MARGIN.top - 4)}" width="9" height="9"/>${label(where + 12, MARGIN.top + 4, short(subject).slice(0, 13))}</g>`;
  });
  const scale = ticks.map(
    (tick) =>
      `<line class="axis" x1="${String(left)}" x2="${String(WIDTH - MARGIN.right)}" y1="${y(tick).toFixed(1)}" y2="${y(tick).toFixed(1)}"/>${label(left - 5, y(tick) + 4, duration(tick), 'text-anchor="end" class="quiet"')}`,
  );
  return chart(
    `${format}-${scenario}-time`,
    title,
    height,
    scale.join('') +
      drawn.join('') +
      label(left, bottom + 18, 'begin', 'class="quiet"') +
      label(WIDTH - MARGIN.right, bottom + 18, 'end', 'text-anchor="end" class="quiet"'),
  );
}

/** What creation costs more than thin, beside what all first writes of a whole disk would save. */
function cost(study: Study, format: string): Chart[] {
  const all = study.conclusion.crossovers.filter((one) => one.format === format);
  if (all.length === 0) return [];
  const rows = all.flatMap(({ policy, scenario, cost: pays, saving, bytes }) => {
    const writes = study.plan.size / Math.max(bytes, 65536);
    return [
      { name: `${short(policy)}: cost`, scenario, policy, kind: 'fill', ...pays },
      {
        name: scenario,
        scenario,
        policy,
        kind: 'pale',
        low: saving.low * writes,
        value: saving.value * writes,
        high: saving.high * writes,
      },
    ];
  });
  const height = MARGIN.top + rows.length * 20 + MARGIN.bottom;
  const left = 128;
  const x = scaleLinear(
    [Math.min(0, min(rows, ({ low }) => low) ?? 0), max(rows, ({ high }) => high) ?? 1],
    [left, WIDTH - 24],
  ).nice(4);
  const y = scaleBand(
    rows.map((_, at) => String(at)),
    [MARGIN.top, height - MARGIN.bottom],
  ).padding(0.25);
  const bars = rows.map(({ name, policy, kind, low, value, high }, at) => {
    const top = y(String(at)) ?? 0;
    const middle = (top + y.bandwidth() / 2).toFixed(1);
    return `<g class="${colourOf(policy)}"><rect class="${kind}" x="${Math.min(x(0), x(value)).toFixed(1)}" y="${top.toFixed(1)}" width="${Math.abs(x(value) - x(0)).toFixed(1)}" height="${y.bandwidth().toFixed(1)}"/><line stroke="var(--ink,#1f2328)" x1="${x(low).toFixed(1)}" x2="${x(high).toFixed(1)}" y1="${middle}" y2="${middle}"/>${label(4, top + y.bandwidth() - 3, name.slice(0, 22))}</g>`;
  });
  const bottom = height - MARGIN.bottom;
  return [
    chart(
      `${format}-cost`,
      `${format}: what creation costs more than thin, and (pale) what first writes to all of the disk then save, one in each 64 KiB`,
      height,
      axis(x.ticks(3), x, bottom, MARGIN.top, duration) + bars.join(''),
    ),
  ];
}

/** Bytes on the host before and after, and extents. */
function space(study: Study, format: string): Chart {
  const scenario = study.plan.scenarios.filter(({ id }) => id !== 'create').at(-1)?.id ?? 'create';
  const rows = subjectsOf(study, format).map((subject) => {
    const cells = of(study, format, scenario).filter((cell) => cell.subject === subject);
    const mid = (value: (cell: Cell) => number | undefined): number =>
      median(cells.map((cell) => value(cell) ?? 0)) || 0;
    return {
      subject,
      written: mid(({ after }) => after?.written),
      unwritten: mid(({ after }) => after?.unwritten),
      extents: mid(({ after }) => after?.extents),
    };
  });
  const height = MARGIN.top + rows.length * 30 + MARGIN.bottom;
  const x = scaleLinear(
    [0, (max(rows, ({ written, unwritten }) => written + unwritten) ?? 1) * 1.02],
    [MARGIN.left, WIDTH - 92],
  );
  const bars = rows.map(({ subject, written, unwritten, extents }, at) => {
    const top = MARGIN.top + at * 30 + 6;
    return `<g class="${colourOf(subject)}">${label(4, top + 13, short(subject).slice(0, 15))}<rect class="fill" x="${String(MARGIN.left)}" y="${String(top)}" width="${(x(written) - MARGIN.left).toFixed(1)}" height="18"/><rect class="pale" x="${x(written).toFixed(1)}" y="${String(top)}" width="${(x(unwritten) - MARGIN.left).toFixed(1)}" height="18"/>${label(WIDTH - 4, top + 13, `${String(extents)} extents`, 'text-anchor="end"')}</g>`;
  });
  const bottom = height - MARGIN.bottom;
  return chart(
    `${format}-space`,
    `${format}: space after "${scenario}", written and (pale) reserved`,
    height,
    axis(x.ticks(2), x, bottom, MARGIN.top, (bytes) => formatSize(bytes)) + bars.join(''),
  );
}

/** The report as one HTML file that loads nothing; with the drill where there was one. */
export function pageOf(study: Study, drill?: Drill): string {
  const { plan, environment, conclusion } = study;
  const charts = chartsOf(study).map(({ name, svg }) => `<figure id="${escaped(name)}">${svg}</figure>`);
  const verdicts = conclusion.verdict.map(
    ({ format, given, lines }) =>
      `<section class="verdict ${given ? 'given' : 'none'}"><h3>${format}</h3><ul>${lines.map((line) => `<li>${escaped(line)}</li>`).join('')}</ul></section>`,
  );
  const facts: readonly (readonly [string, string])[] = [
    ['started', study.started],
    ['took', `${study.seconds.toFixed(0)} s`],
    ['preset', `${plan.preset}: good for ${plan.goodFor}`],
    ['seed', String(plan.seed)],
    ['rounds', String(plan.rounds)],
    ['disk', formatSize(plan.size)],
    ...study.reduced.map(
      ({ scenario, step, requests, of: all }) =>
        [
          'fewer requests',
          `${scenario}, ${step}: ${String(requests)} of ${String(all)} for each image, as the slowest has no time for more`,
        ] as const,
    ),
    ['requests', plan.cached ? 'through the page cache' : 'past the page cache (O_DIRECT)'],
    [
      'engines',
      [...new Set(study.cells.flatMap(({ steps }) => steps.map(({ engine }) => engine)))].join(', '),
    ],
    ['kernel', environment.kernel],
    ['file system', `${environment.fileSystem ?? 'unknown'} (${environment.mountOptions.join(', ')})`],
    ['device', environment.source ?? 'unknown'],
    ...Object.entries(environment.queue),
    ['processor', `${String(environment.processors)} × ${environment.processor}`],
    ['memory', formatSize(environment.memory)],
    ['load', `${environment.load.toFixed(2)} before, ${study.loadAfter.toFixed(2)} after`],
  ];
  const controls = conclusion.controls
    .filter(({ measure }) => measure === 'seconds' || measure === 'created')
    .map(
      ({ format, scenario, step, measure, ratio, finding }) =>
        `<tr><td>${format}</td><td>${escaped(scenario)}</td><td>${step ?? measure}</td><td>${times(ratio)}</td><td>${finding}</td></tr>`,
    );
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>Thin or thick: ${escaped(environment.fileSystem ?? '')}</title>
<style>${PAGE}</style></head><body><main>
<h1>Thin or thick?</h1>
<p>What an allocation policy costs on this storage, measured by <code>spindle bench allocation</code>.</p>
<h2>Verdict</h2><div class="verdicts">${verdicts.join('')}</div>
<p class="quiet">Ratios are medians over ${String(plan.rounds)} rounds, paired by round, with bootstrap intervals of at least 95 %; controls are judged by intervals of ${percent(controlConfidence(plan.rounds))}, as there are many. Differences under ${String(conclusion.margin * 100)} % count as none.
${escaped(wayOf(environment))}</p>
<h2>Charts</h2><div class="charts">${charts.join('\n')}</div>${drill === undefined ? '' : `\n${drillSection(drill)}`}
<h2>Control</h2><p class="quiet">The first policy of each format measured twice. What differs here is noise.</p>
<div class="wide"><table><thead><tr><th>format</th><th>phase</th><th>step</th><th>ratio</th><th>finding</th></tr></thead><tbody>${controls.join('')}</tbody></table></div>
<h2>Environment</h2><dl>${facts.map(([name, value]) => `<dt>${escaped(name)}</dt><dd>${escaped(value)}</dd>`).join('')}</dl>
</main></body></html>
`;
}
