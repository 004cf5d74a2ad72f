import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { Image } from '../../src/format/image.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { checkCompressible } from '../../src/format/qcow2/write/compress.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { openImageFile } from '../../src/op/open.ts';
import { openFile } from '../../src/storage/file.ts';
import { inParallel } from '../differential/grid.ts';
import { applyStep, firstDifference, Model, randomStep } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf, withRandom } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { content, write, readAll, CODECS } from '../tool/compressed.ts';

interface Point {
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly compressionType: 'zlib' | 'zstd';
  readonly extendedL2: boolean;
}

function points(): Point[] {
  const found: Point[] = [];
  for (const clusterSize of [512, 4096, 65536, 2 ** 21])
    for (const refcountBits of [1, 2, 16, 64])
      for (const compressionType of CODECS)
        for (const extendedL2 of clusterSize >= 16384 ? [false, true] : [false])
          found.push({ clusterSize, refcountBits, compressionType, extendedL2 });
  return found;
}

/** A random range of whole clusters, its content partly compressible. */
async function compressedStep(
  image: Image,
  model: Model,
  random: Random,
  clusterSize: number,
): Promise<void> {
  const clusters = Math.ceil(model.size / clusterSize);
  const first = random.below(clusters);
  const at = first * clusterSize;
  const length = Math.min(model.size - at, random.between(1, random.pick([1, 3, 12])) * clusterSize);
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; done += clusterSize) {
    const part = Math.min(clusterSize, length - done);
    bytes.set(content(random, part, random.pick([0, 0.05, 0.3, 0.6, 0.98, 1])), done);
  }
  await write(image, bytes, at);
  model.bytes.set(bytes, at);
}

qemu.describeWithQemu('compressed writes', () => {
  it(
    'mixed with everything else agree with a plain model, and qemu finds nothing wrong',
    { timeout: 1_800_000 },
    async () => {
      const dir = tempDir();
      const random = new Random(seedOf('compressed writes'));
      const cases = points().map((point, index) => ({ point, index, seed: random.u32() }));
      await inParallel(cases, 3, async ({ point, index, seed }) => {
        const own = new Random(seed);
        const { clusterSize, refcountBits } = point;
        const name = JSON.stringify({ ...point, seed: random.seed });
        const path = join(dir, `${String(index)}.qcow2`);
        const base = join(dir, `${String(index)}.base`);
        const raw = join(dir, `${String(index)}.raw`);
        const large = clusterSize > 65536;
        const size = clusterSize * (large ? 5 : clusterSize > 4096 ? 30 : 150) + own.between(0, 3) * 512;
        const backed = own.chance(0.3);
        if (backed) writeFileSync(base, content(own, size, 0.5));
        await qemu.create(path, size, {
          format: 'qcow2',
          options: {
            cluster_size: clusterSize,
            refcount_bits: refcountBits,
            compression_type: point.compressionType,
            extended_l2: point.extendedL2 ? 'on' : 'off',
          },
          ...(backed ? { backing: { path: base, format: 'raw' } } : {}),
        });
        let before: Uint8Array | undefined;
        const steps = large ? 30 : 150;
        let image = await openImageFile(path, { format: 'qcow2', write: true });
        try {
          const model = new Model(await readAll(image));
          for (let i = 0; i < steps; i++) {
            if (own.chance(0.4)) {
              await compressedStep(image, model, own, clusterSize);
              continue;
            }
            const step = randomStep(own, model.size, large ? 65536 : clusterSize);
            await applyStep(image, model, step);
            if (step.do !== 'reopen') continue;
            await image.close();
            if (before === undefined && refcountBits >= 16) {
              await qemu.snapshot(path, 'create', 'before');
              before = model.bytes.slice();
            }
            image = await openImageFile(path, { format: 'qcow2', write: true });
          }
          expect(firstDifference(await readAll(image), model.bytes), name).toBe(-1);
          await image.close();
          expect((await checkFile(path, { format: 'qcow2' })).problems, name).toEqual([]);
          const judged = await qemu.check(path);
          expect(judged.code, `${name} ${judged.stderr}`).toBe(0);
          writeFileSync(raw, model.bytes);
          expect(
            await qemu.compare({ path, format: 'qcow2' }, { path: raw, format: 'raw' }),
            `${name} as qemu reads it`,
          ).toBe(true);
          image = await openImageFile(path, { format: 'qcow2' });
          expect(firstDifference(await readAll(image), model.bytes), `${name} opened again`).toBe(-1);
          if (before !== undefined) {
            await qemu.convert(path, raw, { more: ['-l', 'snapshot.name=before'] });
            expect(firstDifference(readFileSync(raw), before), `${name}: the snapshot`).toBe(-1);
          }
        } catch (error) {
          throw new Error(name, { cause: error });
        } finally {
          await image.close();
        }
        for (const file of [path, base, raw]) rmSync(file, { force: true });
      });
    },
  );

  it.each(CODECS)(
    'are one disk to qemu and to us, whoever wrote it, %s',
    { timeout: 300_000 },
    async (type) => {
      const dir = tempDir();
      await withRandom(`compressed both ways ${type}`, async (random) => {
        for (const clusterSize of [512, 4096, 65536, 2 ** 21]) {
          const size = clusterSize * 40 - (clusterSize > 512 ? 1536 : 0);
          const path = join(dir, `ours-${String(clusterSize)}.qcow2`);
          const raw = join(dir, 'disk.raw');
          const bytes = new Uint8Array(size);
          for (let at = 0; at < size; at += clusterSize)
            bytes.set(content(random, Math.min(clusterSize, size - at), random.below(90) / 100), at);
          writeFileSync(raw, bytes);
          const options = { cluster_size: clusterSize, compression_type: type };
          await qemu.create(path, size, { format: 'qcow2', options });
          const image = await openImageFile(path, { format: 'qcow2', write: true });
          await write(image, bytes, 0);
          await image.close();
          expect((await qemu.check(path)).json).toMatchObject({
            'check-errors': 0,
            'compressed-clusters': 40,
          });
          expect((await qemu.check(path)).code).toBe(0);
          const back = join(dir, 'back.raw');
          await qemu.convert(path, back);
          expect(firstDifference(readFileSync(back), bytes)).toBe(-1);
          const theirs = join(dir, 'theirs.qcow2');
          await qemu.convert(raw, theirs, { format: 'raw', to: 'qcow2', compressed: true, options });
          const read = await openImageFile(theirs, { format: 'qcow2' });
          expect(firstDifference(await readAll(read), bytes)).toBe(-1);
          await read.close();
          // Packed as tightly: zlib is zlib, but for the build.
          const [ours, qemus] = [readFileSync(path).length, readFileSync(theirs).length];
          expect(ours).toBeLessThanOrEqual(qemus * 1.02 + 2 * clusterSize);
          // Theirs is written to by us, next to their streams.
          const more = await openImageFile(theirs, { format: 'qcow2', write: true });
          const part = content(random, clusterSize * 3, 0.2);
          await write(more, part, clusterSize * 2);
          bytes.set(part, clusterSize * 2);
          await more.close();
          expect((await qemu.check(theirs)).code).toBe(0);
          writeFileSync(raw, bytes);
          const same = { path: raw, format: 'raw' };
          expect(await qemu.compare({ path: theirs, format: 'qcow2' }, same)).toBe(true);
        }
      });
    },
  );

  it('are refused by images that cannot hold them', { timeout: 300_000 }, async () => {
    const dir = tempDir();
    const external = join(dir, 'external.qcow2');
    await qemu.create(external, 2 ** 20, {
      format: 'qcow2',
      options: { data_file: join(dir, 'external.raw') },
    });
    const image = await openImageFile(external, { format: 'qcow2', write: true });
    await expect(image.writeCompressed?.(new Uint8Array(65536), 0)).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      path: external,
    });
    await image.close();
    const locked = join(dir, 'locked.qcow2');
    await qemu.qemuImg([
      ...['create', '-q', '-f', 'qcow2', '--object', 'secret,id=s,data=secret'],
      ...['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10', locked, '1M'],
    ]);
    const file = await openFile(locked, { write: false });
    const metadata = await readMetadata(file, 'data');
    expect(() => {
      checkCompressible(metadata, 0, 65536);
    }).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }) as Error);
    await file.close();
  });
});
