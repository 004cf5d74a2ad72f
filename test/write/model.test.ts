import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { Image } from '../../src/format/image.ts';
import { openImageFile } from '../../src/op/open.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { describePoint, gridPoints, inParallel, qemuOptions, type GridPoint } from '../differential/grid.ts';
import { applyStep, firstDifference, Model, randomStep, type Step } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const SEQUENCES = Number(process.env['SPINDLE_MODEL_SEQUENCES'] ?? 2000);
const STEPS = 200;

/** Images of every kind, made and partly filled by qemu, some of it compressed and snapshotted. */
async function makeImage(
  dir: string,
  name: string,
  point: GridPoint,
  random: Random,
): Promise<{ path: string; size: number }> {
  const path = join(dir, `${name}.qcow2`);
  const size = random.between(16, Math.min(4096, (point.clusterSize * 24) / 512)) * 512;
  const base = join(dir, `${name}.base`);
  if (point.backing !== 'none') {
    const baseSize = random.pick([size, Math.max(512, size - 8704), size + 65536]);
    await qemu.create(base, baseSize, { format: point.backing });
    await qemu.fill(base, [{ do: 'write', at: 0, length: Math.min(baseSize, 100_352), pattern: 0x77 }], {
      format: point.backing,
    });
  }
  const backing = point.backing === 'none' ? {} : { backing: { path: base, format: point.backing } };
  const late = point.version === 3 && random.chance(0.3) ? { lazy_refcounts: 'on' } : {};
  await qemu.create(path, size, { format: 'qcow2', options: { ...qemuOptions(point), ...late }, ...backing });
  const steps: qemu.Fill[] = [];
  if (point.preallocation === 'off') {
    for (let at = 0; at + point.clusterSize <= size; at += point.clusterSize) {
      if (random.chance(0.2))
        steps.push({ do: 'compress', at, length: point.clusterSize, pattern: random.between(1, 255) });
    }
  }
  if (random.chance(0.5)) steps.push({ do: 'write', at: 0, length: Math.min(size, 5120), pattern: 0x11 });
  if (steps.length > 0) await qemu.fill(path, steps);
  if (point.refcountBits >= 8 && random.chance(0.4)) await qemu.snapshot(path, 'create', 'before');
  return { path, size };
}

async function readAll(image: Image): Promise<Uint8Array> {
  const bytes = new Uint8Array(image.size);
  await image.read(bytes, 0);
  return bytes;
}

qemu.describeWithQemu('writing', () => {
  it(
    `${String(SEQUENCES)} random sequences of ${String(STEPS)} steps agree with a plain model, and qemu finds nothing wrong`,
    {
      timeout: 3_600_000,
    },
    async () => {
      const dir = tempDir();
      const random = new Random(seedOf('write model'));
      const points = gridPoints().filter(({ clusterSize }) => clusterSize <= 65536);
      const cases = Array.from({ length: SEQUENCES }, (_, index) => ({ index, seed: random.u32() }));
      await inParallel(cases, 3, async ({ index, seed }) => {
        const own = new Random(seed);
        const point = own.pick(points);
        const done: Step[] = [];
        try {
          const { path } = await makeImage(dir, String(index), point, own);
          let image = await openImageFile(path, { format: 'qcow2', write: true });
          try {
            const model = new Model(await readAll(image));
            for (let i = 0; i < STEPS; i++) {
              const step = randomStep(own, model.size, point.clusterSize);
              done.push(step);
              await applyStep(image, model, step);
              if (step.do === 'reopen') {
                await image.close();
                image = await openImageFile(path, { format: 'qcow2', write: true });
              }
            }
            const difference = firstDifference(await readAll(image), model.bytes);
            expect(difference, 'first byte that differs').toBe(-1);
            await image.close();
            const raw = join(dir, `${String(index)}.raw`);
            writeFileSync(raw, model.bytes);
            const ours = await checkFile(path, { format: 'qcow2' });
            expect(ours.problems).toEqual([]);
            const judged = await qemu.check(path);
            expect(judged.code, judged.stderr).toBe(0);
            expect(await qemu.compare({ path, format: 'qcow2' }, { path: raw, format: 'raw' })).toBe(true);
            for (const suffix of ['qcow2', 'raw', 'base'])
              rmSync(join(dir, `${String(index)}.${suffix}`), { force: true });
          } finally {
            await image.close();
          }
        } catch (error) {
          const last = done
            .slice(-3)
            .map((step) => JSON.stringify(step))
            .join(' ');
          throw new Error(
            `${describePoint(point)}, sequence ${String(index)}, step ${String(done.length)}: ${last} (SPINDLE_SEED=${String(random.seed)})`,
            {
              cause: error,
            },
          );
        }
      });
    },
  );
});
