import { expect, it } from 'vitest';
import type { Image } from '../../src/format/image.ts';
import { gridPoints } from '../differential/grid.ts';
import { describeWithNbd } from '../tool/bitmaps.ts';
import { runHistories, type Mix } from '../tool/history.ts';
import { seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const SEQUENCES = Number(process.env['SPINDLE_MODEL_SEQUENCES'] ?? 2000);
const STEPS = 200;
const MIXES: readonly Mix[] = [
  { snapshots: 0.03, resize: 0.02, qemu: 0.002, bitmaps: 0.02, compress: 0.05 },
  { snapshots: 0.02, resize: 0.01, qemu: 0, bitmaps: 0, compress: 0.03 },
  { snapshots: 0, resize: 0, qemu: 0, bitmaps: 0.01, compress: 0 },
];

describeWithNbd('everything that changes an image', () => {
  it(
    `${String(SEQUENCES)} random sequences of ${String(STEPS)} steps agree with a plain model, and qemu finds nothing wrong`,
    { timeout: 3_600_000 },
    async () => {
      const seed = seedOf('write model');
      await runHistories({ dir: tempDir(), seed, sequences: SEQUENCES, steps: STEPS, mixes: MIXES });
    },
  );

  it('a bug is told with its seed and a minimal case', { timeout: 300_000 }, async () => {
    const point = gridPoints().find(({ clusterSize, backing }) => clusterSize === 4096 && backing === 'none');
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
    const planted = { dir: tempDir(), seed: 9, sequences: 4, steps: STEPS, mixes: MIXES, plant };
    const error = await runHistories({ ...planted, start: () => ({ point }) }).then(
      () => new Error('it was not noticed'),
      (reason: unknown) => reason as Error,
    );
    expect(error.message).toContain('SPINDLE_SEED=9');
    const [, few = ''] = /minimal case, (\d+) of \d+ steps/.exec(error.message) ?? [];
    expect(Number(few), error.message).toBeGreaterThan(0);
    expect(Number(few), error.message).toBeLessThanOrEqual(3);
    expect(error.message).toContain('"do":"zero-keep"');
  });
});
