import { SpindleError } from '../core/errors.ts';
import { OperationKind } from '../native/types.ts';
import { seeded, seedOf, shuffled } from './random.ts';
import { SCENARIOS, UNIT, type Scale, type Scenario } from './scenario.ts';
import { DEFAULT_SUBJECTS, subjectsOf, type Subject } from './subject.ts';

/** How much is measured, by the name of a preset. */
export type Preset = 'quick' | 'default' | 'thorough';

interface PresetPlan {
  /** Bytes of the disk. */
  readonly size: number;
  readonly rounds: number;
  readonly scale: Omit<Scale, 'unit'>;
  /** Scenarios by id; undefined: all. */
  readonly scenarios?: readonly string[];
  /** Nanoseconds after which a step begins no further request. */
  readonly limit: number;
  /** What the figures are good for. */
  readonly goodFor: string;
}

const MIB = 1024 ** 2;

/** The presets. */
export const PRESETS: Readonly<Record<Preset, PresetPlan>> = {
  quick: {
    ...{ size: 64 * MIB, rounds: 7, scale: { shallow: 64, deep: 1024, images: 2 }, limit: 1e9 },
    scenarios: ['create', 'random-sync', 'random-deep'],
    goodFor:
      'a first look: effects of a factor show, small ones do not, tails are not told, and the small disk may fit into the cache of the device',
  },
  default: {
    ...{ size: 256 * MIB, rounds: 7, scale: { shallow: 128, deep: 2048, images: 4 }, limit: 2e9 },
    goodFor: 'deciding about this store, if it was otherwise idle; tails beyond p99 are indicative only',
  },
  thorough: {
    ...{ size: 1024 * MIB, rounds: 15, scale: { shallow: 1024, deep: 8192, images: 4 }, limit: 20e9 },
    goodFor: 'publishing, with the JSON beside it; also tails up to p99.9',
  },
};

/** What is asked of a study; what is left out is of the preset. */
export interface StudyRequest {
  readonly preset?: Preset | undefined;
  readonly seed?: number | undefined;
  readonly subjects?: readonly string[] | undefined;
  readonly scenarios?: readonly string[] | undefined;
  readonly size?: number | undefined;
  readonly rounds?: number | undefined;
  /** Through the page cache of the host instead of past it. */
  readonly cached?: boolean | undefined;
  /** Threads, even where there is io_uring. */
  readonly threads?: boolean | undefined;
}

/** A study as it will be done. */
export interface Plan {
  readonly preset: Preset;
  readonly goodFor: string;
  readonly seed: number;
  readonly size: number;
  readonly rounds: number;
  readonly scale: Scale;
  readonly limit: number;
  readonly cached: boolean;
  readonly threads: boolean;
  readonly subjects: readonly Subject[];
  readonly scenarios: readonly Scenario[];
}

/** One image, or a few at once, to be made and measured. */
export interface Slot {
  readonly round: number;
  readonly subject: Subject;
  readonly scenario: Scenario;
}

/** Repeats below which no interval is worth its name. */
export const LEAST_ROUNDS = 7;

/** @throws SpindleError BAD_OPTION */
export function planOf(request: StudyRequest): Plan {
  const preset = request.preset ?? 'default';
  const standard = PRESETS[preset];
  const { size = standard.size, rounds = standard.rounds } = request;
  const seed = request.seed ?? Math.floor(Math.random() * 2 ** 31);
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (!Number.isInteger(rounds) || rounds < LEAST_ROUNDS)
    throw bad(
      `fewer than ${String(LEAST_ROUNDS)} rounds say nothing about chance, so that there are at least as many`,
    );
  if (size < 16 * MIB || size / MIB !== Math.floor(size / MIB))
    throw bad('the disks of a study are at least 16 MiB and whole MiB');
  if (!Number.isSafeInteger(seed) || seed < 0) throw bad('a seed is a whole number from 0');
  const wanted = request.scenarios ?? standard.scenarios ?? SCENARIOS.map(({ id }) => id);
  const unknown = wanted.find((id) => !SCENARIOS.some((scenario) => scenario.id === id));
  if (unknown !== undefined)
    throw bad(`there is no phase '${unknown}'; there are ${SCENARIOS.map(({ id }) => id).join(', ')}`);
  const subjects = subjectsOf(request.subjects ?? DEFAULT_SUBJECTS);
  const unit = Math.max(UNIT, ...subjects.map(({ clusterSize }) => clusterSize ?? 0));
  return {
    ...{ preset, goodFor: standard.goodFor, seed, size, rounds, limit: standard.limit },
    ...{ scale: { ...standard.scale, unit }, subjects },
    ...{ cached: request.cached === true, threads: request.threads === true },
    scenarios: SCENARIOS.filter(({ id }) => wanted.includes(id)).map((scenario) => ({
      ...scenario,
      images: Math.min(scenario.images, standard.scale.images),
    })),
  };
}

/**
 * All slots in order, those of a round and a scenario together: each round holds every scenario, and that every subject,
 * both in an order by chance.
 */
export function scheduleOf({ seed, rounds, subjects, scenarios }: Plan): Slot[][] {
  const random = seeded(seedOf(seed, 'order'));
  return Array.from({ length: rounds }, (_, round) =>
    shuffled(scenarios, random).map((scenario) =>
      shuffled(subjects, random).map((subject) => ({ round, subject, scenario })),
    ),
  ).flat();
}

/** File systems that write elsewhere what is overwritten, and give the old place back later. */
const COPYING: ReadonlySet<string> = new Set(['btrfs', 'bcachefs', 'zfs']);

/** Bytes that a study takes at most at one time on a file system of that type. */
export function roomFor({ size, scale, scenarios, subjects }: Plan, fileSystem: string | null): number {
  const copies = fileSystem !== null && COPYING.has(fileSystem);
  const most = scenarios.map(({ images, steps }) => {
    const written = copies ? steps(size, scale, 0).map(({ operations }) => bytesOf(operations)) : [];
    return images * (size + Math.max(...written, 0));
  });
  const base = subjects.some(({ overlay }) => overlay) ? size : 0;
  return Math.ceil((Math.max(...most, size) + base) * 1.1) + 16 * MIB;
}

function bytesOf(operations: Float64Array): number {
  let bytes = 0;
  for (let at = 0; at < operations.length; at += 3)
    if (operations[at + 2] === OperationKind.write || operations[at + 2] === OperationKind.writeSync)
      bytes += operations[at + 1] ?? 0;
  return bytes;
}
