import { seeded } from './random.ts';
import { needed } from './recorder.ts';

/** A range that holds the true value with the confidence it was made for, and the estimate itself. */
export interface Interval {
  readonly low: number;
  readonly value: number;
  readonly high: number;
}

/**
 * The value below which `part` (0 to 1) of the values lie, between neighbours linearly (type 7 of Hyndman and Fan). NaN
 * where there are none. `sorted` is ascending.
 */
export function quantile(sorted: ArrayLike<number>, part: number): number {
  if (sorted.length === 0) return NaN;
  const place = (sorted.length - 1) * part;
  const below = Math.floor(place);
  const low = sorted[below] ?? NaN;
  const high = sorted[Math.min(below + 1, sorted.length - 1)] ?? NaN;
  return low + (high - low) * (place - below);
}

/** The middle value. NaN where there are none. */
export function median(values: readonly number[]): number {
  return quantile(Float64Array.from(values).sort(), 0.5);
}

/** Samples that a bootstrap draws. */
const DRAWS = 2000;

/**
 * The median with its bootstrap interval: `DRAWS` samples of the values with replacement, by a generator with `seed`, and
 * of their medians the part in the middle that `confidence` says. Of few values that alone holds the true median less
 * often (of seven, 88 times in 100 instead of 95), so it is never narrower than {@link surePlaces}.
 */
export function medianInterval(values: readonly number[], seed: number, confidence = 0.95): Interval {
  const random = seeded(seed);
  const medians = new Float64Array(DRAWS);
  const sample = new Float64Array(values.length);
  for (let draw = 0; draw < DRAWS; draw++) {
    for (let at = 0; at < sample.length; at++)
      sample[at] = values[Math.floor(random() * values.length)] ?? NaN;
    medians[draw] = quantile(sample.sort(), 0.5);
  }
  medians.sort();
  const tail = (1 - confidence) / 2;
  const sorted = Float64Array.from(values).sort();
  const place = surePlaces(values.length, confidence);
  return {
    low: Math.min(quantile(medians, tail), sorted[place] ?? NaN),
    value: median(values),
    high: Math.max(quantile(medians, 1 - tail), sorted[sorted.length - 1 - place] ?? NaN),
  };
}

/**
 * How many of `count` sorted values may be left out at either end so that the others hold the true median with the
 * confidence, whatever they are distributed like: each lies above it or below it with the same chance. 0, the widest there
 * is, also where all of them are too few.
 */
export function surePlaces(count: number, confidence: number): number {
  let [place, chance, below] = [0, 0.5 ** count, 0.5 ** count];
  for (;;) {
    chance *= (count - place) / (place + 1);
    below += chance;
    if (2 * below > 1 - confidence || place + 1 > (count - 1) / 2) return place;
    place++;
  }
}

/**
 * How many times `of` is `by`, from values that were measured in the same rounds: the median of the ratios of a round, with
 * its bootstrap interval. Pairs cancel out what changed from one round to the next.
 */
export function ratioInterval(
  of: readonly number[],
  by: readonly number[],
  seed: number,
  confidence = 0.95,
): Interval {
  const logs: number[] = [];
  for (let at = 0; at < Math.min(of.length, by.length); at++) {
    const [above = NaN, below = NaN] = [of[at], by[at]];
    if (above > 0 && below > 0) logs.push(Math.log(above / below));
  }
  const { low, value, high } = medianInterval(logs, seed, confidence);
  return { low: Math.exp(low), value: Math.exp(value), high: Math.exp(high) };
}

/** Latencies in nanoseconds, in few words. Null: there are so few that not one lies beyond, as of {@link needed}. */
export interface Latency {
  readonly p50: number;
  readonly p90: number | null;
  readonly p99: number | null;
  readonly p999: number | null;
  readonly max: number;
  readonly mean: number;
}

/** The figures of a distribution. */
export function latencyOf(values: ArrayLike<number>): Latency {
  const sorted = Float64Array.from(values).sort();
  const at = (part: number): number | null => (sorted.length < needed(part) ? null : quantile(sorted, part));
  const sum = sorted.reduce((total, value) => total + value, 0);
  return {
    ...{ p50: quantile(sorted, 0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999) },
    ...{ max: sorted.at(-1) ?? NaN, mean: sum / sorted.length },
  };
}

/** Buckets to a doubling: a bucket is 9 % wide. */
const PER_OCTAVE = 8;

/** Counts of values by the bucket they fall into; a bucket is known by {@link bucketOf}. */
export type Histogram = readonly (readonly [bucket: number, count: number])[];

/** The bucket of a value of at least 1. */
export function bucketOf(value: number): number {
  return Math.floor(Math.log2(Math.max(value, 1)) * PER_OCTAVE);
}

/** The least value of a bucket. */
export function bucketStart(bucket: number): number {
  return 2 ** (bucket / PER_OCTAVE);
}

/** The histogram of values, buckets ascending, empty ones left out. */
export function histogramOf(values: Iterable<number>): Histogram {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(bucketOf(value), (counts.get(bucketOf(value)) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a - b);
}

/** The histogram of all values in some. */
export function mergedHistogram(all: readonly Histogram[]): Histogram {
  const counts = new Map<number, number>();
  for (const [bucket, count] of all.flat()) counts.set(bucket, (counts.get(bucket) ?? 0) + count);
  return [...counts].sort(([a], [b]) => a - b);
}
