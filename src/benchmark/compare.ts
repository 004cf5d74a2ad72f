import { SpindleError } from '../core/errors.ts';
import type { Study } from './study.ts';
import { findingOf, type Finding } from './verdict.ts';
import { medianInterval, type Interval } from './statistics.ts';
import { seeded, seedOf } from './random.ts';

/** One figure of two studies; the ratio is how many times as long the second takes. */
export interface StudyDifference {
  readonly subject: string;
  readonly scenario: string;
  /** null: until creation is durable. */
  readonly step: string | null;
  /** Seconds a request, or of creation. */
  readonly a: number;
  readonly b: number;
  readonly ratio: Interval;
  readonly finding: Finding;
  /** Why nothing may be said. */
  readonly why?: string;
}

/** The study in the text of a JSON file. @throws SpindleError UNKNOWN_FORMAT */
export function parseStudy(text: string, path: string): Study {
  let found: unknown;
  try {
    found = JSON.parse(text);
  } catch (cause) {
    throw new SpindleError('UNKNOWN_FORMAT', 'this is no JSON of a study', { path, cause });
  }
  const { kind, version, cells, reduced, conclusion, plan, environment } = (found ?? {}) as Partial<Study>;
  const whole = [cells, reduced, conclusion?.verdict, conclusion?.controls, plan?.subjects].every(
    Array.isArray,
  );
  if (kind !== 'spindle bench allocation' || version !== 1 || !whole || environment === undefined)
    throw new SpindleError('UNKNOWN_FORMAT', 'this is no study of bench allocation --json', { path });
  return found as Study;
}

/** What differs in the conditions of two studies, so that a difference may come from there. */
export function conditions(a: Study, b: Study): string[] {
  const of = ({ cells, environment, plan, reduced }: Study): Record<string, string> => ({
    kernel: environment.kernel,
    'file system': environment.fileSystem ?? 'unknown',
    'mount options': environment.mountOptions.join(','),
    'page cache': String(plan.cached),
    'size of the disk': String(plan.size),
    requests: JSON.stringify([plan.scale, reduced]),
    queue: JSON.stringify(environment.queue),
    'thread pool': String(environment.pool),
    engine: cells.flatMap(({ steps }) => steps.map(({ engine }) => engine))[0] ?? '',
  });
  const [left, right] = [of(a), of(b)];
  return Object.keys(left).flatMap((key) =>
    left[key] === right[key] ? [] : [`${key}: ${left[key] ?? ''} and ${right[key] ?? ''}`],
  );
}

/**
 * The figures of two studies side by side. They were not measured in the same rounds, so nothing is paired: each interval
 * is of the ratio of two medians drawn from either study. What either study may say nothing about, for want of a verdict or
 * of a control that holds, is no finding here either.
 */
export function compareStudies(a: Study, b: Study): StudyDifference[] {
  const [left, right] = [valuesOf(a), valuesOf(b)];
  return [...left].flatMap(([key, { values, ...where }]) => {
    const other = right.get(key);
    if (other === undefined) return [];
    const random = seeded(seedOf(a.plan.seed, key));
    const draw = (from: readonly number[]): number[] =>
      from.map(() => from[Math.floor(random() * from.length)] ?? NaN).sort((x, y) => x - y);
    const middle = (from: readonly number[]): number => medianInterval(from, 1).value;
    const ratios = Array.from(
      { length: 1000 },
      () => middleOf(draw(other.values)) / middleOf(draw(values)),
    ).sort((x, y) => x - y);
    const ratio = {
      ...{ low: ratios[25] ?? NaN, high: ratios[974] ?? NaN },
      value: middle(other.values) / middle(values),
    };
    const why = silence(a, where) ?? silence(b, where);
    return [
      {
        ...{ ...where, a: middle(values), b: middle(other.values), ratio },
        ...(why === null ? { finding: findingOf(ratio) } : { finding: 'none', why }),
      },
    ];
  });
}

/** Why a study may say nothing about a figure; null: it may. */
function silence(
  { conclusion, plan }: Study,
  { subject, scenario, step }: Pick<StudyDifference, 'subject' | 'scenario' | 'step'>,
): string | null {
  const format = plan.subjects.find(({ id }) => id === subject)?.format;
  if (conclusion.verdict.find((one) => one.format === format)?.given !== true) return 'no verdict was given';
  const measure = step === null ? 'created' : 'seconds';
  const control = conclusion.controls.find(
    (one) =>
      one.format === format && one.scenario === scenario && one.step === step && one.measure === measure,
  );
  const strays = control?.finding === 'slower' || control?.finding === 'faster';
  return strays ? 'its control differs from itself' : null;
}

function middleOf(sorted: readonly number[]): number {
  const half = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(half)] ?? NaN) + (sorted[Math.ceil(half)] ?? NaN)) / 2;
}

interface Values {
  readonly subject: string;
  readonly scenario: string;
  readonly step: string | null;
  readonly values: number[];
}

function valuesOf({ cells }: Study): Map<string, Values> {
  const found = new Map<string, Values>();
  const add = (subject: string, scenario: string, step: string | null, value: number): void => {
    const key = `${subject} ${scenario} ${step ?? ''}`;
    const entry = found.get(key) ?? { subject, scenario, step, values: [] };
    entry.values.push(value);
    found.set(key, entry);
  };
  for (const { subject, scenario, created, steps, void: spoiled } of cells) {
    if (spoiled !== null) continue;
    add(subject, scenario, null, created);
    for (const { step, seconds, requests } of steps) add(subject, scenario, step, seconds / requests);
  }
  return found;
}
