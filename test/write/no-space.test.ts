import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { openImageFile } from '../../src/op/open.ts';
import { applyStep, firstDifference, Model, patternOf, randomStep } from '../tool/model.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';

describeWithFileSystem('a full file system', 'ext4', () => {
  it(
    'fails a write clearly, loses nothing, and the write works when there is space again',
    { timeout: 600_000 },
    async () => {
      await withFileSystem('ext4', 64, async (dir) => {
        const random = new Random(seedOf('no space'));
        const size = 96 * 1024 ** 2;
        const path = join(dir, 'disk.qcow2');
        const ballast = join(dir, 'ballast');
        mkdirSync(ballast);
        await qemu.create(path, size, { format: 'qcow2', options: { cluster_size: '64k' } });
        await qemu.bitmap(path, 'b', ['--add', '-g', '512']);
        const model = new Model(new Uint8Array(size));
        let failures = 0;
        for (let round = 0; round < 6; round++) {
          // All but a little of the space is taken by something else.
          for (let i = 0; i < 60; i++) {
            try {
              writeFileSync(join(ballast, `${String(round)}-${String(i)}`), patternOf(i, 1024 ** 2));
            } catch {
              rmSync(join(ballast, `${String(round)}-${String(i)}`), { force: true });
              break;
            }
          }
          let image = await openImageFile(path, { format: 'qcow2', write: true });
          let failed: unknown;
          // What failed half way may hold either.
          let torn = { at: 0, length: 0 };
          for (let i = 0; i < 400 && failed === undefined; i++) {
            const step = randomStep(random, size, 65536);
            if (step.do === 'reopen' || step.do === 'discard') continue;
            const before = 'at' in step ? model.bytes.slice(step.at, step.at + step.length) : undefined;
            try {
              await applyStep(image, model, step);
            } catch (error) {
              failed = error;
              if (before !== undefined && 'at' in step) {
                model.bytes.set(before, step.at);
                torn = { at: step.at, length: step.length };
              }
            }
          }
          if (failed !== undefined) {
            failures++;
            if (!isSpindleError(failed, 'NO_SPACE')) throw failed;
          }
          rmSync(ballast, { recursive: true });
          mkdirSync(ballast);
          // There is space now: everything that was written before is still there, and can be made durable.
          await image.flush();
          await image.close();
          const judged = await qemu.check(path);
          expect([0, 3], judged.stderr).toContain(judged.code);
          image = await openImageFile(path, { format: 'qcow2', write: true });
          const found = new Uint8Array(size);
          await image.read(found, 0);
          await image.write(patternOf(round, 65536), 0);
          await image.close();
          model.bytes.set(found.subarray(torn.at, torn.at + torn.length), torn.at);
          expect(
            firstDifference(found, model.bytes),
            `round ${String(round)} (SPINDLE_SEED=${String(random.seed)})`,
          ).toBe(-1);
          model.bytes.set(found);
          model.bytes.set(patternOf(round, 65536), 0);
        }
        expect(failures).toBeGreaterThan(0);
      });
    },
  );
});
