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
import { failing, minimalCase, shrink } from '../tool/shrink.ts';
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

/** One sequence of steps: everything about it follows from its seed. */
interface Sequence {
  readonly dir: string;
  readonly name: string;
  readonly point: GridPoint;
  readonly seed: number;
  /** Puts something between the steps and the image: a bug, for instance. */
  readonly plant?: (image: Image) => Image;
}

/** The steps of a sequence on an image of this size. */
function stepsOf({ seed, point }: Sequence, size: number): Step[] {
  const random = new Random(~seed);
  return Array.from({ length: STEPS }, () => randomStep(random, size, point.clusterSize));
}

/** Makes the image and does the steps of the sequence, or only some of them. Throws when anybody disagrees. */
async function run(sequence: Sequence, some?: readonly Step[]): Promise<void> {
  const { dir, name, point, seed, plant = (image) => image } = sequence;
  const { path, size } = await makeImage(dir, name, point, new Random(seed));
  let image = plant(await openImageFile(path, { format: 'qcow2', write: true }));
  try {
    const model = new Model(await readAll(image));
    for (const step of some ?? stepsOf(sequence, size)) {
      await applyStep(image, model, step);
      if (step.do !== 'reopen') continue;
      await image.close();
      image = plant(await openImageFile(path, { format: 'qcow2', write: true }));
    }
    const difference = firstDifference(await readAll(image), model.bytes);
    expect(difference, 'first byte that differs').toBe(-1);
    await image.close();
    const raw = join(dir, `${name}.raw`);
    writeFileSync(raw, model.bytes);
    const ours = await checkFile(path, { format: 'qcow2' });
    expect(ours.problems).toEqual([]);
    const judged = await qemu.check(path);
    expect(judged.code, judged.stderr).toBe(0);
    expect(await qemu.compare({ path, format: 'qcow2' }, { path: raw, format: 'raw' })).toBe(true);
  } finally {
    await image.close();
    for (const suffix of ['qcow2', 'raw', 'base']) rmSync(join(dir, `${name}.${suffix}`), { force: true });
  }
}

/** Runs a sequence; where it fails, the error has the few steps that do it. */
async function runOrShrink(sequence: Sequence, seed: number): Promise<void> {
  try {
    await run(sequence);
  } catch (error) {
    const { dir, name, point } = sequence;
    const { path, size } = await makeImage(dir, name, point, new Random(sequence.seed));
    rmSync(path);
    const all = stepsOf(sequence, size);
    const few = await shrink(all, (some) => failing(() => run(sequence, some)));
    const what = `${describePoint(point)}, sequence ${name}, ${String(size)} bytes`;
    throw minimalCase(what, seed, few, all.length, error);
  }
}

const POINTS = gridPoints().filter(({ clusterSize }) => clusterSize <= 65536);

qemu.describeWithQemu('writing', () => {
  it(
    `${String(SEQUENCES)} random sequences of ${String(STEPS)} steps agree with a plain model, and qemu finds nothing wrong`,
    { timeout: 3_600_000 },
    async () => {
      const dir = tempDir();
      const random = new Random(seedOf('write model'));
      const cases = Array.from({ length: SEQUENCES }, (_, index) => ({ index, seed: random.u32() }));
      await inParallel(cases, 3, async ({ index, seed }) => {
        const point = new Random(seed + 1).pick(POINTS);
        await runOrShrink({ dir, name: String(index), point, seed }, random.seed);
      });
    },
  );

  it('a bug is told with its seed and a minimal case', { timeout: 300_000 }, async () => {
    const point = POINTS.find(({ clusterSize, backing }) => clusterSize === 4096 && backing === 'none');
    if (point === undefined) throw new Error('no such image');
    // Long zeroes that are to keep their place lose the last sector.
    const plant = (image: Image): Image =>
      new Proxy(image, {
        get(target, name) {
          const value: unknown = Reflect.get(target, name, target);
          if (typeof value !== 'function') return value;
          const method = value.bind(target) as (...args: unknown[]) => unknown;
          if (name !== 'zero') return method;
          return (at: number, length: number, how: { keepAllocated?: boolean }) =>
            method(at, how.keepAllocated === true && length > 4096 ? length - 512 : length, how);
        },
      });
    const sequence = { dir: tempDir(), name: 'planted', point, seed: 9, plant };
    const error = await runOrShrink(sequence, 9).then(
      () => new Error('it was not noticed'),
      (reason: unknown) => reason as Error,
    );
    expect(error.message).toContain('SPINDLE_SEED=9');
    const [, few = ''] = /minimal case, (\d+) of 200 steps/.exec(error.message) ?? [];
    expect(Number(few), error.message).toBeGreaterThan(0);
    expect(Number(few), error.message).toBeLessThanOrEqual(2);
    expect(error.message).toContain('"do":"zero-keep"');
  });
});
