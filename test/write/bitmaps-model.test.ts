import { it } from 'vitest';
import { gridPoints } from '../differential/grid.ts';
import { describeWithNbd } from '../tool/bitmaps.ts';
import { runHistories, type Mix } from '../tool/history.ts';
import { seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_MODEL_SEQUENCES', 150);
const STEPS = 60;
const MIXES: readonly Mix[] = [
  { snapshots: 0, resize: 0, qemu: 0, bitmaps: 0.2, compress: 0.1 },
  { snapshots: 0, resize: 0.15, qemu: 0, bitmaps: 0.2, compress: 0.05 },
  { snapshots: 0.15, resize: 0.1, qemu: 0.03, bitmaps: 0.15, compress: 0.05 },
];
const POINTS = gridPoints().filter(({ clusterSize, version }) => clusterSize <= 65536 && version === 3);
const SMALL = POINTS.filter(({ clusterSize }) => clusterSize <= 1024);

describeWithNbd('persistent bitmaps', () => {
  it(
    `${String(SEQUENCES)} random sequences of ${String(STEPS)} steps: qemu reads every bit as a plain model has it`,
    { timeout: 3_600_000 },
    async () => {
      await runHistories({
        dir: tempDir(),
        seed: seedOf('bitmap model'),
        sequences: SEQUENCES,
        steps: STEPS,
        mixes: MIXES,
        start: (random) => {
          // Small clusters hold few bits, so that a large disk has bitmaps of many clusters.
          const point = random.pick(random.chance(0.4) ? SMALL : POINTS);
          return { point, ...(point.clusterSize <= 1024 && random.chance(0.7) && { most: 32768 }) };
        },
      });
    },
  );
});
