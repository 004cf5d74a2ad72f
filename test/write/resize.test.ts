import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { checkFile } from '../../src/op/check-file.ts';
import { openImageFile } from '../../src/op/open.ts';
import { resize } from '../../src/op/resize.ts';
import { createSnapshot } from '../../src/op/snapshots.ts';
import { readAll, runHistories } from '../tool/history.ts';
import * as qemu from '../tool/qemu.ts';
import { seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_MODEL_SEQUENCES', 120);
const STEPS = 50;
const MIX = { snapshots: 0.03, resize: 0.25, qemu: 0.01 };

async function contentOf(path: string, format: string): Promise<Uint8Array> {
  const image = await openImageFile(path, { format });
  try {
    return await readAll(image);
  } finally {
    await image.close();
  }
}

async function clean(path: string): Promise<void> {
  expect((await checkFile(path, { format: 'qcow2' })).problems).toEqual([]);
  const judged = await qemu.check(path);
  expect(judged.code, judged.stderr).toBe(0);
}

qemu.describeWithQemu('resizing', () => {
  it(
    `${String(SEQUENCES)} random sequences of ${String(STEPS)} steps agree with a plain model, and with qemu`,
    { timeout: 3_600_000 },
    async () => {
      const seed = seedOf('resize model');
      await runHistories({ dir: tempDir(), seed, sequences: SEQUENCES, steps: STEPS, mixes: [MIX] });
    },
  );

  it.each(['write', 'compress'] as const)(
    'what shrinking cut off does not come back when qemu grows the disk again (%s)',
    async (kind) => {
      for (const options of [{}, { extended_l2: 'on' }, { compat: 'v2' }]) {
        const path = join(tempDir(), 'tail.qcow2');
        await qemu.create(path, 327_680, { options });
        const steps = [0, 65536, 131_072, 196_608, 262_144].map((at) => ({
          do: kind,
          at,
          length: 65536,
          pattern: 9,
        }));
        await qemu.fill(path, steps);
        await expect(resize(path, 100_352)).rejects.toMatchObject({ code: 'BAD_OPTION' });
        await resize(path, 100_352, { shrink: true });
        await clean(path);
        await qemu.qemuImg(['resize', '-q', path, '327680']);
        const bytes = await contentOf(path, 'qcow2');
        expect(bytes.findIndex((byte) => byte !== 9)).toBe(100_352);
        expect(bytes.subarray(100_352).every((byte) => byte === 0)).toBe(true);
      }
    },
  );

  it('a tail that qemu left behind does not come back either', async () => {
    const path = join(tempDir(), 'left.qcow2');
    await qemu.create(path, 131_072);
    await qemu.fill(path, [{ do: 'write', at: 0, length: 131_072, pattern: 9 }]);
    await qemu.qemuImg(['resize', '-q', '--shrink', path, '100352']);
    await resize(path, 327_680);
    expect(await qemu.holds(path, { at: 0, length: 100_352, pattern: 9 })).toBe(true);
    expect(await qemu.holds(path, { at: 100_352, length: 227_328, pattern: 0 })).toBe(true);
    await clean(path);
  });

  it('a longer backing file does not show in the new part; version 2 refuses, and stays as it was', async () => {
    const dir = tempDir();
    const base = join(dir, 'base.raw');
    writeFileSync(base, Buffer.alloc(1024 * 1024, 5));
    for (const compat of ['v3', 'v2']) {
      const path = join(dir, `${compat}.qcow2`);
      await qemu.create(path, 102_400, { options: { compat }, backing: { path: base, format: 'raw' } });
      const before = readFileSync(path);
      if (compat === 'v2') {
        await expect(resize(path, 2 * 1024 * 1024)).rejects.toMatchObject({ code: 'UNSUPPORTED' });
        expect(Buffer.compare(readFileSync(path), before)).toBe(0);
        continue;
      }
      await resize(path, 2 * 1024 * 1024);
      expect(await qemu.holds(path, { at: 0, length: 102_400, pattern: 5 })).toBe(true);
      expect(await qemu.holds(path, { at: 102_400, length: 2 * 1024 * 1024 - 102_400, pattern: 0 })).toBe(
        true,
      );
      await clean(path);
    }
  });

  it('refuses sizes and images that cannot be, before anything is changed', async () => {
    const dir = tempDir();
    const path = join(dir, 'disk.qcow2');
    await qemu.create(path, '1M', { options: { compat: 'v2', cluster_size: 512 } });
    const before = readFileSync(path);
    await expect(resize(path, 1000, { shrink: true })).rejects.toMatchObject({ code: 'BAD_SIZE' });
    await expect(resize(path, -(2 ** 21), { relative: true })).rejects.toMatchObject({ code: 'BAD_SIZE' });
    await expect(resize(path, 2 ** 40)).rejects.toMatchObject({ code: 'LIMIT' });
    await expect(resize(path, 512, { shrink: true, preallocation: 'full' })).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
    expect(Buffer.compare(readFileSync(path), before)).toBe(0);
    await createSnapshot(path, 'a');
    await expect(resize(path, 2 ** 21)).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    const marked = join(dir, 'bitmap.qcow2');
    await qemu.create(marked, '1M');
    await qemu.bitmap(marked, 'b', ['--add', '-g', '512']);
    const marks = readFileSync(marked);
    await expect(resize(marked, 0, { shrink: true })).rejects.toMatchObject({ code: 'BAD_SIZE' });
    await expect(resize(marked, 2 ** 41 + 2 ** 30)).rejects.toMatchObject({ code: 'LIMIT' });
    expect(Buffer.compare(readFileSync(marked), marks)).toBe(0);
  });

  it.each(['metadata', 'falloc', 'full'] as const)(
    'preallocates the new part (%s)',
    async (preallocation) => {
      for (const options of [{}, { extended_l2: 'on' }, { data_file: join(tempDir(), 'data') }]) {
        const path = join(tempDir(), 'new.qcow2');
        await qemu.create(path, 1_000_448, { options });
        await qemu.fill(path, [{ do: 'write', at: 0, length: 1_000_448, pattern: 3 }]);
        await resize(path, 6_000_640, { preallocation });
        await clean(path);
        const map = await qemu.map(path);
        const last = map[map.length - 1];
        expect(last?.start === undefined ? 0 : last.start + last.length).toBe(6_000_640);
        expect(last?.offset).toBeDefined();
        if (preallocation !== 'metadata' && !('data_file' in options)) {
          expect(statSync(path).blocks * 512).toBeGreaterThan(5_500_000);
        }
        expect(await qemu.holds(path, { at: 1_000_448, length: 5_000_192, pattern: 0 })).toBe(true);
        expect(await qemu.holds(path, { at: 0, length: 1_000_448, pattern: 3 })).toBe(true);
      }
    },
  );

  it('grows the L1 table, and cuts the file when the disk shrinks', async () => {
    const path = join(tempDir(), 'large.qcow2');
    await qemu.create(path, '1M', { options: { cluster_size: 512 } });
    await qemu.fill(path, [{ do: 'write', at: 0, length: 1024 * 1024, pattern: 3 }]);
    await resize(path, 2 ** 33);
    await qemu.fill(path, [{ do: 'write', at: 2 ** 33 - 512, length: 512, pattern: 4 }]);
    await clean(path);
    expect(await qemu.holds(path, { at: 0, length: 1024 * 1024, pattern: 3 })).toBe(true);
    await resize(path, 65536, { shrink: true });
    await clean(path);
    expect(await qemu.holds(path, { at: 0, length: 65536, pattern: 3 })).toBe(true);
    const filled = join(tempDir(), 'filled.qcow2');
    await qemu.create(filled, '8M');
    await qemu.fill(filled, [{ do: 'write', at: 0, length: 8 * 1024 * 1024, pattern: 3 }]);
    await resize(filled, 1024 * 1024, { shrink: true });
    await clean(filled);
    expect(statSync(filled).size).toBeLessThan(2 * 1024 * 1024);
  });

  it('raw images take any number of bytes', async () => {
    const path = join(tempDir(), 'disk.raw');
    writeFileSync(path, Buffer.alloc(4096, 6));
    expect(await resize(path, 5001, { format: 'raw' })).toMatchObject({ from: 4096, size: 5001 });
    expect(statSync(path).size).toBe(5001);
    await expect(resize(path, 1000, { format: 'raw' })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await resize(path, -4001, { format: 'raw', relative: true, shrink: true });
    expect(readFileSync(path).equals(Buffer.alloc(1000, 6))).toBe(true);
    await resize(path, 1024 * 1024, { format: 'raw', preallocation: 'falloc' });
    expect(statSync(path).blocks * 512).toBeGreaterThanOrEqual(1024 * 1024 - 4096);
    await expect(resize(path, 2 ** 21, { format: 'raw', preallocation: 'metadata' })).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
  });
});
