import { OperationKind } from '../native/types.ts';
import { countersOf, untilQuiet, type Counters, type Patience } from './environment.ts';
import {
  closeTargets,
  imageTarget,
  rawTarget,
  runTogether,
  type EngineName,
  type Measured,
  type Target,
} from './engine.ts';
import type { Plan, Slot } from './plan.ts';
import { broken, missing, spaceOf, type Space } from './precondition.ts';
import { seedOf } from './random.ts';
import { filling, type Step } from './scenario.ts';
import { histogramOf, latencyOf, type Histogram, type Latency } from './statistics.ts';
import { makeImage, type Subject } from './subject.ts';

/** What one step of one image came to. Seconds, bytes, and nanoseconds for latencies. */
export interface StepResult {
  readonly step: Step['name'];
  readonly engine: EngineName;
  readonly refused?: string;
  readonly requests: number;
  readonly bytes: number;
  readonly seconds: number;
  readonly latency: Latency;
  readonly histogram: Histogram;
  /** Mean latency in each of equal parts of the time; 0 where nothing ended in one. */
  readonly series: readonly number[];
  /** Seconds of processor time. */
  readonly cpu: number;
  /** Bytes that this process, and that anybody, sent to storage, the final flush included. */
  readonly processBytes: number | null;
  readonly deviceBytes: number | null;
}

/** What was measured on one fresh image. */
export interface Cell {
  readonly round: number;
  readonly subject: string;
  readonly scenario: string;
  /** Why it counts for nothing; null: it counts. */
  readonly void: string | null;
  /** Seconds until the image was durable, and after that until the device was quiet; null: not to be seen, or never. */
  readonly created: number;
  readonly quiet: number | null;
  /** What creation sent to the device. */
  readonly createdBytes: number | null;
  readonly before: Space | null;
  readonly after: Space | null;
  readonly steps: readonly StepResult[];
}

/** Two clocks, in milliseconds: one that only goes forward, and the one on the wall. */
export interface Clocks {
  readonly steady: () => number;
  readonly wall: () => number;
}

/** Requests at most, by scenario and step. */
export type Most = ReadonlyMap<string, number>;

/** The key of a step in {@link Most}. */
export function keyOf(scenario: string, step: string): string {
  return `${scenario} ${step}`;
}

/** What a cell is made of, beside the plan. The hooks let tests spoil it. */
export interface Bench {
  readonly folder: string;
  /** The backing file of overlays. */
  readonly base: string;
  readonly device: string | null;
  readonly clocks: Clocks;
  readonly signal?: AbortSignal | undefined;
  /** Requests that an image gets at most, so that all get as many. */
  readonly most?: Most | undefined;
  readonly afterCreate?: ((path: string, subject: Subject) => Promise<void>) | undefined;
  /** Before a step but the first, when what it needs is not proven yet. */
  readonly beforeStep?: ((path: string, subject: Subject, step: Step['name']) => Promise<void>) | undefined;
  readonly afterStep?: ((measured: Measured, subject: Subject) => Measured) | undefined;
}

/** Parts of the time of a step in its series. */
const PARTS = 24;

/** How long the device is waited for where that is measured, and before the first request. */
const WATCHED: Patience = { quiet: 50, longest: 5000 };
const PAUSE: Patience = { quiet: 20, longest: 500 };

/** Makes the images of a slot, proves what they are, and measures them. The images stay. @throws what making and requests throw */
export async function measure(plan: Plan, { round, subject, scenario }: Slot, bench: Bench): Promise<Cell> {
  const clock = watch(bench.clocks);
  const paths = Array.from(
    { length: scenario.images },
    (_, at) => `${bench.folder}/${String(at)}.${subject.format}`,
  );
  const before = countersOf(bench.device);
  const start = bench.clocks.steady();
  for (const path of paths) await makeImage(path, subject, plan.size, bench.base, bench.signal);
  const created = (bench.clocks.steady() - start) / 1000 / paths.length;
  const createdBytes = difference(before.device, countersOf(bench.device).device);
  // What creation leaves to do later must not fall into the time of first writes.
  const quiet = await untilQuiet(bench.device, scenario.id === 'create' ? WATCHED : PAUSE);
  const reasons: string[] = [];
  for (const path of paths) {
    await bench.afterCreate?.(path, subject);
    const wrong = await broken(path, subject.format, subject.policy);
    if (wrong !== null) reasons.push(wrong);
  }
  if (subject.overlay) {
    const wrong = await missing(bench.base, 'raw', filling(plan.size), 'written');
    if (wrong !== null) reasons.push(`the backing file: ${wrong}`);
  }
  const [path = ''] = paths;
  const fresh = await spaceOf(path);
  // A run on an image that is not what it says would say nothing.
  const steps = await allSteps(plan, { round, subject, scenario }, bench, { paths, reasons });
  const jumped = clock();
  if (jumped !== null) reasons.push(jumped);
  return {
    ...{ round, subject: subject.id, scenario: scenario.id, void: reasons[0] ?? null },
    ...{ created, quiet, createdBytes, before: fresh, after: await spaceOf(path), steps },
  };
}

/** Milliseconds, and part of the time, by which two clocks may part. */
const DRIFT = 100;
const SLOPE = 0.005;

/** Begins to watch; the function that it gives says whether the clocks parted since. */
export function watch({ steady, wall }: Clocks): () => string | null {
  const [from, began] = [steady(), wall()];
  return () => {
    const [passed, told] = [steady() - from, wall() - began];
    const apart = told - passed;
    if (Math.abs(apart) <= DRIFT + passed * SLOPE && passed >= 0) return null;
    return `the clock jumped by ${apart.toFixed(0)} ms during ${passed.toFixed(0)} ms`;
  };
}

interface Fresh {
  readonly paths: readonly string[];
  /** Why the cell is void, which more is added to. */
  readonly reasons: string[];
}

async function allSteps(
  plan: Plan,
  slot: Slot,
  bench: Bench,
  { paths, reasons }: Fresh,
): Promise<StepResult[]> {
  const { subject, scenario, round } = slot;
  const targets: Target[] = [];
  try {
    for (const path of reasons.length > 0 ? [] : paths)
      targets.push(
        subject.format === 'raw'
          ? await rawTarget(path, !plan.cached, plan.threads)
          : await imageTarget(path, subject.format, !plan.cached),
      );
    const results: StepResult[] = [];
    // Subjects of a round get the same blocks, so that pairs are fair.
    const steps = scenario.steps(plan.size, plan.scale, seedOf(plan.seed, scenario.id, round));
    let least = Infinity;
    let changed = new Float64Array();
    for (const [at, step] of steps.entries()) {
      bench.signal?.throwIfAborted();
      if (at > 0 && reasons.length === 0)
        reasons.push(...(await proven(slot, bench, { paths, step, changed })));
      if (reasons.length > 0) break;
      // What a step had no time for is not asked of the steps that come back to the same places.
      const back = step.name === 'sequential' ? Infinity : least;
      const most = bench.most?.get(keyOf(scenario.id, step.name)) ?? Infinity;
      const operations = step.operations.subarray(0, Math.min(back, most) * 3);
      const seed = seedOf(plan.seed, round, at);
      const { result, done } = await oneStep(
        plan,
        { ...step, operations },
        { targets, subject, bench, seed },
      );
      least = Math.min(least, done);
      if (operations[2] !== OperationKind.read) changed = operations.slice(0, done * 3);
      results.push(result);
    }
    return results;
  } finally {
    await closeTargets(targets);
  }
}

interface Next {
  readonly paths: readonly string[];
  readonly step: Step;
  /** The requests before it that changed something. */
  readonly changed: Float64Array;
}

/** What a step but the first needs and does not find. */
async function proven({ subject }: Slot, bench: Bench, { paths, step, changed }: Next): Promise<string[]> {
  const left = changed[2] === OperationKind.punch ? 'discarded' : 'written';
  const reasons: string[] = [];
  for (const path of paths) {
    await bench.beforeStep?.(path, subject, step.name);
    const wrong = await missing(path, subject.format, changed, left);
    if (wrong !== null) reasons.push(`${step.name}: ${wrong}`);
  }
  return reasons;
}

interface Around {
  readonly targets: readonly Target[];
  readonly subject: Subject;
  readonly bench: Bench;
  readonly seed: number;
}

async function oneStep(
  plan: Plan,
  step: Step,
  { targets, subject, bench, seed }: Around,
): Promise<{ result: StepResult; done: number }> {
  const { depth, operations } = step;
  const before = countersOf(bench.device);
  const found = await runTogether(targets, { operations, depth, seed, limit: plan.limit });
  const cpu = countersOf(bench.device).cpu - before.cpu;
  const writes = operations[2] !== OperationKind.read;
  const sync = Float64Array.of(0, 0, OperationKind.sync);
  let synced = 0;
  for (const target of writes ? targets : []) {
    const flush = await target.run({ operations: sync, depth: 1, seed, limit: 0 });
    synced += flush.elapsed;
  }
  const after: Counters = countersOf(bench.device);
  const all = found.map((one) => bench.afterStep?.(one, subject) ?? one);
  const requests = all.reduce((sum, { latencies }) => sum + latencies.length, 0);
  const latencies = Float64Array.from(all.flatMap((one) => [...one.latencies]));
  const elapsed = Math.max(...all.map((one) => one.elapsed)) + (step.counted === true ? synced : 0);
  const { engine = 'threads', refused } = all[0] ?? {};
  const result: StepResult = {
    ...{ step: step.name, engine, ...(refused === undefined ? {} : { refused }), requests },
    ...{ bytes: requests * (operations[1] ?? 0), seconds: elapsed / 1e9, latency: latencyOf(latencies) },
    ...{ histogram: histogramOf(latencies), series: seriesOf(all), cpu: cpu / 1e6 },
    processBytes: difference(before.process, after.process),
    deviceBytes: difference(before.device, after.device),
  };
  return { result, done: Math.min(...all.map((one) => one.latencies.length)) };
}

function difference(before: number | null, after: number | null): number | null {
  return before === null || after === null ? null : after - before;
}

function seriesOf(all: readonly Measured[]): number[] {
  const sums = Array.from({ length: PARTS }, () => [0, 0] as [number, number]);
  const end = Math.max(...all.map(({ elapsed }) => elapsed), 1);
  for (const { finishes, latencies } of all) {
    for (const [index, finish] of finishes.entries()) {
      const part = sums[Math.min(Math.floor((finish / end) * PARTS), PARTS - 1)];
      if (part === undefined) continue;
      part[0] += latencies[index] ?? 0;
      part[1]++;
    }
  }
  return sums.map(([sum, count]) => (count === 0 ? 0 : Math.round(sum / count)));
}
