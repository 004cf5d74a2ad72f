import { describe, expect, it } from 'vitest';
import { ExtentFlag } from '../../src/core/extent.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { storageSuite } from '../suite/storage.ts';

const ALL = { write: true, resize: true, zero: true, discard: true, extents: true, direct: false };
const { HOLE, ZERO } = ExtentFlag;

storageSuite('memory', {
  can: ALL,
  make: (content) => {
    const storage = MemoryStorage.from(content);
    return Promise.resolve({ storage, dispose: () => storage.close() });
  },
});

storageSuite('memory, read-only', {
  can: { ...ALL, write: false, resize: false, zero: false, discard: false },
  make: (content) => {
    const storage = MemoryStorage.from(content, { readOnly: true });
    return Promise.resolve({ storage, dispose: () => storage.close() });
  },
});

describe('MemoryStorage', () => {
  it('costs nothing for a TiB, whatever is done to it', async () => {
    const size = 1024 ** 4;
    const storage = new MemoryStorage(size);
    expect(await storage.extent(0, size)).toEqual({ offset: 0, length: size, flags: HOLE | ZERO });
    await storage.write(Uint8Array.of(1), size / 2);
    expect(await storage.extent(0, size)).toEqual({ offset: 0, length: size / 2, flags: HOLE | ZERO });
    expect(await storage.extent(size / 2, size / 2)).toEqual({ offset: size / 2, length: 65536, flags: 0 });
    await storage.zero(0, size);
    await storage.discard(1, size - 1);
    await storage.resize(size * 2);
    expect(await storage.extent(5, size)).toEqual({ offset: 5, length: size, flags: HOLE | ZERO });
  });

  it('tells zeroes that are kept allocated from holes', async () => {
    const storage = new MemoryStorage(65536 * 3);
    await storage.zero(65536, 65536, { keepAllocated: true });
    expect(await storage.extent(0, 65536 * 3)).toEqual({ offset: 0, length: 65536, flags: HOLE | ZERO });
    expect(await storage.extent(65536, 65536 * 2)).toEqual({ offset: 65536, length: 65536, flags: ZERO });
    await storage.write(Uint8Array.of(9), 65536);
    await storage.zero(65536 * 2, 100, { keepAllocated: true });
    expect((await storage.extent(65536, 65536)).flags).toBe(0);
    expect((await storage.extent(65536 * 2, 65536)).flags).toBe(ZERO);
  });

  it('gives a copy of its bytes', async () => {
    const bytes = Uint8Array.of(1, 2, 3);
    const storage = MemoryStorage.from(bytes);
    bytes.fill(9);
    expect(storage.toBytes()).toEqual(Uint8Array.of(1, 2, 3));
    storage.toBytes().fill(8);
    await storage.resize(5);
    expect(storage.toBytes()).toEqual(Uint8Array.of(1, 2, 3, 0, 0));
  });

  it('refuses sizes that are none', async () => {
    expect(() => new MemoryStorage(-1)).toThrow(RangeError);
    expect(() => new MemoryStorage(2 ** 53)).toThrow(RangeError);
    await expect(new MemoryStorage(1).resize(1.5)).rejects.toThrow(RangeError);
  });
});
