import { copyFileSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { info } from '../../src/op/info.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { createEncrypted, encryptedSource, openEncrypted, PASSPHRASE } from '../tool/encrypted.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

beforeAll(builtCli, 120_000);

describe('amend', () => {
  it('lists what can be amended, with an image, a format, or neither', async () => {
    const cwd = tempDir();
    await spindle(['create', '-q', '-f', 'qcow2', 'x', '1M'], { cwd });
    const { stdout, code } = await spindle(['amend', '-o', 'help'], { cwd });
    expect(code).toBe(0);
    for (const name of ['compat', 'refcount_bits', 'lazy_refcounts', 'data_file', 'size', 'encrypt.state'])
      expect(stdout).toContain(`\n  ${name}=`);
    expect(stdout).not.toContain('cluster_size');
    expect((await spindle(['amend', '-o', 'help', 'x'], { cwd })).stdout).toBe(stdout);
    const luks = await spindle(['amend', '-f', 'luks', '-o', 'help'], { cwd });
    expect(luks.stdout).toMatch(/\n {2}state=active\|inactive/);
  });

  it.each([
    [['amend', 'x'], /name what to change with -o/],
    [['amend', '-o', 'compat=1.1'], /name the image/],
    [['amend', '-o', 'cluster_size=1M', 'x'], /cluster_size is decided when an image is created/],
    [['amend', '-o', 'lazy_refcount=on', 'x'], /did you mean lazy_refcounts/],
    [['amend', '-o', 'compat=0.11', 'x'], /compat takes 0\.10/],
    [['amend', '-o', 'size=512k', 'x'], /--shrink/],
    [['amend', '-o', 'backing_file=b', 'x'], /use rebase/],
    [['amend', '-o', 'compat=0.10,lazy_refcounts=on', 'x'], /no lazy refcounts/],
    [['amend', '-f', 'raw', '-o', 'size=1M', 'x'], /raw images have no options/],
    [['amend', '-o', 'encrypt.keyslot=1', 'x'], /need encrypt\.state/],
    [['amend', '-o', 'encrypt.state=active', 'x'], /needs encrypt\.new-secret/],
    [['amend', '-o', 'encrypt.state=active,encrypt.new-secret=s', 'x'], /no secret has the id 's'/],
    [['amend', '-o', 'encrypt.state=inactive', 'x'], /needs encrypt\.keyslot or/],
    [['amend', '-o', 'encrypt.state=inactive,encrypt.keyslot=0', 'x'], /not encrypted/],
    [['amend', '-o', 'compat=1.1', 'absent'], /absent/],
  ] as const)('%j is refused in one line', async (args, message) => {
    const cwd = tempDir();
    await spindle(['create', '-q', '-f', 'qcow2', 'x', '1M'], { cwd });
    const before = readFileSync(join(cwd, 'x'));
    const { stdout, stderr, code } = await spindle([...args], { cwd });
    expect({ stdout, code }).toEqual({ stdout: '', code: 1 });
    expect(stderr).toMatch(message);
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
    expect(readFileSync(join(cwd, 'x')).equals(before)).toBe(true);
  });

  it('says nothing when it is done, and percents when asked to', async () => {
    const cwd = tempDir();
    await spindle(['create', '-q', '-f', 'qcow2', 'x', '1M'], { cwd });
    expect(await spindle(['amend', '-o', 'refcount_bits=8', 'x'], { cwd })).toEqual({
      stdout: '',
      stderr: '',
      code: 0,
    });
    const shown = await spindle(['amend', '-p', '-o', 'refcount_bits=64', 'x'], { cwd });
    expect(shown.stdout).toMatch(/ {4}\(100\.00\/100%\)\r\n$/);
    const json = await spindle(['amend', '--progress', 'json', '-o', 'compat=1.1,refcount_bits=1', 'x'], {
      cwd,
    });
    const lines = json.stderr
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { done: number; total: number });
    expect(lines.at(-1)!.done).toBe(lines.at(-1)!.total);
    expect(await info(join(cwd, 'x'))).toMatchObject({ qcow2: { refcountBits: 1 } });
  });

  it('makes a disk smaller when told twice, or when it is called qemu-img', async () => {
    const cwd = tempDir();
    const main = join(cwd, 'qemu-img');
    symlinkSync(MAIN, main);
    await spindle(['create', '-q', '-f', 'qcow2', 'x', '4M'], { cwd });
    expect((await spindle(['amend', '--shrink', '-o', 'size=3M', 'x'], { cwd })).code).toBe(0);
    expect((await spindle(['amend', '-o', 'size=2M', 'x'], { cwd, main })).code).toBe(0);
    expect((await info(join(cwd, 'x'))).virtualSize).toBe(2 * 1024 * 1024);
  });
});

const OBJECTS = ['old:spindle', 'two:second', 'three:third'].flatMap((one) => {
  const [id, data] = one.split(':');
  return ['--object', `secret,id=${String(id)},data=${String(data)}`];
});

/** Lists of `-o` without what stands in front of each name, one after the other on one image; the id that opens it. */
const KEY_STEPS: readonly (readonly [list: string, opens: string, force?: true])[] = [
  ['state=active', 'old'],
  ['new-secret=two', 'old'],
  ['state=active,new-secret=two,old-secret=old', 'old'],
  ['state=active,new-secret=two,keyslot=0', 'old'],
  ['state=active,new-secret=two,keyslot=9', 'old'],
  ['state=active,new-secret=two,iter-time=10', 'old'],
  ['state=active,new-secret=three,iter-time=10,keyslot=6', 'two'],
  ['state=inactive', 'old'],
  ['state=inactive,new-secret=two', 'old'],
  ['state=inactive,keyslot=5', 'old'],
  ['state=inactive,keyslot=1,iter-time=10', 'old'],
  ['state=inactive,keyslot=0,old-secret=two', 'old'],
  ['state=inactive,keyslot=0,old-secret=old', 'old'],
  ['state=inactive,old-secret=old', 'two'],
  ['state=active,new-secret=old,keyslot=6,iter-time=10', 'two'],
  ['state=active,new-secret=old,keyslot=6,iter-time=10', 'two', true],
  ['state=inactive,old-secret=old', 'two'],
  ['state=inactive,old-secret=two', 'two'],
  ['state=inactive,keyslot=1', 'two'],
  ['state=active,new-secret=three,keyslot=1,iter-time=10', 'two', true],
  ['state=inactive,keyslot=1', 'three', true],
];

async function activeSlots(path: string): Promise<number[]> {
  const image = await info(path);
  const encryption = image.luks ?? image.qcow2?.encryption;
  if (encryption === null || encryption === undefined || encryption === 'aes') throw new Error('not LUKS');
  return encryption.slots.flatMap((slot, index) => (slot.active ? [index] : []));
}

async function opensInQemu(path: string, format: string, passphrase: string): Promise<boolean> {
  const source = encryptedSource(path, format, passphrase);
  const { code } = await qemu.qemuIo(['-r', '-c', 'read 0 512', ...source], { expect: [0, 1] });
  return code === 0;
}

qemu.describeWithQemu('amending key slots', () => {
  it.each(['qcow2', 'luks'] as const)(
    '%s: step by step as qemu does',
    { timeout: 180_000 },
    async (format) => {
      const dir = tempDir();
      const [ours, theirs] = [join(dir, 'ours'), join(dir, 'theirs')];
      await createEncrypted(ours, 1024 * 1024, format, {
        ...(format === 'qcow2' ? { format: 'luks' } : {}),
        'iter-time': '10',
      });
      copyFileSync(ours, theirs);
      const prefix = format === 'qcow2' ? 'encrypt.' : '';
      for (const [step, opens, force] of KEY_STEPS) {
        const list = step
          .split(',')
          .map((one) => prefix + one)
          .join(',');
        const args = (path: string): string[] => [
          ...['amend', ...OBJECTS, ...(force === true ? ['--force'] : []), '-o', list],
          ...['--image-opts', `driver=${format},${prefix}key-secret=${opens},file.filename=${path}`],
        ];
        const judged = await qemu.qemuImg(args(theirs), { expect: [0, 1] });
        const before = readFileSync(ours);
        const result = await spindle(args(ours));
        expect(result.code, `${step}: ${result.stderr}${judged.stderr}`).toBe(judged.code);
        if (result.code !== 0) expect(readFileSync(ours).equals(before), step).toBe(true);
        expect(await activeSlots(ours), step).toEqual(await activeSlots(theirs));
        // What either made opens in the other.
        for (const passphrase of [PASSPHRASE, 'second', 'third']) {
          const found = await Promise.all([
            opensInQemu(ours, format, passphrase),
            opensInQemu(theirs, format, passphrase),
            openEncrypted(theirs, { passphrase, format }).then(
              (image) => image.close().then(() => true),
              () => false,
            ),
          ]);
          expect(new Set(found).size, `${step}, ${passphrase}: ${String(found)}`).toBe(1);
        }
      }
      expect(await activeSlots(ours)).toEqual([]);
    },
  );

  it('of qcow2 together with other changes; the new secret is not taken for the present one', async () => {
    const cwd = tempDir();
    const path = join(cwd, 'x');
    await createEncrypted(path, 1024 * 1024, 'qcow2', { format: 'luks', 'iter-time': '10' });
    const [old, two] = [OBJECTS.slice(0, 2), OBJECTS.slice(2, 4)];
    const list = 'refcount_bits=64,size=2M,encrypt.state=active,encrypt.new-secret=two,encrypt.iter-time=10';
    const wrong = ['amend', ...two, '-o', `${list},encrypt.keyslot=0`, '--secret-file', 'absent', 'x'];
    const before = readFileSync(path);
    expect((await spindle(wrong, { cwd })).code).toBe(1);
    writeFileSync(join(cwd, 'wrong'), 'not it');
    const bad = await spindle(['amend', ...two, '-o', list, '--secret-file', 'wrong', 'x'], { cwd });
    expect(bad.stderr).toMatch(/opens none of the key slots/);
    const taken = await spindle(['amend', ...old, ...two, '-o', `${list},encrypt.keyslot=0`, 'x'], { cwd });
    expect(taken.stderr).toMatch(/key slot 0 is in use/);
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(await spindle(['amend', ...old, ...two, '-o', list, 'x'], { cwd })).toMatchObject({
      stderr: '',
      code: 0,
    });
    expect(await opensInQemu(path, 'qcow2', 'second')).toBe(true);
    expect(await info(path)).toMatchObject({ virtualSize: 2 * 1024 * 1024, qcow2: { refcountBits: 64 } });
    expect((await qemu.check(path, { source: encryptedSource(path, 'qcow2') })).code).toBe(0);
  });

  it.each(['luks', 'aes'] as const)(
    'the zeroes of an image encrypted with %s stay zeroes in version 2',
    async (method) => {
      const cwd = tempDir();
      const path = join(cwd, 'x');
      writeFileSync(join(cwd, 'base'), Buffer.alloc(1024 * 1024, 0xbb));
      await createEncrypted(
        path,
        1024 * 1024,
        'qcow2',
        { format: method, ...(method === 'luks' ? { 'iter-time': '10' } : {}) },
        { cluster_size: '4k', backing_file: join(cwd, 'base'), backing_fmt: 'raw' },
      );
      const source = encryptedSource(path, 'qcow2');
      const commands = ['write -P 5 0 128k', 'write -z 0 32k', 'write -z -u 64k 32k', 'write -z 512k 64k'];
      await qemu.qemuIo([...commands.flatMap((one) => ['-c', one]), ...source]);
      const { code, stderr } = await spindle(['amend', ...OBJECTS.slice(0, 2), '-o', 'compat=0.10', 'x'], {
        cwd,
      });
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect((await qemu.check(path, { source })).code).toBe(0);
      for (const [at, length, pattern] of [
        [0, 32, 0],
        [32, 32, 5],
        [64, 32, 0],
        [96, 32, 5],
        [128, 384, 0xbb],
        [512, 64, 0],
        [576, 448, 0xbb],
      ] as const)
        expect(
          await qemu.holds(path, { at: at * 1024, length: length * 1024, pattern }, { source }),
          String(at),
        ).toBe(true);
    },
  );
});
