import { describe, expect, it } from 'vitest';
import { DiskImage } from '../../src/format/disk-image.ts';
import { openImage } from '../../src/format/open.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS } from '../../src/format/qcow2/create.ts';
import { offsetOf } from '../../src/format/qcow2/entry.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { fault } from '../../src/layer/fault.ts';
import { trace } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { applyStep, firstDifference, Model } from '../tool/model.ts';
import { cutFiles } from '../tool/power-cut.ts';
import { Random, withRandom } from '../tool/random.ts';
import {
  content,
  write,
  readAll,
  inMemory,
  openAgain,
  streamOf,
  streamsByCluster,
  expectClean,
  CODECS,
} from '../tool/compressed.ts';

describe('packing', () => {
  it.each(CODECS)('40 clusters share host clusters, and each counts its streams, %s', async (type) => {
    await withRandom(`packing ${type}`, async (random) => {
      const { image, driver, storage } = await inMemory({ size: 41 * 65536, compressionType: type });
      const parts = Array.from({ length: 40 }, () => content(random, 65536, random.between(5, 60) / 100));
      await write(image, Buffer.concat(parts), 0);
      const counts = await streamsByCluster(driver);
      let end = 0;
      let total = 0;
      for (let cluster = 0; cluster < 40; cluster++) {
        const place = (await streamOf(driver, cluster))!;
        // One right after the other.
        expect(place.offset).toBeGreaterThan(end - 512);
        if (end > 0) expect(place.offset).toBeLessThanOrEqual(end);
        end = place.offset + place.length;
        total += place.length;
      }
      expect(counts.size).toBeLessThanOrEqual(Math.ceil(total / 65536) + 1);
      expect(counts.size).toBeLessThan(20);
      for (const [host, count] of counts) expect(await driver.writer.refcounts.get(host)).toBe(count);
      await image.flush();
      for (const [host, count] of counts) expect(await driver.writer.refcounts.get(host)).toBe(count);
      await image.driver.close();
      await expectClean(storage);
    });
  });

  it.each([1, 2, 4, 16, 64])('never counts past %i bits of refcount', async (refcountBits) => {
    await withRandom(`widths ${String(refcountBits)}`, async (random) => {
      const { image, driver, storage } = await inMemory({ size: 40 * 4096, clusterSize: 4096, refcountBits });
      const bytes = Buffer.concat(Array.from({ length: 40 }, () => content(random, 4096, 0.04)));
      await write(image, bytes, 0);
      const counts = [...(await streamsByCluster(driver)).values()];
      expect(Math.max(...counts)).toBe(Math.min(2 ** refcountBits - 1, Math.max(...counts)));
      expect(Math.max(...counts) > 1).toBe(refcountBits > 1);
      // One of them goes; its neighbours stay.
      await write(image, content(random, 4096, 0.05), 4096 * 5);
      await image.write(random.bytes(4096), 4096 * 7);
      await image.discard(4096 * 9, 4096);
      await image.flush();
      const now = await readAll(image);
      for (const cluster of [4, 6, 8, 10]) {
        const [from, to] = [cluster * 4096, (cluster + 1) * 4096];
        expect(firstDifference(now.subarray(from, to), bytes.subarray(from, to))).toBe(-1);
      }
      await image.driver.close();
      await expectClean(storage);
    });
  });

  it('a host cluster is free when the last of its streams is gone, and no stream is put there after', async () => {
    await withRandom('freed', async (random) => {
      const { image, driver, storage } = await inMemory({ size: 64 * 4096, clusterSize: 4096 });
      await write(image, content(random, 4096, 0.1), 0);
      const { offset } = (await streamOf(driver, 0))!;
      const host = Math.floor(offset / 4096);
      await image.discard(0, 4096);
      await image.flush();
      expect(await driver.writer.refcounts.get(host)).toBe(0);
      // Plain data takes the place; the next stream must not go into it.
      const plain = random.bytes(4096);
      await image.write(plain, 4096);
      const entry = await driver.writer.editor.entry(1);
      expect(offsetOf(entry.hi, entry.lo)).toBe(host * 4096);
      await write(image, content(random, 4096, 0.1), 8192);
      expect(Math.floor((await streamOf(driver, 2))!.offset / 4096)).not.toBe(host);
      expect(firstDifference((await readAll(image)).subarray(4096, 8192), plain)).toBe(-1);
      await image.driver.close();
      await expectClean(storage);
    });
  });

  it('what was read from a stream is not what the next one at its place reads', async () => {
    await withRandom('stale', async (random) => {
      const { image, driver, storage } = await inMemory({ size: 64 * 4096, clusterSize: 4096 });
      const [first, second] = [content(random, 4096, 0.1), content(random, 4096, 0.1)];
      await write(image, first, 0);
      const { offset } = (await streamOf(driver, 0))!;
      expect(firstDifference((await readAll(image)).subarray(0, 4096), first)).toBe(-1);
      await image.write(random.bytes(4096), 0);
      await image.flush();
      await write(image, second, 4096);
      expect((await streamOf(driver, 1))!.offset).toBe(offset);
      expect(firstDifference((await readAll(image)).subarray(4096, 8192), second)).toBe(-1);
      await image.driver.close();
      await expectClean(storage);
    });
  });

  it('a session does not go on where the one before it ended', async () => {
    await withRandom('sessions', async (random) => {
      const { image, driver, storage } = await inMemory({ size: 2 ** 20 });
      await write(image, content(random, 65536, 0.1), 0);
      const first = (await streamOf(driver, 0))!;
      await image.flush();
      const again = await openAgain(storage);
      await write(again.image, content(random, 65536, 0.1), 65536);
      const second = (await streamOf(again.driver, 1))!;
      expect(second.offset % 65536).toBe(0);
      expect(second.offset).toBeGreaterThan(first.offset);
      await again.image.flush();
      await expectClean(storage);
    });
  });

  it('what does not become smaller is stored plain', async () => {
    await withRandom('incompressible', async (random) => {
      for (const compressionType of CODECS) {
        const { image, driver, storage } = await inMemory({ size: 5 * 65536, compressionType });
        const bytes = Buffer.concat([
          content(random, 65536, 0.1),
          random.bytes(65536),
          content(random, 65536, 0.1),
        ]);
        await write(image, bytes, 0);
        expect(await streamOf(driver, 0)).not.toBeNull();
        expect(await streamOf(driver, 1)).toBeNull();
        expect(await streamOf(driver, 2)).not.toBeNull();
        expect(firstDifference((await readAll(image)).subarray(0, bytes.length), bytes)).toBe(-1);
        await image.driver.close();
        await expectClean(storage);
      }
    });
  });

  it('the end of the disk may cut the last cluster', async () => {
    await withRandom('last', async (random) => {
      for (const noise of [0.2, 1]) {
        const { image, storage } = await inMemory({ size: 3 * 65536 + 1024 });
        const bytes = content(random, 65536 + 1024, noise);
        await write(image, bytes, 2 * 65536);
        await write(image, new Uint8Array(0), 0);
        expect(firstDifference((await readAll(image)).subarray(2 * 65536), bytes)).toBe(-1);
        await image.driver.close();
        await expectClean(storage);
      }
    });
  });

  it('the same input makes the same image', async () => {
    const make = async (): Promise<Uint8Array> => {
      const random = new Random(7);
      const { image, storage } = await inMemory({ size: 2 ** 22, clusterSize: 4096 });
      const parts = Array.from({ length: 700 }, () => content(random, 4096, random.below(100) / 100));
      await write(image, Buffer.concat(parts), 0);
      await image.flush();
      return storage.toBytes();
    };
    expect(firstDifference(await make(), await make())).toBe(-1);
  });

  it('disjoint ranges at the same time, with readers and plain writers among them', async () => {
    await withRandom('concurrent', async (random) => {
      const { image, driver, storage } = await inMemory({ size: 256 * 4096, clusterSize: 4096 });
      const model = new Uint8Array(image.size);
      for (let round = 0; round < 3; round++) {
        const work: Promise<unknown>[] = [];
        for (let part = 0; part < 32; part++) {
          const [at, length] = [part * 8 * 4096, 8 * 4096];
          const bytes = content(random, length, random.pick([0.03, 0.1, 0.5]));
          model.set(bytes, at);
          work.push(random.chance(0.7) ? write(image, bytes, at) : image.write(bytes, at));
          if (random.chance(0.3)) work.push(image.read(new Uint8Array(length), at));
          if (random.chance(0.1)) work.push(image.flush());
        }
        await Promise.all(work);
        expect(firstDifference(await readAll(image), model)).toBe(-1);
      }
      await image.flush();
      for (const [host, count] of await streamsByCluster(driver))
        expect(await driver.writer.refcounts.get(host)).toBe(count);
      await image.driver.close();
      await expectClean(storage);
    });
  });

  it('ranges that are not whole clusters, raw images and read-only ones are refused', async () => {
    const { image, storage } = await inMemory({ size: 3 * 65536 + 512 });
    const refused = (length: number, at: number): Promise<void> =>
      expect(write(image, new Uint8Array(length), at)).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await refused(512, 0);
    await refused(65536, 512);
    await refused(65536 + 512, 65536);
    await expect(write(image, new Uint8Array(65536), 3 * 65536)).rejects.toMatchObject({
      code: 'OUT_OF_RANGE',
    });
    await write(image, new Uint8Array(512), 3 * 65536);
    await image.flush();
    const reading = await openImage(storage, { format: 'qcow2', codec: nodeCodec });
    await expect(write(reading, new Uint8Array(65536), 0)).rejects.toMatchObject({ code: 'READ_ONLY' });
    const raw = await openImage(new MemoryStorage(65536), { format: 'raw', codec: nodeCodec, write: true });
    await expect(write(raw, new Uint8Array(65536), 0)).rejects.toMatchObject({ code: 'UNSUPPORTED' });
  });
});

describe('compressed writes that fail', () => {
  it('change nothing that was there, and leak nothing when the session goes on', async () => {
    await withRandom('failing', async (random) => {
      const size = 64 * 4096;
      for (let after = 0; after < 60; after++) {
        const memory = new MemoryStorage();
        await createQcow2(memory, { ...QCOW2_DEFAULTS, size, clusterSize: 4096 });
        const storage = fault(memory);
        const metadata = await readMetadata(storage, 'data');
        const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, { backed: false });
        const image = new DiskImage(driver, storage, null);
        const model = content(random, size, 0);
        await write(image, model, 0);
        await image.flush();
        storage.inject({ on: 'write', after: after % 30, times: 1 });
        const next = Buffer.concat(Array.from({ length: 32 }, () => content(random, 4096, 0.3)));
        await expect(write(image, next, 0).then(() => image.flush())).rejects.toMatchObject({ code: 'IO' });
        const now = await readAll(image);
        for (let at = 0; at < size; at += 4096) {
          const part = now.subarray(at, at + 4096);
          const old = firstDifference(part, model.subarray(at, at + 4096)) < 0;
          if (!old) expect(firstDifference(part, next.subarray(at, at + 4096)), String(at)).toBe(-1);
        }
        await image.flush();
        const found = await checkImage(memory, await readMetadata(memory, 'check'));
        expect(found.corruptions, JSON.stringify(found.problems)).toBe(0);
        // It works again.
        await write(image, next, 0);
        await image.flush();
        const done = await readAll(image);
        expect(firstDifference(done.subarray(0, next.length), next)).toBe(-1);
        // What was taken for the failed write was given back.
        await driver.close();
        await expectClean(memory);
      }
    });
  });

  it('by a power cut at any moment lose nothing that was flushed', { timeout: 300_000 }, async () => {
    await withRandom('compressed power cuts', async (random) => {
      for (const options of [
        { clusterSize: 512 },
        { clusterSize: 4096, refcountBits: 2 },
        { clusterSize: 16384, extendedL2: true },
      ]) {
        const size = options.clusterSize * 20;
        const memory = new MemoryStorage();
        await createQcow2(memory, { ...QCOW2_DEFAULTS, ...options, size });
        const original = memory.toBytes();
        const storage = trace(memory, { keepBytes: true });
        const metadata = await readMetadata(storage, 'data');
        const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, { backed: false });
        const image = new DiskImage(driver, storage, null);
        const model = new Model(new Uint8Array(size));
        const promises = [{ records: 0, bytes: model.bytes.slice(), touched: new Set<number>() }];
        for (let step = 0; step < 40; step++) {
          const now = promises[promises.length - 1]!;
          const cluster = random.below(20);
          const at = cluster * options.clusterSize;
          now.touched.add(cluster);
          if (random.chance(0.6)) {
            const bytes = content(random, options.clusterSize, random.pick([0.05, 0.3, 1]));
            await write(image, bytes, at);
            model.bytes.set(bytes, at);
          } else if (random.chance(0.5)) {
            await applyStep(image, model, { do: 'discard', at, length: options.clusterSize });
          } else if (random.chance(0.5)) {
            const seed = random.u32();
            await applyStep(image, model, { do: 'write', at, length: options.clusterSize, seed });
          } else {
            await image.flush();
            const promise = { records: storage.records.length, bytes: model.bytes.slice() };
            promises.push({ ...promise, touched: new Set() });
          }
        }
        await image.close();
        const { records } = storage;
        for (let count = 0; count <= records.length; count++) {
          const promise = promises.findLast((one) => one.records <= count)!;
          for (const bytes of cutFiles(original, records, count, random, 2)) {
            const cut = MemoryStorage.from(bytes);
            const found = await checkImage(cut, await readMetadata(cut, 'check'));
            expect(found.corruptions, JSON.stringify(found.problems.slice(0, 3))).toBe(0);
            const left = await openImage(cut, { format: 'qcow2', codec: nodeCodec });
            const guest = await readAll(left);
            for (let cluster = 0; cluster < 20; cluster++) {
              if (promise.touched.has(cluster)) continue;
              const [from, to] = [cluster * options.clusterSize, (cluster + 1) * options.clusterSize];
              expect(firstDifference(guest.subarray(from, to), promise.bytes.subarray(from, to))).toBe(-1);
            }
          }
        }
      }
    });
  });
});
