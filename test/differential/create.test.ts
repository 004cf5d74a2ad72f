import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { create } from '../../src/op/create.ts';
import { expectAgreement } from '../tool/agree.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { byClusterSize, describePoint, gridPoints, inParallel, qemuOptions, type GridPoint } from './grid.ts';
import { shareOf } from '../tool/share.ts';

const SECTOR = 512;

/** A size that is rarely a multiple of anything but a sector; small where every cluster takes an L2 entry of its own. */
function sizeFor(point: GridPoint, random: Random): number {
  const most = Math.min(8 * 1024 ** 2, Math.max(512 * 1024, point.clusterSize * 4));
  return random.between(1, most / SECTOR) * SECTOR;
}

qemu.describeWithQemu('what spindle creates, qemu accepts', () => {
  it.for(byClusterSize(shareOf('create', gridPoints())))(
    'clusters of %i bytes: the option grid',
    { timeout: 600_000 },
    async ([clusterSize, points]) => {
      const dir = tempDir();
      const random = new Random(seedOf(`create ${String(clusterSize)}`));
      const bases = { raw: join(dir, 'base.raw'), qcow2: join(dir, 'base.qcow2') };
      const baseSize = 3 * 1024 ** 2 + 512;
      for (const [format, path] of Object.entries(bases)) {
        await qemu.create(path, baseSize, { format });
        await qemu.fill(path, [{ do: 'write', at: 0, length: 200_000, pattern: 0x5a }], { format });
      }
      await inParallel([...points.entries()], 3, async ([index, point]) => {
        const path = join(dir, `${String(index)}.qcow2`);
        const size = point.backing === 'none' || random.chance(0.5) ? sizeFor(point, random) : undefined;
        const context = `${describePoint(point)} size=${String(size)}`;
        try {
          await create({
            path,
            format: 'qcow2',
            size,
            preallocation: point.preallocation,
            qcow2: {
              version: point.version,
              clusterSize: point.clusterSize,
              refcountBits: point.refcountBits,
              extendedL2: point.extendedL2,
              compressionType: point.compressionType,
            },
            backing:
              point.backing === 'none' ? undefined : { name: bases[point.backing], format: point.backing },
          });
          const judged = await qemu.check(path);
          expect(judged.code, `qemu-img check: ${judged.stderr}`).toBe(0);
          await expectAgreement(path, { scratch: join(dir, `${String(index)}.out`) });
          const twin = join(dir, `${String(index)}.twin`);
          await createTwin(point, twin, size ?? baseSize, bases);
          const same = await qemu.compare({ path, format: 'qcow2' }, { path: twin, format: 'qcow2' });
          expect(same, 'content of the image that qemu creates with these options').toBe(true);
        } catch (error) {
          throw new Error(`${context} (SPINDLE_SEED=${String(random.seed)})`, { cause: error });
        }
        for (const name of ['qcow2', 'twin']) rmSync(join(dir, `${String(index)}.${name}`));
      });
    },
  );
});

async function createTwin(
  point: GridPoint,
  path: string,
  size: number,
  bases: Record<'raw' | 'qcow2', string>,
): Promise<void> {
  await qemu.create(path, size, {
    format: 'qcow2',
    options: qemuOptions(point),
    ...(point.backing === 'none' ? {} : { backing: { path: bases[point.backing], format: point.backing } }),
  });
}
