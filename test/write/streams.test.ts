import { expect, it } from 'vitest';
import { SpindleError } from '../../src/core/errors.ts';
import type { ClusterStream } from '../../src/format/driver.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { content, expectClean, inMemory, openAgain, readAll } from '../tool/compressed.ts';
import { firstDifference } from '../tool/model.ts';
import { withRandom, type Random } from '../tool/random.ts';

const CLUSTER = 4096;
const SIZE = 64 * CLUSTER;

/** Fails the writes from one number on. */
class Failing extends MemoryStorage {
  left = Infinity;

  override async write(from: Uint8Array, at: number): Promise<void> {
    if (this.left-- <= 0) throw new SpindleError('NO_SPACE', 'no space');
    await super.write(from, at);
  }
}

/** Streams of some clusters, in one buffer, and the disk as it is with them. */
async function streamsOver(
  random: Random,
  disk: Uint8Array,
): Promise<{ streams: ClusterStream[]; after: Uint8Array }> {
  const after = disk.slice();
  const parts: { at: number; bytes: Uint8Array }[] = [];
  for (let at = 0; at < SIZE; at += CLUSTER) {
    if (random.chance(0.4)) continue;
    const cluster = content(random, CLUSTER, random.below(80) / 100);
    const bytes = await nodeCodec.deflate(cluster, CLUSTER);
    if (bytes === null) continue;
    after.set(cluster, at);
    parts.push({ at, bytes });
  }
  const all = Buffer.concat(parts.map(({ bytes }) => bytes));
  let from = 0;
  return {
    after,
    streams: parts.map(({ at, bytes }) => ({
      at,
      bytes: new Uint8Array(all.buffer, all.byteOffset + (from += bytes.length) - bytes.length, bytes.length),
    })),
  };
}

it('many streams are stored together, over whatever was there', async () => {
  await withRandom('streams', async (random) => {
    const { image, driver, storage } = await inMemory({ size: SIZE, clusterSize: CLUSTER });
    let disk: Uint8Array = new Uint8Array(SIZE);
    for (let round = 0; round < 30; round++) {
      const bytes = content(random, CLUSTER * random.between(1, 9), 0.5);
      const at = random.below(50) * CLUSTER;
      await image.write(bytes, at);
      disk.set(bytes, at);
      const { streams, after } = await streamsOver(random, disk);
      await driver.writeStreams(streams);
      disk = after;
      expect(firstDifference(await readAll(image), disk)).toBe(-1);
    }
    await driver.close();
    await expectClean(storage);
    const again = await openAgain(storage);
    expect(firstDifference(await readAll(again.image), disk)).toBe(-1);
  });
});

it('a failure at any write leaves each cluster as it was or as it should be, and no leak', async () => {
  await withRandom('streams that fail', async (random) => {
    let failures = 0;
    for (let left = 0; left < 12; left++) {
      const storage = new Failing();
      const { image, driver } = await inMemory({ size: SIZE, clusterSize: CLUSTER }, storage);
      const before = content(random, SIZE, 0.9);
      await image.write(before, 0);
      await image.flush();
      const first = await streamsOver(random, before);
      await driver.writeStreams(first.streams);
      await image.flush();
      const { streams, after } = await streamsOver(random, first.after);
      storage.left = left;
      const failed = await driver.writeStreams(streams).then(
        () => false,
        () => true,
      );
      failures += failed ? 1 : 0;
      storage.left = Infinity;
      const found = await readAll(image);
      expect(firstDifference(found, failed ? first.after : after), String(left)).toBe(-1);
      await driver.close();
      await expectClean(storage);
      const again = await openAgain(storage);
      expect(firstDifference(await readAll(again.image), found)).toBe(-1);
    }
    expect(failures).toBeGreaterThan(1);
    expect(failures).toBeLessThan(12);
  });
});
