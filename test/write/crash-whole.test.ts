import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Storage } from '../../src/core/storage.ts';
import { KINDS, OPERATIONS, prepared } from '../tool/operations.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import {
  BASE,
  expectSurvival,
  firstFailure,
  MemoryFile,
  readSeen,
  Recorder,
  useAgain,
  type Remains,
} from '../tool/recorded.ts';
import { tempDir } from '../tool/temp.ts';
import { SHARE, times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_CRASH_SEQUENCES', 24);
const STEPS = 24;
const SECTOR = 512;

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
      const options = KINDS[index % KINDS.length]!;
      const random = new Random((seed + index) >>> 0);
      const mix = { snapshots: 0.2, resize: 0.1 };
      await expectSurvival({ options, seed: random.seed, steps: STEPS, mix }, seed, async ({ file }) => {
        if (random.chance(0.01)) await useAgain(file, random);
      });
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
        const share = Math.min(1, 5 / Math.max(1, length) / Math.min(SHARE, 2));
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
    expect(looked).toBeGreaterThan(SHARE === 1 ? 150 : 75);
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
