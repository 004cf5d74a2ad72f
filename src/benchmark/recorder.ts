/** Buckets to a doubling: a bucket is 1.1 % wide. */
const PER_OCTAVE = 64;
/** Up to 2^44 ns, which is almost five hours. */
const BUCKETS = 44 * PER_OCTAVE;

/** Requests of a bucket: at least `from` and below `to` nanoseconds. */
export interface Bucket {
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

/**
 * Latencies in nanoseconds. Quantiles are by nearest rank, and the upper end of a bucket: at most 1.1 % too long. `null`
 * where so few requests were done that not one lies beyond: p99 needs 100 of them, p99.9 1000.
 */
export interface Tail {
  readonly min: number | null;
  readonly mean: number | null;
  readonly p50: number | null;
  readonly p90: number | null;
  readonly p99: number | null;
  readonly p999: number | null;
  readonly max: number | null;
}

/** Requests for which a quantile has at least one value beyond it. `part` is from 0 to below 1. */
export function needed(part: number): number {
  // 1 / (1 - 0.999) is not quite 1000.
  return Math.ceil(1 / (1 - part) - 1e-6);
}

/** Counts latencies in memory that does not grow with their number. */
export class LatencyCounter {
  readonly #counts = new Float64Array(BUCKETS);
  #count = 0;
  #sum = 0;
  #min = Infinity;
  #max = 0;

  /** How many were counted. */
  get count(): number {
    return this.#count;
  }

  /** Counts one, in nanoseconds. */
  add(latency: number): void {
    const bucket = Math.floor(Math.log2(Math.max(latency, 1)) * PER_OCTAVE);
    const index = Math.min(bucket, BUCKETS - 1);
    this.#counts[index] = (this.#counts[index] ?? 0) + 1;
    this.#count++;
    this.#sum += latency;
    this.#min = Math.min(this.#min, latency);
    this.#max = Math.max(this.#max, latency);
  }

  /** Counts all that another one counted. */
  merge(other: LatencyCounter): void {
    for (const [index, count] of other.#counts.entries())
      if (count > 0) this.#counts[index] = (this.#counts[index] ?? 0) + count;
    this.#count += other.#count;
    this.#sum += other.#sum;
    this.#min = Math.min(this.#min, other.#min);
    this.#max = Math.max(this.#max, other.#max);
  }

  /** The latency that `part` of them do not pass; null where there are too few. */
  quantile(part: number): number | null {
    if (this.#count < needed(part)) return null;
    let left = Math.ceil(this.#count * part);
    for (const [index, count] of this.#counts.entries()) {
      left -= count;
      if (left <= 0) return Math.min(Math.max(startOf(index + 1), this.#min), this.#max);
    }
    return this.#max;
  }

  /** In few words. */
  tail(): Tail {
    const some = this.#count > 0;
    return {
      ...{ min: some ? this.#min : null, mean: some ? this.#sum / this.#count : null },
      ...{ p50: this.quantile(0.5), p90: this.quantile(0.9), p99: this.quantile(0.99) },
      ...{ p999: this.quantile(0.999), max: some ? this.#max : null },
    };
  }

  /** All buckets that hold any, ascending. */
  buckets(): Bucket[] {
    return [...this.#counts.entries()]
      .filter(([, count]) => count > 0)
      .map(([index, count]) => ({ from: startOf(index), to: startOf(index + 1), count }));
  }
}

function startOf(index: number): number {
  return 2 ** (index / PER_OCTAVE);
}

/** What ended in a part of the time. */
export interface SeriesPart {
  readonly requests: number;
  readonly bytes: number;
  /** Nanoseconds; 0 where nothing ended. */
  readonly mean: number;
  readonly max: number;
}

/** What ended when. Each part is `interval` seconds; the last one may be cut off by the end. */
export interface Series {
  readonly interval: number;
  readonly parts: readonly SeriesPart[];
}

/** Parts that a series has at most; with more, each two become one of twice the time. */
const MOST_PARTS = 600;

/** Sums up over time, in memory that does not grow with it. */
export class SeriesRecorder {
  #interval = 50;
  #parts: { requests: number; bytes: number; sum: number; max: number }[] = [];

  /** A request ended so many milliseconds after the start; its latency is in nanoseconds. */
  add(milliseconds: number, bytes: number, latency: number): void {
    while (Math.floor(milliseconds / this.#interval) >= MOST_PARTS) this.#halve();
    const index = Math.floor(Math.max(milliseconds, 0) / this.#interval);
    while (this.#parts.length <= index) this.#parts.push({ requests: 0, bytes: 0, sum: 0, max: 0 });
    const part = this.#parts[index];
    if (part === undefined) return;
    part.requests++;
    part.bytes += bytes;
    part.sum += latency;
    part.max = Math.max(part.max, latency);
  }

  /** What was recorded. */
  series(): Series {
    return {
      interval: this.#interval / 1000,
      parts: this.#parts.map(({ requests, bytes, sum, max }) => ({
        ...{ requests, bytes, max },
        mean: requests === 0 ? 0 : sum / requests,
      })),
    };
  }

  #halve(): void {
    const none = { requests: 0, bytes: 0, sum: 0, max: 0 };
    this.#parts = Array.from({ length: Math.ceil(this.#parts.length / 2) }, (_, at) => {
      const [a = none, b = none] = [this.#parts[at * 2], this.#parts[at * 2 + 1]];
      return {
        ...{ requests: a.requests + b.requests, bytes: a.bytes + b.bytes },
        ...{ sum: a.sum + b.sum, max: Math.max(a.max, b.max) },
      };
    });
    this.#interval *= 2;
  }
}
