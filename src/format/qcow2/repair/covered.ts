/** A set of byte ranges that grows. */
export class Covered {
  /** Sorted, apart from each other. */
  readonly #ranges: [from: number, to: number][] = [];

  /** Adds a range. */
  add(from: number, to: number): void {
    const first = this.#first(from);
    let last = first;
    let [start, end] = [from, to];
    for (let next = this.#ranges[last]; next !== undefined && next[0] <= to; next = this.#ranges[++last]) {
      start = Math.min(start, next[0]);
      end = Math.max(end, next[1]);
    }
    this.#ranges.splice(first, last - first, [start, end]);
  }

  /** The parts of a range that are not in the set. */
  gaps(from: number, to: number): [from: number, to: number][] {
    const gaps: [number, number][] = [];
    let at = from;
    for (let i = this.#first(from); at < to; i++) {
      const range = this.#ranges[i];
      const end = Math.min(to, range?.[0] ?? to);
      if (end > at) gaps.push([at, end]);
      at = Math.max(at, range?.[1] ?? to);
    }
    return gaps;
  }

  /** Number of the first range that ends at `at` or later. */
  #first(at: number): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ranges[middle]?.[1] ?? 0) < at) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
