import { fork } from 'node:child_process';
import { appendFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import type { AllocationPolicy } from '../../src/core/allocation.ts';
import { isSpindleError } from '../../src/core/errors.ts';
import { allocate } from '../../src/op/allocate.ts';
import { inflate } from '../../src/op/allocate/inflate.ts';
import { thin } from '../../src/op/allocate/thin.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { create } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { createSnapshot } from '../../src/op/snapshots.ts';
import { openFile } from '../../src/storage/file.ts';
import { addonHere } from '../native/help.ts';
import { readHash } from '../tool/agree.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';
import { patternOf } from '../tool/model.ts';
import { KINDS, withPast } from '../tool/operations.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { firstFailure, MemoryFile, type Recorder } from '../tool/recorded.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;
const KILLS = Math.max(4, Math.ceil(Number(process.env['SPINDLE_KILLS'] ?? 200) / 10));

async function hashOf(path: string, format: string, snapshot?: string): Promise<string> {
  const image = await openImageFile(path, { format, snapshot });
  try {
    return await readHash(image);
  } finally {
    await image.close();
  }
}

/** A disk with data, zeroes and compressed clusters, and, of qcow2, an internal snapshot of an earlier state. */
async function disk(path: string, format: 'raw' | 'qcow2', size: number): Promise<void> {
  await create({ path, format, size });
  for (const round of [1, 2]) {
    const image = await openImageFile(path, { format, write: true });
    for (let at = (round - 1) * MIB; at + MIB <= size; at += 2 * round * MIB) {
      await image.write(patternOf(round + at, 200 * 1024), at);
      await image.zero(at + 256 * 1024, 128 * 1024, { keepAllocated: true });
      await image.writeCompressed?.(new Uint8Array(128 * 1024).fill(round), at + 512 * 1024).catch(notRaw);
    }
    await image.close();
    if (round === 1 && format === 'qcow2') await createSnapshot(path, 'one');
  }
}

function notRaw(error: unknown): void {
  if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
}

qemu.describeWithQemu('allocate, killed', () => {
  it.each(['raw', 'qcow2'] as const)(
    `at random moments leaves a %s disk whole: ${String(KILLS)} times`,
    { timeout: 900_000 },
    async (format) => {
      const path = join(tempDir(), 'disk');
      await disk(path, format, 48 * MIB);
      const look = async (): Promise<string[]> => [
        await hashOf(path, format),
        ...(format === 'qcow2' ? [await hashOf(path, format, 'one')] : []),
      ];
      const before = await look();
      const random = new Random(seedOf(`allocate killed ${format}`));
      const seen = new Set<unknown>();
      for (let round = 0; round < KILLS; round++) {
        const context = `round ${String(round)}, SPINDLE_SEED=${String(random.seed)}`;
        await runAndKill([path, format], random.below(400));
        expect(await look(), context).toEqual(before);
        if (format === 'qcow2') {
          expect([0, 3], context).toContain((await qemu.check(path)).code);
          expect((await checkFile(path)).corruptions, context).toBe(0);
        }
        if (round % 4 !== 3) continue;
        const policy = random.pick(['thin', 'thick-lazy', 'thick-eager'] as const);
        const done = await allocate(path, { policy, format });
        seen.add(done.before.policy);
        if (addonHere && policy !== 'thick-lazy') expect(done.after.policy, context).toBe(policy);
        expect(await look(), context).toEqual(before);
      }
      expect(seen.size).toBeGreaterThan(0);
    },
  );
});

/** Runs the child and kills it a while after it began. */
async function runAndKill(args: readonly string[], milliseconds: number): Promise<void> {
  const child = fork(join(import.meta.dirname, 'allocate-child.ts'), args, {
    execArgv: ['--import', 'tsx'],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  const exit = new Promise((resolve) => child.once('exit', resolve));
  await new Promise<void>((resolve) =>
    child.once('message', () => {
      resolve();
    }),
  );
  await Promise.race([sleep(milliseconds), exit]);
  child.kill('SIGKILL');
  expect(await exit.then(() => child.signalCode), 'it ended by itself').toBe('SIGKILL');
}

async function change({ image, driver }: Recorder, policy: AllocationPolicy): Promise<void> {
  const doing = { plan: false, tally: { read: 0, written: 0, reserved: 0, freed: 0 } };
  if (policy === 'thin') await thin(image, driver.metadata, { ...doing, policy });
  else await inflate(image, driver.metadata, { ...doing, policy, copyBacking: true });
}

/** A file whose free clusters keep what was in them. */
class Kept extends MemoryFile {
  override discard(): Promise<void> {
    return Promise.resolve();
  }
}

/** The ways between the policies that change tables. */
const WAYS: readonly (readonly AllocationPolicy[])[] = [
  ['thick-lazy'],
  ['thick-eager'],
  ['thin'],
  ['thick-lazy', 'thick-eager', 'thin'],
];

describe.each(WAYS.map((way) => [way.join(', '), way] as const))('a power cut during: %s', (name, way) => {
  it('loses nothing, and leaks at most', { timeout: 900_000 }, async () => {
    for (const [index, options] of KINDS.entries()) {
      const random = new Random((seedOf(`allocate power cut ${name}`) + index) >>> 0);
      const context = `${JSON.stringify(options)} SPINDLE_SEED=${String(random.seed)}`;
      const recorder = await withPast(options, random, { between: (storage) => new Kept(storage) });
      for (const policy of way) {
        await change(recorder, policy);
        await recorder.do({ do: 'flush' });
      }
      await recorder.close();
      expect(recorder.storage.records.length, context).toBeGreaterThan(0);
      expect(await firstFailure(recorder, random), context).toBeNull();
    }
  });
});

describeWithFileSystem('allocate on a full file system', 'ext4', () => {
  it('fails clearly, loses nothing, and goes on or back', { timeout: 300_000 }, async () => {
    await withFileSystem('ext4', 96, async (mount) => {
      for (const format of ['raw', 'qcow2'] as const) {
        const path = join(mount, `disk.${format}`);
        await disk(path, format, 64 * MIB);
        const before = await hashOf(path, format);
        const ballast = await openFile(join(mount, 'ballast'), { create: 'exclusive' });
        await ballast.reserve(0, 40 * MIB);
        for (const policy of ['thick-lazy', 'thick-eager'] as const) {
          // What the file system has left is known beforehand.
          const work = allocate(path, { policy, format });
          await expect(work, `${format} ${policy}`).rejects.toMatchObject({ code: 'NO_SPACE', path });
          // Somebody takes it meanwhile: the first report comes when the work has begun.
          await ballast.resize(0);
          let taken = false;
          const onProgress = (): void => {
            if (!taken) fill(mount);
            taken = true;
          };
          const failed = allocate(path, { policy, format, onProgress });
          if (format === 'qcow2')
            await expect(failed, `${format} ${policy}`).rejects.toMatchObject({ code: 'NO_SPACE' });
          else
            await failed.catch((error: unknown) => {
              expect(error).toMatchObject({ code: 'NO_SPACE' });
            });
          expect(await hashOf(path, format), `${format} ${policy}`).toBe(before);
          if (format === 'qcow2') {
            expect((await qemu.check(path)).code, `${format} ${policy}`).toBe(0);
            expect((await checkFile(path)).problems).toEqual([]);
          }
          await allocate(path, { policy: 'thin', format });
          expect(await hashOf(path, format), `${format} thin`).toBe(before);
          rmSync(join(mount, 'full'));
          const done = await allocate(path, { policy, format });
          if (addonHere) expect(done.after.policy).toBe(policy);
          expect(await hashOf(path, format)).toBe(before);
          await allocate(path, { policy: 'thin', format });
          await ballast.reserve(0, 40 * MIB);
        }
        await ballast.close();
        rmSync(join(mount, 'ballast'));
        rmSync(path);
      }
    });
  });
});

/** Takes all space of a file system. */
function fill(mount: string): void {
  try {
    for (;;) appendFileSync(join(mount, 'full'), patternOf(1, MIB / 4));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
}
