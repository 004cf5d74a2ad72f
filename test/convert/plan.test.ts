import { readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { convert, type NewTarget } from '../../src/op/convert.ts';
import { planConvert } from '../../src/op/convert-plan.ts';
import { create } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { builtCli, spindle } from '../tool/cli.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;

/** 4 MiB of data and 28 MiB of nothing. */
async function disk(): Promise<{ dir: string; path: string }> {
  const dir = tempDir();
  const path = join(dir, 'disk.qcow2');
  await create({ path, format: 'qcow2', size: 32 * MIB });
  const image = await openImageFile(path, { write: true });
  await image.write(new Uint8Array(4 * MIB).fill(3), 8 * MIB);
  await image.close();
  return { dir, path };
}

describe('the plan of a conversion', () => {
  beforeAll(builtCli);

  it.each<[string, Partial<NewTarget>]>([
    ['qcow2', { format: 'qcow2' }],
    ['raw', { format: 'raw' }],
    ['small clusters', { format: 'qcow2', qcow2: { clusterSize: 512 } }],
    ['thick-eager', { format: 'qcow2', allocation: 'thick-eager' }],
  ])('to %s: what is read, what is not, and the length at most', async (_, target) => {
    const { dir, path } = await disk();
    const before = readdirSync(dir);
    const to = { path: join(dir, 'new'), ...target };
    const plan = await planConvert([{ path }], to, { share: false });
    expect(readdirSync(dir)).toEqual(before);
    expect(plan).toMatchObject({
      size: 32 * MIB,
      read: 4 * MIB,
      shared: 0,
      zero: 28 * MIB,
      absent: 0,
      exists: false,
    });
    expect(plan.free).toBeGreaterThan(0);
    const done = await convert([{ path }], to, { share: false });
    expect(done.written).toBe(plan.read);
    expect(statSync(to.path).size).toBeLessThanOrEqual(plan.required ?? 0);
    expect(await planConvert([{ path }], to)).toMatchObject({ exists: true });
  });

  it('tells what can be shared, and what an overlay leaves below', async () => {
    const { dir, path } = await disk();
    const to = { path: join(dir, 'new'), format: 'qcow2' };
    expect(await planConvert([{ path }], to)).toMatchObject({ read: 0, shared: 4 * MIB });
    expect(await planConvert([{ path }], to, { compress: true })).toMatchObject({ read: 4 * MIB, shared: 0 });
    const top = join(dir, 'top.qcow2');
    await create({ path: top, format: 'qcow2', backing: { name: path, format: 'qcow2' } });
    const over: NewTarget = { ...to, backing: { name: path, format: 'qcow2' } };
    expect(await planConvert([{ path: top }], over)).toMatchObject({ read: 0, zero: 0, absent: 32 * MIB });
  });

  it('of what cannot be is an error, as the conversion is', async () => {
    const { dir, path } = await disk();
    const small = join(dir, 'small.qcow2');
    await create({ path: small, format: 'qcow2', size: MIB });
    await expect(planConvert([{ path }], { path: small, existing: true })).rejects.toMatchObject({
      code: 'BAD_SIZE',
    });
    await expect(planConvert([{ path }], { path })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(planConvert([], { path: join(dir, 'x') })).rejects.toMatchObject({ code: 'BAD_OPTION' });
  });

  it('is told on the command line, and nothing is made', async () => {
    const { dir: cwd } = await disk();
    const before = readdirSync(cwd);
    const args = ['convert', '--plan', '-O', 'qcow2', 'disk.qcow2', 'new.qcow2'];
    const { code, stdout } = await spindle(args, { cwd });
    expect(code).toBe(0);
    expect(stdout).toMatch(/^disk: 32 MiB \(33554432 bytes\)\n/);
    const json = await spindle([...args, '--output', 'json'], { cwd });
    expect(JSON.parse(json.stdout)).toMatchObject({ size: 32 * MIB, zero: 28 * MIB, exists: false });
    expect(readdirSync(cwd)).toEqual(before);
    writeFileSync(join(cwd, 'new.qcow2'), 'precious');
    expect((await spindle(args, { cwd })).stdout).toContain('it is replaced');
    expect((await spindle(['convert', '--plan', 'disk.qcow2', '-'], { cwd })).code).toBe(1);
  });
});
