// Where qemu-img loses something and spindle must not: each test shows both, on the same image.
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { openImageFile } from '../../src/op/open.ts';
import { repairFile } from '../../src/op/repair.ts';
import { resize } from '../../src/op/resize.ts';
import { createSnapshot } from '../../src/op/snapshots.ts';
import { builtCli, spindle } from '../tool/cli.ts';
import { FIXTURES } from '../tool/fixtures.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

/** The same image twice: for qemu, and for spindle. */
function pair(path: string): { theirs: string; ours: string } {
  const theirs = `${path}.theirs`;
  copyFileSync(path, theirs);
  return { theirs, ours: path };
}

const isDirty = (path: string): boolean => (readFileSync(path).readUInt32BE(76) & 1) !== 0;

qemu.describeWithQemu('better than qemu', () => {
  beforeAll(builtCli, 120_000);

  it.each(['write', 'compress'] as const)('a tail that was cut off never comes back (%s)', async (how) => {
    const path = join(tempDir(), 'disk.qcow2');
    await qemu.create(path, '256k');
    await qemu.fill(path, [{ do: how, at: 0, length: 256 * 1024, pattern: 7 }]);
    const { theirs, ours } = pair(path);
    const cut = 100 * 1024;
    await qemu.qemuImg(['resize', '-q', '--shrink', theirs, String(cut)]);
    await qemu.qemuImg(['resize', '-q', theirs, '256k']);
    await resize(ours, cut, { shrink: true });
    await resize(ours, 256 * 1024);
    const tail = { at: cut, length: 256 * 1024 - cut, pattern: 0 };
    expect(await qemu.holds(theirs, tail)).toBe(false);
    expect(await qemu.holds(ours, tail)).toBe(true);
    expect(await qemu.holds(ours, { at: 0, length: cut, pattern: 7 })).toBe(true);
    expect((await qemu.check(ours)).code).toBe(0);
  });

  it('repairing leaks of a dirty image with stale refcounts does not pass it off as clean', async () => {
    const path = join(tempDir(), 'dirty.qcow2');
    copyFileSync(join(FIXTURES, 'check', 'dirty-stale.qcow2'), path);
    const { theirs, ours } = pair(path);
    await qemu.check(theirs, { repair: 'leaks' });
    expect(isDirty(theirs)).toBe(false);
    expect((await qemu.check(theirs)).code).toBe(2);
    const before = readFileSync(ours);
    await repairFile(ours, { mode: 'leaks' });
    expect(readFileSync(ours).equals(before)).toBe(true);
    // Whoever opens it to write makes its refcounts anew, all of them, as qemu does.
    await (await openImageFile(ours, { write: true })).close();
    expect(isDirty(ours)).toBe(false);
    expect((await qemu.check(ours)).code).toBe(0);
  });

  it.each([1, 2])('a snapshot that %i-bit refcounts cannot count changes nothing', async (bits) => {
    const path = join(tempDir(), 'narrow.qcow2');
    await qemu.create(path, '1M', { options: { refcount_bits: bits } });
    await qemu.fill(path, [{ do: 'write', at: 0, length: 256 * 1024, pattern: 7 }]);
    for (let i = 1; i < 2 ** bits - 1; i++) await qemu.snapshot(path, 'create', String(i));
    const { theirs, ours } = pair(path);
    const failed = await qemu.qemuImg(['snapshot', '-c', 'more', theirs], { expect: 'any' });
    expect(failed.code).not.toBe(0);
    expect((await qemu.check(theirs)).json?.leaks ?? 0).toBeGreaterThan(0);
    const before = readFileSync(ours);
    await expect(createSnapshot(ours, 'more')).rejects.toMatchObject({ code: 'LIMIT' });
    expect(readFileSync(ours).equals(before)).toBe(true);
    expect((await qemu.check(ours)).code).toBe(0);
  });

  it('a create that fails leaves the file that was there', async () => {
    const cwd = tempDir();
    const [theirs, ours] = [join(cwd, 'theirs'), join(cwd, 'ours')];
    for (const path of [theirs, ours]) writeFileSync(path, 'precious');
    // Too small a cluster for the L1 table of so large a disk: found out after the file is made.
    const args = ['create', '-f', 'qcow2', '-o', 'cluster_size=512'];
    expect((await qemu.qemuImg([...args, theirs, '1P'], { expect: 'any' })).code).toBe(1);
    expect((await spindle([...args, ours, '1P'])).code).toBe(1);
    expect(existsSync(theirs) && readFileSync(theirs, 'utf8') === 'precious').toBe(false);
    expect(readFileSync(ours, 'utf8')).toBe('precious');
  });
});
