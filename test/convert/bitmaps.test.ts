import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { changeBitmap } from '../../src/op/bitmaps.ts';
import { convert, type ConvertSource, type NewTarget } from '../../src/op/convert.ts';
import { describeWithNbd, listed, ourRanges, qemuRanges } from '../tool/bitmaps.ts';
import { FIXTURES } from '../tool/fixtures.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;

/** A qcow2 image made by qemu with bitmaps of several kinds, and what was written while each was enabled. */
async function marked(dir: string, options: Record<string, string | number>): Promise<string> {
  const path = join(dir, 'source.qcow2');
  const random = new Random(seedOf('convert bitmaps'));
  await qemu.create(path, 8 * MIB + 512, { format: 'qcow2', options });
  const write = async (): Promise<void> => {
    const at = random.below(8 * 2048) * 512;
    const length = Math.min(8 * MIB + 512 - at, random.between(1, 300) * 512);
    await qemu.fill(path, [{ do: 'write', at, length, pattern: random.between(1, 255) }]);
  };
  for (const granularity of [512, 65536, 2 * MIB]) {
    await qemu.bitmap(path, `b${String(granularity)}`, ['--add', '-g', String(granularity)]);
    await write();
  }
  await qemu.bitmap(path, 'b512', ['--disable']);
  await write();
  await qemu.bitmap(path, 'empty', ['--add']);
  return path;
}

async function said(path: string): Promise<unknown> {
  const list = await listed(path);
  const names = list.map(({ name }) => name);
  const ours = await Promise.all(names.map((name) => ourRanges(path, name)));
  expect(await qemuRanges(path, names)).toEqual(ours);
  return list.map(({ name, granularity, flags }, index) => ({
    name,
    granularity,
    flags,
    dirty: ours[index],
  }));
}

describeWithNbd('convert with bitmaps', () => {
  it.each<[string, Record<string, string | number>, NewTarget['qcow2'], string]>([
    ['as they are', {}, {}, ''],
    ['to small clusters', {}, { clusterSize: 512 }, 'cluster_size=512'],
    ['from small clusters', { cluster_size: 512 }, { clusterSize: 2 * MIB }, 'cluster_size=2M'],
    ['to subclusters', {}, { extendedL2: true }, 'extended_l2=on'],
  ])('%s: as qemu-img does', async (_, from, qcow2, list) => {
    const dir = tempDir();
    const source = await marked(dir, from);
    const [ours, theirs] = [join(dir, 'ours.qcow2'), join(dir, 'theirs.qcow2')];
    await convert([{ path: source }], { path: ours, format: 'qcow2', qcow2 }, { bitmaps: true });
    const options = list === '' ? [] : ['-o', list];
    await qemu.qemuImg(['convert', '-O', 'qcow2', '--bitmaps', ...options, source, theirs]);
    expect(await said(ours)).toEqual(await said(source));
    expect(await said(theirs)).toEqual(await said(ours));
    const judged = await qemu.check(ours);
    expect(judged.code, judged.stderr).toBe(0);
    expect(await qemu.compare({ path: source, format: 'qcow2' }, { path: ours, format: 'qcow2' })).toBe(true);
  });

  it('onto an image that exists, whose own bitmaps record the copy', async () => {
    const dir = tempDir();
    const source = await marked(dir, {});
    const path = join(dir, 'target.qcow2');
    await qemu.create(path, 8 * MIB + 512, { format: 'qcow2' });
    await changeBitmap(path, 'own', [{ do: 'add' }]);
    await convert([{ path: source }], { existing: true, path }, { bitmaps: true });
    const all = (await said(path)) as { readonly name: string; readonly dirty: string }[];
    expect(all.filter(({ name }) => name !== 'own')).toEqual(await said(source));
    expect(all.find(({ name }) => name === 'own')?.dirty).not.toBe('');
    expect((await qemu.check(path)).code).toBe(0);
    // Now they are there already.
    const before = await said(path);
    await expect(
      convert([{ path: source }], { existing: true, path }, { bitmaps: true }),
    ).rejects.toMatchObject({ code: 'EXISTS', path });
    expect(await said(path)).toEqual(before);
  });

  it('refuses what cannot be, before there is a target', async () => {
    const dir = tempDir();
    const source = await marked(dir, {});
    await qemu.snapshot(source, 'create', 'snap');
    const raw = join(dir, 'disk.raw');
    await qemu.create(raw, MIB);
    const broken = join(FIXTURES, 'good', 'bitmap-in-use.qcow2');
    const path = join(dir, 'new');
    const before = readdirSync(dir);
    const refused = async (
      sources: ConvertSource[],
      target: Partial<NewTarget>,
      code: string,
    ): Promise<void> => {
      await expect(
        convert(sources, { path, format: 'qcow2', ...target }, { bitmaps: true }),
      ).rejects.toMatchObject({ code });
      expect(readdirSync(dir)).toEqual(before);
    };
    await refused([{ path: raw, format: 'raw' }], {}, 'UNSUPPORTED');
    await refused([{ path: source }], { format: 'raw' }, 'BAD_OPTION');
    await refused([{ path: source }], { qcow2: { version: 2 } }, 'BAD_OPTION');
    await refused([{ path: source }, { path: source }], {}, 'BAD_OPTION');
    await refused([{ path: source, snapshot: 'snap' }], {}, 'BAD_OPTION');
    await refused([{ path: broken }], {}, 'BAD_BITMAP');
    const larger = join(dir, 'larger.qcow2');
    await qemu.create(larger, 9 * MIB, { format: 'qcow2' });
    await expect(
      convert([{ path: source }], { existing: true, path: larger }, { bitmaps: true }),
    ).rejects.toMatchObject({ code: 'BAD_SIZE', path: larger });
  });

  it('leaves out, on request, what nobody believes', async () => {
    const path = join(tempDir(), 'new.qcow2');
    const skipped: string[] = [];
    const source = { path: join(FIXTURES, 'good', 'bitmap-in-use.qcow2') };
    const onBitmapSkipped = (name: string): void => void skipped.push(name);
    await convert([source], { path, format: 'qcow2' }, { bitmaps: true, onBitmapSkipped });
    const broken = (await listed(source.path)).filter(({ flags }) => flags.includes('in-use'));
    expect(skipped).toEqual(broken.map(({ name }) => name));
    expect(skipped.length).toBeGreaterThan(0);
    expect((await listed(path)).length).toBe((await listed(source.path)).length - skipped.length);
    expect(existsSync(path)).toBe(true);
  });
});
