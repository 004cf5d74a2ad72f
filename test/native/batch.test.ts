import { readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { Random } from '../tool/random.ts';
import { addonHere, scratch } from './help.ts';

describe.each([
  ['addon, together', native, true],
  ['addon, in order', native, false],
  ['twin', () => twins, true],
] as const)('a batch of requests (%s)', (name, side, together) => {
  const { open, path } = scratch();
  const runs = name === 'twin' || addonHere;

  it.runIf(runs)('moves each to its place and nothing else', async () => {
    const random = new Random(1);
    const content = random.bytes(300_000);
    writeFileSync(path('one'), content);
    const fd = open('one', 'r+');
    // More than fit into one round of a ring; none overlaps another.
    const places = Array.from({ length: 150 }, (_, i) => [
      i * 2000 + random.below(900),
      1 + random.below(1000),
    ]);
    const ranges = Float64Array.from(places.reverse().flat());
    const length = places.reduce((sum, [, one = 0]) => sum + one, 0);
    const memory = random.bytes(length);
    const given = memory.slice();
    expect(await side().runBatch(fd, true, ranges, memory, together)).toEqual([]);
    let from = 0;
    for (const [at = 0, one = 0] of places) {
      content.set(given.subarray(from, from + one), at);
      from += one;
    }
    expect(Buffer.compare(readFileSync(path('one')), content)).toBe(0);
    memory.fill(0);
    expect(await side().runBatch(fd, false, ranges, memory, together)).toEqual([]);
    expect(Buffer.compare(memory, given)).toBe(0);
  });

  it.runIf(runs)('names the requests that were not done whole, and does the others', async () => {
    writeFileSync(path('two'), new Uint8Array(5000).fill(7));
    const ranges = Float64Array.from([4950, 100, 0, 100, 9000, 100, 4900, 100]);
    const memory = new Uint8Array(400);
    const read = open('two', 'r');
    expect(await side().runBatch(read, false, ranges, memory, together)).toEqual([0, 2]);
    expect(memory.subarray(100, 200).every((byte) => byte === 7)).toBe(true);
    expect(memory.subarray(300).every((byte) => byte === 7)).toBe(true);
    expect(await side().runBatch(read, true, ranges, memory, together)).toEqual([0, 1, 2, 3]);
    expect(readFileSync(path('two')).every((byte) => byte === 7)).toBe(true);
  });

  it.runIf(runs)('refuses what does not fit together', async () => {
    const fd = open('three');
    const bad: [number, number[], number][] = [
      [fd, [0, 10], 9],
      [fd, [0, 10, 5], 10],
      [fd, [-1, 10], 10],
      [-1, [0, 10], 10],
    ];
    for (const [where, ranges, room] of bad) {
      const begun = side().runBatch(where, true, Float64Array.from(ranges), new Uint8Array(room), together);
      await expect(begun).rejects.toThrow(RangeError);
    }
    expect(readFileSync(path('three'))).toHaveLength(0);
  });
});
