import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import { openImage } from '../../src/format/open.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { trace, type TraceLayer } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { applyStep, Model, randomStep, type Step } from '../tool/model.ts';
import { cutFiles } from '../tool/power-cut.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const SEQUENCES = Number(process.env['SPINDLE_CRASH_SEQUENCES'] ?? 24);
const STEPS = 40;
const SECTOR = 512;
const BASE = new Uint8Array(300 * 1024).fill(0xb5);

const KINDS: readonly Partial<Qcow2CreateOptions>[] = [
  { clusterSize: 512 },
  { clusterSize: 512, refcountBits: 64 },
  { clusterSize: 4096, refcountBits: 1 },
  { clusterSize: 4096, version: 2 },
  { clusterSize: 65536 },
  { clusterSize: 16384, extendedL2: true },
  { clusterSize: 4096, preallocation: 'metadata' },
  { clusterSize: 4096, backing: { name: 'base.raw', format: 'raw' } },
  { clusterSize: 16384, extendedL2: true, backing: { name: 'base.raw', format: 'raw' } },
];

/** What was durable at one moment: everything the guest had when a flush ended. */
interface Promised {
  /** Calls to the file until then. */
  readonly records: number;
  readonly bytes: Uint8Array;
  /** Sectors that later steps touched: they may be as before, as written, or between. */
  readonly touched: Set<number>;
}

interface Recorded {
  readonly original: Uint8Array;
  readonly storage: TraceLayer;
  readonly promises: readonly Promised[];
}

function openBacking(options: Partial<Qcow2CreateOptions>): Promise<Image | null> {
  if (options.backing === undefined || options.backing === null) return Promise.resolve(null);
  return openImage(MemoryStorage.from(BASE, { readOnly: true }), { format: 'raw', codec: nodeCodec });
}

/** Works on an image, and keeps every call that reaches its file. */
async function record(
  options: Partial<Qcow2CreateOptions>,
  random: Random,
  brokenOrder: boolean,
): Promise<Recorded> {
  const size = random.between(40, 500) * SECTOR;
  const memory = new MemoryStorage();
  await createQcow2(memory, { ...QCOW2_DEFAULTS, ...options, size });
  const original = memory.toBytes();
  const storage = trace(memory, { keepBytes: true });
  const backing = await openBacking(options);
  const metadata = await readMetadata(storage, 'data');
  const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, {
    backed: backing !== null,
    brokenOrder,
  });
  const image = new DiskImage(driver, storage, backing);
  const bytes = new Uint8Array(size);
  await image.read(bytes, 0);
  const model = new Model(bytes);
  const promises: Promised[] = [{ records: 0, bytes: model.bytes.slice(), touched: new Set() }];
  for (let i = 0; i < STEPS; i++) {
    const step = randomStep(random, size, driver.granularity);
    touch(promises[promises.length - 1]!.touched, step);
    await applyStep(image, model, step);
    if (step.do === 'flush' || step.do === 'reopen') {
      promises.push({ records: storage.records.length, bytes: model.bytes.slice(), touched: new Set() });
    }
  }
  await image.close();
  promises.push({ records: storage.records.length, bytes: model.bytes.slice(), touched: new Set() });
  return { original, storage, promises };
}

function touch(touched: Set<number>, step: Step): void {
  if (!('at' in step) || step.do === 'read') return;
  for (let at = step.at; at < step.at + step.length; at += SECTOR) touched.add(at / SECTOR);
}

/** What is wrong with a file that a power cut left, or null. */
async function judge(
  bytes: Uint8Array,
  options: Partial<Qcow2CreateOptions>,
  promise: Promised,
): Promise<string | null> {
  const storage = MemoryStorage.from(bytes);
  const found = await checkImage(storage, await readMetadata(storage, 'check'));
  if (found.corruptions > 0 || found.checkErrors > 0) return JSON.stringify(found.problems.slice(0, 3));
  const backing = await openBacking(options);
  const driver = (
    await openImage(MemoryStorage.from(bytes), { format: 'qcow2', codec: nodeCodec, backing: false })
  ).driver;
  const image = new DiskImage(driver, storage, backing);
  const guest = new Uint8Array(image.size);
  await image.read(guest, 0);
  for (let sector = 0; sector < guest.length / SECTOR; sector++) {
    if (promise.touched.has(sector)) continue;
    const from = sector * SECTOR;
    if (
      Buffer.compare(guest.subarray(from, from + SECTOR), promise.bytes.subarray(from, from + SECTOR)) !== 0
    ) {
      return `sector ${String(sector)} lost what was flushed`;
    }
  }
  return null;
}

/** The first thing that goes wrong when the power is cut at any call, or null. */
async function firstFailure(
  { original, storage, promises }: Recorded,
  options: Partial<Qcow2CreateOptions>,
  random: Random,
  look?: (bytes: Uint8Array) => Promise<void>,
): Promise<string | null> {
  const { records } = storage;
  for (let count = 0; count <= records.length; count++) {
    const promise = promises.findLast((one) => one.records <= count)!;
    for (const bytes of cutFiles(original, records, count, random, 2)) {
      const wrong = await judge(bytes, options, promise);
      if (wrong !== null) return `after ${String(count)} of ${String(records.length)} calls: ${wrong}`;
      if (look !== undefined && random.chance(0.02)) await look(bytes);
    }
  }
  return null;
}

describe('a power cut at any moment', () => {
  it(
    `loses nothing that was flushed and leaks at most: ${String(SEQUENCES)} sequences`,
    { timeout: 1_800_000 },
    async () => {
      const seed = seedOf('power cut');
      for (let index = 0; index < SEQUENCES; index++) {
        const random = new Random((seed + index) >>> 0);
        const options = KINDS[index % KINDS.length]!;
        const recorded = await record(options, random, false);
        const failure = await firstFailure(recorded, options, random);
        expect(
          failure,
          `${JSON.stringify(options)} SPINDLE_SEED=${String(seed)}, sequence ${String(index)}`,
        ).toBeNull();
      }
    },
  );

  it('is noticed by this test when metadata is written in the wrong order', async () => {
    let noticed = 0;
    for (let index = 0; index < 4; index++) {
      const random = new Random(1000 + index);
      const options = { clusterSize: 512 };
      if ((await firstFailure(await record(options, random, true), options, random)) !== null) noticed++;
    }
    expect(noticed).toBe(4);
  });
});

qemu.describeWithQemu('a power cut', () => {
  it('leaves what qemu too opens and finds leaking at most', { timeout: 600_000 }, async () => {
    const dir = tempDir();
    let looked = 0;
    for (const [index, options] of KINDS.entries()) {
      if (options.backing !== undefined) continue;
      const random = new Random(seedOf('power cut, qemu') + index);
      const recorded = await record(options, random, false);
      await firstFailure(recorded, options, random, async (bytes) => {
        const path = join(dir, 'cut.qcow2');
        writeFileSync(path, bytes);
        const judged = await qemu.check(path);
        expect([0, 3], `${JSON.stringify(options)}: ${judged.stderr}`).toContain(judged.code);
        looked++;
        rmSync(path);
      });
    }
    expect(looked).toBeGreaterThan(10);
  });
});
