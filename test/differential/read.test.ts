import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { it } from 'vitest';
import { expectAgreement } from '../tool/agree.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { byClusterSize, describePoint, gridPoints, inParallel, qemuOptions, type GridPoint } from './grid.ts';
import { shareOf } from '../tool/share.ts';

const SECTOR = 512;

/** What a guest and a compressing tool do to an image: seeded, so a failure comes back. */
function randomFill(point: GridPoint, size: number, random: Random): qemu.Fill[] {
  const steps: qemu.Fill[] = [];
  const count = random.between(4, 14);
  // Compressed writes need room that no cluster takes yet, so they come first.
  if (point.preallocation === 'off') {
    const clusters = Math.floor(size / point.clusterSize);
    const start = random.below(Math.max(1, clusters));
    for (let i = start; i < Math.min(clusters, start + 6); i++) {
      const pattern = random.below(256);
      if (random.chance(0.7)) {
        steps.push({ do: 'compress', at: i * point.clusterSize, length: point.clusterSize, pattern });
      }
    }
  }
  for (let i = 0; i < count; i++) {
    const at = random.below(size / SECTOR) * SECTOR;
    const most = Math.min(size - at, random.pick([SECTOR, 4096, 40_960, point.clusterSize * 3]));
    const length = Math.max(SECTOR, random.between(1, Math.floor(most / SECTOR)) * SECTOR);
    const kind = random.below(10);
    if (kind < 5) steps.push({ do: 'write', at, length, pattern: random.below(256) });
    else if (kind < 7) steps.push({ do: 'zero', at, length });
    else if (kind < 8) steps.push({ do: 'zero', at, length, unmap: true });
    else steps.push({ do: 'discard', at, length });
  }
  return steps;
}

qemu.describeWithQemu('what qemu creates and fills, spindle reads', () => {
  it.for(byClusterSize(shareOf('read', gridPoints())))(
    'clusters of %i bytes: the option grid',
    { timeout: 600_000 },
    async ([clusterSize, points]) => {
      const dir = tempDir();
      const random = new Random(seedOf(`read ${String(clusterSize)}`));
      await inParallel([...points.entries()], 3, async ([index, point]) => {
        const path = join(dir, `${String(index)}.qcow2`);
        const most = Math.min(6 * 1024 ** 2, Math.max(384 * 1024, point.clusterSize * 3));
        const size = random.between(64, most / SECTOR) * SECTOR;
        const base = { path: join(dir, `${String(index)}.base`), format: point.backing };
        const own = new Random(random.u32());
        try {
          if (point.backing !== 'none') {
            // Shorter, equal or longer than the overlay.
            const baseSize = own.pick([size, Math.max(SECTOR, size - 20_480), size + 65_536]);
            await qemu.create(base.path, baseSize, { format: point.backing });
            const steps = randomFill({ ...point, preallocation: 'metadata' }, baseSize, own);
            await qemu.fill(base.path, steps, { format: point.backing });
          }
          await qemu.create(path, size, {
            format: 'qcow2',
            options: qemuOptions(point),
            ...(point.backing === 'none' ? {} : { backing: base }),
          });
          await qemu.fill(path, randomFill(point, size, own));
          await expectAgreement(path, { scratch: join(dir, `${String(index)}.out`) });
        } catch (error) {
          throw new Error(
            `${describePoint(point)} size=${String(size)} (SPINDLE_SEED=${String(random.seed)})`,
            {
              cause: error,
            },
          );
        }
        rmSync(path);
        rmSync(base.path, { force: true });
      });
    },
  );
});
