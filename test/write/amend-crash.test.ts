import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { bytesOf, viewOf } from '../../src/core/bytes.ts';
import { isSpindleError } from '../../src/core/errors.ts';
import type { Storage } from '../../src/core/storage.ts';
import { readLuksPlace, replaceSlot, slotsOf } from '../../src/format/crypto/luks-slots.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import { openImage } from '../../src/format/open.ts';
import { createLuks } from '../../src/format/luks/create.ts';
import type { FormatChange } from '../../src/format/qcow2/amend/amend.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { HeaderOffset, Incompatible } from '../../src/format/qcow2/layout.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { createSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import { LUKS_DEFAULTS } from '../../src/format/crypto/cipher-spec.ts';
import { fault } from '../../src/layer/fault.ts';
import { trace, type TraceRecord } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { nodeCrypto } from '../../src/native/crypto.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { readAll } from '../tool/history.ts';
import { patternOf } from '../tool/model.ts';
import { cutFiles } from '../tool/power-cut.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_CRASH_SEQUENCES', 24);
const BASE = new Uint8Array(200 * 1024).fill(0xb5);
const LONG = `${'./'.repeat(240)}base.raw`;

interface Case {
  readonly options: Partial<Qcow2CreateOptions>;
  readonly changes: readonly FormatChange[];
}

const backing = { name: 'base.raw', format: 'raw' };
const CASES: readonly Case[] = [
  { options: { clusterSize: 512 }, changes: [{ refcountBits: 64 }, { refcountBits: 4 }] },
  { options: { clusterSize: 512, refcountBits: 64 }, changes: [{ refcountBits: 2 }, { refcountBits: 32 }] },
  { options: { clusterSize: 4096 }, changes: [{ version: 2 }, { version: 3, refcountBits: 8 }] },
  { options: { clusterSize: 512, backing }, changes: [{ version: 2 }, { version: 3 }] },
  {
    options: { clusterSize: 4096, backing: { name: LONG, format: 'raw' } },
    changes: [{ version: 2 }, { version: 3 }],
  },
  {
    options: { clusterSize: 4096, version: 2, backing: { name: LONG, format: 'raw' } },
    changes: [{ version: 3 }, { version: 2 }],
  },
  {
    options: { clusterSize: 4096, version: 2 },
    changes: [{ version: 3, refcountBits: 4, lazyRefcounts: true }, { lazyRefcounts: false }],
  },
  {
    options: { clusterSize: 4096, lazyRefcounts: true, backing },
    changes: [{ refcountBits: 32 }, { version: 2, refcountBits: 16 }],
  },
  {
    options: { clusterSize: 16384, extendedL2: true, lazyRefcounts: true },
    changes: [{ refcountBits: 2 }, { lazyRefcounts: false, refcountBits: 64 }],
  },
  {
    options: { clusterSize: 4096, preallocation: 'metadata', compressionType: 'zstd' },
    changes: [{ version: 2 }, { version: 3, refcountBits: 64 }],
  },
];

function openBase({ options }: Case): Promise<Image | null> {
  if ((options.backing ?? null) === null) return Promise.resolve(null);
  return openImage(MemoryStorage.from(BASE, { readOnly: true }), { format: 'raw', codec: nodeCodec });
}

async function openWriter(storage: Storage, one: Case): Promise<DiskImage> {
  const below = await openBase(one);
  const metadata = await readMetadata(storage, 'data');
  const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, { backed: below !== null });
  return new DiskImage(driver, storage, below);
}

function driverOf(image: DiskImage): Qcow2WriteDriver {
  if (!(image.driver instanceof Qcow2WriteDriver)) throw new Error('not a writer');
  return image.driver;
}

/** What the disk and each snapshot hold. */
async function contents(bytes: Uint8Array, one: Case): Promise<Uint8Array[]> {
  const found: Uint8Array[] = [];
  for (const snapshot of [undefined, 'first', 'second']) {
    const { driver } = await openImage(MemoryStorage.from(bytes), {
      format: 'qcow2',
      codec: nodeCodec,
      backing: false,
      snapshot,
    });
    found.push(await readAll(new DiskImage(driver, MemoryStorage.from(bytes), await openBase(one))));
  }
  return found;
}

/** An image with data, zeroes of all kinds, and snapshots that share some of them. */
async function made(one: Case, random: Random): Promise<MemoryStorage> {
  const size = random.between(100, 400) * 512;
  const memory = new MemoryStorage();
  await createQcow2(memory, { ...QCOW2_DEFAULTS, ...one.options, size });
  const image = await openWriter(memory, one);
  const unit = image.driver.granularity;
  const work = async (): Promise<void> => {
    for (let i = 0; i < 8; i++) {
      const grain = random.chance(0.6) ? unit : 512;
      const at = Math.floor(random.below(size) / grain) * grain;
      const length = Math.min(size - at, random.between(1, (3 * unit) / grain) * grain);
      const dice = random.below(4);
      if (dice < 2) await image.write(patternOf(random.u32(), length), at);
      else if (dice === 2) await image.zero(at, length, { keepAllocated: random.chance(0.5) });
      else await image.discard(at, length);
    }
  };
  for (const name of ['first', 'second']) {
    await work();
    await image.alone(() =>
      driverOf(image).changeSnapshots((writer) => createSnapshot(writer, { name, date: new Date(0) })),
    );
  }
  await work();
  await image.driver.close();
  return memory;
}

function isDirty(bytes: Uint8Array): boolean {
  const view = viewOf(bytes);
  return (
    view.getUint32(HeaderOffset.version) === 3 &&
    (view.getUint32(HeaderOffset.incompatibleFeatures + 4) & Incompatible.DIRTY) !== 0
  );
}

/** What is wrong with a file in the middle of a change, or null. */
async function judge(bytes: Uint8Array, one: Case, wanted: readonly Uint8Array[]): Promise<string | null> {
  const storage = MemoryStorage.from(bytes);
  const metadata = await readMetadata(storage, 'check');
  const named = [metadata.backingName, metadata.known.backingFormat ?? null];
  const expected = [one.options.backing?.name ?? null, one.options.backing?.format ?? null];
  if (named.join() !== expected.join()) return `another backing file: ${named.join()}`;
  const found = await checkImage(storage, metadata);
  if (found.checkErrors > 0 || (found.corruptions > 0 && !isDirty(bytes)))
    return JSON.stringify(found.problems.slice(0, 3));
  for (const [index, content] of (await contents(bytes, one)).entries())
    if (Buffer.compare(content, wanted[index]!) !== 0) return `content ${String(index)} differs`;
  return null;
}

/** The same change again, on what is left: it must come to the same end. */
async function again(bytes: Uint8Array, one: Case, change: FormatChange): Promise<Uint8Array> {
  const memory = MemoryStorage.from(bytes);
  const image = await openWriter(memory, one);
  await driverOf(image).amend(change);
  await image.driver.close();
  return memory.toBytes();
}

async function recorded(
  memory: MemoryStorage,
  one: Case,
  change: FormatChange,
): Promise<{ original: Uint8Array; records: readonly TraceRecord[] }> {
  const original = memory.toBytes();
  const storage = trace(memory, { keepBytes: true });
  const image = await openWriter(storage, one);
  await image.alone(() => driverOf(image).amend(change));
  await image.driver.close();
  return { original, records: storage.records };
}

describe('a power cut while an image is amended', () => {
  it(`leaves it whole at every write: ${String(SEQUENCES)} images`, { timeout: 3_600_000 }, async () => {
    const seed = seedOf('amend power cut');
    for (let index = 0; index < SEQUENCES; index++) {
      const random = new Random((seed + index) >>> 0);
      const one = CASES[index % CASES.length]!;
      const memory = await made(one, random);
      const wanted = await contents(memory.toBytes(), one);
      for (const change of one.changes) {
        const { original, records } = await recorded(memory, one, change);
        for (let count = 0; count <= records.length; count++) {
          if (count > 0 && records[count - 1]!.operation === 'read') continue;
          for (const bytes of cutFiles(original, records, count, random, 2)) {
            const where = `${JSON.stringify({ ...one.options, change })}, call ${String(count)} of ${String(records.length)} (SPINDLE_SEED=${String(seed)}, image ${String(index)})`;
            const wrong = await judge(bytes, one, wanted).catch((error: unknown) => String(error));
            expect(wrong, where).toBeNull();
            if (!random.chance(0.05)) continue;
            const finished = await again(bytes, one, change);
            expect(await judge(finished, one, wanted), where).toBeNull();
            expect(isDirty(finished), where).toBe(false);
          }
        }
      }
    }
  });

  it(
    'a write that fails, at any place, leaves it whole too, and the change can be made afterwards',
    { timeout: 600_000 },
    async () => {
      const seed = seedOf('amend faults');
      for (const [index, one] of CASES.entries()) {
        const random = new Random((seed + index) >>> 0);
        const memory = await made(one, random);
        const original = memory.toBytes();
        const wanted = await contents(original, one);
        const [change] = one.changes;
        const { records } = await recorded(memory, one, change!);
        const writes = records.filter(({ operation }) =>
          ['write', 'zero', 'resize', 'flush'].includes(operation),
        );
        for (let after = 0; after < writes.length; after++) {
          const copy = MemoryStorage.from(original);
          const faulty = fault(copy, {
            faults: [{ on: ['write', 'zero', 'resize', 'flush'], after, code: 'NO_SPACE' }],
          });
          const failure = await openWriter(faulty, one)
            .then(async (image) => {
              await image.alone(() => driverOf(image).amend(change!));
              await image.driver.close();
            })
            .catch((error: unknown) => error);
          const where = `${JSON.stringify({ ...one.options, change })}, write ${String(after)} (SPINDLE_SEED=${String(seed)})`;
          expect(isSpindleError(failure) ? failure.code : failure, where).toMatch(/NO_SPACE|IO/);
          expect(await judge(copy.toBytes(), one, wanted), where).toBeNull();
          if (random.chance(0.2))
            expect(await judge(await again(copy.toBytes(), one, change!), one, wanted), where).toBeNull();
        }
      }
    },
  );

  it(
    'while the only key is overwritten, leaves a volume that one of the two opens',
    { timeout: 600_000 },
    async () => {
      const crypto = await nodeCrypto();
      const [old, fresh] = [bytesOf('old'), bytesOf('new')];
      const memory = new MemoryStorage();
      const luks = { ...LUKS_DEFAULTS, cipherAlg: 'aes-128' as const, iterTime: 1 };
      await createLuks(memory, { size: 4096, preallocation: 'off', luks, crypto, secret: old });
      const original = memory.toBytes();
      const storage = trace(memory, { keepBytes: true });
      const place = await readLuksPlace(storage, 0);
      await replaceSlot(crypto, place, { secret: old, newSecret: fresh, iterTime: 1, slot: 0 });
      const { records } = storage;
      const random = new Random(seedOf('keys'));
      const opens = async (bytes: Uint8Array, secret: Uint8Array): Promise<boolean> =>
        slotsOf(crypto, await readLuksPlace(MemoryStorage.from(bytes), 0), secret).then(
          () => true,
          () => false,
        );
      for (let count = 0; count <= records.length; count++)
        for (const bytes of cutFiles(original, records, count, random, 2))
          expect((await opens(bytes, old)) || (await opens(bytes, fresh)), `call ${String(count)}`).toBe(
            true,
          );
      const after = await readLuksPlace(memory, 0);
      expect(after.header.slots.map(({ active }) => active).indexOf(true)).toBe(0);
      expect(after.header.slots.filter(({ active }) => active)).toHaveLength(1);
      expect(await opens(memory.toBytes(), fresh)).toBe(true);
      expect(await opens(memory.toBytes(), old)).toBe(false);
    },
  );
});

qemu.describeWithQemu('a power cut while an image is amended, and qemu', () => {
  it('leaves what qemu too opens and finds leaking at most', { timeout: 600_000 }, async () => {
    const path = join(tempDir(), 'cut.qcow2');
    let looked = 0;
    for (const [index, one] of CASES.entries()) {
      if (one.options.backing !== undefined) continue;
      const random = new Random(seedOf('amend power cut, qemu') + index);
      const memory = await made(one, random);
      for (const change of one.changes) {
        const { original, records } = await recorded(memory, one, change);
        for (let count = 0; count <= records.length; count++) {
          for (const bytes of cutFiles(original, records, count, random, 1)) {
            if (!random.chance(0.05) || isDirty(bytes)) continue;
            writeFileSync(path, bytes);
            const judged = await qemu.check(path);
            expect([0, 3], `${JSON.stringify({ ...one.options, change })}: ${judged.stderr}`).toContain(
              judged.code,
            );
            looked++;
            rmSync(path);
          }
        }
      }
    }
    expect(looked).toBeGreaterThan(20);
  });
});
