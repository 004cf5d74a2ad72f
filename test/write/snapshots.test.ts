import { expect, it } from 'vitest';
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkFile } from '../../src/op/check-file.ts';
import { openImageFile } from '../../src/op/open.ts';
import { applySnapshot, createSnapshot, deleteSnapshot, listSnapshots } from '../../src/op/snapshots.ts';
import { readAll, runHistories, type Mix } from '../tool/history.ts';
import * as qemu from '../tool/qemu.ts';
import { seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_MODEL_SEQUENCES', 120);
const STEPS = 60;
const MIXES: readonly Mix[] = [
  { snapshots: 0.25, resize: 0, qemu: 0.03 },
  { snapshots: 0.15, resize: 0.1, qemu: 0.03 },
];

qemu.describeWithQemu('internal snapshots', () => {
  it(
    `${String(SEQUENCES)} random sequences of ${String(STEPS)} steps agree with plain copies, and with qemu`,
    { timeout: 3_600_000 },
    async () => {
      const seed = seedOf('snapshot model');
      await runHistories({ dir: tempDir(), seed, sequences: SEQUENCES, steps: STEPS, mixes: MIXES });
    },
  );

  it.each([1, 2])('refcounts of %i bits that overflow leave the image as it was', async (bits) => {
    const dir = tempDir();
    const path = join(dir, 'narrow.qcow2');
    await qemu.create(path, '1M', { options: { refcount_bits: bits, cluster_size: 4096 } });
    await qemu.fill(path, [{ do: 'write', at: 0, length: 65536, pattern: 7 }]);
    for (let made = 0; made < 2 ** bits - 2; made++) await createSnapshot(path, 'one', { format: 'qcow2' });
    const before = readFileSync(path);
    await expect(createSnapshot(path, 'more', { format: 'qcow2' })).rejects.toMatchObject({ code: 'LIMIT' });
    expect(Buffer.compare(readFileSync(path), before)).toBe(0);
    expect((await checkFile(path, { format: 'qcow2' })).problems).toEqual([]);
    expect((await qemu.check(path)).code).toBe(0);
  });

  it('tells snapshots by id first, and refuses a name that several have', async () => {
    const path = join(tempDir(), 'names.qcow2');
    await qemu.create(path, '1M');
    expect(await createSnapshot(path, 'same')).toBe('1');
    expect(await createSnapshot(path, 'same')).toBe('2');
    expect(await createSnapshot(path, '1')).toBe('3');
    await expect(deleteSnapshot(path, 'same')).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(applySnapshot(path, 'none')).rejects.toMatchObject({ code: 'SNAPSHOT_NOT_FOUND' });
    await deleteSnapshot(path, '1');
    expect((await listSnapshots(path)).map(({ id }) => id)).toEqual(['2', '3']);
    await deleteSnapshot(path, '1', { find: 'name' });
    await deleteSnapshot(path, 'same', { find: 'first' });
    expect(await listSnapshots(path)).toEqual([]);
    expect((await qemu.check(path)).code).toBe(0);
  });

  it('are refused for raw images and images with an external data file', async () => {
    const dir = tempDir();
    const raw = join(dir, 'disk.raw');
    await qemu.create(raw, '1M', { format: 'raw' });
    await expect(createSnapshot(raw, 'a', { format: 'raw' })).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    const path = join(dir, 'external.qcow2');
    await qemu.create(path, '1M', { options: { data_file: join(dir, 'data') } });
    await expect(createSnapshot(path, 'a')).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    expect((await qemu.check(path)).code).toBe(0);
  });

  it('keep data that only they hold, and give its space back when they go', async () => {
    const dir = tempDir();
    const path = join(dir, 'space.qcow2');
    await qemu.create(path, '8M');
    await qemu.fill(path, [{ do: 'write', at: 0, length: 4 * 1024 * 1024, pattern: 1 }]);
    const copy = join(dir, 'copy.qcow2');
    copyFileSync(path, copy);
    await createSnapshot(path, 'then', { date: new Date(1_700_000_000_500) });
    const [listed] = await listSnapshots(path);
    expect(listed).toMatchObject({
      dateSeconds: 1_700_000_000,
      dateNanoseconds: 500_000_000,
      vmStateSize: 0,
      icount: 0n,
    });
    await qemu.fill(path, [{ do: 'write', at: 0, length: 4 * 1024 * 1024, pattern: 2 }]);
    await applySnapshot(path, 'then');
    expect(await qemu.compare({ path, format: 'qcow2' }, { path: copy, format: 'qcow2' })).toBe(true);
    await deleteSnapshot(path, 'then');
    expect((await qemu.check(path)).code).toBe(0);
    const image = await openImageFile(path);
    expect((await readAll(image)).subarray(0, 4 * 1024 * 1024).every((byte) => byte === 1)).toBe(true);
    await image.close();
  });
});
