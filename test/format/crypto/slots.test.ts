import { expect, it } from 'vitest';
import { bytesOf } from '../../../src/core/bytes.ts';
import { create } from '../../../src/op/create.ts';
import { info } from '../../../src/op/info.ts';
import { addKey, changeKey, removeKey } from '../../../src/op/keys.ts';
import { secretOf } from '../../../src/op/open.ts';
import { createEncrypted, encryptedSource, openEncrypted, PASSPHRASE } from '../../tool/encrypted.ts';
import * as qemu from '../../tool/qemu.ts';
import { tempPath } from '../../tool/temp.ts';

const SIZE = 1024 * 1024;
const SECRET = bytesOf(PASSPHRASE);

/** Whether qemu opens the image with a passphrase. */
async function opensInQemu(path: string, format: string, passphrase: string): Promise<boolean> {
  const source = encryptedSource(path, format, passphrase);
  const { code, stderr } = await qemu.qemuIo(['-r', '-c', 'read 0 512', ...source], { expect: [0, 1] });
  if (code !== 0) expect(stderr).toMatch(/Invalid password/);
  return code === 0;
}

async function activeSlots(path: string): Promise<number[]> {
  const image = await info(path);
  const encryption = image.luks ?? image.qcow2?.encryption;
  if (encryption === null || encryption === undefined || encryption === 'aes') throw new Error('not LUKS');
  return encryption.slots.flatMap((slot, index) => (slot.active ? [index] : []));
}

qemu.describeWithQemu('key slots', () => {
  for (const format of ['qcow2', 'luks'] as const) {
    it(`${format}: an added key opens the image in qemu, an erased one does not`, async () => {
      const path = tempPath(`slots.${format}`);
      await createEncrypted(path, SIZE, format, {
        ...(format === 'qcow2' ? { format: 'luks' } : {}),
        'cipher-mode': 'cbc',
        'iter-time': '10',
      });
      expect(await addKey(path, { secret: SECRET, newSecret: bytesOf('second'), iterTime: 10 })).toBe(1);
      expect(
        await addKey(path, { secret: bytesOf('second'), newSecret: bytesOf('sixth'), iterTime: 10, slot: 6 }),
      ).toBe(6);
      for (const passphrase of [PASSPHRASE, 'second', 'sixth'])
        expect(await opensInQemu(path, format, passphrase), passphrase).toBe(true);
      expect(await activeSlots(path)).toEqual([0, 1, 6]);
      expect(await removeKey(path, { secret: SECRET })).toEqual([0]);
      expect(await opensInQemu(path, format, PASSPHRASE)).toBe(false);
      expect(await removeKey(path, { slot: 6 })).toEqual([6]);
      expect(await opensInQemu(path, format, 'sixth')).toBe(false);
      expect(
        await changeKey(path, { secret: bytesOf('second'), newSecret: bytesOf('third'), iterTime: 10 }),
      ).toBe(0);
      expect(await activeSlots(path)).toEqual([0]);
      expect(await opensInQemu(path, format, 'second')).toBe(false);
      expect(await opensInQemu(path, format, 'third')).toBe(true);
      await (await openEncrypted(path, { passphrase: 'third' })).close();
      if (format === 'qcow2') {
        expect((await qemu.check(path, { source: encryptedSource(path, format, 'third') })).code).toBe(0);
      }
    });
  }

  it('a key that qemu added opens the image here, and one that it erased does not', async () => {
    const path = tempPath('theirs.qcow2');
    await create({
      path,
      format: 'qcow2',
      size: SIZE,
      encryption: { secret: secretOf(PASSPHRASE), luks: { iterTime: 10 } },
    });
    const amend = (list: string): Promise<unknown> => {
      const objects = ['--object', `secret,id=s,data=${PASSPHRASE}`, '--object', 'secret,id=n,data=second'];
      const [, , ...image] = encryptedSource(path, 'qcow2');
      return qemu.qemuImg(['amend', ...objects, '-o', list, ...image]);
    };
    await amend('encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10');
    await (await openEncrypted(path, { passphrase: 'second' })).close();
    await amend('encrypt.state=inactive,encrypt.old-secret=n');
    await expect(openEncrypted(path, { passphrase: 'second' })).rejects.toMatchObject({ code: 'BAD_SECRET' });
    await (await openEncrypted(path)).close();
  });

  it('refuses what makes no sense, and the last key without force', async () => {
    const path = tempPath('refuse.luks');
    await create({
      path,
      format: 'luks',
      size: SIZE,
      encryption: { secret: secretOf(PASSPHRASE), luks: { iterTime: 10 } },
    });
    const add = { secret: SECRET, newSecret: bytesOf('x'), iterTime: 10 };
    await expect(addKey(path, { ...add, secret: bytesOf('wrong') })).rejects.toMatchObject({
      code: 'BAD_SECRET',
      path,
    });
    await expect(addKey(path, { ...add, slot: 0 })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(addKey(path, { ...add, slot: 8 })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(removeKey(path, {})).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(removeKey(path, { slot: 3 })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(removeKey(path, { secret: bytesOf('wrong') })).rejects.toMatchObject({ code: 'BAD_SECRET' });
    await expect(removeKey(path, { secret: SECRET })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    expect(await activeSlots(path)).toEqual([0]);
    expect(await removeKey(path, { secret: SECRET, force: true })).toEqual([0]);
    await expect(openEncrypted(path)).rejects.toMatchObject({ code: 'BAD_SECRET' });
    const plain = tempPath('plain.qcow2');
    await create({ path: plain, format: 'qcow2', size: SIZE });
    await expect(addKey(plain, add)).rejects.toMatchObject({ code: 'UNSUPPORTED' });
  });
});
