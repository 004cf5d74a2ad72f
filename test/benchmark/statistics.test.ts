import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { seeded, seedOf, shuffled } from '../../src/benchmark/random.ts';
import {
  bucketOf,
  bucketStart,
  histogramOf,
  latencyOf,
  median,
  medianInterval,
  mergedHistogram,
  quantile,
  ratioInterval,
  surePlaces,
} from '../../src/benchmark/statistics.ts';
import { findingOf } from '../../src/benchmark/verdict.ts';

const seed = Number(process.env['SPINDLE_SEED'] ?? Date.now() % 2 ** 31);
const values = fc.array(fc.double({ min: 1, max: 1e12, noNaN: true }), { minLength: 1, maxLength: 200 });

describe(`statistics (seed ${String(seed)})`, () => {
  it('know known values', () => {
    expect(quantile([1, 2, 3, 4], 0.5)).toBe(2.5);
    expect(quantile([10, 20, 30, 40, 50], 0.25)).toBe(20);
    expect(quantile([10, 20, 30, 40, 50], 0.9)).toBeCloseTo(46, 9);
    expect(median([3, 1, 2])).toBe(2);
    expect(Number.isNaN(median([]))).toBe(true);
    const { p50, p90, p99, p999, max, mean } = latencyOf(Array.from({ length: 1001 }, (_, at) => at));
    expect([p50, p90, p99, p999, max, mean]).toEqual([500, 900, 990, 999, 1000, 500]);
    // No more is told than there is: of 64 values nobody knows the one of 100 that is longest.
    const few = latencyOf(Array.from({ length: 64 }, (_, at) => at));
    expect([few.p90 === null, few.p99, few.p999, few.max]).toEqual([false, null, null, 63]);
    expect(latencyOf([1, 2, 3]).p90).toBeNull();
    expect(latencyOf(Array.from({ length: 100 }, () => 7)).p99).toBe(7);
  });

  it('hold for any values: quantiles ascend within the range, one of the order of the values', () => {
    fc.assert(
      fc.property(values, fc.double({ min: 0, max: 1, noNaN: true }), (list, part) => {
        const sorted = Float64Array.from(list).sort();
        const found = quantile(sorted, part);
        expect(found).toBeGreaterThanOrEqual(sorted[0]!);
        expect(found).toBeLessThanOrEqual(sorted.at(-1)!);
        expect(quantile(sorted, Math.min(1, part + 0.1))).toBeGreaterThanOrEqual(found);
        expect(median(list)).toBe(median([...list].reverse()));
      }),
      { seed },
    );
  });

  it('intervals hold their estimate, repeat by their seed, and shrink to nothing where all values are one', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 1, max: 1e6, noNaN: true }), { minLength: 7, maxLength: 15 }),
        fc.nat(),
        (list, own) => {
          const found = medianInterval(list, own);
          expect(found.low).toBeLessThanOrEqual(found.value);
          expect(found.high).toBeGreaterThanOrEqual(found.value);
          expect(medianInterval(list, own)).toEqual(found);
        },
      ),
      { seed, numRuns: 20 },
    );
    expect(medianInterval([5, 5, 5, 5, 5, 5, 5], 1)).toEqual({ low: 5, value: 5, high: 5 });
  });

  it.each([7, 9, 15])(
    'intervals of %i values cover the truth at least about as often as they say',
    (count) => {
      const random = seeded(seed);
      // The median of exp(normal) is 1.
      const normal = (): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
      let held = 0;
      const times = 600;
      for (let time = 0; time < times; time++) {
        const list = Array.from({ length: count }, () => Math.exp(normal()));
        const { low, high } = medianInterval(list, time);
        if (low <= 1 && high >= 1) held++;
      }
      // 95 % of 600 is 570; less than 545 has a chance of less than one in 100 000. The bootstrap alone holds 530 of 7.
      expect(held).toBeGreaterThan(545);
    },
  );

  it('intervals are no narrower than the order of the values allows', () => {
    // By the binomial distribution: of 7 values one left out at both ends would hold 1 - 2 * 8 / 128 = 87.5 %.
    expect([6, 7, 8, 9, 11, 12, 15].map((count) => surePlaces(count, 0.95))).toEqual([0, 0, 0, 1, 1, 2, 3]);
    expect([7, 11, 15].map((count) => surePlaces(count, 0.999))).toEqual([0, 0, 1]);
    expect([0, 1, 2].map((count) => surePlaces(count, 0.95))).toEqual([0, 0, 0]);
    expect(medianInterval([1, 2, 3, 4, 5, 6, 7], 1)).toEqual({ low: 1, value: 4, high: 7 });
    expect(Number.isNaN(medianInterval([], 1).low)).toBe(true);
  });

  it('ratios pair what belongs together: a drift that both have is no difference', () => {
    const drift = [1, 2, 4, 8, 16, 32, 64];
    const found = ratioInterval(
      drift.map((value) => value * 3),
      drift,
      1,
    );
    expect(found.low).toBeCloseTo(3, 9);
    expect(found.value).toBeCloseTo(3, 9);
    expect(found.high).toBeCloseTo(3, 9);
  });

  it('findings need an interval beyond chance and an effect beyond the margin', () => {
    expect(findingOf({ low: 1.2, value: 1.5, high: 1.8 })).toBe('slower');
    expect(findingOf({ low: 0.4, value: 0.5, high: 0.6 })).toBe('faster');
    expect(findingOf({ low: 0.97, value: 1, high: 1.03 })).toBe('same');
    expect(findingOf({ low: 1.01, value: 1.02, high: 1.04 })).toBe('same');
    expect(findingOf({ low: 0.9, value: 1.5, high: 2 })).toBe('undecided');
    expect(findingOf({ low: 0.5, value: 1, high: 2 })).toBe('undecided');
  });

  it('histograms lose no value and know their bucket', () => {
    fc.assert(
      fc.property(values, values, (one, other) => {
        const both = mergedHistogram([histogramOf(one), histogramOf(other)]);
        expect(both).toEqual(histogramOf([...one, ...other]));
        expect(both.reduce((sum, [, count]) => sum + count, 0)).toBe(one.length + other.length);
        for (const value of one) {
          const bucket = bucketOf(value);
          expect(bucketStart(bucket)).toBeLessThanOrEqual(value * (1 + 1e-12));
          expect(bucketStart(bucket + 1)).toBeGreaterThan(value * (1 - 1e-12));
        }
      }),
      { seed },
    );
  });

  it('orders by chance hold every item, and repeat by their seed', () => {
    fc.assert(
      fc.property(fc.array(fc.nat()), fc.nat(), (list, own) => {
        const found = shuffled(list, seeded(own));
        expect([...found].sort()).toEqual([...list].sort());
        expect(shuffled(list, seeded(own))).toEqual(found);
      }),
      { seed },
    );
    expect(seedOf(1, 'a')).not.toBe(seedOf(2, 'a'));
    expect(seedOf(1, 'a', 2)).toBe(seedOf(1, 'a', 2));
  });
});
