import { statSync } from 'node:fs';
import { expect, it } from 'vitest';
import { convert } from '../../src/op/convert.ts';
import { create } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { resize } from '../../src/op/resize.ts';
import { tempPath } from '../tool/temp.ts';

const MIB = 1024 ** 2;
const secret = (): Promise<Uint8Array> => Promise.resolve(new TextEncoder().encode('spindle'));

/** A LUKS volume of 1 MiB, all of it data. */
async function volume(): Promise<string> {
  const [raw, path] = [tempPath('plain.raw'), tempPath('volume.luks')];
  await create({ path: raw, size: MIB });
  const image = await openImageFile(raw, { format: 'raw', write: true });
  await image.write(new Uint8Array(MIB).fill(7), 0);
  await image.close();
  await convert([{ path: raw, format: 'raw' }], {
    path,
    format: 'luks',
    encryption: { secret, luks: { iterTime: 10 } },
  });
  return path;
}

async function disk(path: string): Promise<Buffer> {
  const image = await openImageFile(path, { format: 'luks', secret });
  const bytes = Buffer.alloc(image.size);
  await image.read(bytes, 0);
  await image.close();
  return bytes;
}

it('a LUKS volume grows and shrinks, and keeps what it held', async () => {
  const path = await volume();
  const old = Buffer.alloc(MIB, 7);
  await resize(path, MIB, { format: 'luks', secret, relative: true });
  expect((await disk(path)).subarray(0, MIB).equals(old)).toBe(true);
  expect(await disk(path)).toHaveLength(2 * MIB);
  await resize(path, MIB / 2, { format: 'luks', secret, shrink: true });
  expect((await disk(path)).equals(old.subarray(0, MIB / 2))).toBe(true);
  await resize(path, MIB, { format: 'luks', secret, preallocation: 'full' });
  expect((await disk(path)).subarray(MIB / 2).equals(Buffer.alloc(MIB / 2))).toBe(true);
  const { blocks } = statSync(path);
  await resize(path, 3 * MIB, { format: 'luks', secret, preallocation: 'falloc' });
  expect(statSync(path).blocks).toBeGreaterThanOrEqual(blocks + (2 * MIB) / 512);
});

it('refuses what a LUKS volume cannot be', async () => {
  const path = await volume();
  const { size } = statSync(path);
  for (const [wanted, preallocation, code] of [
    [2 * MIB, 'metadata', 'BAD_OPTION'],
    [2 * MIB + 100, 'off', 'BAD_SIZE'],
  ] as const) {
    await expect(resize(path, wanted, { format: 'luks', secret, preallocation })).rejects.toMatchObject({
      code,
    });
    expect(statSync(path).size).toBe(size);
  }
});
