import { rmSync } from 'node:fs';
import { expect, it } from 'vitest';
import { openImage } from '../../src/format/open.ts';
import { trace } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { create } from '../../src/op/create.ts';
import { openFile } from '../../src/storage/file.ts';
import { tempPath } from '../tool/temp.ts';

const TIB = 1024 ** 4;

it('a fully mapped image of 1 TiB is opened with its header and L1 table, and read with the L2 tables it needs', async () => {
  const path = tempPath('large.qcow2');
  await create({ path, format: 'qcow2', size: TIB, preallocation: 'metadata' });
  try {
    const storage = trace(await openFile(path));
    const image = await openImage(storage, { format: 'qcow2', codec: nodeCodec, name: path });
    const opening = storage.take().filter(({ operation }) => operation === 'read');
    const l1Bytes = (TIB / (512 * 1024 ** 2)) * 8;
    expect(opening.map(({ length }) => length)).toEqual([4096, l1Bytes]);

    const sector = new Uint8Array(4096);
    for (const at of [0, TIB / 3 - ((TIB / 3) % 512), TIB - 4096]) {
      await image.read(sector, at);
      await image.read(sector, at);
      const reads = storage.take().filter(({ operation }) => operation === 'read');
      expect(
        reads.map(({ length }) => length),
        'one L2 table, then the data twice',
      ).toEqual([65536, 4096, 4096]);
    }
    await image.close();
  } finally {
    rmSync(path);
  }
});
