import { realpathSync } from 'node:fs';
import { isSpindleError, SpindleError } from '../core/errors.ts';
import type { Storage } from '../core/storage.ts';
import { noise, stamp } from '../native/workload.ts';
import { memoryFor, type BenchOpening } from '../op/bench.ts';
import { openImageFile } from '../op/open.ts';
import { runQueue, type RequestSource } from '../op/request-queue.ts';
import { drawer, refuseMisfit, type Drawing, type Drawn } from './access.ts';
import { imagePlanOf, type ImageBenchPlan, type ImageBenchRequest } from './image-plan.ts';
import { seedOf } from './random.ts';
import { LatencyCounter, SeriesRecorder, type Bucket, type Series, type Tail } from './recorder.ts';

/** An image to be measured, and how it is opened. */
export interface BenchedImage extends BenchOpening {
  readonly path: string;
}

/** Requests of one kind. */
export interface Flow {
  readonly requests: number;
  readonly bytes: number;
  /** Over all the time from the first request to the end of the last. */
  readonly requestsPerSecond: number;
  readonly bytesPerSecond: number;
  /** Nanoseconds, with the event loop in them. */
  readonly latency: Tail;
  /** Every request, in buckets that are 1.1 % wide. */
  readonly histogram: readonly Bucket[];
}

/** What was measured on one image, or on all. */
export interface ImageFigures {
  /** From the first request to the end of the last, and of flushes between them. */
  readonly seconds: number;
  /** Of the flush at the end, which makes the writes durable; null: there was none. */
  readonly flushSeconds: number | null;
  /** Flushes between requests. */
  readonly flushes: number;
  readonly all: Flow;
  readonly reads: Flow;
  readonly writes: Flow;
  readonly series: Series;
}

/** What a benchmark of images found. */
export interface ImageBench {
  readonly kind: 'spindle bench image';
  readonly version: 1;
  readonly plan: ImageBenchPlan;
  /** Requests go through spindle's own driver, so that the event loop is in every figure. */
  readonly engine: 'image layer';
  readonly images: readonly (ImageFigures & { readonly path: string })[];
  readonly total: ImageFigures;
  /** Seconds of processor time of this process, over all of it. */
  readonly cpuSeconds: number;
}

/**
 * Sends requests to the disks in images, all images at once, each with a queue of its own, and measures every request.
 * Nothing is written without `write`. Opening and closing is not counted. When it is stopped, or one image fails, the
 * requests in flight end and the images are closed as usual.
 * @throws SpindleError BAD_OPTION; OUT_OF_RANGE before anything is written where a request would pass the end of a disk;
 * ABORTED, and what {@link openImageFile}, reading, writing and flushing throw
 */
export async function benchImages(
  images: readonly BenchedImage[],
  request: ImageBenchRequest = {},
): Promise<ImageBench> {
  const plan = imagePlanOf(request);
  if (images.length === 0) throw new SpindleError('BAD_OPTION', 'name at least one image');
  if (plan.write) refuseSharing(images);
  const opened: Opened[] = [];
  try {
    for (const { path, ...options } of images)
      opened.push({ path, storage: await openImageFile(path, { ...options, write: plan.write }) });
    return await run(opened, plan, request);
  } finally {
    await closeAll(opened);
  }
}

interface Opened {
  readonly path: string;
  readonly storage: Storage;
}

/** An image that is written to may be used by nobody else, and not twice. */
function refuseSharing(images: readonly BenchedImage[]): void {
  const seen = new Set<string>();
  for (const { path, share } of images) {
    if (share === true)
      throw new SpindleError(
        'BAD_OPTION',
        '-U is for looking; an image that is written to may be used by nobody else',
        { path },
      );
    const real = realPath(path);
    if (seen.has(real))
      throw new SpindleError('BAD_OPTION', 'an image is written to once at a time, but is named twice', {
        path,
      });
    seen.add(real);
  }
}

function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    // A description, or not there: opening it says so.
    return path;
  }
}

/** Closes every image, and fails with the first failure only then. */
async function closeAll(opened: readonly Opened[]): Promise<void> {
  const failures: unknown[] = [];
  for (const { storage } of opened)
    await storage.close().catch((error: unknown) => {
      failures.push(error);
    });
  if (failures.length > 0) throw failures[0];
}

async function run(
  opened: readonly Opened[],
  plan: ImageBenchPlan,
  request: ImageBenchRequest,
): Promise<ImageBench> {
  const drawings = opened.map(({ path, storage }, at) =>
    named(path, () => {
      const found = drawingOf(plan, storage.size, seedOf(plan.seed, 'image', at));
      refuseMisfit(found, storage.size);
      return found;
    }),
  );
  request.onStart?.(plan);
  const controller = new AbortController();
  const signal =
    request.signal === undefined ? controller.signal : AbortSignal.any([request.signal, controller.signal]);
  const whole = new Meter();
  // Memory and noise are there before the first request of any image: making them would stand in its figures.
  const ready = opened.map(({ storage }, at) => readyFor(storage, plan, drawings[at] as Drawing));
  const cpu = process.cpuUsage();
  const start = performance.now();
  const clock = { start, ends: plan.duration === null ? Infinity : start + plan.duration * 1000 };
  const progress = new Progress(plan, opened.length, clock, request.onProgress);
  const queues = ready.map((prepared, at) =>
    named(opened[at]?.path ?? '', () => {
      const meters = [new Meter(), whole] as const;
      return one(prepared, { plan, request, meters, clock, progress, signal });
    }).catch((error: unknown) => {
      controller.abort();
      throw error;
    }),
  );
  // All of them come to rest before images are closed; the failure that stopped the others is the one to tell.
  const ended = await Promise.allSettled(queues);
  const failures = ended.flatMap((end) => (end.status === 'rejected' ? [end.reason as unknown] : []));
  if (failures.length > 0)
    throw failures.find((failure) => !isSpindleError(failure, 'ABORTED')) ?? failures[0];
  const found = ended.flatMap((end) => (end.status === 'fulfilled' ? [end.value] : []));
  const { user, system } = process.cpuUsage(cpu);
  progress.end();
  const flushed = found.flatMap(({ flushSeconds }) => flushSeconds ?? []);
  return {
    ...{ kind: 'spindle bench image', version: 1, plan, engine: 'image layer' },
    images: found.map((figures, at) => ({ path: opened[at]?.path ?? '', ...figures })),
    total: whole.figures({
      seconds: Math.max(...found.map(({ seconds }) => seconds)),
      flushSeconds: flushed.length === 0 ? null : Math.max(...flushed),
      flushes: found.reduce((sum, { flushes }) => sum + flushes, 0),
    }),
    cpuSeconds: (user + system) / 1e6,
  };
}

function drawingOf({ offset, range, ...plan }: ImageBenchPlan, size: number, seed: number): Drawing {
  return { ...plan, start: offset, end: range === null ? size : offset + range, seed };
}

/** Work on one image: a failure names it. */
function named<T>(path: string, work: () => T): T {
  const told = (error: unknown): never => {
    if (isSpindleError(error)) error.path ??= path;
    throw error;
  };
  try {
    const found = work();
    return found instanceof Promise ? (found.catch(told) as T) : found;
  } catch (error) {
    return told(error);
  }
}

interface Clock {
  readonly start: number;
  /** No request begins any more. Milliseconds of `performance.now()`. */
  readonly ends: number;
}

/** What an image needs for its requests. */
interface Ready {
  readonly storage: Storage;
  readonly draw: () => Drawn;
  readonly buffers: readonly Uint8Array[];
  readonly fill: (bytes: Uint8Array, index: number) => void;
}

function readyFor(storage: Storage, plan: ImageBenchPlan, drawing: Drawing): Ready {
  return {
    ...{ storage, draw: drawer(drawing) },
    ...{ buffers: buffersOf(storage, plan), fill: filler(plan, drawing.seed) },
  };
}

interface One {
  readonly plan: ImageBenchPlan;
  readonly request: ImageBenchRequest;
  readonly meters: readonly [own: Meter, whole: Meter];
  readonly clock: Clock;
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

async function one({ storage, draw, buffers, fill }: Ready, about: One): Promise<ImageFigures> {
  const { plan, request, meters, clock, progress, signal } = about;
  let sent = 0;
  const source: RequestSource = {
    next: (slot) => {
      if (sent >= (plan.count ?? Infinity) || performance.now() >= clock.ends) return undefined;
      const { at, length, write } = draw();
      const bytes = (buffers[slot] as Uint8Array).subarray(0, length);
      // Reads leave what they found in the memory.
      if (write) fill(bytes, sent);
      sent++;
      const flushAfter = plan.flushInterval > 0 && sent % plan.flushInterval === 0;
      return { at, bytes, write, flushAfter };
    },
    done: ({ bytes, write }, began, ended) => {
      for (const meter of meters) meter.add(write, bytes.length, (ended - began) * 1e6, ended - clock.start);
      progress.add(bytes.length);
    },
  };
  const { drain = true, through = false, unsafe = false } = request;
  const begin = performance.now();
  const flushes = await runQueue(storage, source, { depth: plan.depth, drain, through, unsafe, signal });
  const seconds = (performance.now() - begin) / 1000;
  let flushSeconds: number | null = null;
  if (plan.write && !unsafe) {
    const flushing = performance.now();
    await storage.flush();
    flushSeconds = (performance.now() - flushing) / 1000;
  }
  return meters[0].figures({ seconds, flushSeconds, flushes });
}

/** Memory of its own for each request in flight. */
function buffersOf(storage: Storage, { depth, sizes, count }: ImageBenchPlan): Uint8Array[] {
  const largest = Math.max(...sizes.map(({ size }) => size));
  return Array.from({ length: Math.min(depth, count ?? depth) }, () => memoryFor(storage, largest));
}

/** Noise that is there before it repeats, but for its marks: more than what compression looks back. */
const NOISE = 8 * 1024 ** 2;

/** A function that puts what is to be written into memory, by the number of the request. */
function filler({ write, data, sizes }: ImageBenchPlan, seed: number): Ready['fill'] {
  if (!write) return () => undefined;
  if (data !== 'noise') return (bytes) => void bytes.fill(data);
  const pool = noise(Math.max(NOISE, ...sizes.map(({ size }) => size)), seed);
  let next = 0;
  return (bytes, index) => {
    if (next + bytes.length > pool.length) next = 0;
    bytes.set(pool.subarray(next, next + bytes.length));
    next += bytes.length;
    stamp(bytes, seed, index);
  };
}

/** Gathers the figures of requests. */
class Meter {
  readonly #latencies = { reads: new LatencyCounter(), writes: new LatencyCounter() };
  readonly #bytes = { reads: 0, writes: 0 };
  readonly #series = new SeriesRecorder();

  add(write: boolean, bytes: number, latency: number, milliseconds: number): void {
    const kind = write ? 'writes' : 'reads';
    this.#latencies[kind].add(latency);
    this.#bytes[kind] += bytes;
    this.#series.add(milliseconds, bytes, latency);
  }

  figures(rest: Pick<ImageFigures, 'seconds' | 'flushSeconds' | 'flushes'>): ImageFigures {
    const { reads, writes } = this.#latencies;
    const both = new LatencyCounter();
    both.merge(reads);
    both.merge(writes);
    const flow = (counter: LatencyCounter, bytes: number): Flow => ({
      ...{ requests: counter.count, bytes },
      requestsPerSecond: counter.count / Math.max(rest.seconds, 1e-9),
      bytesPerSecond: bytes / Math.max(rest.seconds, 1e-9),
      ...{ latency: counter.tail(), histogram: counter.buckets() },
    });
    return {
      ...rest,
      all: flow(both, this.#bytes.reads + this.#bytes.writes),
      ...{ reads: flow(reads, this.#bytes.reads), writes: flow(writes, this.#bytes.writes) },
      series: this.#series.series(),
    };
  }
}

/** Says how far it is, in bytes; where only the time is known, all that it will come to is estimated from it. */
class Progress {
  readonly #say: ImageBenchRequest['onProgress'];
  readonly #total: number | null;
  readonly #clock: Clock;
  #done = 0;

  constructor(
    { count, sizes }: ImageBenchPlan,
    images: number,
    clock: Clock,
    say: ImageBenchRequest['onProgress'],
  ) {
    const weights = sizes.reduce((sum, { weight }) => sum + weight, 0);
    const mean = sizes.reduce((sum, { size, weight }) => sum + (size * weight) / weights, 0);
    this.#total = count === null ? null : Math.round(count * mean) * images;
    this.#clock = clock;
    this.#say = say;
  }

  add(bytes: number): void {
    this.#done += bytes;
    if (this.#say === undefined) return;
    const { start, ends } = this.#clock;
    const byTime = (this.#done * (ends - start)) / Math.max(performance.now() - start, 1);
    // Before its end nothing says that it is over.
    this.#say(this.#done, Math.max(Math.round(Math.min(this.#total ?? Infinity, byTime)), this.#done + 1));
  }

  end(): void {
    this.#say?.(this.#done, this.#done);
  }
}
