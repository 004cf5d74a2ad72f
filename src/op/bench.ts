import { isSpindleError, SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import type { Storage } from '../core/storage.ts';
import { DiskImage } from '../format/disk-image.ts';
import { FileStorage } from '../storage/file.ts';
import { openImageFile, type OpenFileOptions } from './open.ts';
import { runQueue, type RequestSource } from './request-queue.ts';

/** What is asked of a disk, and how much of it. */
export interface BenchRequest extends Working {
  /** Requests in all. Default: 75000. */
  readonly count?: number | undefined;
  /** Requests in flight at most. Default: 64. */
  readonly depth?: number | undefined;
  /** Bytes of a request. Default: 4096. */
  readonly length?: number | undefined;
  /** Bytes of the disk before the first request. Default: 0. */
  readonly offset?: number | undefined;
  /** Bytes from the start of a request to that of the next; past the end of the disk it goes on at the start. Default: `length`. */
  readonly step?: number | undefined;
  /** Write over the disk instead of reading it: what is there is lost. */
  readonly write?: boolean | undefined;
  /** The byte that is written. Default: 0. */
  readonly pattern?: number | undefined;
  /** Requests after which what was written is made durable; at least `depth`. Default: never. */
  readonly flushInterval?: number | undefined;
  /** Such a flush begins when all requests before it are done (default), or at once. */
  readonly drain?: boolean | undefined;
  /** Make each write durable by itself. */
  readonly through?: boolean | undefined;
  /** Nothing needs to be durable: flush nothing, but for what closing the image flushes. */
  readonly unsafe?: boolean | undefined;
  /** Told what will be done, when nothing stands against it. */
  onStart?(plan: BenchPlan): void;
}

/** A benchmark as it is run; the meaning is that of {@link BenchRequest}. */
export type BenchPlan = Readonly<
  Record<'count' | 'depth' | 'length' | 'offset' | 'step' | 'flushInterval', number>
> & { readonly write: boolean };

/** What a benchmark found. */
export interface Benched {
  /** From the first request to the end of the last, and of the flush that follows it. */
  readonly seconds: number;
  readonly requests: number;
  /** Bytes read or written. */
  readonly bytes: number;
  readonly flushes: number;
}

const DEFAULT_COUNT = 75_000;
const DEFAULT_DEPTH = 64;
const DEFAULT_LENGTH = 4096;

/** Largest value of the numbers above. */
const MOST = 2 ** 31 - 1;

/** Bytes of memory that requests read into; where it is less than they need they share it. */
const MEMORY = 256 * 1024 ** 2;

/** How the image of a benchmark is opened. */
export type BenchOpening = Pick<OpenFileOptions, 'format' | 'share' | 'direct' | 'gate' | 'secret'>;

/**
 * {@link benchStorage} of the disk in an image; opening and closing it is not counted. When it is stopped the image is
 * closed as usual.
 * @throws SpindleError as benchStorage and {@link openImageFile}
 */
export async function bench(path: string, request: BenchRequest & BenchOpening = {}): Promise<Benched> {
  const { write } = planOf(request);
  const { format, share, direct, gate, secret } = request;
  if (write && share === true) {
    throw new SpindleError(
      'BAD_OPTION',
      '-U is for looking; an image that is written to may be used by nobody else',
      { path },
    );
  }
  const image = await openImageFile(path, { format, share, direct, gate, secret, write });
  try {
    return await benchStorage(image, request);
  } catch (error) {
    if (isSpindleError(error)) error.path ??= path;
    throw error;
  } finally {
    await image.close();
  }
}

/**
 * Sends requests to a storage, `depth` at a time, and measures how long they take. With `write` it writes over what is
 * there.
 * @throws SpindleError BAD_OPTION; OUT_OF_RANGE before anything is written when a request passes the end; ABORTED, and
 * what reading, writing and flushing throw
 */
export async function benchStorage(storage: Storage, request: BenchRequest = {}): Promise<Benched> {
  const plan = planOf(request);
  refuseBeyond(plan, storage.size);
  request.onStart?.(plan);
  return whole(storage, plan, request);
}

function planOf(request: BenchRequest): BenchPlan {
  const { write = false, pattern = 0, flushInterval = 0, offset = 0 } = request;
  const { count = DEFAULT_COUNT, depth = DEFAULT_DEPTH, length = DEFAULT_LENGTH } = request;
  const step = request.step === undefined || request.step === 0 ? length : request.step;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  const within = (what: string, value: number, least: number, most: number): void => {
    if (!(Number.isInteger(value) && value >= least && value <= most))
      throw bad(`${what} is a number from ${String(least)} to ${String(most)}, not ${String(value)}`);
  };
  within('the number of requests', count, 1, MOST);
  within('the depth', depth, 1, MOST);
  within('the size of a request', length, 1, MOST);
  within('the step between requests', step, 1, MOST);
  within('the offset of the first request', offset, 0, Number.MAX_SAFE_INTEGER);
  within('a pattern', pattern, 0, 255);
  within('the interval between flushes', flushInterval, 0, MOST);
  if (flushInterval > 0 && !write) throw bad('flushes are for writes: a flush interval needs -w');
  if (flushInterval > 0 && flushInterval < depth)
    throw bad(
      `a flush interval of ${String(flushInterval)} is shorter than the ${String(depth)} requests in flight`,
    );
  return { count, depth, length, offset, step, write, flushInterval };
}

/** Where the request after the one at `at` starts. */
function following(at: number, step: number, size: number): number {
  if (size === 0) return at;
  const next = at + step;
  // The size is no power of two, so that the quotient may be rounded up to the next whole number.
  const rest = next - Math.floor(next / size) * size;
  return rest < 0 ? rest + size : rest;
}

/** @throws SpindleError OUT_OF_RANGE for the first request that passes the end of the disk */
function refuseBeyond({ count, length, offset, step }: BenchPlan, size: number): void {
  let at = offset;
  const second = following(at, step, size);
  for (let index = 0; index < count; index++) {
    if (at + length > size) {
      throw new SpindleError(
        'OUT_OF_RANGE',
        `request ${String(index + 1)}, ${String(length)} bytes at offset ${String(at)}, passes the end of the disk at ` +
          `${String(size)}; choose a size, step and offset that fit into the disk`,
      );
    }
    at = following(at, step, size);
    // From here on it is the same again.
    if (index > 0 && at === second) return;
  }
}

/** Sends the requests of a plan, and counts them. */
async function whole(storage: Storage, plan: BenchPlan, request: BenchRequest): Promise<Benched> {
  const { count, length, step, depth, write, flushInterval } = plan;
  const buffers = buffersFor(storage, plan, request.pattern ?? 0);
  let [at, left, done] = [plan.offset, count, 0];
  const { onProgress, signal } = request;
  const source: RequestSource = {
    next: () => {
      if (left === 0) return undefined;
      const here = at;
      const bytes = buffers[left % buffers.length] as Uint8Array;
      at = following(at, step, storage.size);
      left--;
      // Counted from the end, as qemu-img does.
      return { at: here, bytes, write, flushAfter: flushInterval > 0 && left % flushInterval === 0 };
    },
    done: () => onProgress?.(++done * length, count * length),
  };
  const manner = { drain: request.drain !== false, through: request.through === true };
  const start = performance.now();
  const flushes = await runQueue(storage, source, {
    ...{ depth, signal, ...manner },
    unsafe: request.unsafe === true,
  });
  const seconds = (performance.now() - start) / 1000;
  return { seconds, requests: count, bytes: count * length, flushes };
}

/** Memory for requests: one piece for all writes, as all write the same. */
function buffersFor(
  storage: Storage,
  { write, depth, count, length }: BenchPlan,
  pattern: number,
): Uint8Array[] {
  const most = Math.max(1, Math.floor(MEMORY / length));
  const pieces = write ? 1 : Math.min(depth, count, most);
  return Array.from({ length: pieces }, () => memoryFor(storage, length).fill(pattern));
}

/** Memory of `length` bytes for requests that needs no copying on the way to the host, where there is such. */
export function memoryFor(storage: Storage, length: number): Uint8Array {
  const host = storage instanceof DiskImage ? storage.driver.data : storage;
  if (!(host instanceof FileStorage)) return new Uint8Array(length);
  try {
    return host.buffer(length);
  } catch (error) {
    if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
    return new Uint8Array(length);
  }
}
