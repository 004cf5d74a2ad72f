import { read, write } from 'node:fs';
import { promisify } from 'node:util';
import { isZero } from '../core/bytes.ts';
import { firstDifference } from './difference.ts';
import { systemError } from './errno.ts';

/** Bytes read before they are written. */
const STEP = 256 * 1024;

const readFrom = promisify(read);
const writeTo = promisify(write);

/** The twin of `copy_runs` in `native/src/transfer.rs`. */
export async function copyRuns(
  source: number,
  target: number,
  runs: Float64Array,
  skip: number,
): Promise<number> {
  let written = 0;
  for (let run = 0; run < runs.length; run += 3) {
    const [from = 0, to = 0, length = 0] = runs.subarray(run, run + 3);
    for await (const { bytes, done } of steps(source, from, length, skip))
      written += await putFilled(target, bytes, to + done, skip);
  }
  return written;
}

/** Writes bytes but for units of `skip` zeroes; how many it wrote. */
export async function putFilled(
  target: number,
  bytes: Uint8Array,
  at: number,
  skip: number,
): Promise<number> {
  let written = 0;
  for (const [start, end] of skip === 0 ? [[0, bytes.length] as const] : filled(bytes, skip)) {
    await put(target, bytes.subarray(start, end), at + start);
    written += end - start;
  }
  return written;
}

/** The twin of `compare_runs` in `native/src/compare.rs`. */
export async function compareRuns(first: number, second: number, pairs: Float64Array): Promise<number> {
  let before = 0;
  for (let pair = 0; pair < pairs.length; pair += 4) {
    const [one = 0, other = 0, length = 0, sides = 0] = pairs.subarray(pair, pair + 4);
    for (let done = 0; done < length; done += STEP) {
      const [a, b] = [
        new Uint8Array(Math.min(STEP, length - done)),
        new Uint8Array(Math.min(STEP, length - done)),
      ];
      if (sides !== 2) await getAll(first, a, one + done);
      if (sides !== 1) await getAll(second, b, other + done);
      const found = firstDifference(a, b);
      if (found >= 0) return before + done + found;
    }
    before += length;
  }
  return -1;
}

/** The twin of `zero_ranges` in `native/src/transfer.rs`. */
export async function zeroRanges(fd: number, ranges: Float64Array, unit: number): Promise<Uint8Array> {
  const found: number[] = [];
  for (let range = 0; range < ranges.length; range += 2) {
    const [at = 0, length = 0] = ranges.subarray(range, range + 2);
    for await (const { bytes } of steps(fd, at, length, unit))
      for (let start = 0; start < bytes.length; start += unit)
        found.push(isZero(bytes.subarray(start, start + unit)) ? 1 : 0);
  }
  return Uint8Array.from(found);
}

/** The twin of `run` in `native/src/batch.rs`, one after the other. */
export async function runBatch(
  fd: number,
  isWrite: boolean,
  ranges: Float64Array,
  memory: Uint8Array,
): Promise<number[]> {
  const left: number[] = [];
  let from = 0;
  for (let range = 0; range < ranges.length; range += 2) {
    const [at = 0, length = 0] = ranges.subarray(range, range + 2);
    const moved = await (
      isWrite
        ? writeTo(fd, memory, from, length, at).then(({ bytesWritten }) => bytesWritten)
        : readFrom(fd, memory, from, length, at).then(({ bytesRead }) => bytesRead)
    ).catch(() => -1);
    if (moved !== length) left.push(range / 2);
    from += length;
  }
  return left;
}

/** A range in steps of whole units. The bytes are those of one buffer. @throws SpindleError IO at an early end */
export async function* steps(
  fd: number,
  at: number,
  length: number,
  unit: number,
): AsyncGenerator<{ readonly bytes: Uint8Array; readonly done: number }> {
  const step = unit === 0 ? STEP : Math.ceil(STEP / unit) * unit;
  const buffer = new Uint8Array(Math.min(step, length));
  for (let done = 0; done < length; done += step) {
    const bytes = buffer.subarray(0, Math.min(step, length - done));
    await getAll(fd, bytes, at + done);
    yield { bytes, done };
  }
}

/** Fills all of `into`. @throws SpindleError IO at an early end */
async function getAll(fd: number, into: Uint8Array, at: number): Promise<void> {
  for (let had = 0; had < into.length;) {
    const count = await get(fd, into.subarray(had), at + had);
    if (count === 0) throw systemError('EIO', 'pread', { fd });
    had += count;
  }
}

/** Fills the start of `into`; the bytes, 0 at the end of the file. */
export async function get(fd: number, into: Uint8Array, at: number): Promise<number> {
  const { bytesRead } = await named('pread', readFrom(fd, into, 0, into.length, at));
  return bytesRead;
}

/** Writes all of `bytes`. */
async function put(fd: number, bytes: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await named('pwrite', writeTo(fd, bytes, done, bytes.length - done, at + done));
    done += bytesWritten;
  }
}

/** Where bytes are that are not zeroes, in whole units. */
function* filled(bytes: Uint8Array, unit: number): Generator<readonly [start: number, end: number]> {
  let start = -1;
  for (let at = 0; at < bytes.length; at += unit) {
    const zero = isZero(bytes.subarray(at, at + unit));
    if (zero && start >= 0) yield [start, at];
    if (zero) start = -1;
    else if (start < 0) start = at;
  }
  if (start >= 0) yield [start, bytes.length];
}

async function named<T>(call: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw code === undefined ? error : systemError(code, call, {});
  }
}
