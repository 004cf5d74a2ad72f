import { alignDown, alignUp } from '../../../core/align.ts';

/** Byte ranges, whole clusters each, that answer whether they touch a range. */
export class Spans {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  /** `end` is exclusive; empty ranges are left out. */
  constructor(ranges: Iterable<{ readonly at: number; readonly end: number }>, clusterSize: number) {
    const filled = [...ranges]
      .filter(({ at, end }) => end > at)
      .map(({ at, end }) => ({ at: alignDown(at, clusterSize), end: alignUp(end, clusterSize) }))
      .sort((a, b) => a.at - b.at);
    for (const { at, end } of filled) {
      const last = this.#ends.length - 1;
      if (last >= 0 && at <= (this.#ends[last] ?? 0)) this.#ends[last] = Math.max(this.#ends[last] ?? 0, end);
      else {
        this.#starts.push(at);
        this.#ends.push(end);
      }
    }
  }

  /** The end of a range that touches `at` to `end`, or -1 when none does. */
  touching(at: number, end: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] ?? 0) < end) low = middle + 1;
      else high = middle;
    }
    const found = this.#ends[low - 1] ?? -1;
    return low > 0 && found > at ? found : -1;
  }
}
