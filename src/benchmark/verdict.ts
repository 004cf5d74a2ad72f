import type { Cell, StepResult } from './cell.ts';
import type { Plan } from './plan.ts';
import { seedOf } from './random.ts';
import type { Scenario } from './scenario.ts';
import { medianInterval, ratioInterval, type Interval } from './statistics.ts';
import type { Subject } from './subject.ts';

/** What two subjects, or two steps, are compared by. */
export type Measure = 'created' | 'p50' | 'p99' | 'seconds' | 'extents';

/**
 * How something compares: `slower` and `faster` where the interval excludes chance and the effect is beyond the margin,
 * `same` where the whole interval lies within it, else `undecided`. `none`: nothing may be said.
 */
export type Finding = 'slower' | 'faster' | 'same' | 'undecided' | 'none';

/** One comparison. `ratio` is how many times as much `of` takes as `by`. */
export interface Comparison {
  readonly format: Subject['format'];
  readonly scenario: string;
  readonly step: string | null;
  readonly measure: Measure;
  readonly of: string;
  readonly by: string;
  readonly ratio: Interval | null;
  readonly finding: Finding;
  /** Why nothing may be said. */
  readonly why?: string;
}

/** When eager creation pays for itself by faster first writes. */
export interface Crossover {
  readonly format: Subject['format'];
  readonly scenario: string;
  readonly policy: string;
  /** Seconds that creation takes longer than thin, and that one first write takes less. */
  readonly cost: Interval;
  readonly saving: Interval;
  /** First writes that pay it back; null where first writes save nothing beyond chance. */
  readonly writes: number | null;
}

/** What a study says. */
export interface Conclusion {
  /** Part by which two things may differ and count as the same. */
  readonly margin: number;
  readonly controls: readonly Comparison[];
  readonly comparisons: readonly Comparison[];
  /** First writes beside rewrites of the same blocks, for each subject. */
  readonly firstWrites: readonly Comparison[];
  readonly crossovers: readonly Crossover[];
  /** What counted for nothing. */
  readonly voids: readonly {
    readonly subject: string;
    readonly scenario: string;
    readonly round: number;
    readonly why: string;
  }[];
  readonly verdict: readonly {
    readonly format: Subject['format'];
    readonly given: boolean;
    readonly lines: readonly string[];
  }[];
}

/** Differences below this part are none that anybody would decide by. */
const MARGIN = 0.1;

/** What the cells say. `jumped` is what the clocks did over the whole study. */
export function conclude(
  plan: Pick<Plan, 'seed' | 'rounds' | 'subjects' | 'scenarios'>,
  cells: readonly Cell[],
  jumped: string | null,
): Conclusion {
  const voids = cells.flatMap(({ void: why, subject, scenario, round }) =>
    why === null ? [] : [{ subject, scenario, round, why }],
  );
  const judge = new Judge(plan, cells);
  const formats = [...new Set(plan.subjects.map(({ format }) => format))];
  const controls = formats.flatMap((format) => judge.controls(format));
  const comparisons = formats.flatMap((format) => judge.policies(format, controls));
  const firstWrites = plan.subjects
    .filter(({ control }) => !control)
    .flatMap((subject) => judge.firstWrites(subject, controls));
  const crossovers = formats.flatMap((format) => judge.crossovers(format));
  const verdict = formats.map((format) => {
    const stops = [
      ...(jumped === null ? [] : [`${jumped}, so that no time can be trusted`]),
      ...voidLines(voids.filter(({ subject }) => subject.startsWith(format))),
      ...controls
        .filter((control) => control.format === format && KEY.has(control.measure) && isBeyondMargin(control))
        .map(
          (control) =>
            `${placeOf(control)}: ${control.by} measured twice differs from itself, ${times(control.ratio)}: the storage is too noisy`,
        ),
    ];
    if (stops.length > 0) return { format, given: false, lines: ['No verdict.', ...stops] };
    const all = { comparisons, firstWrites, crossovers };
    return { format, given: true, lines: words(format, plan.scenarios, all) };
  });
  return { margin: MARGIN, controls, comparisons, firstWrites, crossovers, voids, verdict };
}

/** Measures whose control must hold for a verdict; tails are shown, and judged one by one. */
const KEY: ReadonlySet<Measure> = new Set(['created', 'seconds']);

/**
 * Confidence for controls: there are so many that one in twenty would stop every study. No interval of few rounds has as
 * much; seven give 0.984, and ask that all of them point one way.
 */
export function controlConfidence(rounds: number): number {
  return Math.min(0.999, 1 - 2 * 0.5 ** rounds);
}

/** A confidence as `98.4 %`, never more than it is. */
export function percent(confidence: number): string {
  return `${String(Math.floor(confidence * 1000 + 1e-9) / 10)} %`;
}

/**
 * Whether all of the interval lies beyond the margin. Of dozens of controls some stray one way in each of seven rounds by
 * chance; what they are about is withheld, and only a difference that would matter takes all of the verdict.
 */
function isBeyondMargin({ ratio, finding }: Comparison): boolean {
  if (ratio === null || !isDifferent(finding)) return false;
  return ratio.low > 1 + MARGIN || ratio.high < 1 / (1 + MARGIN);
}

function isDifferent(finding: Finding): boolean {
  return finding === 'slower' || finding === 'faster';
}

function voidLines(voids: Conclusion['voids']): string[] {
  const first = voids[0];
  if (first === undefined) return [];
  const more = voids.length === 1 ? '' : ` (and ${String(voids.length - 1)} more)`;
  return [
    `void: ${first.subject} in ${first.scenario}, round ${String(first.round + 1)}: ${first.why}${more}`,
  ];
}

type Where = Pick<Comparison, 'scenario' | 'step' | 'measure'>;

class Judge {
  readonly #plan: Pick<Plan, 'seed' | 'rounds' | 'subjects' | 'scenarios'>;
  readonly #cells = new Map<string, Cell>();
  readonly #steps = new Map<string, Set<StepResult['step']>>();

  constructor(plan: Pick<Plan, 'seed' | 'rounds' | 'subjects' | 'scenarios'>, cells: readonly Cell[]) {
    this.#plan = plan;
    for (const cell of cells) {
      if (cell.void !== null) continue;
      this.#cells.set(`${cell.subject} ${cell.scenario} ${String(cell.round)}`, cell);
      const steps = this.#steps.get(cell.scenario) ?? new Set();
      for (const { step } of cell.steps) steps.add(step);
      this.#steps.set(cell.scenario, steps);
    }
  }

  controls(format: Subject['format']): Comparison[] {
    const [first, control] = [this.#subject(format, false), this.#subject(format, true)];
    if (first === undefined || control === undefined) return [];
    return this.#wheres().map((where) =>
      this.#compare(format, where, control.id, first.id, controlConfidence(this.#plan.rounds)),
    );
  }

  /** Every policy beside the first one. */
  policies(format: Subject['format'], controls: readonly Comparison[]): Comparison[] {
    const [first, ...others] = this.#plan.subjects.filter(
      (subject) => subject.format === format && !subject.control,
    );
    if (first === undefined) return [];
    return this.#wheres().flatMap((where) =>
      others.map(({ id }) => withheld(this.#compare(format, where, id, first.id), controls)),
    );
  }

  firstWrites({ id, format }: Subject, controls: readonly Comparison[]): Comparison[] {
    return this.#plan.scenarios.flatMap(({ id: scenario }) => {
      if (this.#steps.get(scenario)?.has('rewrite') !== true) return [];
      return (['p50', 'seconds'] as const).map((measure) => {
        const first = { scenario, step: 'first', measure };
        const of = this.#values(id, first);
        const by = this.#values(id, { ...first, step: 'rewrite' });
        const rewritten = ratio(of, by, seedOf(this.#plan.seed, id, scenario, measure), this.#plan.rounds);
        return withheld({ ...{ format, ...first, of: id, by: `${id} rewritten` }, ...rewritten }, controls);
      });
    });
  }

  crossovers(format: Subject['format']): Crossover[] {
    const own = this.#plan.subjects.filter(
      (subject) => subject.format === format && !subject.control && !subject.overlay,
    );
    const thin = own.find(({ policy }) => policy === 'thin');
    if (thin === undefined) return [];
    return own.flatMap(({ id, policy }) =>
      this.#plan.scenarios.flatMap(({ id: scenario }) => {
        if (policy !== 'thick-eager' && policy !== 'thick-lazy') return [];
        if (this.#steps.get(scenario)?.has('rewrite') !== true) return [];
        const minus = (where: Where): Interval => {
          const [of, by] = [this.#values(id, where), this.#values(thin.id, where)];
          const sign = where.measure === 'created' ? 1 : -1;
          const pairs = of.map((value, at) => sign * (value - (by[at] ?? NaN))).filter(Number.isFinite);
          return medianInterval(pairs, seedOf(this.#plan.seed, id, scenario, 'crossover'));
        };
        const cost = minus({ scenario, step: null, measure: 'created' });
        const saving = minus({ scenario, step: 'first', measure: 'seconds' });
        const pays = saving.low > 0 && cost.low > 0;
        return [
          {
            format,
            scenario,
            policy: id,
            cost,
            saving,
            writes: pays ? Math.ceil(cost.value / saving.value) : null,
          },
        ];
      }),
    );
  }

  #subject(format: Subject['format'], control: boolean): Subject | undefined {
    return this.#plan.subjects.find((subject) => subject.format === format && subject.control === control);
  }

  #wheres(): Where[] {
    return this.#plan.scenarios.flatMap(({ id: scenario }) => [
      { scenario, step: null, measure: 'created' as const },
      ...[...(this.#steps.get(scenario) ?? [])].flatMap((step) =>
        (['p50', 'p99', 'seconds'] as const).map((measure) => ({ scenario, step, measure })),
      ),
      ...(scenario === 'create' ? [] : [{ scenario, step: null, measure: 'extents' as const }]),
    ]);
  }

  #compare(format: Subject['format'], where: Where, of: string, by: string, confidence?: number): Comparison {
    const seed = seedOf(this.#plan.seed, where.scenario, where.step ?? '', where.measure, of);
    const found = ratio(
      this.#values(of, where),
      this.#values(by, where),
      seed,
      this.#plan.rounds,
      confidence,
    );
    return { format, ...where, of, by, ...found };
  }

  /** The value of each round; NaN where it is missing. Seconds are those of one request. */
  #values(subject: string, { scenario, step, measure }: Where): number[] {
    return Array.from({ length: this.#plan.rounds }, (_, round) => {
      const cell = this.#cells.get(`${subject} ${scenario} ${String(round)}`);
      if (cell === undefined) return NaN;
      if (measure === 'created') return cell.created;
      if (measure === 'extents') return cell.after?.extents ?? NaN;
      const found = cell.steps.find((one) => one.step === step);
      if (found === undefined) return NaN;
      return measure === 'seconds' ? found.seconds / found.requests : found.latency[measure];
    });
  }
}

function ratio(
  of: readonly number[],
  by: readonly number[],
  seed: number,
  rounds: number,
  confidence?: number,
): Pick<Comparison, 'ratio' | 'finding' | 'why'> {
  const usable = of.filter((value, at) => value > 0 && (by[at] ?? NaN) > 0).length;
  if (usable < rounds)
    return { ratio: null, finding: 'none', why: `${String(usable)} of ${String(rounds)} rounds count` };
  const found = ratioInterval(of, by, seed, confidence);
  return { ratio: found, finding: findingOf(found) };
}

/** What an interval of ratios says. */
export function findingOf({ low, value, high }: Interval): Finding {
  if (low > 1 && value > 1 + MARGIN) return 'slower';
  if (high < 1 && value < 1 / (1 + MARGIN)) return 'faster';
  return low > 1 / (1 + MARGIN) && high < 1 + MARGIN ? 'same' : 'undecided';
}

/** Nothing is said where the control differs from itself. */
function withheld(comparison: Comparison, controls: readonly Comparison[]): Comparison {
  const control = controls.find(
    ({ format, scenario, step, measure }) =>
      format === comparison.format &&
      scenario === comparison.scenario &&
      step === comparison.step &&
      measure === comparison.measure,
  );
  if (control === undefined || !isDifferent(control.finding)) return comparison;
  return { ...comparison, finding: 'none', why: 'the control differs from itself' };
}

function placeOf({ scenario, step, measure }: Where): string {
  return step === null ? `${measure} (${scenario})` : `${step} (${scenario}), ${measure}`;
}

/** `1.9 times (1.7 to 2.2)`. */
export function times(ratio: Interval | null): string {
  if (ratio === null) return 'not to be told';
  const number = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
  return `${number(ratio.value)} times (${number(ratio.low)} to ${number(ratio.high)})`;
}

type Found = Pick<Conclusion, 'comparisons' | 'firstWrites' | 'crossovers'>;

function words(format: Subject['format'], scenarios: readonly Scenario[], found: Found): string[] {
  const own = found.comparisons.filter((comparison) => comparison.format === format);
  const titles = new Map(scenarios.map(({ id, title }) => [id, title]));
  const lines: string[] = [];
  const created = (
    own.some(({ scenario }) => scenario === 'create')
      ? own.filter(({ scenario }) => scenario === 'create')
      : own
  ).filter(({ measure }) => measure === 'created');
  for (const one of created.slice(0, new Set(created.map(({ of }) => of)).size))
    lines.push(`Creating ${one.of}: ${sentence(one)}`);
  for (const one of own.filter(({ step, measure }) => step === 'first' && measure === 'seconds'))
    lines.push(`First write of ${one.of}, ${titles.get(one.scenario) ?? one.scenario}: ${sentence(one)}`);
  for (const one of found.firstWrites.filter(
    (first) => first.format === format && first.measure === 'seconds',
  ))
    lines.push(
      `First write beside rewrite, ${one.of}, ${titles.get(one.scenario) ?? one.scenario}: ${sentence(one)}`,
    );
  for (const { policy, scenario, writes } of found.crossovers.filter(
    (one) => one.format === format && one.writes !== null,
  ))
    lines.push(
      `${policy} has paid for its creation after ${String(writes)} first write${writes === 1 ? '' : 's'} (${titles.get(scenario) ?? scenario}).`,
    );
  const firsts = own.filter(({ step, measure }) => step === 'first' && measure === 'seconds');
  if (firsts.length > 0 && firsts.every(({ finding }) => finding === 'same'))
    lines.unshift('No difference: on this store first writes take the same whatever the policy.');
  else if (firsts.length > 0 && firsts.every(({ finding }) => finding === 'undecided' || finding === 'same'))
    lines.unshift(
      'Undecided: no difference in first writes stands out from chance; more rounds (--thorough) may tell.',
    );
  return lines;
}

function sentence({ finding, ratio, by, why }: Comparison): string {
  if (finding === 'none') return `nothing can be said: ${why ?? 'not measured'}.`;
  if (finding === 'same') return `no difference from ${by}: ${times(ratio)}.`;
  if (finding === 'undecided') return `undecided: ${times(ratio)} the time of ${by}.`;
  return `${finding} than ${by}: ${times(ratio)} its time.`;
}
