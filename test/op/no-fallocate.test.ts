// Where the file system cannot reserve space (ext2 and ext3, NFS before 4.2), it is written instead, as qemu-img does.
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { allocate } from '../../src/op/allocate.ts';
import { create, type CreateRequest } from '../../src/op/create.ts';
import { openImageFile, secretOf } from '../../src/op/open.ts';
import { resize } from '../../src/op/resize.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';
import * as qemu from '../tool/qemu.ts';

const MIB = 1024 ** 2;
const SECRET = secretOf('a passphrase');

const KINDS: Readonly<Record<string, Pick<CreateRequest, 'format' | 'encryption' | 'qcow2'>>> = {
  raw: { format: 'raw' },
  qcow2: { format: 'qcow2', qcow2: { clusterSize: 4096 } },
  'qcow2, encrypted': { format: 'qcow2', encryption: { secret: SECRET, luks: { iterTime: 10 } } },
  luks: { format: 'luks', encryption: { secret: SECRET, luks: { iterTime: 10 } } },
};

const held = (path: string): number => statSync(path).blocks * 512;

describeWithFileSystem('on a file system that cannot reserve space', 'ext2', () => {
  it.each(Object.entries(KINDS))('%s gets its space, new, grown and in place', async (name, kind) => {
    await withFileSystem('ext2', 64, async (folder) => {
      const path = join(folder, 'disk');
      const secret = kind.encryption === undefined ? {} : { secret: SECRET };
      await create({ ...kind, path, size: 8 * MIB, preallocation: 'falloc' });
      expect(held(path)).toBeGreaterThanOrEqual(8 * MIB);
      // Encrypted qcow2 does not grow like this: unwritten clusters would not read as zeroes.
      if (name !== 'qcow2, encrypted') {
        await resize(path, 10 * MIB, { ...secret, format: kind.format, preallocation: 'falloc' });
        expect(held(path)).toBeGreaterThanOrEqual(10 * MIB);
      }

      const thin = join(folder, 'thin');
      await create({ ...kind, path: thin, size: 8 * MIB });
      const bytes = Buffer.alloc(300_000 - (300_000 % 512), name);
      const image = await openImageFile(thin, { ...secret, format: kind.format, write: true });
      await image.write(bytes, MIB);
      await image.close();
      const plan = await allocate(thin, { ...secret, format: kind.format, policy: 'thick-lazy', plan: true });
      expect(plan.reserved).toBeGreaterThan(6 * MIB);
      const done = await allocate(thin, { ...secret, format: kind.format, policy: 'thick-lazy' });
      expect(done.reserved + done.written).toBeGreaterThan(6 * MIB);
      if (name === 'raw') expect(done.reserved).toBe(0);
      expect(held(thin)).toBeGreaterThanOrEqual(8 * MIB);
      const again = await openImageFile(thin, { ...secret, format: kind.format });
      const found = Buffer.alloc(bytes.length);
      await again.read(found, MIB);
      await again.close();
      expect(found.equals(bytes)).toBe(true);
    });
  });

  it('a lack of space is told, and leaves nothing', async () => {
    await withFileSystem('ext2', 16, async (folder) => {
      const path = join(folder, 'disk');
      for (const format of ['raw', 'qcow2'])
        await expect(create({ path, format, size: 64 * MIB, preallocation: 'falloc' })).rejects.toMatchObject(
          {
            code: 'NO_SPACE',
          },
        );
      expect(existsSync(path)).toBe(false);
    });
  });
});

qemu.describeWithQemu('what was written instead', () => {
  describeWithFileSystem('of being reserved', 'ext2', () => {
    it.each(['raw', 'qcow2'])('is as qemu-img has it (%s)', async (format) => {
      await withFileSystem('ext2', 64, async (folder) => {
        const [ours, theirs] = [join(folder, 'ours'), join(folder, 'theirs')];
        await create({ path: ours, format, size: 8 * MIB, preallocation: 'falloc' });
        await qemu.create(theirs, 8 * MIB, { format, options: { preallocation: 'falloc' } });
        expect(Math.abs(held(ours) - held(theirs))).toBeLessThan(256 * 1024);
        expect(await qemu.compare({ path: ours, format }, { path: theirs, format })).toBe(true);
        if (format === 'raw') expect(readFileSync(ours).equals(readFileSync(theirs))).toBe(true);
        else expect(await qemu.check(ours)).toMatchObject({ code: 0 });
      });
    });
  });
});
