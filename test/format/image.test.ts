import { readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { SpindleError } from '../../src/core/errors.ts';
import type { Storage } from '../../src/core/storage.ts';
import { denyAll, type Gate } from '../../src/format/gate.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import { openImage } from '../../src/format/open.ts';
import { createQcow2, QCOW2_DEFAULTS } from '../../src/format/qcow2/create.ts';
import { RawDriver } from '../../src/format/raw/driver.ts';
import { fault } from '../../src/layer/fault.ts';
import { trace } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { native } from '../../src/native/binding.ts';
import { create as createFile } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { openFile } from '../../src/storage/file.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { tempPath } from '../tool/temp.ts';

async function overlay(backing: string, size = 65536): Promise<MemoryStorage> {
  const storage = new MemoryStorage();
  await createQcow2(storage, { ...QCOW2_DEFAULTS, size, backing: { name: backing, format: 'qcow2' } });
  return storage;
}

/** A gate over images in memory. */
function gateOver(files: ReadonlyMap<string, Storage>): Gate {
  return ({ name, from }) => {
    const storage = files.get(name);
    if (storage === undefined)
      return Promise.reject(new SpindleError('BACKING_NOT_FOUND', name, { path: from }));
    return Promise.resolve({ storage, name, id: name });
  };
}

describe('reading at once', () => {
  const size = 1024 ** 2;

  it('gives what is in memory, from every layer, and nothing that would have to wait', async () => {
    const addon = native().kind === 'addon';
    const [base, top] = [tempPath('base'), tempPath('top')];
    await createFile({ path: base, format: 'qcow2', size });
    await createFile({ path: top, format: 'qcow2', size, backing: { name: base, format: 'qcow2' } });
    for (const [path, at] of [
      [base, 65536],
      [top, 3 * 65536],
    ] as const) {
      const image = await openImageFile(path, { write: true });
      await image.write(new Uint8Array(70_000).fill(path === base ? 1 : 2), at);
      await image.close();
    }
    const image = await openImageFile(top);
    const whole = new Uint8Array(size);
    await image.read(whole, 0);
    let had = 0;
    for (let at = 0; at < size; at += 4096) {
      const into = new Uint8Array(4096).fill(9);
      if (image.readNow?.(into, at) !== true) continue;
      had++;
      expect(into).toEqual(whole.subarray(at, at + 4096));
    }
    // Without the addon only zeroes can be had: not the four clusters of data.
    expect(had).toBe((addon ? size : size - 4 * 65536) / 4096);
    expect(image.readNow?.(new Uint8Array(2), size - 1)).toBe(false);
    await image.close();
    expect(image.readNow?.(new Uint8Array(1), 0)).toBe(false);
  });

  it('leaves it to the read that waits to tell what is wrong', async () => {
    const path = tempPath('damaged');
    await createFile({ path, format: 'qcow2', size });
    const whole = await openImageFile(path, { write: true });
    await whole.write(new Uint8Array(4096).fill(1), 0);
    await whole.close();
    const bytes = readFileSync(path);
    const l2 = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0xffffffffffff00n);
    bytes.writeBigUInt64BE((1n << 63n) | 20_992n, l2);
    writeFileSync(path, bytes);
    const image = await openImageFile(path);
    // Once while the table is not there yet, which must not be the end of the process, and once with it.
    expect(image.readNow?.(new Uint8Array(512), 0)).toBe(false);
    await expect(image.read(new Uint8Array(512), 0)).rejects.toMatchObject({ code: 'BAD_ENTRY' });
    expect(image.readNow?.(new Uint8Array(512), 0)).toBe(false);
    await image.close();
  });

  it('does not overtake a write', async () => {
    const path = tempPath('written');
    await createFile({ path, format: 'qcow2', size });
    const image = await openImageFile(path, { write: true });
    await image.write(new Uint8Array(4096).fill(1), 0);
    const into = new Uint8Array(4096);
    const writing = image.write(new Uint8Array(4096).fill(2), 0);
    expect(image.readNow?.(into, 0)).toBe(false);
    await image.read(into, 0);
    expect(into.every((byte) => byte === 2)).toBe(true);
    await writing;
    await image.close();
  });
});

describe('backing chains', () => {
  it('open nothing unless the caller lets them', async () => {
    const opening = openImage(await overlay('base'), { codec: nodeCodec });
    await expect(opening).rejects.toMatchObject({ code: 'BACKING_DENIED' });
    await expect(openImage(await overlay('base'), { codec: nodeCodec, gate: denyAll })).rejects.toThrow();
  });

  it('are not opened when nobody wants them', async () => {
    const image = await openImage(await overlay('base'), { codec: nodeCodec, backing: false });
    const bytes = new Uint8Array(512).fill(1);
    await image.read(bytes, 0);
    expect(bytes.every((byte) => byte === 0)).toBe(true);
    await image.close();
  });

  it.each([1, 2, 5])('that come back after %i layers are an error', async (layers) => {
    const files = new Map<string, Storage>();
    for (let i = 0; i < layers; i++) files.set(String(i), await overlay(String((i + 1) % layers)));
    const top = files.get('0') as Storage;
    const opening = openImage(top, { codec: nodeCodec, gate: gateOver(files), name: '0', id: '0' });
    await expect(opening).rejects.toMatchObject({ code: 'BACKING_LOOP' });
  });

  it('end at a depth that no honest chain has', async () => {
    const files = new Map<string, Storage>();
    const gate: Gate = async ({ name }) => {
      const storage = await overlay(`${name}x`, 512);
      files.set(name, storage);
      return { storage, name, id: name };
    };
    const opening = openImage(await overlay('x', 512), { codec: nodeCodec, gate, id: 'top' });
    await expect(opening).rejects.toMatchObject({ code: 'BACKING_TOO_DEEP' });
    expect(files.size).toBeLessThanOrEqual(200);
  });

  it('close every layer when one of them cannot be opened', async () => {
    const middle = trace(await overlay('missing'));
    const top = trace(await overlay('middle'));
    const opening = openImage(top, { codec: nodeCodec, gate: gateOver(new Map([['middle', middle]])) });
    await expect(opening).rejects.toMatchObject({ code: 'BACKING_NOT_FOUND' });
    await expect(top.read(new Uint8Array(1), 0)).rejects.toMatchObject({ code: 'CLOSED' });
    await expect(middle.read(new Uint8Array(1), 0)).rejects.toMatchObject({ code: 'CLOSED' });
  });
});

describe('a failing read', () => {
  it('names the image, and lets nothing write to the buffer afterwards', async () => {
    const base = fault(MemoryStorage.from(new Uint8Array(131072).fill(7)), {
      faults: [{ on: 'read', offset: 0, length: 65536 }],
    });
    const image = new DiskImage(new RawDriver(base), base, null, 'disk.raw');
    const buffer = new Uint8Array(8192);
    await expect(image.read(buffer, 0)).rejects.toMatchObject({ code: 'IO', path: 'disk.raw' });
    const untouched = buffer.slice();
    await new Promise((resolve) => setImmediate(resolve));
    expect(buffer).toEqual(untouched);
    await image.read(buffer, 65536);
    expect(buffer[0]).toBe(7);
    await image.close();
  });
});

describe('raw images', () => {
  it('of odd length end with zeroes that can be written', async () => {
    const storage = MemoryStorage.from(new Uint8Array(1000).fill(9));
    const image = new DiskImage(new RawDriver(storage), storage, null);
    expect(image.size).toBe(1024);
    const bytes = new Uint8Array(1024).fill(1);
    await image.read(bytes, 0);
    expect(bytes.subarray(0, 1000).every((byte) => byte === 9)).toBe(true);
    expect(bytes.subarray(1000).every((byte) => byte === 0)).toBe(true);
    expect(storage.size).toBe(1000);
    await image.write(Uint8Array.of(5), 1023);
    expect(storage.size).toBe(1024);
    await image.read(bytes, 0);
    expect([bytes[999], bytes[1000], bytes[1023]]).toEqual([9, 0, 5]);
    await image.close();
  });

  it('take any length when they are resized', async () => {
    const storage = MemoryStorage.from(new Uint8Array(1024).fill(9));
    const image = new DiskImage(new RawDriver(storage), storage, null);
    await image.resize(1001);
    expect([storage.size, image.size]).toEqual([1001, 1024]);
    await image.close();
  });
});

describe('a raw file that ends within a sector', () => {
  it('grows to where the furthest of several writes at once ends', async () => {
    const path = tempPath('odd.raw');
    writeFileSync(path, Buffer.alloc(400, 1));
    const storage = await openFile(path, { write: true });
    const image = await openImage(storage, { format: 'raw', codec: nodeCodec, write: true });
    await Promise.all([
      image.write(new Uint8Array(50).fill(2), 450),
      image.write(new Uint8Array(5).fill(3), 400),
      image.write(new Uint8Array(10).fill(4), 410),
    ]);
    await image.close();
    const expected = Buffer.alloc(500);
    expected.fill(1, 0, 400).fill(3, 400, 405).fill(4, 410, 420).fill(2, 450, 500);
    expect(readFileSync(path).toString('hex')).toBe(expected.toString('hex'));
  });
});
