// Where the host calls all of a file data and cannot reserve space (NFS before 4.2, some FUSE file systems), only looking
// at the bytes shows what may be missing.
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { SpindleError } from '../../src/core/errors.ts';
import { allocateFlat } from '../../src/op/allocate/flat.ts';
import { openFile, type FileStorage } from '../../src/storage/file.ts';
import { tempPath } from '../tool/temp.ts';

const MIB = 1024 ** 2;

/** The same file, on a host that tells nothing and reserves nothing. */
function blind(file: FileStorage): FileStorage {
  const other: Record<PropertyKey, unknown> = {
    hostExtents: undefined,
    extent: (offset: number, length: number) => Promise.resolve({ offset, length, flags: 0 }),
    reserve: () => Promise.reject(new SpindleError('UNSUPPORTED', 'no')),
  };
  return new Proxy(file, {
    get(target, name) {
      if (name in other) return other[name];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? (value as () => unknown).bind(target) : value;
    },
  });
}

describe('a host that does not tell of holes', () => {
  it.each(['thick-lazy', 'thick-eager'] as const)('gets all of its space by %s', async (policy) => {
    const path = tempPath('disk');
    const data = Buffer.alloc(300_000, 'spindle');
    writeFileSync(path, data);
    truncateSync(path, 4 * MIB + 512);
    const file = await openFile(path, { write: true });
    const tally = { read: 0, written: 0, reserved: 0, freed: 0 };
    await allocateFlat(blind(file), { policy, plan: false, tally });
    await file.close();
    expect(statSync(path).blocks * 512).toBeGreaterThanOrEqual(4 * MIB);
    expect(tally.reserved).toBe(0);
    expect(tally.written).toBeGreaterThan(4 * MIB - 310_000);
    const found = readFileSync(path);
    expect(found.subarray(0, data.length).equals(data)).toBe(true);
    expect(found.subarray(data.length).every((byte) => byte === 0)).toBe(true);
  });

  it('is not read again once all blocks are there', async () => {
    const path = tempPath('disk');
    writeFileSync(path, Buffer.alloc(MIB));
    const file = await openFile(path, { write: true });
    await file.flush();
    const tally = { read: 0, written: 0, reserved: 0, freed: 0 };
    await allocateFlat(blind(file), { policy: 'thick-lazy', plan: false, tally });
    await file.close();
    expect(tally).toEqual({ read: 0, written: 0, reserved: 0, freed: 0 });
  });
});
