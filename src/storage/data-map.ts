import { ExtentFlag, type Extent } from '../core/extent.ts';

/** How long an answer may be used again, in milliseconds: other processes may write the file too. */
const FRESH = 500;

/** Runs of data asked for at once. */
const RUNS = 256;

interface Batch {
  readonly start: number;
  readonly end: number;
  /** `[start, end, start, end, ...]` of data, ascending. */
  readonly runs: readonly number[];
  readonly freshUntil: number;
}

/**
 * Answers {@link DataMap.extent} of a file from batches of its data runs, so that a walk over a file asks the kernel
 * once for many extents. Own changes must be told with {@link DataMap.changed}, before and after each.
 */
export class DataMap {
  readonly #ask: (at: number, length: number, limit: number) => Promise<readonly number[]>;
  #batch: Batch | undefined;
  #generation = 0;

  /** `ask` gives at most `limit` data runs of a range, as `Native.dataExtents` does. */
  constructor(ask: (at: number, length: number, limit: number) => Promise<readonly number[]>) {
    this.#ask = ask;
  }

  /** Forgets what is known. A batch asked for before this and answered after it is not used either. */
  changed(): void {
    this.#generation++;
    this.#batch = undefined;
  }

  /** The first run of data or hole of the `length` bytes at `at`, in a file of `size` bytes. */
  async extent(at: number, length: number, size: number): Promise<Extent> {
    let batch = this.#batch;
    if (batch === undefined || at < batch.start || at >= batch.end || performance.now() >= batch.freshUntil) {
      batch = await this.#load(at, size);
    }
    const { end, data } = runAt(batch, at);
    return {
      offset: at,
      length: Math.min(end - at, length),
      flags: data ? 0 : ExtentFlag.HOLE | ExtentFlag.ZERO,
    };
  }

  async #load(at: number, size: number): Promise<Batch> {
    const generation = this.#generation;
    const runs = await this.#ask(at, size - at, RUNS);
    // A full answer says nothing about what follows its last run.
    const end = runs.length >= RUNS * 2 ? (runs.at(-1) ?? size) : size;
    const batch = { start: at, end, runs, freshUntil: performance.now() + FRESH };
    if (generation === this.#generation) this.#batch = batch;
    return batch;
  }
}

/** Whether data is at `at`, and where that or the hole ends. */
function runAt({ runs, end }: Batch, at: number): { end: number; data: boolean } {
  let low = 0;
  let high = runs.length / 2;
  // The first run that ends past `at`.
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((runs[middle * 2 + 1] ?? 0) > at) high = middle;
    else low = middle + 1;
  }
  const start = runs[low * 2] ?? end;
  return start <= at ? { end: runs[low * 2 + 1] ?? end, data: start < end } : { end: start, data: false };
}
