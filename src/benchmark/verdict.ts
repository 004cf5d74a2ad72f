import type { Cell, StepResult } from './cell.ts';
import type { Plan } from './plan.ts';
import { seedOf } from './random.ts';
import { needed } from './recorder.ts';
import { medianInterval, ratioInterval, type Interval } from './statistics.ts';
import type { Subject } from './subject.ts';
import { placeOf, times, words, type Found } from './verdict-words.ts';

/** What two subjects, or two steps, are compared by. `settled` is creation until the device is quiet. */
export type Measure = 'created' | 'settled' | 'p50' | 'p99' | 'seconds' | 'extents';

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
  /** First writes that pay it back; null where it is not known, or first writes save nothing beyond chance. */
  readonly writes: number | null;
  /** Bytes of such a write, and how many of them a disk of this size takes: with more of them needed it never pays. */
  readonly bytes: number;
  readonly most: number;
  /** Why nothing may be said. */
  readonly why?: string;
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

/** What is to be known of the plan. */
export type Judged = Pick<Plan, 'seed' | 'rounds' | 'size' | 'subjects' | 'scenarios'>;

/** What the cells say. `jumped` is what the clocks did over the whole study. */
export function conclude(plan: Judged, cells: readonly Cell[], jumped: string | null): Conclusion {
  const voids = cells.flatMap(({ void: why, subject, scenario, round }) =>
    why === null ? [] : [{ subject, scenario, round, why }],
  );
  const judge = new Judge(plan, cells);
  const formats = [...new Set(plan.subjects.map(({ format }) => format))];
  const controls = formats.flatMap((format) => judge.controls(format));
  const found: Found = {
    comparisons: formats.flatMap((format) => judge.policies(format, controls)),
    firstWrites: plan.subjects
      .filter(({ control }) => !control)
      .flatMap((subject) => judge.firstWrites(subject, controls)),
    crossovers: formats.flatMap((format) => judge.crossovers(format, controls)),
  };
  const judged = formats.map((format) => {
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
    const of = ofFormat(found, format);
    return stops.length > 0
      ? { found: nothing(of), verdict: { format, given: false, lines: ['No verdict.', ...stops] } }
      : { found: of, verdict: { format, given: true, lines: words(format, plan.scenarios, of) } };
  });
  return {
    ...{ margin: MARGIN, controls, voids },
    comparisons: judged.flatMap(({ found: { comparisons } }) => comparisons),
    firstWrites: judged.flatMap(({ found: { firstWrites } }) => firstWrites),
    crossovers: judged.flatMap(({ found: { crossovers } }) => crossovers),
    verdict: judged.map(({ verdict }) => verdict),
  };
}

function ofFormat({ comparisons, firstWrites, crossovers }: Found, format: Subject['format']): Found {
  const own = (one: { readonly format: Subject['format'] }): boolean => one.format === format;
  return {
    comparisons: comparisons.filter(own),
    firstWrites: firstWrites.filter(own),
    crossovers: crossovers.filter(own),
  };
}

/** Without a verdict no figure is a finding, whoever reads them. */
function nothing({ comparisons, firstWrites, crossovers }: Found): Found {
  const why = 'no verdict was given';
  const silent = (one: Comparison): Comparison =>
    one.finding === 'none' ? one : { ...one, finding: 'none', why };
  return {
    comparisons: comparisons.map(silent),
    firstWrites: firstWrites.map(silent),
    crossovers: crossovers.map((one) => ({ ...one, writes: null, why: one.why ?? why })),
  };
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

/** Bytes that a first write gives a place to, at least: of a file system, and of qcow2 by default. */
const BLOCK = 4096;
const CLUSTER = 65536;

class Judge {
  readonly #plan: Judged;
  readonly #cells = new Map<string, Cell>();
  readonly #steps = new Map<string, Set<StepResult['step']>>();

  constructor(plan: Judged, cells: readonly Cell[]) {
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
        const pairs = this.#pairs([id, first], [id, { ...first, step: 'rewrite' }]);
        const rewritten = ratio(pairs, seedOf(this.#plan.seed, id, scenario, measure));
        return withheld({ ...{ format, ...first, of: id, by: `${id} rewritten` }, ...rewritten }, controls);
      });
    });
  }

  crossovers(format: Subject['format'], controls: readonly Comparison[]): Crossover[] {
    const own = this.#plan.subjects.filter(
      (subject) => subject.format === format && !subject.control && !subject.overlay,
    );
    const thin = own.find(({ policy }) => policy === 'thin');
    if (thin === undefined) return [];
    return own.flatMap((subject) =>
      this.#plan.scenarios.flatMap(({ id: scenario }) => {
        if (subject.policy !== 'thick-eager' && subject.policy !== 'thick-lazy') return [];
        if (this.#steps.get(scenario)?.has('rewrite') !== true) return [];
        return [this.#crossover(subject, thin, scenario, controls)];
      }),
    );
  }

  #crossover(subject: Subject, thin: Subject, scenario: string, controls: readonly Comparison[]): Crossover {
    const { id, format } = subject;
    const { size, seed } = this.#plan;
    const [creation, first]: [Where, Where] = [
      { scenario, step: null, measure: 'created' },
      { scenario, step: 'first', measure: 'seconds' },
    ];
    const [created, written] = [creation, first].map((where) => this.#pairs([id, where], [thin.id, where]));
    const minus = (pairs: readonly Values[] = [], sign: 1 | -1): Interval => {
      const all = pairs.flatMap(({ of, by, why }) => (why === null ? [sign * (of - by)] : []));
      return medianInterval(all, seedOf(seed, id, scenario, 'crossover'));
    };
    const [cost, saving, bytes] = [minus(created, 1), minus(written, -1), this.#lengthOf(id, scenario)];
    const whole = [created, written].every((pairs) => pairs?.every(({ why }) => why === null));
    const strays = [creation, first].some((where) => {
      const control = controlOf({ format, ...where }, controls);
      return control !== undefined && isDifferent(control.finding);
    });
    const why = whole ? (strays ? STRAYS : undefined) : 'not every round counts';
    const pays = why === undefined && saving.low > 0 && cost.low > 0;
    return {
      ...{ format, scenario, policy: id, cost, saving, bytes },
      writes: pays ? Math.ceil(cost.value / saving.value) : null,
      most: Math.floor(size / Math.max(bytes, format === 'raw' ? BLOCK : (subject.clusterSize ?? CLUSTER))),
      ...(why === undefined ? {} : { why }),
    };
  }

  /** Bytes of one first write. */
  #lengthOf(subject: string, scenario: string): number {
    const cell = this.#cells.get(`${subject} ${scenario} 0`);
    const first = cell?.steps.find(({ step }) => step === 'first');
    return first === undefined ? BLOCK : first.bytes / first.requests;
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
      { scenario, step: null, measure: scenario === 'create' ? ('settled' as const) : ('extents' as const) },
    ]);
  }

  #compare(format: Subject['format'], where: Where, of: string, by: string, confidence?: number): Comparison {
    const seed = seedOf(this.#plan.seed, where.scenario, where.step ?? '', where.measure, of);
    const found = ratio(this.#pairs([of, where], [by, where]), seed, confidence);
    const few = where.measure === 'p99' && found.ratio === null && this.#isShort(where);
    const why = few ? { why: `p99 needs ${String(needed(0.99))} requests a round` } : {};
    return { format, ...where, of, by, ...found, ...why };
  }

  /** Whether no image got so many requests that p99 is known. */
  #isShort({ scenario, step }: Where): boolean {
    return [...this.#cells.values()].every(
      (cell) =>
        cell.scenario !== scenario ||
        cell.steps.every((one) => one.step !== step || one.requests < needed(0.99)),
    );
  }

  /** What two subjects, or two steps of one, came to in each round. */
  #pairs(...sides: readonly [of: Side, by: Side]): Values[] {
    const isOne = sides[0][0] === sides[1][0];
    return Array.from({ length: this.#plan.rounds }, (_, round) => {
      const [of, by] = sides.map(([subject, where]) => this.#value(subject, where, round)) as [
        number,
        number,
      ];
      const works = sides.map(([subject, where]) => {
        const work = this.#workOf(subject, where, round);
        return isOne ? String(work.at(-1)) : work.join();
      });
      const same = works[0] === works[1];
      return { of, by, why: of > 0 && by > 0 ? (same ? null : UNLIKE) : MISSING };
    });
  }

  /** NaN where it is missing. Seconds are those of one request. */
  #value(subject: string, { scenario, step, measure }: Where, round: number): number {
    const cell = this.#cells.get(`${subject} ${scenario} ${String(round)}`);
    if (cell === undefined) return NaN;
    if (measure === 'created') return cell.created;
    if (measure === 'settled') return cell.quiet === null ? NaN : cell.created + cell.quiet;
    if (measure === 'extents') return cell.after?.extents ?? NaN;
    const found = cell.steps.find((one) => one.step === step);
    if (found === undefined) return NaN;
    return measure === 'seconds' ? found.seconds / found.requests : (found.latency[measure] ?? NaN);
  }

  /** Requests of each step up to the end of what is measured. */
  #workOf(subject: string, { scenario, step, measure }: Where, round: number): number[] {
    if (measure === 'created' || measure === 'settled') return [];
    const steps = this.#cells.get(`${subject} ${scenario} ${String(round)}`)?.steps ?? [];
    const last = steps.findIndex((one) => one.step === step);
    const until = step === null ? steps : steps.slice(0, last + 1);
    return until.map(({ requests }) => requests);
  }
}

/** A subject, or a step of it. */
type Side = readonly [subject: string, where: Where];

/** Two values of a round, and why they count for nothing; null: they count. */
interface Values {
  readonly of: number;
  readonly by: number;
  readonly why: string | null;
}

const MISSING = 'nothing that counts was measured';
const UNLIKE = 'not all images had the time for the same requests';

function ratio(
  pairs: readonly Values[],
  seed: number,
  confidence?: number,
): Pick<Comparison, 'ratio' | 'finding' | 'why'> {
  const bad = pairs.flatMap(({ why }) => why ?? []);
  if (bad.length > 0)
    return {
      ...{ ratio: null, finding: 'none' },
      why: `in ${String(bad.length)} of ${String(pairs.length)} rounds ${bad[0] ?? ''}`,
    };
  const [of, by] = [pairs.map((pair) => pair.of), pairs.map((pair) => pair.by)];
  const found = ratioInterval(of, by, seed, confidence);
  return { ratio: found, finding: findingOf(found) };
}

/** What an interval of ratios says. */
export function findingOf({ low, value, high }: Interval): Finding {
  if (low > 1 && value > 1 + MARGIN) return 'slower';
  if (high < 1 && value < 1 / (1 + MARGIN)) return 'faster';
  return low > 1 / (1 + MARGIN) && high < 1 + MARGIN ? 'same' : 'undecided';
}

const STRAYS = 'the control differs from itself';

function controlOf(
  of: Pick<Comparison, 'format' | 'scenario' | 'step' | 'measure'>,
  controls: readonly Comparison[],
): Comparison | undefined {
  return controls.find(
    ({ format, scenario, step, measure }) =>
      format === of.format && scenario === of.scenario && step === of.step && measure === of.measure,
  );
}

/** Nothing is said where the control differs from itself, and of an effect no larger than what the control shows, no finding. */
function withheld(comparison: Comparison, controls: readonly Comparison[]): Comparison {
  const control = controlOf(comparison, controls);
  if (control === undefined || comparison.finding === 'none') return comparison;
  if (isDifferent(control.finding)) return { ...comparison, finding: 'none', why: STRAYS };
  const far = ({ ratio }: Comparison): number => Math.abs(Math.log(ratio?.value ?? 1));
  if (isDifferent(comparison.finding) && far(comparison) <= far(control))
    return { ...comparison, finding: 'undecided', why: `the control shows as much, ${times(control.ratio)}` };
  return comparison;
}
