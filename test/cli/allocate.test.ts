import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { addonHere } from '../native/help.ts';
import { builtCli, spindle } from '../tool/cli.ts';
import { createEncrypted, encryptedSource, PASSPHRASE } from '../tool/encrypted.ts';
import { allocatedBytes } from '../tool/extents.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;

beforeAll(builtCli, 120_000);

qemu.describeWithQemu('spindle allocate', () => {
  it('tells what the image was and is, and changes it', { timeout: 300_000 }, async () => {
    const cwd = tempDir();
    const path = join(cwd, 'disk.qcow2');
    const copy = join(cwd, 'copy.raw');
    await qemu.create(path, 8 * MIB);
    await qemu.fill(path, [{ do: 'write', at: MIB, length: 2 * MIB, pattern: 5 }]);
    await qemu.convert(path, copy);
    const same = (): Promise<boolean> =>
      qemu.compare({ path, format: 'qcow2' }, { path: copy, format: 'raw' });
    for (const policy of ['thick-lazy', 'thick-eager', 'thin']) {
      const { stdout, stderr, code } = await spindle(['allocate', '--allocation', policy, 'disk.qcow2'], {
        cwd,
      });
      expect([stderr, code]).toEqual(['', 0]);
      if (addonHere)
        expect(stdout).toMatch(
          new RegExp(
            `^disk\\.qcow2: was \\S+ \\(\\S+ \\S+ on disk\\), is now ${policy} \\(\\S+ \\S+ on disk\\)\n$`,
          ),
        );
      expect(await same(), policy).toBe(true);
      if (policy === 'thin') expect(await allocatedBytes(path)).toBeLessThan(3 * MIB);
      else expect(await allocatedBytes(path)).toBeGreaterThanOrEqual(8 * MIB);
      expect((await qemu.check(path)).code).toBe(0);
    }
  });

  it('plans, prints JSON, and is quiet', { timeout: 300_000 }, async () => {
    const cwd = tempDir();
    writeFileSync(join(cwd, 'disk.raw'), new Uint8Array(4 * MIB));
    const run = async (...args: string[]): Promise<string> => {
      const done = await spindle(['allocate', '-f', 'raw', ...args, 'disk.raw'], { cwd });
      expect([done.stderr, done.code]).toEqual(['', 0]);
      return done.stdout;
    };
    expect(await run('--allocation', 'thin', '--plan')).toMatch(
      /^disk\.raw: is .*; to become thin .*: 4 MiB read, 0 B written, 0 B reserved, .* freed\n$/,
    );
    expect(await allocatedBytes(join(cwd, 'disk.raw'))).toBe(4 * MIB);
    const plan: unknown = JSON.parse(await run('--allocation', 'thin', '--plan', '--output', 'json'));
    expect(plan).toMatchObject({
      ...{ filename: 'disk.raw', format: 'raw', 'virtual-size': 4 * MIB, allocation: 'thin', plan: true },
      ...{ before: { 'actual-size': 4 * MIB }, read: 4 * MIB, written: 0, reserved: 0 },
    });
    const done: unknown = JSON.parse(await run('--allocation', 'thin', '--output', 'json'));
    expect(done).toMatchObject({ plan: false, after: { 'actual-size': 0 }, freed: 4 * MIB });
    expect(await run('-q', '--allocation', 'thick-eager')).toBe('');
    expect(await run('-q', '-p', '--allocation', 'thin')).toBe('');
    expect(await run('-p', '--allocation', 'thick-lazy')).toContain('(100.00/100%)\r\n');
    expect(readFileSync(join(cwd, 'disk.raw')).equals(new Uint8Array(4 * MIB))).toBe(true);
  });

  it('takes descriptions and secrets', { timeout: 300_000 }, async () => {
    const cwd = tempDir();
    const path = join(cwd, 'disk.qcow2');
    await createEncrypted(path, 4 * MIB, 'qcow2', { format: 'luks', 'iter-time': '10' });
    const secret = ['--object', `secret,id=s,data=${PASSPHRASE}`];
    const image = ['--image-opts', `driver=qcow2,file.filename=${path},encrypt.key-secret=s`];
    const { stderr, code } = await spindle(['allocate', '--allocation', 'thick-eager', ...secret, ...image]);
    expect([stderr, code]).toEqual(['', 0]);
    expect(await allocatedBytes(path)).toBeGreaterThanOrEqual(4 * MIB);
    expect((await qemu.check(path, { source: encryptedSource(path, 'qcow2') })).code).toBe(0);
  });
});

describe('spindle allocate', () => {
  it('fails in one line', async () => {
    const cwd = tempDir();
    writeFileSync(join(cwd, 'disk.raw'), new Uint8Array(MIB));
    const cases = [
      [['disk.raw'], /allocation/],
      [['--allocation', 'fat', 'disk.raw'], /thin, thick-lazy, thick-eager/],
      [['--allocation', 'thin', 'absent'], /absent/],
      [['-U', '--allocation', 'thin', 'disk.raw'], /-U/],
    ] as const;
    for (const [args, message] of cases) {
      const { stdout, stderr, code } = await spindle(['allocate', ...args], { cwd });
      expect([stdout, code], args.join(' ')).toEqual(['', 1]);
      expect(stderr).toMatch(/^spindle: [^\n]+\n$/);
      expect(stderr).toMatch(message);
    }
  });
});
