import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { applySnapshot, createSnapshot } from '../../src/op/snapshots.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { openImageFile } from '../../src/op/open.ts';
import { resize } from '../../src/op/resize.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import { gridPoints } from '../differential/grid.ts';
import { readAll } from '../tool/history.ts';
import { applyStep, firstDifference, Model, randomStep } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

async function clean(path: string): Promise<void> {
  expect((await checkFile(path, { format: 'qcow2' })).problems).toEqual([]);
  const judged = await qemu.check(path);
  expect(judged.code, judged.stderr).toBe(0);
}

/** Random guest writes, compressed ones among them, against a plain model. */
async function workOn(path: string, random: Random, steps: number): Promise<void> {
  const image = await openImageFile(path, { format: 'qcow2', write: true });
  try {
    const unit = image.driver.granularity;
    const model = new Model(await readAll(image));
    for (let i = 0; i < steps; i++) {
      if (random.chance(0.2) && image instanceof DiskImage) {
        const at = random.below(model.size / unit) * unit;
        const bytes = new Uint8Array(unit).fill(random.between(1, 255), 0, random.between(1, unit));
        await image.writeCompressed(bytes, at);
        model.bytes.set(bytes, at);
      } else await applyStep(image, model, randomStep(random, model.size, unit));
    }
    expect(firstDifference(await readAll(image), model.bytes)).toBe(-1);
  } finally {
    await image.close();
  }
}

qemu.describeWithQemu('narrow refcounts', () => {
  it('of a cluster that holds several streams: a snapshot that would not fit changes nothing', async () => {
    for (const refcount_bits of [1, 2, 4]) {
      const path = join(tempDir(), 'streams.qcow2');
      await qemu.create(path, '1M', { options: { refcount_bits, cluster_size: 65536 } });
      const streams = 2 ** refcount_bits - 1;
      const steps = Array.from({ length: streams }, (_, i) => ({
        do: 'compress' as const,
        ...{ at: i * 65536, length: 65536, pattern: i + 1 },
      }));
      await qemu.fill(path, steps);
      const before = readFileSync(path);
      await expect(createSnapshot(path, 'a')).rejects.toMatchObject({ code: 'LIMIT' });
      expect(Buffer.compare(readFileSync(path), before)).toBe(0);
      await clean(path);
    }
  });

  it(
    'at their largest: every guest write works, and snapshots are refused or work as a whole',
    { timeout: 300_000 },
    async () => {
      const random = new Random(seedOf('largest refcounts'));
      const sizes = new Set(gridPoints().map(({ clusterSize }) => clusterSize));
      for (const cluster_size of [...sizes].filter((size) => size <= 65536)) {
        for (const refcount_bits of [1, 2]) {
          const path = join(tempDir(), 'narrow.qcow2');
          const size = cluster_size * 40;
          await qemu.create(path, size, { options: { refcount_bits, cluster_size } });
          await qemu.fill(path, [{ do: 'write', at: 0, length: size, pattern: 7 }]);
          for (let i = 0; i < 2 ** refcount_bits - 2; i++) await createSnapshot(path, `s${String(i)}`);
          await workOn(path, random, 60);
          await clean(path);
          const before = readFileSync(path);
          const made = await createSnapshot(path, 'one more').then(
            () => true,
            (error: unknown) => error,
          );
          if (made !== true) {
            expect(made, `SPINDLE_SEED=${String(random.seed)}`).toMatchObject({ code: 'LIMIT' });
            expect(Buffer.compare(readFileSync(path), before)).toBe(0);
          }
          await resize(path, size + cluster_size * 3);
          await workOn(path, random, 30);
          if (refcount_bits === 2) {
            // For a moment both the disk and the snapshot count: where that does not fit, nothing changes.
            const held = readFileSync(path);
            const refused = await applySnapshot(path, 's0').then(
              () => null,
              (error: unknown) => error,
            );
            if (refused !== null) {
              expect(refused).toMatchObject({ code: 'LIMIT' });
              expect(Buffer.compare(readFileSync(path), held)).toBe(0);
            }
            await workOn(path, random, 30);
          }
          await clean(path);
          if (refcount_bits === 2) {
            const image = await openImageFile(path, { format: 'qcow2', snapshot: 's1' });
            expect((await readAll(image)).every((byte) => byte === 7)).toBe(true);
            await image.close();
          }
        }
      }
    },
  );
});
