// What `create` prints and makes, compared with qemu-img on the same arguments.
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { builtCli, spindle } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

beforeAll(builtCli, 120_000);

/** Arguments after `create`; `base.qcow2` (7 MiB) and `base.raw` are there. */
const SAME: readonly (readonly string[])[] = [
  ['-f', 'qcow2', 'x', '10M'],
  ['-f', 'qcow2', 'x', '10001'],
  ['x', '1001'],
  ['x', '0'],
  ['x', '1.5k'],
  ['x', '0x1000'],
  ['-f', 'raw', '-o', 'preallocation=off', 'x', '1M'],
  ['-f', 'raw', '-o', 'preallocation=falloc', 'x', '1M'],
  ['-f', 'raw', '-o', 'preallocation=full,nocow=off', 'x', '1M'],
  ['-f', 'raw', '-o', 'nonocow', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'size=3M', 'x'],
  ['-f', 'qcow2', '-o', 'size=1M,size=2M', 'x'],
  ['-f', 'qcow2', '-o', 'size=1M', '-o', 'size=2M,cluster_size=4k', 'x'],
  ['-f', 'qcow2', '-o', 'compat=0.10', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'compat=v2', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'compat=v3', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'compat=1.1,lazy_refcounts', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'lazy_refcounts=yes,extended_l2=true', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'noextended_l2,compression_type=zstd', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'refcount_bits=0x10', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'refcount_bits=1,cluster_size=512', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'cluster_size=2M', 'x', '100M'],
  ['-f', 'qcow2', '-o', 'preallocation=metadata', 'x', '3M'],
  ['-f', 'qcow2', '-o', 'preallocation=falloc', 'x', '3M'],
  ['-f', 'qcow2', '-o', 'preallocation=full', 'x', '3M'],
  ['-f', 'qcow2', '-o', 'preallocation=off', 'x', '3M'],
  ['-f', 'qcow2', '-o', 'data_file=d.img', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'data_file=d,,e f.img,data_file_raw=on', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'data_file=d.img,data_file_raw=off,nocow=off', 'x', '1M'],
  ['-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'x'],
  ['-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', 'x', '1M'],
  ['-f', 'qcow2', '-o', 'backing_file=base.qcow2,backing_fmt=qcow2', 'x'],
  ['-f', 'qcow2', '-u', '-b', 'absent,name', '-F', 'raw', 'x', '1M'],
  ['-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', '-o', 'compat=0.10', 'x'],
  ['-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', '-o', 'extended_l2=on,preallocation=metadata', 'x'],
  ['-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', '-o', 'data_file=d.img,compat=v3', 'x'],
  ['--format=qcow2', '--options=cluster_size=4k', '--backing=base.qcow2', '--backing-format=qcow2', 'x'],
  ['-fqcow2', '-ocluster_size=4k', '--backing-uns', 'x', '1M'],
  ['-f', 'qcow2', "a'b c,d", '1M'],
  ['-q', '-f', 'qcow2', 'x', '1M'],
  ['--quiet', 'x', '1M'],
  ['x', '1M', '-f', 'qcow2'],
];

qemu.describeWithQemu('create like qemu-img', () => {
  it.concurrent.each(SAME.map((args) => [args.join(' '), args] as const))('%s', async (_, args) => {
    const [ours, theirs] = [tempDir(), tempDir()];
    for (const cwd of [ours, theirs]) {
      await qemu.create('base.qcow2', '7M', { cwd });
      await qemu.create('base.raw', '2M', { cwd, format: 'raw' });
    }
    const expected = await qemu.qemuImg(['create', ...args], { cwd: theirs });
    const result = await spindle(['create', ...args], { cwd: ours });
    expect(result).toEqual({ code: 0, stderr: '', stdout: expected.stdout });
    expect(readdirSync(ours).sort()).toEqual(readdirSync(theirs).sort());
    for (const name of readdirSync(ours)) {
      expect(statSync(join(ours, name)).size, name).toBe(statSync(join(theirs, name)).size);
    }
  });
});

describe('create', () => {
  it.each(['help', '?', 'list', 'size=1M,help'])('lists the options for -o %s', async (wish) => {
    const { stdout, code } = await spindle(['create', '-f', 'qcow2', '-o', wish]);
    expect(code).toBe(0);
    for (const name of ['backing_file', 'cluster_size', 'data_file_raw', 'encrypt.format', 'nocow', 'size']) {
      expect(stdout).toMatch(new RegExp(`^ {2}${name}=`, 'm'));
    }
    expect((await spindle(['create', '-o', wish])).stdout).not.toContain('cluster_size');
  });

  it('shows what a policy means', async () => {
    const cwd = tempDir();
    const { stdout } = await spindle(['create', '--allocation', 'thick-lazy', 'lazy.img', '1M'], { cwd });
    expect(stdout).toBe("Formatting 'lazy.img', fmt=raw size=1048576 preallocation=falloc\n");
    const { stdout: eager } = await spindle(
      ['create', '-f', 'qcow2', '--allocation', 'thick-eager', 'eager', '1M'],
      { cwd },
    );
    expect(eager).toContain(' preallocation=full ');
    const told = await spindle(['info', '--output', 'json', 'eager'], { cwd });
    expect(JSON.parse(told.stdout)).toMatchObject({ allocation: { policy: 'thick-eager' } });
  });

  it('replaces a file only when all is well', async () => {
    const cwd = tempDir();
    await spindle(['create', 'x', '1M'], { cwd });
    const before = readFileSync(join(cwd, 'x'));
    expect((await spindle(['create', '-f', 'qcow2', '-b', 'absent', '-F', 'raw', 'x'], { cwd })).code).toBe(
      1,
    );
    expect(readFileSync(join(cwd, 'x')).equals(before)).toBe(true);
    expect((await spindle(['create', '-f', 'qcow2', 'x', '1M'], { cwd })).code).toBe(0);
    expect(readFileSync(join(cwd, 'x')).subarray(0, 3).toString()).toBe('QFI');
  });

  it('resolves a backing file from where the image is', async () => {
    const cwd = tempDir();
    mkdirSync(join(cwd, 'sub'));
    await spindle(['create', '-f', 'qcow2', 'base', '3M'], { cwd });
    expect(
      (await spindle(['create', '-f', 'qcow2', '-b', '../base', '-F', 'qcow2', 'sub/top'], { cwd })).code,
    ).toBe(0);
    const { stdout } = await spindle(['info', 'sub/top'], { cwd });
    expect(stdout).toContain('backing file: ../base (actual path: sub/../base)\n');
  });

  it('accepts a secret that nothing needs', async () => {
    const cwd = tempDir();
    expect((await spindle(['create', '--object', 'secret,id=s,data=x', 'y', '1M'], { cwd })).code).toBe(0);
    expect(existsSync(join(cwd, 'y'))).toBe(true);
  });
});
