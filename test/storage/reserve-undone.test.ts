// A reservation that the file system has no room for: what it got is given back.
import { statSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openFile } from '../../src/storage/file.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';

const MIB = 1024 ** 2;

/** Bytes that the file system has free. */
async function free(folder: string): Promise<number> {
  const { bfree, bsize } = await statfs(folder);
  return bfree * bsize;
}

describeWithFileSystem('a reservation without room', 'ext4', () => {
  it.each([false, true])('gives back what it got, size kept: %s', async (keepSize) => {
    await withFileSystem('ext4', 32, async (folder) => {
      const path = join(folder, 'file');
      const file = await openFile(path, { create: 'exclusive' });
      try {
        // Data, a hole, data, reserved space, and a hole up to an odd end.
        await file.resize(6 * MIB + 1000);
        await file.write(new Uint8Array(MIB).fill(1), 0);
        await file.write(new Uint8Array(4096).fill(2), 2 * MIB + 8192);
        await file.reserve(4 * MIB, MIB);
        await file.flush();
        const before = await file.hostExtents?.(0, file.size);
        const allocated = statSync(path).blocks;
        const had = await free(folder);
        await expect(file.reserve(0, 60 * MIB, keepSize)).rejects.toMatchObject({ code: 'NO_SPACE' });
        await file.flush();
        expect(file.size).toBe(6 * MIB + 1000);
        expect(statSync(path).size).toBe(6 * MIB + 1000);
        expect(await file.hostExtents?.(0, file.size)).toEqual(before);
        // The file system may keep a block in which it notes extents.
        expect(statSync(path).blocks).toBeLessThanOrEqual(allocated + 8);
        expect(await free(folder)).toBeGreaterThanOrEqual(had - 65_536);
        const bytes = new Uint8Array(MIB);
        await file.read(bytes, 0);
        expect(bytes.every((byte) => byte === 1)).toBe(true);
      } finally {
        await file.close();
      }
    });
  });
});
