import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { viewOf } from '../../src/core/bytes.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { HeaderOffset, Incompatible } from '../../src/format/qcow2/layout.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { createSnapshot, deleteSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import type { Storage } from '../../src/core/storage.ts';
import { trace, type TraceRecord } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile } from '../../src/op/open.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { readAll } from '../tool/history.ts';
import { applyStep, Model, patternOf, randomStep } from '../tool/model.ts';
import { cutFiles } from '../tool/power-cut.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = Math.ceil(times('SPINDLE_CRASH_SEQUENCES', 24) / 2);
const STEPS = 24;
const SECTOR = 512;

const KINDS: readonly Partial<Qcow2CreateOptions>[] = [
  { clusterSize: 512 },
  { clusterSize: 512, refcountBits: 64 },
  { clusterSize: 4096, refcountBits: 8 },
  { clusterSize: 65536 },
  { clusterSize: 16384, extendedL2: true },
  { clusterSize: 4096, preallocation: 'metadata' },
];

interface Promised {
  readonly records: number;
  readonly bytes: Uint8Array;
  readonly touched: Set<number>;
}

interface Recorded {
  readonly original: Uint8Array;
  readonly records: readonly TraceRecord[];
  readonly promises: readonly Promised[];
}

async function made(options: Partial<Qcow2CreateOptions>, size: number): Promise<MemoryStorage> {
  const memory = new MemoryStorage();
  await createQcow2(memory, { ...QCOW2_DEFAULTS, lazyRefcounts: true, ...options, size });
  return memory;
}

async function openWriter(storage: Storage): Promise<DiskImage> {
  const metadata = await readMetadata(storage, 'data');
  const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, { backed: false });
  return new DiskImage(driver, storage, null);
}

function isDirty(bytes: Uint8Array): boolean {
  return (viewOf(bytes).getUint32(HeaderOffset.incompatibleFeatures + 4) & Incompatible.DIRTY) !== 0;
}

/** Works on an image, and keeps every call that reaches its file. */
async function record(options: Partial<Qcow2CreateOptions>, random: Random): Promise<Recorded> {
  const size = random.between(40, 400) * SECTOR;
  const memory = await made(options, size);
  const original = memory.toBytes();
  const storage = trace(memory, { keepBytes: true });
  const image = await openWriter(storage);
  const model = new Model(new Uint8Array(size));
  const promises: Promised[] = [];
  const promise = (from = storage.records.length): void => {
    promises.push({ records: from, bytes: model.bytes.slice(), touched: new Set() });
  };
  promise(0);
  let snapshot = false;
  for (let i = 0; i < STEPS; i++) {
    const { driver } = image;
    if (random.chance(0.06) && driver instanceof Qcow2WriteDriver) {
      const change = snapshot
        ? driver.changeSnapshots((w) => deleteSnapshot(w, driver.metadata.snapshots[0]!))
        : driver.changeSnapshots((w) => createSnapshot(w, { name: 's', date: new Date(0) }));
      await change;
      snapshot = !snapshot;
      promise();
      continue;
    }
    const step = randomStep(random, size, image.driver.granularity);
    if ('at' in step && step.do !== 'read') {
      const { touched } = promises[promises.length - 1]!;
      for (let at = step.at; at < step.at + step.length; at += SECTOR) touched.add(at / SECTOR);
    }
    await applyStep(image, model, step);
    if (step.do === 'flush' || step.do === 'reopen') promise();
  }
  await image.driver.close();
  promise();
  return { original, records: storage.records, promises };
}

function lost(guest: Uint8Array, promise: Promised): string | null {
  for (let sector = 0; sector < guest.length / SECTOR; sector++) {
    if (promise.touched.has(sector)) continue;
    const from = sector * SECTOR;
    const [found, wanted] = [guest, promise.bytes].map((bytes) => bytes.subarray(from, from + SECTOR));
    if (Buffer.compare(found!, wanted!) !== 0) return `sector ${String(sector)} lost what was flushed`;
  }
  return null;
}

/** What is wrong with a file that a power cut left, or null. */
async function judge(bytes: Uint8Array, promise: Promised, random: Random): Promise<string | null> {
  const found = await checkImage(
    MemoryStorage.from(bytes),
    await readMetadata(MemoryStorage.from(bytes), 'check'),
  );
  if (found.checkErrors > 0) return 'it cannot be checked';
  if (found.corruptions > 0 && !isDirty(bytes))
    return `corrupt, and not marked: ${JSON.stringify(found.problems.slice(0, 3))}`;
  const repaired = MemoryStorage.from(bytes);
  const traced = trace(repaired, { keepBytes: true });
  const image = await openWriter(traced);
  const repair = traced.take();
  const wrong = lost(await readAll(image), promise);
  if (wrong !== null) return wrong;
  await image.write(new Uint8Array(SECTOR), 0);
  await image.driver.close();
  const after = repaired.toBytes();
  if (isDirty(after)) return 'still marked after it was closed';
  const clean = await checkImage(repaired, await readMetadata(repaired, 'check'));
  if (clean.corruptions > 0 || clean.checkErrors > 0 || (isDirty(bytes) && clean.leaks > 0))
    return `not clean after the repair: ${JSON.stringify(clean.problems.slice(0, 3))}`;
  // The power goes again, in the middle of the repair.
  if (random.chance(0.01)) {
    for (let count = 0; count <= repair.length; count++) {
      for (const again of cutFiles(bytes, repair, count, random, 1)) {
        const second = await openWriter(MemoryStorage.from(again));
        const twice = lost(await readAll(second), promise);
        if (twice !== null) return `cut in the repair: ${twice}`;
      }
    }
  }
  return null;
}

describe('a power cut while refcounts are late', () => {
  it(
    `loses nothing that was flushed, after the repair on opening: ${String(SEQUENCES)} sequences`,
    { timeout: 3_600_000 },
    async () => {
      const seed = seedOf('lazy power cut');
      let late = 0;
      for (let index = 0; index < SEQUENCES; index++) {
        const random = new Random((seed + index) >>> 0);
        const options = KINDS[index % KINDS.length]!;
        const { original, records, promises } = await record(options, random);
        for (let count = 0; count <= records.length; count++) {
          const promise = promises.findLast((one) => one.records <= count)!;
          for (const bytes of cutFiles(original, records, count, random, 2)) {
            if (isDirty(bytes)) late++;
            const where = `${JSON.stringify(options)}, call ${String(count)} of ${String(records.length)} (SPINDLE_SEED=${String(seed)}, sequence ${String(index)})`;
            const wrong = await judge(bytes, promise, random).catch((error: unknown) => String(error));
            expect(wrong, where).toBeNull();
          }
        }
      }
      expect(late).toBeGreaterThan(SEQUENCES * 5);
    },
  );
});

describe('lazy refcounts', () => {
  /** Calls that reach the file while clusters are written and flushed one by one, before it is closed. */
  async function work(lazyRefcounts: boolean): Promise<{ counts: number; flushes: number; writes: number }> {
    const memory = await made({ clusterSize: 4096, lazyRefcounts }, 200 * 4096);
    const { header } = await readMetadata(memory, 'data');
    const storage = trace(memory, { keepBytes: true });
    const image = await openWriter(storage);
    for (let i = 0; i < 100; i++) {
      await image.write(patternOf(i, 4096), i * 4096);
      await image.flush();
    }
    const done = storage.take();
    await image.close();
    const block = header.refcountTableOffset + header.refcountTableClusters * 4096;
    const isCount = ({ at }: TraceRecord): boolean => at >= header.refcountTableOffset && at < block + 4096;
    const writes = done.filter(({ operation }) => operation === 'write');
    return {
      counts: writes.filter(isCount).length,
      flushes: done.filter(({ operation }) => operation === 'flush').length,
      writes: writes.length,
    };
  }

  it('are not written before the image is closed, which saves a write for each flush', async () => {
    const [eager, lazy] = [await work(false), await work(true)];
    expect(eager.counts).toBeGreaterThanOrEqual(100);
    expect(lazy.counts).toBe(0);
    // One more of each, for the mark.
    expect(lazy.writes).toBe(eager.writes - eager.counts + 1);
    expect(lazy.flushes).toBeLessThanOrEqual(eager.flushes + 1);
  });

  it('leave no mark when nothing was changed, and none when the image was closed', async () => {
    const memory = await made({}, 1024 * 1024);
    const before = memory.toBytes();
    await (await openWriter(memory)).driver.close();
    expect(Buffer.compare(memory.toBytes(), before)).toBe(0);
    const image = await openWriter(memory);
    await image.write(new Uint8Array(70_000).fill(1), 0);
    await image.flush();
    expect(isDirty(memory.toBytes())).toBe(true);
    await image.driver.close();
    expect(isDirty(memory.toBytes())).toBe(false);
  });

  it('stay on disk in time when there are too many to keep', { timeout: 300_000 }, async () => {
    const memory = await made({ clusterSize: 512, refcountBits: 64 }, 64 * 1024 * 1024);
    const image = await openWriter(memory);
    const part = patternOf(7, 1024 * 1024);
    for (let at = 0; at < image.size; at += part.length) {
      await image.write(part, at);
      await image.flush();
    }
    await image.driver.close();
    const found = await checkImage(memory, await readMetadata(memory, 'check'));
    expect([found.corruptions, found.leaks, found.checkErrors]).toEqual([0, 0, 0]);
  });

  it('of an image that is marked dirty for another reason are not trusted: it is refused', async () => {
    const memory = await made({ lazyRefcounts: false }, 1024 * 1024);
    const mark = new Uint8Array(1).fill(Incompatible.DIRTY);
    await memory.write(mark, HeaderOffset.incompatibleFeatures + 7);
    const before = memory.toBytes();
    await expect(openWriter(memory)).rejects.toMatchObject({ code: 'DIRTY' });
    expect(Buffer.compare(memory.toBytes(), before)).toBe(0);
  });

  it('cannot be repaired on opening where tables are damaged: the image is refused, and stays marked', async () => {
    const memory = await made({ clusterSize: 4096 }, 1024 * 1024);
    const image = await openWriter(memory);
    await image.write(patternOf(1, 40_960), 0);
    await image.flush();
    const cut = MemoryStorage.from(memory.toBytes());
    const { header } = await readMetadata(cut, 'data');
    const entry = new Uint8Array(8);
    await cut.read(entry, header.l1TableOffset);
    // An L2 entry that points past the end of the file.
    const table = Number(viewOf(entry).getBigUint64(0) & 0x00ff_ffff_ffff_fe00n);
    viewOf(entry).setBigUint64(0, 0x8000_0000_0000_0000n | 0x10_0000_0000n);
    await cut.write(entry, table);
    await expect(openWriter(cut)).rejects.toMatchObject({ code: 'DIRTY' });
    expect(isDirty(cut.toBytes())).toBe(true);
  });
});

qemu.describeWithQemu('lazy refcounts and qemu', () => {
  it(
    'qemu finds a cut image dirty, opens and repairs it, and it holds what was flushed',
    { timeout: 900_000 },
    async () => {
      const dir = tempDir();
      const path = join(dir, 'cut.qcow2');
      let looked = 0;
      for (const [index, options] of KINDS.entries()) {
        const random = new Random(seedOf('lazy, qemu') + index);
        const { original, records, promises } = await record(options, random);
        for (let count = 0; count <= records.length; count++) {
          const promise = promises.findLast((one) => one.records <= count)!;
          for (const bytes of cutFiles(original, records, count, random, 1)) {
            if (!isDirty(bytes) || !random.chance(0.1)) continue;
            looked++;
            writeFileSync(path, bytes);
            expect(await qemu.info(path)).toMatchObject({ 'dirty-flag': true });
            expect((await info(path)).dirty).toBe(true);
            // A write makes qemu open the image for writing, and so repair it.
            await qemu.fill(path, [{ do: 'write', at: 0, length: SECTOR, pattern: 0 }]);
            const judged = await qemu.check(path);
            expect(judged.code, `${JSON.stringify(options)}: ${judged.stderr}`).toBe(0);
            const raw = join(dir, 'cut.raw');
            await qemu.convert(path, raw);
            promise.touched.add(0);
            expect(lost(readFileSync(raw), promise), JSON.stringify(options)).toBeNull();
            rmSync(path);
          }
        }
      }
      expect(looked).toBeGreaterThan(20);
    },
  );

  it.each(['512', '4k', '64k'])(
    'an image that qemu was killed over is repaired on opening (clusters of %s)',
    async (size) => {
      const path = join(tempDir(), 'killed.qcow2');
      await qemu.create(path, '4M', { options: { lazy_refcounts: 'on', cluster_size: size } });
      await qemu.fill(path, [
        { do: 'write', at: 0, length: 1024 * 1024, pattern: 5 },
        { do: 'flush' },
        { do: 'discard', at: 0, length: 131_072 },
        { do: 'write', at: 2 * 1024 * 1024, length: 1024 * 1024, pattern: 6 },
        { do: 'flush' },
        { do: 'kill' },
      ]);
      expect((await qemu.check(path)).code).not.toBe(0);
      const before = readFileSync(path);
      const reader = await openImageFile(path);
      expect((await readAll(reader)).subarray(2 * 1024 * 1024, 3 * 1024 * 1024).every((b) => b === 6)).toBe(
        true,
      );
      await reader.close();
      expect(Buffer.compare(readFileSync(path), before), 'reading repairs nothing').toBe(0);
      const writer = await openImageFile(path, { write: true });
      await writer.write(new Uint8Array(100_000).fill(7), 3 * 1024 * 1024);
      await writer.close();
      const judged = await qemu.check(path);
      expect(judged.code, judged.stderr).toBe(0);
      expect(await qemu.holds(path, { at: 0, length: 131_072, pattern: 0 })).toBe(true);
      expect(await qemu.holds(path, { at: 131_072, length: 1024 * 1024 - 131_072, pattern: 5 })).toBe(true);
      expect(await qemu.holds(path, { at: 2 * 1024 * 1024, length: 1024 * 1024, pattern: 6 })).toBe(true);
      expect(await qemu.holds(path, { at: 3 * 1024 * 1024, length: 100_000, pattern: 7 })).toBe(true);
    },
  );
});
