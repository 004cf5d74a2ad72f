import { createHash } from 'node:crypto';
import { readFile, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { SecretRequest } from '../../../src/core/crypto.ts';
import { create } from '../../../src/op/create.ts';
import { info } from '../../../src/op/info.ts';
import { infoJson } from '../../../src/op/info-json.ts';
import { openImageFile, secretOf } from '../../../src/op/open.ts';
import { ourMap, readHash } from '../../tool/agree.ts';
import {
  afterwards,
  createEncrypted,
  encryptedSource,
  expectContent,
  openEncrypted,
  PASSPHRASE,
  randomPieces,
  writeWithQemu,
} from '../../tool/encrypted.ts';
import { FIXTURES } from '../../tool/fixtures.ts';
import * as qemu from '../../tool/qemu.ts';
import { withRandom } from '../../tool/random.ts';
import { tempPath } from '../../tool/temp.ts';

const SIZE = 1024 * 1024;
const QUICK = { iterTime: 10 };

describe('encrypted fixtures', () => {
  for (const name of ['aes', 'luks', 'luks-cbc-essiv', 'luks-cbc-plain']) {
    const path = join(FIXTURES, 'good', `${name}.qcow2`);

    it(`${name}: reads as qemu read it, in pieces of any size`, async () => {
      const golden = (await readFile(join(FIXTURES, 'good', `${name}.sha256`), 'utf8')).slice(0, 64);
      const image = await openEncrypted(path);
      try {
        expect(await readHash(image)).toBe(golden);
        expect(await readHash(image, 70_001)).toBe(golden);
      } finally {
        await image.close();
      }
    });

    it.skipIf(name === 'aes')(`${name}: a wrong passphrase is told, and what was typed is not`, async () => {
      const error: unknown = await openEncrypted(path, { passphrase: 'spindle\n' }).catch((e: unknown) => e);
      expect(error).toMatchObject({ code: 'BAD_SECRET', path });
      expect(String(error)).not.toContain('spindle\\n');
    });

    it(`${name}: without a secret it opens, maps and does not read`, async () => {
      const image = await openImageFile(path);
      try {
        expect((await ourMap(image)).length).toBeGreaterThan(0);
        await expect(readHash(image)).rejects.toMatchObject({ code: 'ENCRYPTED', path });
      } finally {
        await image.close();
      }
    });
  }

  it('the bytes of a secret are wiped', async () => {
    const given: Uint8Array[] = [];
    const asked: SecretRequest[] = [];
    const path = join(FIXTURES, 'good', 'luks.qcow2');
    const image = await openImageFile(path, {
      secret: (request) => {
        asked.push(request);
        given.push(new TextEncoder().encode(PASSPHRASE));
        return Promise.resolve(given[0] ?? null);
      },
    });
    await image.close();
    expect(asked).toEqual([{ name: path, method: 'luks' }]);
    expect(given[0]?.every((byte) => byte === 0)).toBe(true);
  });
});

qemu.describeWithQemu('legacy AES', () => {
  for (const passphrase of ['spindle', 'exactly 16 bytes', 'more than sixteen bytes of it']) {
    it(`made by qemu with a passphrase of ${String(passphrase.length)} bytes, read here; and made here`, () =>
      withRandom(`aes ${passphrase}`, async (random) => {
        const theirs = tempPath('theirs.qcow2');
        const object = ['--object', `secret,id=s,data=${passphrase}`];
        const list = 'encrypt.format=aes,encrypt.key-secret=s';
        await qemu.qemuImg(['create', '-q', ...object, '-f', 'qcow2', '-o', list, theirs, String(SIZE)]);
        const ours = tempPath('ours.qcow2');
        const warnings: string[] = [];
        await create({
          path: ours,
          format: 'qcow2',
          size: SIZE,
          preallocation: random.pick(['off', 'full', 'falloc'] as const),
          encryption: { format: 'aes', secret: secretOf(passphrase) },
          onWarning: (message) => warnings.push(message),
        });
        expect(warnings.join()).toMatch(/weak/);
        for (const path of [theirs, ours]) {
          const source = encryptedSource(path, 'qcow2', passphrase);
          expect(await qemu.holds(path, { at: 0, length: SIZE, pattern: 0 }, { source })).toBe(true);
          const pieces = randomPieces(random, SIZE, 20);
          await writeWithQemu(pieces, source);
          const image = await openEncrypted(path, { passphrase });
          await expectContent(image, afterwards(pieces, SIZE), random);
          await image.close();
          expect(await qemu.check(path, { source })).toMatchObject({ code: 0 });
        }
      }));
  }
});

qemu.describeWithQemu('LUKS volumes', () => {
  it('made by qemu: info and map as qemu has them, and the same bytes', () =>
    withRandom('luks raw by qemu', async (random) => {
      const path = tempPath('theirs.luks');
      await createEncrypted(path, SIZE, 'luks', { 'iter-time': '10' });
      const source = encryptedSource(path, 'luks');
      // Noise up to now: the whole disk is written first.
      const pieces = [{ at: 0, length: SIZE, pattern: 0xaa }, ...randomPieces(random, SIZE, 12)];
      await writeWithQemu(pieces, source);
      expect(qemu.normalise(infoJson(await info(path)))).toEqual(
        qemu.normalise(await qemu.info(path, { source: [path] })),
      );
      const image = await openEncrypted(path);
      try {
        expect(image.format).toBe('luks');
        expect(await ourMap(image)).toEqual(await qemu.map(path, { source }));
        await expectContent(image, afterwards(pieces, SIZE), random);
      } finally {
        await image.close();
      }
    }));

  it('made, written, zeroed and resized here: qemu reads the same', () =>
    withRandom('luks raw by spindle', async (random) => {
      const path = tempPath('ours.luks');
      const encryption = { secret: secretOf(PASSPHRASE), luks: QUICK };
      await create({ path, format: 'luks', size: SIZE, preallocation: 'full', encryption });
      const pieces = randomPieces(random, SIZE, 30);
      const image = await openEncrypted(path, { write: true });
      const content = afterwards(pieces, SIZE);
      for (const { at, length, pattern } of pieces)
        await image.write(new Uint8Array(length).fill(pattern), at);
      await image.zero(1000, 99_999);
      content.fill(0, 1000, 100_999);
      await image.resize(SIZE + 65536);
      const grown = new Uint8Array(SIZE + 65536);
      grown.set(content);
      await expectContent(image, grown, random);
      await image.close();
      const scratch = tempPath('plain.raw');
      await qemu.convert(path, scratch, { source: encryptedSource(path, 'luks') });
      expect(Buffer.compare(await readFile(scratch), grown)).toBe(0);
    }));

  it('writes that share a sector do not undo each other', async () => {
    const path = tempPath('shared.luks');
    const encryption = { secret: secretOf(PASSPHRASE), luks: QUICK };
    await create({ path, format: 'luks', size: 8192, preallocation: 'full', encryption });
    const image = await openEncrypted(path, { write: true });
    const content = Uint8Array.from({ length: 8192 }, (_, index) => index % 251);
    const steps = Array.from({ length: 820 }, (_, index) => index * 10);
    await Promise.all(steps.map((at) => image.write(content.subarray(at, at + 10), at)));
    const read = new Uint8Array(8192);
    await image.read(read, 0);
    await image.close();
    expect(Buffer.compare(read, content)).toBe(0);
  });
});

qemu.describeWithQemu('encrypted qcow2 images', () => {
  it('an overlay over an encrypted backing file, and a snapshot', () =>
    withRandom('luks chain', async (random) => {
      const base = tempPath('base.qcow2');
      await createEncrypted(base, SIZE, 'qcow2', { format: 'luks', 'iter-time': '10' });
      const first = randomPieces(random, SIZE, 6);
      await writeWithQemu(first, encryptedSource(base, 'qcow2'));
      const [, secret = '', , image = ''] = encryptedSource(base, 'qcow2');
      await qemu.qemuImg(['snapshot', '-q', '-c', 'then', '--object', secret, '--image-opts', image]);
      const second = randomPieces(random, SIZE, 6);
      await writeWithQemu(second, encryptedSource(base, 'qcow2'));
      const top = tempPath('top.qcow2');
      await create({ path: top, format: 'qcow2', backing: { name: base, format: 'qcow2' } });
      const opened = await openEncrypted(top);
      await expectContent(opened, afterwards([...first, ...second], SIZE), random);
      await opened.close();
      const then = await openEncrypted(base, { snapshot: 'then' });
      await expectContent(then, afterwards(first, SIZE), random);
      await then.close();
    }));

  it('with an external data file, extended L2 entries and every preallocation: zeroes for qemu and here', async () => {
    for (const preallocation of ['off', 'metadata', 'falloc', 'full'] as const) {
      for (const variant of ['data file', 'extended', 'plain'] as const) {
        const path = tempPath('new.qcow2');
        const dataFile = variant === 'data file' ? { dataFile: `${path}.data` } : {};
        await create({
          path,
          format: 'qcow2',
          size: SIZE + 512,
          preallocation,
          qcow2: { extendedL2: variant === 'extended', ...dataFile },
          encryption: { secret: secretOf(PASSPHRASE), luks: QUICK },
        });
        const source = encryptedSource(path, 'qcow2');
        expect(
          await qemu.holds(path, { at: 0, length: SIZE + 512, pattern: 0 }, { source }),
          `${preallocation} ${variant}`,
        ).toBe(true);
        await writeWithQemu([{ at: 70_000, length: 3000, pattern: 7 }], source);
        const image = await openEncrypted(path);
        const content = new Uint8Array(SIZE + 512).fill(7, 70_000, 73_000);
        expect(await readHash(image)).toBe(createHash('sha256').update(content).digest('hex'));
        await image.close();
        expect((await qemu.check(path, { source })).code).toBe(0);
      }
    }
  });

  it('the layout is that of qemu-img', async () => {
    const [ours, theirs] = [tempPath('ours.qcow2'), tempPath('theirs.qcow2')];
    await createEncrypted(theirs, 10 * SIZE, 'qcow2', { format: 'luks', 'iter-time': '10' });
    const encryption = { secret: secretOf(PASSPHRASE), luks: QUICK };
    await create({ path: ours, format: 'qcow2', size: 10 * SIZE, encryption });
    const [a, b] = [await readFile(ours), await readFile(theirs)];
    expect(a.length).toBe(b.length);
    expect(Buffer.compare(a.subarray(0, 0x40000), b.subarray(0, 0x40000))).toBe(0);
    const told = infoJson(await info(ours));
    expect(qemu.normalise(told)).toEqual(qemu.normalise(await qemu.info(ours)));
  });

  it.each([
    [{ qcow2: { version: 2 as const }, preallocation: 'falloc' as const }, /compat=1\.1/],
    [{ qcow2: { dataFile: 'x.data', dataFileRaw: true } }, /data_file_raw/],
    [{ luks: { cipherAlg: 'rot13' } }, /cipher-alg/],
    [{ luks: { hashAlg: 'crc32' } }, /hash-alg/],
    [{ luks: { cipherAlg: 'aes-256', iterTime: 0 } }, /iter-time/],
  ])('refuses %j', async ({ luks = {}, ...options }: { luks?: object; qcow2?: object }, message) => {
    const encryption = { secret: secretOf('x'), luks };
    await expect(
      create({ path: tempPath('no.qcow2'), format: 'qcow2', size: SIZE, ...options, encryption }),
    ).rejects.toMatchObject({ code: 'BAD_OPTION', message: expect.stringMatching(message) as string });
  });

  it('a truncated header is damage, not a wrong passphrase or a hang', async () => {
    const path = tempPath('cut.luks');
    await create({
      path,
      format: 'luks',
      size: 512,
      encryption: { secret: secretOf(PASSPHRASE), luks: QUICK },
    });
    // In the key material of the slot, then in the header.
    for (const length of [10_000, 300]) {
      await truncate(path, length);
      await expect(openEncrypted(path)).rejects.toMatchObject({ code: 'BAD_ENCRYPTION' });
    }
  });
});
