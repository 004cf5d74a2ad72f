import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { SpindleError } from '../core/errors.ts';
import { formatSize } from '../core/size.ts';
import { stopIfAborted } from '../core/working.ts';
import { measure, watch, type Bench, type Cell, type Clocks } from './cell.ts';
import { environmentOf, type Environment } from './environment.ts';
import { native } from '../native/binding.ts';
import { OperationKind } from '../native/types.ts';
import { rawTarget } from './engine.ts';
import { seedOf } from './random.ts';
import { filling } from './scenario.ts';
import { mostOf, reductions, type Reduced } from './pace.ts';
import { planOf, roomFor, scheduleOf, type Plan, type Slot, type StudyRequest } from './plan.ts';
import { makeImage } from './subject.ts';
import { conclude, type Conclusion } from './verdict.ts';

type Hook = 'afterCreate' | 'beforeStep' | 'afterStep';

/** How a study is watched and stopped. The hooks let tests spoil it. */
export interface StudyOptions extends StudyRequest, Pick<Bench, Hook | 'signal'> {
  readonly clocks?: Clocks | undefined;
  readonly onPlan?: (plan: Plan, environment: Environment) => void;
  readonly onCell?: (done: number, total: number, next: Slot | undefined) => void;
}

/** Everything that a study found. */
export interface Study {
  readonly kind: 'spindle bench allocation';
  readonly version: 1;
  readonly started: string;
  readonly seconds: number;
  readonly folder: string;
  readonly plan: Omit<Plan, 'scenarios'> & {
    readonly scenarios: readonly { readonly id: string; readonly title: string; readonly images: number }[];
  };
  readonly environment: Environment;
  readonly loadAfter: number;
  readonly cells: readonly Cell[];
  /** Steps of which every image got fewer requests than the preset has. */
  readonly reduced: readonly Reduced[];
  readonly conclusion: Conclusion;
}

const CLOCKS: Clocks = { steady: () => performance.now(), wall: () => Date.now() };

/**
 * Measures thin against thick in `folder`, in a directory of its own that is gone afterwards, whatever happens.
 * @throws SpindleError BAD_OPTION; NOT_A_FILE; NO_SPACE beforehand where the store has too little room; UNSUPPORTED where
 * the file system has no O_DIRECT or the addon is missing (`cached` is for these); ABORTED
 */
export async function study(folder: string, options: StudyOptions = {}): Promise<Study> {
  const plan = planOf(options);
  if (!plan.cached && native().kind === 'twin')
    throw new SpindleError(
      'UNSUPPORTED',
      'without the addon there are no requests past the page cache; use --cached',
      {
        path: folder,
      },
    );
  if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() !== true)
    throw new SpindleError('NOT_FOUND', 'a study needs a directory on the store to be measured', {
      path: folder,
    });
  const environment = environmentOf(folder);
  const room = roomFor(plan, environment.fileSystem);
  if (environment.freeBytes < room)
    throw new SpindleError(
      'NO_SPACE',
      `the study takes up to ${formatSize(room)}, and ${formatSize(environment.freeBytes)} are free; nothing was done`,
      { path: folder },
    );
  const most = Math.max(...plan.scenarios.map(({ images }) => images));
  if (environment.addon && most > environment.pool)
    throw new SpindleError(
      'BAD_OPTION',
      `${String(most)} images at once need as many threads: set UV_THREADPOOL_SIZE to at least that, or leave the phase out`,
    );
  options.onPlan?.(plan, environment);
  const clocks = options.clocks ?? CLOCKS;
  const started = new Date().toISOString();
  const begin = clocks.steady();
  const whole = watch(clocks);
  const { cells, reduced } = await inScratch(folder, (scratch) =>
    allCells(plan, scratch, environment, { ...options, clocks }),
  );
  const seconds = (clocks.steady() - begin) / 1000;
  const { scenarios, ...rest } = plan;
  const jumped = whole();
  return {
    ...{ kind: 'spindle bench allocation', version: 1, started, seconds, folder, environment },
    plan: { ...rest, scenarios: scenarios.map(({ id, title, images }) => ({ id, title, images })) },
    loadAfter: loadavg()[0] ?? 0,
    ...{ cells, reduced },
    conclusion: conclude(plan, cells, jumped),
  };
}

/** Runs work with a new directory in `folder` that is gone afterwards, also when the process is told to exit. */
export async function inScratch<T>(folder: string, work: (scratch: string) => Promise<T>): Promise<T> {
  const scratch = mkdtempSync(join(folder, '.spindle-bench-'));
  const remove = (): void => {
    rmSync(scratch, { recursive: true, force: true });
  };
  process.once('exit', remove);
  try {
    return await work(scratch);
  } finally {
    process.off('exit', remove);
    remove();
  }
}

async function allCells(
  plan: Plan,
  scratch: string,
  { device }: Environment,
  { clocks, signal, onCell, afterCreate, beforeStep, afterStep }: StudyOptions & { readonly clocks: Clocks },
): Promise<Pick<Study, 'cells' | 'reduced'>> {
  const base = join(scratch, 'base.raw');
  if (plan.subjects.some(({ overlay }) => overlay)) await makeBase(base, plan, signal);
  const schedule = scheduleOf(plan);
  const [cells, reduced]: [Cell[], Reduced[]] = [[], []];
  let [done, total] = [0, schedule.flat().length];
  const one = async (slot: Slot): Promise<Cell> => {
    stopIfAborted(signal);
    onCell?.(done, total, slot);
    const folder = join(scratch, `images-${String(done)}`);
    const bench = { ...{ folder, base, device, clocks, signal }, ...{ afterCreate, beforeStep, afterStep } };
    try {
      return await inFresh(folder, () => measure(plan, slot, { ...bench, most: mostOf(reduced) }));
    } catch (error) {
      // The steps stop with the words of the signal.
      stopIfAborted(signal);
      throw error;
    } finally {
      done++;
    }
  };
  for (const slots of schedule) {
    const found: Cell[] = [];
    for (const slot of slots) found.push(await one(slot));
    const [first] = slots;
    const less = first?.round === 0 ? reductions(plan, first.scenario, found) : [];
    if (less.length > 0) {
      // Of what was too much for the slowest nothing counts: all begin again with what all can do.
      reduced.push(...less);
      total += slots.length;
      found.length = 0;
      for (const slot of slots) found.push(await one(slot));
    }
    cells.push(...found);
  }
  onCell?.(done, total, undefined);
  return { cells, reduced };
}

/** The backing file of overlays holds data: what an overlay takes from holes costs it nothing. */
async function makeBase(
  path: string,
  { size, seed, cached, threads }: Plan,
  signal?: AbortSignal,
): Promise<void> {
  const raw = { id: 'base', format: 'raw', policy: 'thin', control: false, overlay: false } as const;
  await makeImage(path, raw, size, '', signal);
  const target = await rawTarget(path, !cached, threads);
  try {
    await target.run({ operations: filling(size), depth: 4, seed: seedOf(seed, 'base'), limit: 0 });
    await target.run({ operations: Float64Array.of(0, 0, OperationKind.sync), depth: 1, seed, limit: 0 });
  } finally {
    await target.close();
  }
}

async function inFresh<T>(path: string, work: () => Promise<T>): Promise<T> {
  mkdirSync(path);
  try {
    return await work();
  } finally {
    rmSync(path, { recursive: true, force: true });
  }
}
