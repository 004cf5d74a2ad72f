import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Storage } from '../../src/core/storage.ts';
import type { Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { CODECS } from '../tool/compressed.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import {
  BASE,
  firstFailure,
  MemoryFile,
  readSeen,
  Recorder,
  useAgain,
  type GrowMode,
  type Remains,
} from '../tool/recorded.ts';
import { tempDir } from '../tool/temp.ts';

const SEQUENCES = Number(process.env['SPINDLE_CRASH_SEQUENCES'] ?? 24);
const STEPS = 24;
const SECTOR = 512;

const KINDS: readonly Partial<Qcow2CreateOptions>[] = [
  { clusterSize: 512 },
  { clusterSize: 512, refcountBits: 64 },
  { clusterSize: 4096, refcountBits: 4 },
  { clusterSize: 4096, version: 2 },
  { clusterSize: 65536 },
  {
    clusterSize: 16384,
    extendedL2: true,
    ...(CODECS.length > 1 ? { compressionType: 'zstd' as const } : {}),
  },
  { clusterSize: 4096, preallocation: 'metadata' },
  { clusterSize: 4096, backing: { name: 'base.raw', format: 'raw' } },
  { clusterSize: 1024, version: 2, backing: { name: 'base.raw', format: 'raw' } },
  { clusterSize: 16384, extendedL2: true, backing: { name: 'base.raw', format: 'raw' } },
];

/** An image with a past: data of all kinds, and snapshots that share some of it. */
async function withPast(options: Partial<Qcow2CreateOptions>, random: Random): Promise<Recorder> {
  const recorder = await Recorder.make(options, { size: random.between(60, 400) * SECTOR });
  for (let made = 0; made < 2; made++) {
    for (let i = 0; i < 10; i++) await recorder.do(recorder.random(random, { snapshots: 0, resize: 0 }));
    await recorder.do({ do: 'snapshot' });
  }
  for (let i = 0; i < 6; i++) await recorder.do(recorder.random(random, { snapshots: 0, resize: 0 }));
  await recorder.do({ do: 'flush' });
  recorder.startHere();
  return recorder;
}

/** What is done when the power fails; `refused` where the image cannot do it. */
type Operation = (recorder: Recorder, random: Random) => Promise<boolean>;

function grow(mode: GrowMode): Operation {
  return (recorder, random) => {
    const size = recorder.model.size + random.between(1, 200) * SECTOR;
    return recorder.do({ do: 'resize', size, mode });
  };
}

const id = (recorder: Recorder, random: Random): string => random.pick([...recorder.snapshots.keys()]);

/** The same range of whole clusters, as data, compressed, zeroed and discarded, with flushes between. */
async function writesOverShared(recorder: Recorder, random: Random): Promise<boolean> {
  const { clusterSize } = recorder.driver.metadata.geometry;
  for (const what of ['compress', 'write', 'zero', 'compress', 'discard', 'zero-keep', 'compress'] as const) {
    const at = random.below(Math.max(1, Math.floor(recorder.model.size / clusterSize))) * clusterSize;
    const length = Math.min(clusterSize * random.between(1, 3), recorder.model.size - at);
    await recorder.do({ do: what, at, length, seed: random.u32() });
    if (random.chance(0.6)) await recorder.do({ do: 'flush' });
  }
  return true;
}

const OPERATIONS: Readonly<Record<string, Operation>> = {
  'snapshot create': (recorder) => recorder.do({ do: 'snapshot' }),
  'snapshot apply': (recorder, random) => recorder.do({ do: 'apply', id: id(recorder, random) }),
  'snapshot delete': (recorder, random) => recorder.do({ do: 'delete', id: id(recorder, random) }),
  'delete of both snapshots': async (recorder) => {
    for (const one of [...recorder.snapshots.keys()]) await recorder.do({ do: 'delete', id: one });
    return true;
  },
  'grow, off': grow('off'),
  'grow, metadata': grow('metadata'),
  'grow, falloc': grow('falloc'),
  'grow, full': grow('full'),
  shrink: (recorder, random) => {
    const size = random.between(1, recorder.model.size / SECTOR - 1) * SECTOR;
    return recorder.do({ do: 'resize', size, mode: 'off' });
  },
  'writes, compressed writes, zeroes and discards over snapshots': writesOverShared,
};

/** Version 2 cannot be resized with snapshots: those images have none. */
async function prepared(
  name: string,
  options: Partial<Qcow2CreateOptions>,
  random: Random,
): Promise<Recorder> {
  const recorder = await withPast(options, random);
  if (options.version === 2 && /grow|shrink/.test(name)) {
    for (const one of [...recorder.snapshots.keys()]) await recorder.do({ do: 'delete', id: one });
    recorder.startHere();
  }
  return recorder;
}

const contextOf = (options: object, random: Random): string =>
  `${JSON.stringify(options)} SPINDLE_SEED=${String(random.seed)}`;

describe.each(Object.entries(OPERATIONS))('a power cut during: %s', (name, operation) => {
  it('loses nothing, and leaks at most', { timeout: 600_000 }, async () => {
    let done = 0;
    for (const [index, options] of KINDS.entries()) {
      const random = new Random((seedOf(`power cut ${name}`) + index) >>> 0);
      const recorder = await prepared(name, options, random);
      if (await operation(recorder, random)) done++;
      await recorder.close();
      const again = async ({ file }: Remains): Promise<void> => {
        if (random.chance(0.05)) await useAgain(file, random);
      };
      expect(await firstFailure(recorder, random, again), contextOf(options, random)).toBeNull();
    }
    // Version 2 over a longer backing file cannot grow; the rest can do everything.
    expect(done).toBeGreaterThanOrEqual(KINDS.length - 2);
  });
});

describe('a power cut in random work with snapshots and resizing', () => {
  it(`loses nothing that was flushed: ${String(SEQUENCES)} sequences`, { timeout: 1_800_000 }, async () => {
    const seed = seedOf('power cut, whole');
    for (let index = 0; index < SEQUENCES; index++) {
      const random = new Random((seed + index) >>> 0);
      const options = KINDS[index % KINDS.length]!;
      const recorder = await Recorder.make(options, { size: random.between(40, 300) * SECTOR });
      for (let i = 0; i < STEPS; i++)
        await recorder.do(recorder.random(random, { snapshots: 0.2, resize: 0.1 }));
      await recorder.close();
      const again = async ({ file }: Remains): Promise<void> => {
        if (random.chance(0.01)) await useAgain(file, random);
      };
      const context = `${JSON.stringify(options)} SPINDLE_SEED=${String(seed)}, sequence ${String(index)}`;
      expect(await firstFailure(recorder, random, again), context).toBeNull();
    }
  });
});

/** A storage that says that it flushed, and did not. */
class Liar extends MemoryFile {
  lying = false;

  override flush(): Promise<void> {
    return this.lying ? Promise.resolve() : this.next.flush();
  }
}

describe('these tests', () => {
  it.each(['snapshot create', 'snapshot apply', 'snapshot delete', 'shrink'])(
    'notice when nothing is flushed in time (%s)',
    async (name) => {
      let noticed = 0;
      for (let index = 0; index < 3; index++) {
        const random = new Random(77 + index);
        let liar: Liar | undefined;
        const between = (storage: Storage): Storage => (liar = new Liar(storage));
        const recorder = await Recorder.make({ clusterSize: 512 }, { size: 300 * SECTOR, between });
        for (let i = 0; i < 20; i++) await recorder.do(recorder.random(random, { snapshots: 0, resize: 0 }));
        await recorder.do({ do: 'snapshot' });
        for (let i = 0; i < 10; i++) await recorder.do(recorder.random(random, { snapshots: 0, resize: 0 }));
        await recorder.do({ do: 'flush' });
        recorder.startHere();
        if (liar !== undefined) liar.lying = true;
        await OPERATIONS[name]?.(recorder, random);
        await recorder.close();
        if ((await firstFailure(recorder, random)) !== null) noticed++;
      }
      expect(noticed).toBe(3);
    },
  );
});

qemu.describeWithQemu('what a power cut during a change of the whole left', () => {
  it('is whole for qemu too, which can go on with it', { timeout: 900_000 }, async () => {
    const dir = tempDir();
    writeFileSync(join(dir, 'base.raw'), BASE);
    let looked = 0;
    for (const [name, operation] of Object.entries(OPERATIONS)) {
      for (const [index, options] of KINDS.entries()) {
        const random = new Random((seedOf(`power cut ${name}, qemu`) + index) >>> 0);
        const recorder = await prepared(name, options, random);
        await operation(recorder, random);
        await recorder.close();
        const { length } = recorder.storage.records;
        // Some cuts of each operation are enough for a judge that is a process of its own.
        const share = Math.min(1, 4 / Math.max(1, length * 3));
        const failure = await firstFailure(recorder, random, async ({ file, count }) => {
          if (!random.chance(share)) return;
          looked++;
          await judgedByQemu(
            dir,
            file,
            `${name}, ${String(count)} of ${String(length)}: ${contextOf(options, random)}`,
          );
        });
        expect(failure, `${name}: ${contextOf(options, random)}`).toBeNull();
      }
    }
    expect(looked).toBeGreaterThan(150);
  });
});

/** qemu's check finds leaks at most, and qemu reads what we read: the disk and each snapshot; then it writes, and all stays sound. */
async function judgedByQemu(dir: string, file: Uint8Array, context: string): Promise<void> {
  const path = join(dir, 'cut.qcow2');
  const raw = join(dir, 'cut.raw');
  const seen = await readSeen(file);
  writeFileSync(path, file);
  const sound = async (): Promise<void> => {
    const judged = await qemu.check(path);
    expect([0, 3], `${context}: ${judged.stderr}`).toContain(judged.code);
  };
  await sound();
  const same = async (more: readonly string[], bytes: Uint8Array): Promise<void> => {
    await qemu.convert(path, raw, { more });
    const found = await qemu.contentHash(raw, `${raw}.2`, { format: 'raw' });
    writeFileSync(raw, bytes);
    expect(found, `${context} ${more.join(' ')}`).toBe(
      await qemu.contentHash(raw, `${raw}.2`, { format: 'raw' }),
    );
  };
  await same([], seen.bytes);
  for (const [one, bytes] of seen.snapshots) {
    // qemu gives a snapshot the size that the disk has now.
    if (bytes.length === seen.bytes.length) await same(['-l', `snapshot.id=${one}`], bytes);
  }
  const at = Math.floor(seen.bytes.length / 1024) * SECTOR;
  const length = Math.min(2048, seen.bytes.length - at);
  if (length > 0) await qemu.fill(path, [{ do: 'write', at, length, pattern: 0x3d }]);
  await sound();
  seen.bytes.fill(0x3d, at, at + length);
  await same([], seen.bytes);
  for (const name of [path, raw]) rmSync(name);
}
