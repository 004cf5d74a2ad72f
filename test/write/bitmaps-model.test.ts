import { it } from 'vitest';
import { describePoint, gridPoints, inParallel } from '../differential/grid.ts';
import { describeWithNbd } from '../tool/bitmaps.ts';
import { History, type Mix } from '../tool/history.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const SEQUENCES = Number(process.env['SPINDLE_MODEL_SEQUENCES'] ?? 150);
const STEPS = 60;
const MIXES: readonly Mix[] = [
  { snapshots: 0, resize: 0, qemu: 0, bitmaps: 0.3 },
  { snapshots: 0, resize: 0.15, qemu: 0, bitmaps: 0.25 },
  { snapshots: 0.15, resize: 0.1, qemu: 0.03, bitmaps: 0.2 },
];

describeWithNbd('persistent bitmaps', () => {
  it(
    `${String(SEQUENCES)} random sequences of ${String(STEPS)} steps: qemu reads every bit as a plain model has it`,
    { timeout: 3_600_000 },
    async () => {
      const dir = tempDir();
      const random = new Random(seedOf('bitmap model'));
      const points = gridPoints().filter(({ clusterSize, version }) => clusterSize <= 65536 && version === 3);
      const cases = Array.from({ length: SEQUENCES }, (_, index) => ({ index, seed: random.u32() }));
      await inParallel(cases, 3, async ({ index, seed }) => {
        const own = new Random(seed);
        // Small clusters hold few bits, so that a large disk has bitmaps of many clusters.
        const small = points.filter(({ clusterSize }) => clusterSize <= 1024);
        const point = own.chance(0.4) ? own.pick(small) : own.pick(points);
        const most = point.clusterSize <= 1024 && own.chance(0.7) ? 32768 : undefined;
        const history = await History.make(dir, String(index), point, own, most);
        try {
          const mix = own.pick(MIXES);
          for (let i = 0; i < STEPS; i++) await history.step(mix);
          await history.judge();
        } catch (error) {
          throw new Error(
            `${describePoint(point)}, sequence ${String(index)}: ${history.log.slice(-6).join(' ')} (SPINDLE_SEED=${String(random.seed)}): ${String(error)}`,
            { cause: error },
          );
        } finally {
          await history.close();
        }
      });
    },
  );
});
