import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { DiskImage } from '../../src/format/disk-image.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { openImageFile } from '../../src/op/open.ts';
import { createSnapshot } from '../../src/op/snapshots.ts';
import { describeWithNbd, ourRanges, qemuRanges } from '../tool/bitmaps.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const SIZE = 4 * 1024 * 1024;
const CLUSTER = 64 * 1024;

/** An image made by qemu with data in its clusters 0 to 3, zeroes with a place in 4, and nothing in the others. */
async function made(options: Record<string, string | number> = {}): Promise<string> {
  const path = join(tempDir(), 'disk.qcow2');
  await qemu.create(path, SIZE, { options });
  await qemu.fill(path, [
    { do: 'write', at: 0, length: 5 * CLUSTER, pattern: 1 },
    { do: 'zero', at: 4 * CLUSTER, length: CLUSTER },
  ]);
  return path;
}

async function opened<T>(path: string, work: (image: DiskImage) => Promise<T>): Promise<T> {
  const image = await openImageFile(path, { write: true });
  if (!(image instanceof DiskImage)) throw new Error('no image');
  try {
    return await work(image);
  } finally {
    await image.close();
  }
}

/** Whether a write there could be done at once, when the tables that it needs are in memory. */
async function isAtOnce(image: DiskImage, at: number, length: number): Promise<boolean> {
  await image.read(new Uint8Array(1), at);
  return image.driver.placeNow?.(at, length) !== undefined;
}

async function expectSound(path: string): Promise<void> {
  expect((await qemu.check(path)).code).toBe(0);
  expect((await checkFile(path)).problems).toEqual([]);
}

qemu.describeWithQemu('a write over data that is there', () => {
  it('needs no turn of the writer within one cluster of its own, and only there', async () => {
    const path = await made();
    await opened(path, async (image) => {
      expect(await isAtOnce(image, 0, 4096)).toBe(true);
      expect(await isAtOnce(image, CLUSTER, CLUSTER)).toBe(true);
      expect(await isAtOnce(image, CLUSTER - 1, 2)).toBe(false);
      expect(await isAtOnce(image, 4 * CLUSTER, 4096)).toBe(false);
      expect(await isAtOnce(image, 9 * CLUSTER, 4096)).toBe(false);
      // A change of the tables is under way.
      const other = image.write(new Uint8Array(10).fill(2), 9 * CLUSTER);
      expect(image.driver.placeNow?.(0, 4096)).toBe(undefined);
      await other;
      expect(await isAtOnce(image, 9 * CLUSTER, 4096)).toBe(true);
      await Promise.all(
        Array.from({ length: 64 }, (_, i) => image.write(new Uint8Array(1000).fill(i), i * 4096)),
      );
    });
    await expectSound(path);
    for (let i = 0; i < 64; i++)
      expect(await qemu.holds(path, { at: i * 4096, length: 1000, pattern: i })).toBe(true);
    expect(await qemu.holds(path, { at: 4096 + 1000, length: 96, pattern: 1 })).toBe(true);
  });

  it('copies first what a snapshot holds too', async () => {
    const path = await made();
    await createSnapshot(path, 'before');
    await opened(path, async (image) => {
      expect(await isAtOnce(image, 0, 4096)).toBe(false);
      await image.write(new Uint8Array(4096).fill(7), 0);
      expect(await isAtOnce(image, 0, 4096)).toBe(true);
      await image.write(new Uint8Array(4096).fill(8), 0);
    });
    await expectSound(path);
    expect(await qemu.holds(path, { at: 0, length: 4096, pattern: 8 })).toBe(true);
    await qemu.snapshot(path, 'apply', 'before');
    expect(await qemu.holds(path, { at: 0, length: CLUSTER, pattern: 1 })).toBe(true);
  });

  it('looks at each subcluster', async () => {
    const path = await made({ extended_l2: 'on', cluster_size: CLUSTER });
    await qemu.fill(path, [
      { do: 'write', at: 10 * CLUSTER, length: 4096, pattern: 5 },
      // So that the file does not end within the cluster.
      { do: 'write', at: 11 * CLUSTER, length: CLUSTER, pattern: 5 },
    ]);
    await opened(path, async (image) => {
      expect(await isAtOnce(image, 10 * CLUSTER, 4096)).toBe(true);
      expect(await isAtOnce(image, 10 * CLUSTER + 2048, 4096)).toBe(false);
      expect(await isAtOnce(image, 10 * CLUSTER + 4096, 2048)).toBe(false);
    });
    await expectSound(path);
  });

  it('does not believe an entry that points to metadata', async () => {
    const path = await made();
    const bytes = readFileSync(path);
    const l1 = Number(bytes.readBigUInt64BE(40));
    const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
    bytes.writeBigUInt64BE(BigInt(l1) | (1n << 63n), l2);
    writeFileSync(path, bytes);
    const image = await openImageFile(path, { write: true });
    if (!(image instanceof DiskImage)) throw new Error('no image');
    await image.read(new Uint8Array(1), 0);
    expect(() => image.driver.placeNow?.(0, 512)).toThrow('L1 table');
    await expect(image.write(new Uint8Array(512), 0)).rejects.toMatchObject({ code: 'CORRUPT' });
    await expect(image.write(new Uint8Array(512), CLUSTER)).rejects.toMatchObject({ code: 'CORRUPT' });
    await image.close();
    expect(readFileSync(path).subarray(l1, l1 + CLUSTER)).toEqual(bytes.subarray(l1, l1 + CLUSTER));
  });
});

describeWithNbd('a write over data that is there, with a bitmap', () => {
  it('waits for bitmaps to be marked on disk, once, and is in them', async () => {
    const path = await made();
    await qemu.bitmap(path, 'b0', ['--add']);
    await opened(path, async (image) => {
      expect(await isAtOnce(image, 0, 4096)).toBe(false);
      await image.write(new Uint8Array(512).fill(3), 0);
      expect(await isAtOnce(image, 0, 512)).toBe(true);
      await image.write(new Uint8Array(512).fill(4), 2 * CLUSTER);
    });
    await expectSound(path);
    const ranges = `0+${String(CLUSTER)} ${String(2 * CLUSTER)}+${String(CLUSTER)}`;
    expect(await qemuRanges(path, ['b0'])).toEqual([ranges]);
    expect(await ourRanges(path, 'b0')).toBe(ranges);
  });
});
