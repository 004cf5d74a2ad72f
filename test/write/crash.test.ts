import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { expectSurvival, firstFailure, recordWork } from '../tool/recorded.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_CRASH_SEQUENCES', 24);
const STEPS = 40;
const MIX = { snapshots: 0, resize: 0 };

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

describe('a power cut at any moment', () => {
  it(
    `loses nothing that was flushed and leaks at most: ${String(SEQUENCES)} sequences`,
    { timeout: 1_800_000 },
    async () => {
      const seed = seedOf('power cut');
      for (let index = 0; index < SEQUENCES; index++) {
        const options = KINDS[index % KINDS.length]!;
        await expectSurvival({ options, seed: (seed + index) >>> 0, steps: STEPS, mix: MIX }, seed);
      }
    },
  );

  it(
    'is noticed by this test when metadata is written in the wrong order',
    { timeout: 300_000 },
    async () => {
      let noticed = 0;
      const broken = { options: { clusterSize: 512 }, steps: STEPS, mix: MIX, brokenOrder: true };
      for (let index = 0; index < 4; index++) {
        const recorder = await recordWork({ ...broken, seed: 1000 + index }, []);
        if ((await firstFailure(recorder, new Random(index))) !== null) noticed++;
      }
      expect(noticed).toBe(4);
      const error = await expectSurvival({ ...broken, seed: 1000 }, 1000).then(
        () => new Error('it was not noticed'),
        (reason: unknown) => reason as Error,
      );
      expect(error.message).toContain('SPINDLE_SEED=1000');
      const [, few = ''] = /minimal case, (\d+) of 40 steps/.exec(error.message) ?? [];
      expect(Number(few), error.message).toBeLessThan(8);
    },
  );
});

qemu.describeWithQemu('a power cut', () => {
  it('leaves what qemu too opens and finds leaking at most', { timeout: 600_000 }, async () => {
    const dir = tempDir();
    let looked = 0;
    for (const [index, options] of KINDS.entries()) {
      if (options.backing !== undefined) continue;
      const seed = seedOf('power cut, qemu') + index;
      const random = new Random(seed);
      await expectSurvival({ options, seed, steps: STEPS, mix: MIX }, seed, async ({ file }) => {
        if (!random.chance(0.02)) return;
        const path = join(dir, 'cut.qcow2');
        writeFileSync(path, file);
        const judged = await qemu.check(path);
        expect([0, 3], `${JSON.stringify(options)}: ${judged.stderr}`).toContain(judged.code);
        looked++;
        rmSync(path);
      });
    }
    expect(looked).toBeGreaterThan(10);
  });
});
