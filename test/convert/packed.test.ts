import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { convert, type ConvertOptions } from '../../src/op/convert.ts';
import { openImageFile } from '../../src/op/open.ts';
import { CODECS, content } from '../tool/compressed.ts';
import { firstDifference } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { withRandom, type Random } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

/** A rate makes the bytes pass through JavaScript. */
const SLOWLY: ConvertOptions = { rate: 2 ** 40 };

/** Text, noise and zeroes in runs of all lengths. */
function disk(random: Random, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size;) {
    const length = Math.min(size - at, random.pick([512, 5000, 65536, 300_000]) + random.below(70_000));
    if (random.chance(0.7)) bytes.set(content(random, length, random.pick([0.01, 0.4, 1])), at);
    at += length;
  }
  return bytes;
}

qemu.describeWithQemu('compressed clusters in bulk', () => {
  it.each(CODECS)(
    'are the same as one by one, and qemu reads them: %s',
    { timeout: 300_000 },
    async (type) => {
      const dir = tempDir();
      // What goes wrong in bulk is done one by one, so that a bulk that never works would not show.
      const [packs, expands] = [vi.spyOn(native(), 'packRanges'), vi.spyOn(native(), 'expandPieces')];
      await withRandom(`packed ${type}`, async (random) => {
        for (const clusterSize of [512, 4096, 65536, 2 ** 21]) {
          const size = (clusterSize === 512 ? 600 * 1024 : 7 * 2 ** 20) + 1536;
          const raw = join(dir, 'disk.raw');
          const bytes = disk(random, size);
          writeFileSync(raw, bytes);
          const [fast, slow] = [join(dir, 'fast.qcow2'), join(dir, 'slow.qcow2')];
          for (const [path, options] of [
            [fast, {}],
            [slow, SLOWLY],
          ] as const) {
            const target = { path, format: 'qcow2', qcow2: { clusterSize, compressionType: type } } as const;
            await convert([{ path: raw, format: 'raw' }], target, { ...options, compress: true });
          }
          expect(readFileSync(fast).equals(readFileSync(slow))).toBe(true);
          const checked = await qemu.check(fast);
          expect(checked.code, checked.stderr).toBe(0);
          expect(checked.json?.['compressed-clusters']).toBeGreaterThan(0);
          expect(await qemu.compare({ path: fast, format: 'qcow2' }, { path: raw, format: 'raw' })).toBe(
            true,
          );

          const theirs = join(dir, 'theirs.qcow2');
          const options = { cluster_size: clusterSize, compression_type: type };
          await qemu.convert(raw, theirs, { format: 'raw', to: 'qcow2', compressed: true, options });
          for (const source of [fast, theirs]) {
            const [back, backSlowly] = [join(dir, 'back.raw'), join(dir, 'slow.raw')];
            await convert([{ path: source, format: 'qcow2' }], { path: back, format: 'raw' });
            await convert([{ path: source, format: 'qcow2' }], { path: backSlowly, format: 'raw' }, SLOWLY);
            expect(firstDifference(readFileSync(back), bytes)).toBe(-1);
            expect(firstDifference(readFileSync(backSlowly), bytes)).toBe(-1);
            expect(statSync(back).blocks).toBe(statSync(backSlowly).blocks);
          }
        }
      });
      for (const { mock } of [packs, expands]) {
        expect(mock.results.length).toBeGreaterThan(4);
        await expect(Promise.all(mock.results.map(({ value }) => value as unknown))).resolves.toBeDefined();
      }
      vi.restoreAllMocks();
    },
  );

  it('show through an overlay of smaller clusters in part', { timeout: 120_000 }, async () => {
    const dir = tempDir();
    await withRandom('packed overlay', async (random) => {
      const size = 2 ** 20 + 512;
      const raw = join(dir, 'disk.raw');
      const bytes = disk(random, size);
      writeFileSync(raw, bytes);
      const base = join(dir, 'base.qcow2');
      await qemu.convert(raw, base, { format: 'raw', to: 'qcow2', compressed: true });
      const top = join(dir, 'top.qcow2');
      await qemu.create(top, size, {
        format: 'qcow2',
        options: { cluster_size: 512 },
        backing: { path: base, format: 'qcow2' },
      });
      for (let count = 0; count < 40; count++) {
        const at = random.below(size / 512) * 512;
        const length = Math.min(size - at, 512 * random.between(1, 20));
        const pattern = random.between(0, 255);
        await qemu.fill(top, [{ do: 'write', at, length, pattern }]);
        bytes.fill(pattern, at, at + length);
      }
      const back = join(dir, 'back.raw');
      await convert([{ path: top, format: 'qcow2' }], { path: back, format: 'raw' });
      expect(firstDifference(readFileSync(back), bytes)).toBe(-1);
    });
  });

  it('replace what an existing image holds', { timeout: 120_000 }, async () => {
    const dir = tempDir();
    await withRandom('packed onto another', async (random) => {
      const size = 3 * 2 ** 20;
      const [raw, old, target] = [join(dir, 'disk.raw'), join(dir, 'old.raw'), join(dir, 'target.qcow2')];
      writeFileSync(raw, disk(random, size));
      writeFileSync(old, random.bytes(size));
      await qemu.convert(old, target, { format: 'raw', to: 'qcow2' });
      const existing = { path: target, format: 'qcow2', existing: true } as const;
      await convert([{ path: raw, format: 'raw' }], existing, { compress: true });
      expect((await qemu.check(target)).code).toBe(0);
      expect(await qemu.compare({ path: target, format: 'qcow2' }, { path: raw, format: 'raw' })).toBe(true);
    });
  });

  it('name the damaged one, and only that is lost to salvage', async () => {
    const dir = tempDir();
    const [raw, packed, back] = [join(dir, 'disk.raw'), join(dir, 'disk.qcow2'), join(dir, 'back.raw')];
    const bytes = new Uint8Array(10 * 65536).map((_, at) => 97 + ((at * at) % 19));
    writeFileSync(raw, bytes);
    await convert([{ path: raw, format: 'raw' }], { path: packed, format: 'qcow2' }, { compress: true });
    const image = await openImageFile(packed, { format: 'qcow2' });
    const place = await image.driver.streams?.place(4 * 65536);
    await image.close();
    const file = readFileSync(packed);
    file.fill(0xff, (place?.offset ?? 0) + 10, (place?.offset ?? 0) + 40);
    writeFileSync(packed, file);
    const source = [{ path: packed, format: 'qcow2' }] as const;
    await expect(convert(source, { path: back, format: 'raw' })).rejects.toMatchObject({
      code: 'BAD_COMPRESSED',
      message: expect.stringContaining('guest offset 262144') as string,
    });
    const lost: number[] = [];
    const onUnreadable = (at: number): void => void lost.push(at);
    await convert(source, { path: back, format: 'raw' }, { onUnreadable });
    expect(lost[0]).toBe(4 * 65536);
    bytes.fill(0, 4 * 65536, 5 * 65536);
    expect(firstDifference(readFileSync(back), bytes)).toBe(-1);
  });
});
