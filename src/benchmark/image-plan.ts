import { SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import { ACCESSES, type Access, type SizeShare } from './access.ts';

/** What writes hold: bytes that neither compress nor repeat, or one byte (0 to 255) again and again. */
export type WriteData = 'noise' | number;

/** What {@link benchImages} is asked to do to each image. Sizes and offsets are bytes. */
export interface ImageBenchRequest extends Working {
  /** Default: `sequential`, and `strided` where there is a `step`. */
  readonly access?: Access | undefined;
  /** Bytes from the start of a request to that of the next. */
  readonly step?: number | undefined;
  /** Sizes of requests, drawn by their weights. Default: 4096 alone. */
  readonly sizes?: readonly SizeShare[] | undefined;
  /** Where the range that is touched starts, and how long it is. Default: the whole disk. */
  readonly offset?: number | undefined;
  readonly range?: number | undefined;
  /** Consent to writing: WHAT IS IN THE RANGE IS LOST. Without it nothing is ever written. */
  readonly write?: boolean | undefined;
  /** Of 100 requests, how many read (0 to 100), by chance. Default: 0 with `write`, else 100. */
  readonly readPercent?: number | undefined;
  /** Default: `noise`. */
  readonly data?: WriteData | undefined;
  /** Of places, sizes, mix and data (a whole number from 0). Default: by chance; the plan tells it. */
  readonly seed?: number | undefined;
  /** Requests for each image. Default: 75000, and without bound where there is a `duration`. */
  readonly count?: number | undefined;
  /** Seconds after which no further request begins. */
  readonly duration?: number | undefined;
  /** Requests in flight at most, for each image. Default: 64. */
  readonly depth?: number | undefined;
  /** Requests after which what was written is made durable; at least `depth`. Default: only at the end. */
  readonly flushInterval?: number | undefined;
  /** Such a flush begins when all requests before it are done (default), or at once. */
  readonly drain?: boolean | undefined;
  /** Make each write durable by itself. */
  readonly through?: boolean | undefined;
  /** Nothing needs to be durable: flush nothing, but for what closing an image flushes. */
  readonly unsafe?: boolean | undefined;
  /** Told what will be done, when nothing stands against it. */
  onStart?(plan: ImageBenchPlan): void;
}

/** A benchmark as it is run; the meaning is that of {@link ImageBenchRequest}. */
export interface ImageBenchPlan {
  readonly access: Access;
  readonly step: number;
  readonly sizes: readonly SizeShare[];
  readonly offset: number;
  /** null: up to the end of each disk. */
  readonly range: number | null;
  readonly write: boolean;
  readonly readPercent: number;
  readonly data: WriteData;
  readonly seed: number;
  /** null: without bound. */
  readonly count: number | null;
  readonly duration: number | null;
  readonly depth: number;
  readonly flushInterval: number;
}

const DEFAULT_COUNT = 75_000;
const DEFAULT_DEPTH = 64;

/** Largest count and size. */
const MOST = 2 ** 31 - 1;
/** Largest depth: each request in flight has memory of its own. */
const DEEPEST = 4096;
/** Bytes of memory for requests in flight. */
const MEMORY = 1024 ** 3;

/** @throws SpindleError BAD_OPTION */
export function imagePlanOf(request: ImageBenchRequest): ImageBenchPlan {
  const { write = false, sizes = [{ size: 4096, weight: 1 }], offset = 0, range = null } = request;
  const { depth = DEFAULT_DEPTH, duration = null, data = 'noise', flushInterval = 0 } = request;
  const count = request.count ?? (duration === null ? DEFAULT_COUNT : null);
  const access = request.access ?? (request.step === undefined ? 'sequential' : 'strided');
  const readPercent = request.readPercent ?? (write ? 0 : 100);
  const seed = request.seed ?? Math.floor(Math.random() * 2 ** 31);
  if (!ACCESSES.includes(access))
    throw bad(`there is no access '${access}'; there are ${ACCESSES.join(', ')}`);
  if (sizes.length === 0) throw bad('requests need a size');
  for (const { size, weight } of sizes) {
    within('the size of a request', size, 1, MOST);
    within('the weight of a size', weight, 1, MOST);
  }
  const largest = Math.max(...sizes.map(({ size }) => size));
  within('the number of requests', count ?? 1, 1, MOST);
  within('the depth', depth, 1, DEEPEST);
  within('the offset of the range', offset, 0, Number.MAX_SAFE_INTEGER);
  within('the length of the range', range ?? 1, 1, Number.MAX_SAFE_INTEGER);
  within('a seed', seed, 0, Number.MAX_SAFE_INTEGER);
  within('the interval between flushes', flushInterval, 0, MOST);
  if (data !== 'noise') within('a byte to write', data, 0, 255);
  if (!(readPercent >= 0 && readPercent <= 100))
    throw bad(`reads are from 0 to 100 of 100 requests, not ${String(readPercent)}`);
  if (duration !== null && !(duration > 0 && Number.isFinite(duration)))
    throw bad('a duration is a number of seconds above 0');
  if (depth * largest > MEMORY)
    throw bad(
      `${String(depth)} requests of ${String(largest)} bytes at a time need more than 1 GiB of memory`,
    );
  const step = stepOf(request.step, access, largest);
  if (!write) refuseWrites(request, readPercent);
  if (flushInterval > 0 && flushInterval < depth)
    throw bad(
      `a flush interval of ${String(flushInterval)} is shorter than the ${String(depth)} requests in flight`,
    );
  return {
    ...{ access, step, sizes, offset, range, write, readPercent, data, seed, count, duration, depth },
    flushInterval,
  };
}

function stepOf(step: number | undefined, access: Access, largest: number): number {
  if (access !== 'strided') {
    if (step !== undefined) throw bad(`a step is for strided access, not for ${access}`);
    return largest;
  }
  if (step === undefined) throw bad('strided access needs a step');
  within('the step between requests', step, 1, Number.MAX_SAFE_INTEGER);
  return step;
}

/** What is about writes needs the consent to write. */
function refuseWrites({ data, flushInterval }: ImageBenchRequest, readPercent: number): void {
  if (readPercent < 100)
    throw bad(`with ${String(readPercent)} % of reads the others write over the disk: that needs -w`);
  if (data !== undefined) throw bad('data is for writes: it needs -w');
  if (flushInterval !== undefined && flushInterval > 0)
    throw bad('flushes are for writes: a flush interval needs -w');
}

function within(what: string, value: number, least: number, most: number): void {
  if (!(Number.isInteger(value) && value >= least && value <= most))
    throw bad(`${what} is a whole number from ${String(least)} to ${String(most)}, not ${String(value)}`);
}

function bad(message: string): SpindleError {
  return new SpindleError('BAD_OPTION', message);
}
