import { ftruncateSync, readFileSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { addonHere, outcome, randomFrom, scratch, seed } from './help.ts';

const sides = addonHere ? [native(), twins] : [twins];
const SIZE = 2_000_003;

describe.each(sides)(`many ranges in one call by the $kind (seed ${String(seed)})`, (side) => {
  const { open, path } = scratch();
  const random = randomFrom(seed);

  /** Data and zeroes in pieces of odd lengths. */
  function source(): { readonly fd: number; readonly bytes: Buffer } {
    const bytes = Buffer.alloc(SIZE);
    for (let at = 0; at < SIZE;) {
      const length = Math.min(SIZE - at, 1 + random(40_000));
      if (random(2) === 0) bytes.fill(1 + random(255), at, at + length);
      at += length;
    }
    const fd = open(`source-${side.kind}`);
    ftruncateSync(fd, 0);
    writeSync(fd, bytes, 0, SIZE, 0);
    return { fd, bytes };
  }

  it('copyRuns puts them where they should be, but for whole units of zeroes', async () => {
    for (const skip of [0, 512, 4096, 65536, 3000, 1_000_000]) {
      const { fd, bytes } = source();
      const target = open(`target-${side.kind}-${String(skip)}`);
      ftruncateSync(target, SIZE);
      // What is there shows where nothing was written.
      const expected = Buffer.alloc(SIZE, 0xee);
      writeSync(target, expected, 0, SIZE, 0);
      const runs: number[] = [];
      let written = 0;
      for (let to = 0; to < SIZE;) {
        const length = Math.min(SIZE - to, random(3) === 0 ? random(600_000) : random(5000));
        const from = random(SIZE - length);
        runs.push(from, to, length);
        const unit = skip === 0 ? Math.max(1, length) : skip;
        for (let at = 0; at < length; at += unit) {
          const end = Math.min(length, at + unit);
          if (skip > 0 && bytes.subarray(from + at, from + end).every((byte) => byte === 0)) continue;
          bytes.copy(expected, to + at, from + at, from + end);
          written += end - at;
        }
        to += length;
      }
      expect(await side.copyRuns(fd, target, Float64Array.from(runs), skip)).toBe(written);
      expect(readFileSync(path(`target-${side.kind}-${String(skip)}`)).equals(expected)).toBe(true);
    }
  }, 60_000);

  it('zeroRanges finds the units that are zero', async () => {
    const { fd, bytes } = source();
    for (const unit of [512, 4096, 65536, 700]) {
      const ranges: number[] = [];
      const expected: number[] = [];
      for (let count = 0; count < 20; count++) {
        const length = random(300_000);
        const start = random(SIZE - length);
        ranges.push(start, length);
        for (let at = start; at < start + length; at += unit)
          expected.push(
            bytes.subarray(at, Math.min(start + length, at + unit)).every((b) => b === 0) ? 1 : 0,
          );
      }
      const found = await side.zeroRanges(fd, Float64Array.from(ranges), unit);
      expect(Buffer.from(found).equals(Buffer.from(expected))).toBe(true);
      expect(expected).toContain(1);
    }
    expect(await side.zeroRanges(fd, new Float64Array(0), 512)).toHaveLength(0);
  }, 60_000);

  it('compareRuns finds the first byte that differs, also from zeroes', async () => {
    const { fd, bytes } = source();
    for (let round = 0; round < 40; round++) {
      const other = open(`other-${side.kind}`);
      const there = Buffer.alloc(SIZE);
      const pairs: number[] = [];
      const [one, two]: Buffer[][] = [[], []];
      for (let to = 0; to < SIZE;) {
        const length = Math.min(SIZE - to, random(3) === 0 ? random(600_000) : random(5000));
        const from = random(SIZE - length);
        const zero = bytes.subarray(from, from + length).every((byte) => byte === 0);
        const sides = zero && random(2) === 0 ? 1 + random(2) : 3;
        bytes.copy(there, to, from, from + length);
        // What does not count on the other side may be anything.
        pairs.push(sides === 2 ? 2 ** 50 : from, sides === 1 ? 2 ** 50 : to, length, sides);
        const none = Buffer.alloc(length);
        one?.push(sides === 2 ? none : bytes.subarray(from, from + length));
        two?.push(sides === 1 ? none : there.subarray(to, to + length));
        to += length;
      }
      if (round % 4 > 0)
        for (let left = random(3); left >= 0; left--) there.writeUInt8(random(256), random(SIZE));
      writeSync(other, there, 0, SIZE, 0);
      const [a, b] = [Buffer.concat(one ?? []), Buffer.concat(two ?? [])];
      const expected = a.findIndex((byte, at) => byte !== b[at]);
      expect(await side.compareRuns(fd, other, Float64Array.from(pairs))).toBe(expected);
      if (round % 4 === 0) expect(expected).toBe(-1);
    }
    expect(await side.compareRuns(fd, fd, new Float64Array(0))).toBe(-1);
    for (const sides of [1, 2, 3])
      expect(
        await outcome(() => side.compareRuns(fd, fd, Float64Array.from([SIZE - 10, SIZE - 10, 11, sides]))),
      ).toEqual({ code: 'IO' });
    for (const bad of [
      [1, 2, 3],
      [0, 0, 1, 0],
      [0, 0, 1, 4],
      [0, 0.5, 1, 3],
    ])
      expect(await outcome(() => side.compareRuns(fd, fd, Float64Array.from(bad)))).toEqual({
        thrown: 'RangeError',
      });
  }, 60_000);

  it('tells of a source that ends, of what cannot be written, and of what is no list', async () => {
    const { fd } = source();
    const target = open(`errors-${side.kind}`);
    const past = Float64Array.from([SIZE - 10, 0, 11]);
    expect(await outcome(() => side.copyRuns(fd, target, past, 0))).toEqual({ code: 'IO' });
    expect(await outcome(() => side.zeroRanges(fd, Float64Array.from([SIZE - 10, 11]), 512))).toEqual({
      code: 'IO',
    });
    const readOnly = open(path(`source-${side.kind}`), 'r');
    const some = Float64Array.from([0, 0, SIZE]);
    expect(Object.keys((await outcome(() => side.copyRuns(fd, readOnly, some, 0))) as object)).toEqual([
      'code',
    ]);
    for (const bad of [
      [1, 2],
      [0, 0, -1],
      [0, 0, 1.5],
      [NaN, 0, 0],
    ])
      expect(await outcome(() => side.copyRuns(fd, target, Float64Array.from(bad), 0))).toEqual({
        thrown: 'RangeError',
      });
    expect(await outcome(() => side.zeroRanges(fd, new Float64Array(0), 0))).toEqual({
      thrown: 'RangeError',
    });
  });
});
