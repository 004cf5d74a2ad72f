import { createCipheriv, randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { secretObjects, secretSource } from '../../src/cli/secret.ts';
import { builtCli, spindle } from '../tool/cli.ts';
import { encryptedSource, openEncrypted } from '../tool/encrypted.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

interface Parts {
  readonly key?: string;
  readonly iv?: string;
  readonly data?: string;
  readonly more?: string;
}

const ASKED = { name: 'x', method: 'luks' } as const;

async function given(object: string, id?: string): Promise<string> {
  const bytes = await secretSource({ object: [object] }, id)(ASKED);
  return Buffer.from(bytes ?? []).toString('latin1');
}

describe('secrets of the command line', () => {
  it('are data or files, raw or in base64, to the byte', async () => {
    const file = join(tempDir(), 'key,1');
    writeFileSync(file, 'with a line end\n');
    expect(await given('secret,id=s,data=a,,b=c', 's')).toBe('a,b=c');
    expect(await given('secret,id=s,data=c3BpbmRsZQ==,format=base64')).toBe('spindle');
    expect(await given(`secret,id=s,file=${file.replaceAll(',', ',,')}`, 's')).toBe('with a line end\n');
    expect(await given('qom-type=secret,id=s,data=x')).toBe('x');
    const fromFile = await secretSource({ object: [], secretFile: file })(ASKED);
    expect(Buffer.from(fromFile ?? []).toString()).toBe('with a line end\n');
  });

  it.each([
    'secret,id=s,data=HUSH,HUSH',
    'secret,id=s,data=HUSH,,,file=x',
    ',secret,id=s,data=HUSH',
    'secret,id=s,=HUSH',
    'secret,id=s,data=HUSH,format=HUSH',
    'secret,data=HUSH',
    'HUSH,id=s',
    'tls-creds,id=s,data=HUSH',
    'secret,id=s,data=HUSH,iv=HUSH,keyid=HUSH',
    'secret,id=s,data=HU-SH,format=base64',
    'secret,id=s,data=HUSH=HUS,format=base64',
    'secret,id=s,data=HUSHH,format=base64',
    'secret,id=s,data=HUSH,keyid=HUSH',
    'secret,id=s,data=HUSH,iv=HUSH',
  ])('never show what was typed: %s', async (object) => {
    const error: unknown = await given(object).catch((reason: unknown) => reason);
    expect(isSpindleError(error)).toBe(true);
    expect(String(error)).not.toMatch(/HU-?SH/);
  });

  it('that are encrypted themselves are read with their key', async () => {
    const [key, iv] = [randomBytes(32), randomBytes(16)];
    for (const passphrase of ['', 'spindle', 'sixteen bytes!!!', 'x'.repeat(100)]) {
      const cipher = createCipheriv('aes-256-cbc', key, iv);
      const encrypted = Buffer.concat([cipher.update(passphrase), cipher.final()]);
      const file = join(tempDir(), 'secret');
      writeFileSync(file, encrypted);
      const named = `keyid=k,iv=${iv.toString('base64')}`;
      for (const own of [`data=${encrypted.toString('base64')},format=base64`, `file=${file}`]) {
        const objects = [
          `secret,id=k,data=${key.toString('base64')},format=base64`,
          `secret,id=s,${own},${named}`,
        ];
        for (const [object, id] of [
          [objects, 's'],
          [[...objects].reverse(), undefined],
        ] as const) {
          const bytes = await secretSource({ object }, id)(ASKED);
          expect(Buffer.from(bytes ?? []).toString()).toBe(passphrase);
        }
      }
    }
  });

  it.each([
    // With these, the last byte of the text that comes out is no padding.
    ['another key', { key: 'A'.repeat(32) }, /cannot be decrypted/],
    ['a short key', { key: 'A'.repeat(31) }, /must have 32 bytes/],
    ['a short iv', { iv: 'AAAA' }, /must be 16 bytes/],
    ['half a block', { data: 'A'.repeat(20) }, /no whole blocks/],
    ['nothing', { data: '' }, /no whole blocks/],
    ['a key that is encrypted', { more: ',keyid=s,iv=AAAA' }, /encrypted itself/],
  ])('that are encrypted with %s are refused', async (_, { key, iv, data, more }: Parts, says) => {
    const object = [
      `secret,id=k,data=${key ?? 'K'.repeat(32)}${more ?? ''}`,
      `secret,id=s,data=${data ?? 'D'.repeat(32)},keyid=k,iv=${iv ?? Buffer.alloc(16).toString('base64')}`,
    ];
    const error: unknown = await (async () => secretSource({ object }, 's')(ASKED))().catch(
      (reason: unknown) => reason,
    );
    expect(isSpindleError(error, 'BAD_OPTION')).toBe(true);
    expect(String(error)).toMatch(says);
    expect(String(error)).not.toMatch(/AAAA|KKKK|DDDD/);
  });

  it('are named by an id that must be there', () => {
    expect(secretObjects(['secret,id=a,data=1', 'secret,id=b,data=2']).size).toBe(2);
    expect(() => secretSource({ object: ['secret,id=a,data=1'] }, 'b')).toThrow(/no secret has the id 'b'/);
    expect(() => secretSource({ object: ['secret,id=a,data=1'], secretFile: 'f' }, 'a')).toThrow(/twice/);
  });
});

qemu.describeWithQemu('an encrypted secret', () => {
  beforeAll(builtCli, 120_000);

  it('opens the same image here and in qemu', async () => {
    const cwd = tempDir();
    const [key, iv] = [randomBytes(32), randomBytes(16)];
    const cipher = createCipheriv('aes-256-cbc', key, iv);
    const encrypted = Buffer.concat([cipher.update('spindle'), cipher.final()]).toString('base64');
    const objects = [
      ...['--object', `secret,id=k,data=${key.toString('base64')},format=base64`],
      ...['--object', `secret,id=s,data=${encrypted},format=base64,keyid=k,iv=${iv.toString('base64')}`],
    ];
    const options = 'encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s';
    const create = ['create', '-q', ...objects, '-f', 'qcow2', '-o', options];
    await qemu.qemuImg([...create, 'theirs.qcow2', '1M'], { cwd });
    expect(await spindle([...create, 'ours.qcow2', '1M'], { cwd })).toMatchObject({ code: 0, stderr: '' });
    for (const name of ['theirs.qcow2', 'ours.qcow2']) {
      const image = ['--image-opts', `driver=qcow2,encrypt.key-secret=s,file.filename=${name}`];
      await qemu.qemuIo(['-c', 'write -P 7 0 64k', ...objects, ...image], { cwd });
      await (await openEncrypted(join(cwd, name))).close();
      const resized = await spindle(['resize', ...objects, ...image, '2M'], { cwd });
      expect(resized).toMatchObject({ code: 0, stderr: '' });
    }
  });
});

qemu.describeWithQemu('create with encryption', () => {
  beforeAll(builtCli, 120_000);

  it('prints the line of qemu-img, and makes what qemu opens', async () => {
    const cwd = tempDir();
    const object = ['--object', 'secret,id=s,data=spindle'];
    for (const [format, list] of [
      ['qcow2', 'encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.format=luks,encrypt.key-secret=s'],
      ['qcow2', 'encryption=on,encrypt.key-secret=s'],
      ['luks', 'iter-time=10,key-secret=s,hash-alg=sha512'],
    ] as const) {
      const args = ['create', ...object, '-f', format, '-o', list, 'new.img', '1M'];
      const theirs = await qemu.qemuImg(args, { cwd });
      const ours = await spindle(args, { cwd });
      expect(ours.stdout).toBe(theirs.stdout);
      const path = join(cwd, 'new.img');
      await qemu.qemuIo(['-r', '-c', 'read 0 4k', ...encryptedSource(path, format)]);
      await (await openEncrypted(path, { format })).close();
      expect((await spindle(['info', 'new.img'], { cwd })).stdout).toContain('encrypted: yes');
      expect((await spindle(['map', '--output', 'json', 'new.img'], { cwd })).code).toBe(0);
    }
  });

  it('takes the passphrase from a file, and says when there is none', async () => {
    const cwd = tempDir();
    writeFileSync(join(cwd, 'key'), 'spindle\n');
    const options = ['-q', '-f', 'luks', '-o', 'iter-time=10'];
    expect(
      (await spindle(['create', ...options, '--secret-file', 'key', 'a.luks', '1M'], { cwd })).code,
    ).toBe(0);
    await (await openEncrypted(join(cwd, 'a.luks'), { passphrase: 'spindle\n' })).close();
    const none = await spindle(['create', ...options, 'b.luks', '1M'], { cwd });
    expect(none).toMatchObject({ code: 1, stdout: '' });
    expect(none.stderr).toMatch(/needs a secret/);
    const lost = await spindle(['create', ...options, '--secret-file', 'absent', 'b.luks', '1M'], { cwd });
    expect(lost.stderr).toMatch(/absent.*no such file/);
  });
});
