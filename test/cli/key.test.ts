// Key slots and passphrases: `key`, judged by qemu (and by cryptsetup where there is one), and the prompt on a terminal.
import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { builtCli, MAIN, spindle, type CliResult } from '../tool/cli.ts';
import { createEncrypted, encryptedSource } from '../tool/encrypted.ts';
import { onTerminal, ptyMissing, type OnTerminal } from '../tool/pty.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';
import { addonHere } from '../native/help.ts';

const SIZE = 1024 * 1024;
const QUICK = ['--iter-time', '10'];

async function opensInQemu(path: string, format: string, passphrase: string): Promise<boolean> {
  const source = encryptedSource(path, format, passphrase);
  return (await qemu.qemuIo(['-r', '-c', 'read 0 512', ...source], { expect: [0, 1] })).code === 0;
}

/** Whether cryptsetup opens the volume; undefined where there is no cryptsetup. */
function opensInCryptsetup(path: string, passphrase: string): boolean | undefined {
  const { status, error } = spawnSync('cryptsetup', ['open', '--test-passphrase', '--type', 'luks1', path], {
    input: passphrase,
  });
  return error === undefined ? status === 0 : undefined;
}

async function made(format: 'qcow2' | 'luks', cwd: string): Promise<string> {
  const path = join(cwd, `disk.${format}`);
  const options = format === 'qcow2' ? { format: 'luks', 'iter-time': '10' } : { 'iter-time': '10' };
  await createEncrypted(path, SIZE, format, options);
  return path;
}

qemu.describeWithQemu('key', () => {
  beforeAll(builtCli, 120_000);

  const key = (cwd: string, ...args: string[]): Promise<CliResult> => spindle(['key', ...args], { cwd });
  const secret = (id: string, text: string): string[] => ['--object', `secret,id=${id},data=${text}`];

  it.each(['qcow2', 'luks'] as const)('%s: adds, changes and removes what qemu opens', async (format) => {
    const cwd = tempDir();
    const path = await made(format, cwd);
    for (const name of ['spindle', 'second', 'third']) writeFileSync(join(cwd, name), name);

    const files = ['--secret-file', 'spindle', '--new-secret-file', 'second'];
    expect(await key(cwd, 'add', ...QUICK, ...files, path)).toEqual({
      ...{ code: 0, stderr: '' },
      stdout: 'The passphrase is in key slot 1 now.\n',
    });
    const objects = [...secret('old', 'second'), ...secret('new', 'third')];
    const both = ['--key-secret', 'old', '--new-secret', 'new', '--slot', '7', '--output', 'json'];
    const added = await key(cwd, 'add', ...QUICK, ...objects, ...both, path);
    expect(JSON.parse(added.stdout)).toEqual({ filename: path, added: 7 });
    for (const passphrase of ['spindle', 'second', 'third']) {
      expect(await opensInQemu(path, format, passphrase), passphrase).toBe(true);
      if (format === 'luks') expect(opensInCryptsetup(path, passphrase) ?? true, passphrase).toBe(true);
    }
    const listed = await key(cwd, 'list', path);
    expect(listed.stdout).toMatch(
      /^SLOT {2}STATE {3}ITERATIONS\n0 {5}in use +\d+\n1 {5}in use +\d+\n2 {5}free\n/,
    );
    const json = JSON.parse((await key(cwd, 'list', '--output', 'json', path)).stdout) as {
      slots: { slot: number; active: boolean }[];
    };
    expect(json.slots.filter(({ active }) => active).map(({ slot }) => slot)).toEqual([0, 1, 7]);
    const theirs = (await qemu.info(path, { format })) as {
      'format-specific': { data: { encrypt?: { slots: object[] }; slots?: object[] } };
    };
    const { data } = theirs['format-specific'];
    expect(json.slots).toMatchObject(data.encrypt?.slots ?? data.slots ?? []);

    expect((await key(cwd, 'remove', '--secret-file', 'second', path)).stdout).toMatch(
      /^Key slot 1 is erased/,
    );
    expect(await opensInQemu(path, format, 'second')).toBe(false);
    expect((await key(cwd, 'remove', '--slot', '7', path)).code).toBe(0);
    expect(await opensInQemu(path, format, 'third')).toBe(false);
    const change = ['change', ...QUICK, '--secret-file', 'spindle', '--new-secret-file', 'third'];
    expect((await key(cwd, ...change, '-q', path)).stdout).toBe('');
    expect(await opensInQemu(path, format, 'spindle')).toBe(false);
    expect(await opensInQemu(path, format, 'third')).toBe(true);

    const before = readFileSync(path);
    const last = await key(cwd, 'remove', '--secret-file', 'third', path);
    expect(last).toMatchObject({ code: 1, stdout: '' });
    expect(last.stderr).toMatch(/no key slot would be left.*force/);
    expect(readFileSync(path).equals(before)).toBe(true);
    expect((await key(cwd, 'remove', '--force', '--secret-file', 'third', path)).code).toBe(0);
    expect(await opensInQemu(path, format, 'third')).toBe(false);
  });

  it('that qemu added are listed and removed', async () => {
    const cwd = tempDir();
    const path = await made('qcow2', cwd);
    const [, , ...image] = encryptedSource(path, 'qcow2');
    const objects = [...secret('s', 'spindle'), ...secret('n', 'second')];
    const list = 'encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10';
    await qemu.qemuImg(['amend', ...objects, '-o', list, ...image]);
    expect((await key(cwd, 'list', path)).stdout.match(/in use/g)).toHaveLength(2);
    expect((await key(cwd, 'remove', ...secret('n', 'second'), path)).code).toBe(0);
    expect(await opensInQemu(path, 'qcow2', 'second')).toBe(false);
    expect(await opensInQemu(path, 'qcow2', 'spindle')).toBe(true);
  });

  it('refuses what makes no sense, and changes nothing', async () => {
    const cwd = tempDir();
    const path = await made('luks', cwd);
    writeFileSync(join(cwd, 'key'), 'spindle');
    writeFileSync(join(cwd, 'other'), 'HUSH');
    await qemu.create(join(cwd, 'plain.qcow2'), '1M');
    await qemu.create(join(cwd, 'plain.raw'), '1M', { format: 'raw' });
    const before = readFileSync(path);
    const cases: readonly (readonly [args: string, says: RegExp])[] = [
      ['add --secret-file other --new-secret-file key disk.luks', /opens none of the key slots/],
      ['add --secret-file key disk.luks', /no new secret/],
      ['add --new-secret-file key disk.luks', /no secret: name a file/],
      ['add --secret-file key --new-secret-file other --slot 0 disk.luks', /slot 0 is in use/],
      ['add --secret-file key --new-secret-file other --slot 8 disk.luks', /numbered 0 to 7/],
      ['add --secret-file key --new-secret-file other --slot x disk.luks', /whole number/],
      ['add --new-secret n disk.luks', /no secret has the id 'n'/],
      ['add --new-secret n --new-secret-file other disk.luks', /named twice/],
      ['add --force disk.luks', /--force does not go with 'add'/],
      ['list --slot 1 disk.luks', /--slot does not go with 'list'/],
      ['change --slot 1 disk.luks', /--slot does not go/],
      ['remove --new-secret-file key disk.luks', /--new-secret-file does not go/],
      ['remove -U disk.luks', /--force-share does not go/],
      ['remove --slot 3 disk.luks', /slot 3 is not in use/],
      ['remove --slot 0 --secret-file key disk.luks', /not by both/],
      ['remove --secret-file other disk.luks', /opens none/],
      ['remove disk.luks', /no secret/],
      ['drop disk.luks', /list, add, remove, change/],
      ['list', /missing required argument/],
      ['list plain.qcow2', /not encrypted has no key slots/],
      ['add plain.raw', /raw image has no key slots/],
      ['list absent', /no such file/],
    ];
    for (const [args, says] of cases) {
      const result = await key(cwd, ...args.split(' '));
      expect(result, args).toMatchObject({ code: 1, stdout: '' });
      expect(result.stderr, args).toMatch(/^spindle: [^\n]+\n$/);
      expect(result.stderr, args).toMatch(says);
      expect(result.stderr, args).not.toContain('HUSH');
    }
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(readdirSync(cwd)).toHaveLength(5);
  });

  qemu.describeUnlessMissing('on a terminal', ptyMissing(), () => {
    const onTty = (
      cwd: string,
      args: readonly string[],
      ...steps: (readonly [string, string])[]
    ): Promise<OnTerminal> => onTerminal([process.execPath, MAIN, ...args], steps, cwd);

    it('asks, shows nothing of what is typed, and takes corrections', async () => {
      const cwd = tempDir();
      const path = await made('luks', cwd);
      const result = await onTty(
        cwd,
        ['key', 'add', ...QUICK, 'disk.luks'],
        ['Passphrase of disk.luks: ', 'wrong\u0015spinx\u007fdle\r'],
        ['New passphrase of disk.luks: ', 's\u00c3\u00a4\u0008econd\r'],
        ['Once more: ', 'second\r'],
      );
      expect(result).toMatchObject({ code: 0, echo: { waiting: false, after: true } });
      expect(result.shown.replace(/\r/g, '')).toBe(
        'Passphrase of disk.luks: \nNew passphrase of disk.luks: \nOnce more: \nThe passphrase is in key slot 1 now.\n',
      );
      expect(await opensInQemu(path, 'luks', 'second')).toBe(true);
    });

    it('makes an encrypted image with what is typed twice', async () => {
      const cwd = tempDir();
      const args = ['create', '-q', '-f', 'luks', '-o', 'iter-time=10', 'new.luks', '1M'];
      const steps = [
        ['Passphrase of new.luks: ', 'spindle\n'],
        ['Once more: ', 'spindle\n'],
      ] as const;
      expect(await onTty(cwd, args, ...steps)).toMatchObject({ code: 0, echo: { after: true } });
      expect(await opensInQemu(join(cwd, 'new.luks'), 'luks', 'spindle')).toBe(true);
      const differ = await onTty(
        cwd,
        ['create', '-q', '-f', 'luks', 'b.luks', '1M'],
        [': ', 'spindle\r'],
        ['Once more: ', 'spindel\r'],
      );
      expect(differ).toMatchObject({ code: 1, echo: { after: true } });
      expect(differ.shown).toMatch(/the two passphrases differ/);
      expect(readdirSync(cwd)).toEqual(['new.luks']);
    });

    it('ends with 130 and a sound terminal on Ctrl-C, and changes nothing', async () => {
      const cwd = tempDir();
      const path = await made('luks', cwd);
      const before = readFileSync(path);
      for (const steps of [
        [['Passphrase of disk.luks: ', 'spin\u0003']],
        [
          ['Passphrase of disk.luks: ', 'spindle\r'],
          ['New passphrase of disk.luks: ', '\u0003'],
        ],
      ] as const) {
        const result = await onTty(cwd, ['key', 'add', 'disk.luks'], ...steps);
        expect(result).toMatchObject({ code: 130, echo: { waiting: false, after: true } });
        expect(result.shown).toMatch(/stopped on request\r\n$/);
      }
      expect(readFileSync(path).equals(before)).toBe(true);
    });

    it('says that a passphrase is wrong, or too long, and nothing of it', async () => {
      const cwd = tempDir();
      await made('luks', cwd);
      const wrong = await onTty(cwd, ['key', 'remove', 'disk.luks'], ['removed of disk.luks: ', 'HUSH\r']);
      expect(wrong).toMatchObject({ code: 1, echo: { after: true } });
      expect(wrong.shown).toMatch(/disk\.luks: the secret opens none of the key slots\r\n$/);
      expect(wrong.shown).not.toContain('HUSH');
      const long = await onTty(cwd, ['key', 'remove', 'disk.luks'], [': ', `${'x'.repeat(513)}\r`]);
      expect(long).toMatchObject({ code: 1 });
      expect(long.shown).toMatch(/at most 512 bytes/);
    });

    it('is not asked for what has no secret', async () => {
      const cwd = tempDir();
      await qemu.create(join(cwd, 'plain.qcow2'), '1M');
      for (const args of [
        ['resize', 'plain.qcow2', '2M'],
        ['snapshot', '-c', 'one', 'plain.qcow2'],
        ['check', 'plain.qcow2'],
      ])
        expect((await onTty(cwd, args)).shown).not.toMatch(/Passphrase/);
    });
  });
});

describe('secrets on the command line', () => {
  beforeAll(builtCli, 120_000);

  // The twins start programs, which are handed no secret either, but are more than none.
  it.runIf(addonHere)('are not handed to other processes, nor shown in help', async () => {
    const help = await spindle(['key', '--help', '--object', 'secret,id=s,data=HUSH']);
    expect(help.stdout + help.stderr).not.toContain('HUSH');
    // Nothing is started: what `ps` shows is what the user typed, once.
    const preload = join(tempDir(), 'preload.cjs');
    writeFileSync(
      preload,
      "for (const name of ['spawn', 'execFile', 'fork', 'exec', 'spawnSync', 'execFileSync']) require('node:child_process')[name] = () => process.exit(99);",
    );
    const cwd = tempDir();
    const args = ['create', '-q', '--object', 'secret,id=s,data=HUSH', '-f', 'luks', '-o'];
    const result = await spindle([...args, 'iter-time=10,key-secret=s', 'x.luks', '1M'], {
      cwd,
      node: ['-r', preload],
    });
    expect(result).toEqual({ code: 0, stdout: '', stderr: '' });
    expect(readFileSync(join(cwd, 'x.luks')).includes('HUSH')).toBe(false);
  });
});
