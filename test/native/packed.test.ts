import { ftruncateSync, readFileSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { encoderHere } from '../../src/native/zstd-encoder.ts';
import { addonHere, outcome, randomFrom, scratch, seed } from './help.ts';

const sides = addonHere ? [native(), twins] : [twins];
const CLUSTER = 65536;
const TYPES = ['deflate', 'zstd'] as const;

describe.each(sides)(`compressed clusters of files by the $kind (seed ${String(seed)})`, (side) => {
  const { open, path } = scratch();
  const random = randomFrom(seed);
  const able = TYPES.filter((type) => type === 'deflate' || side.kind === 'addon' || encoderHere());

  /** Text, zeroes and noise, cluster by cluster; the last one is short. */
  function disk(): Buffer {
    const clusters: Buffer[] = [];
    for (let count = 0; count < 24; count++) {
      const kind = count % 3;
      clusters.push(
        Buffer.from(
          Uint8Array.from({ length: count === 23 ? 5000 : CLUSTER }, () =>
            kind === 0 ? 97 + random(5) : kind === 1 ? 0 : random(256),
          ),
        ),
      );
    }
    return Buffer.concat(clusters);
  }

  function file(name: string, bytes: Uint8Array): number {
    const fd = open(`${name}-${side.kind}`);
    ftruncateSync(fd, 0);
    writeSync(fd, bytes, 0, bytes.length, 0);
    return fd;
  }

  it.each(able)('what packRanges makes, expandPieces puts where it should be: %s', async (type) => {
    const bytes = disk();
    const level = type === 'zstd' ? 3 : 6;
    const packing = { type, clusterSize: CLUSTER };
    const half = 12 * CLUSTER;
    const ranges = Float64Array.from([half, bytes.length - half, 0, half]);
    const fd = file('source', bytes);
    const { lengths, streams } = await side.packRanges(fd, ranges, packing, level);
    expect(lengths).toHaveLength(24);
    expect([...lengths].filter((length) => length === 0)).toHaveLength(8);
    expect([...lengths].filter((length) => length === CLUSTER).length).toBeGreaterThanOrEqual(7);
    const small = [...lengths].filter((length) => length < CLUSTER);
    expect(small.reduce((sum, length) => sum + length)).toBe(streams.length);

    // The streams at odd places, and the noise behind them.
    const noise = 1_000_003;
    const packed = Buffer.alloc(noise + bytes.length);
    packed.set(streams, 77);
    bytes.copy(packed, noise);
    const from = file('packed', packed);
    const pieces: number[] = [];
    const expected = Buffer.alloc(bytes.length, 0xee);
    let [at, written] = [77, 0];
    lengths.forEach((length, index) => {
      const start = ((index + 12) % 24) * CLUSTER;
      const end = Math.min(bytes.length, start + CLUSTER);
      if (length === CLUSTER) pieces.push(noise + start, start, end - start, 0, 0);
      if (length === CLUSTER || length === 0) {
        if (length > 0) bytes.copy(expected, start, start, end);
        written += length === 0 ? 0 : end - start;
        return;
      }
      // A part of the cluster; more sectors than the stream has.
      const first = random(1000);
      const size = Math.min(end - start - first, 4000);
      pieces.push(at, start + first, size, length + random(600), first);
      bytes.copy(expected, start + first, start + first, start + first + size);
      written += size;
      at += length;
    });
    const target = file('target', Buffer.alloc(bytes.length, 0xee));
    expect(await side.expandPieces(from, target, Float64Array.from(pieces), packing, 0)).toBe(written);
    expect(readFileSync(path(`target-${side.kind}`)).equals(expected)).toBe(true);
  });

  it.each(able)('zeroes in what a stream holds are left out: %s', async (type) => {
    const bytes = Buffer.alloc(CLUSTER);
    bytes.fill(1, 8192, 8193);
    const packing = { type, clusterSize: CLUSTER };
    const { streams } = await side.packRanges(
      file('sparse', bytes),
      Float64Array.from([0, CLUSTER]),
      packing,
      1,
    );
    const target = file('holes', Buffer.alloc(CLUSTER, 0xee));
    const pieces = Float64Array.from([0, 0, CLUSTER, streams.length + 512, 0]);
    expect(await side.expandPieces(file('stream', streams), target, pieces, packing, 4096)).toBe(4096);
    const expected = Buffer.alloc(CLUSTER, 0xee);
    bytes.copy(expected, 8192, 8192, 12288);
    expect(readFileSync(path(`holes-${side.kind}`)).equals(expected)).toBe(true);
  });

  it.each(TYPES)('tells of damage, of a source that ends, and of what makes no sense: %s', async (type) => {
    const packing = { type, clusterSize: CLUSTER };
    const fd = file('damage', Buffer.alloc(5000, 0xff));
    const target = file('nothing', Buffer.alloc(0));
    const expand = (...piece: number[]): Promise<unknown> =>
      outcome(() => side.expandPieces(fd, target, Float64Array.from(piece), packing, 0));
    expect(await expand(0, 0, CLUSTER, 5000, 0)).toEqual({ code: 'BAD_COMPRESSED' });
    expect(await expand(10_000, 0, CLUSTER, 512, 0)).toEqual({ code: 'BAD_COMPRESSED' });
    expect(await expand(0, 0, CLUSTER, 5000, 1)).toHaveProperty('code');
    expect(await expand(0, 0, CLUSTER, 2 ** 40, 0)).toHaveProperty('code');
    expect(await expand(4000, 0, 2000, 0, 0)).toEqual({ code: 'IO' });
    expect(await expand(0, 0, 1, 1)).toEqual({ thrown: 'RangeError' });
    const huge = { type, clusterSize: 2 ** 22 };
    const none = new Float64Array(0);
    expect(await outcome(() => side.expandPieces(fd, target, none, huge, 0))).toEqual({
      thrown: 'RangeError',
    });
    expect(await outcome(() => side.packRanges(fd, none, packing, 23))).toEqual({ thrown: 'RangeError' });
    if (!able.includes(type)) return;
    const past = Float64Array.from([4000, 2000]);
    expect(await outcome(() => side.packRanges(fd, past, packing, 3))).toEqual({ code: 'IO' });
  });
});
