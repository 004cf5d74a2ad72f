import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImageFile } from '../../src/op/open.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const CLUSTER = 65536;

qemu.describeWithQemu('the last cluster, where the disk ends inside it', () => {
  it('holds zeroes past the end, though its place held data before: growing shows nothing old', async () => {
    const path = join(tempDir(), 'disk.qcow2');
    const size = CLUSTER + 512;
    await qemu.create(path, size, { format: 'qcow2' });
    const image = await openImageFile(path, { format: 'qcow2', write: true });
    // A cluster of data is given back, and its place, not punched, taken by the last cluster of the disk.
    await image.write(new Uint8Array(CLUSTER).fill(0xaa), 0);
    await image.discard(0, CLUSTER);
    await image.flush();
    await image.write(new Uint8Array(512).fill(0xbb), CLUSTER);
    await image.close();
    await qemu.qemuImg(['resize', '-q', path, String(CLUSTER * 2)]);
    const grown = await openImageFile(path, { format: 'qcow2' });
    const last = new Uint8Array(CLUSTER);
    await grown.read(last, CLUSTER);
    await grown.close();
    expect(last.subarray(0, 512).every((byte) => byte === 0xbb)).toBe(true);
    expect(last.subarray(512).every((byte) => byte === 0)).toBe(true);
  });
});
