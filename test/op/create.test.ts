import { linkSync, readFileSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { create, type CreateRequest } from '../../src/op/create.ts';
import { info } from '../../src/op/info.ts';
import { tempDir } from '../tool/temp.ts';

let dir = '';
const at = (name: string): string => join(dir, name);

/** Every file with its bytes. */
function everything(): Record<string, string> {
  return Object.fromEntries(
    readdirSync(dir).map((name) => [name, readFileSync(at(name)).toString('base64')]),
  );
}

beforeEach(async () => {
  dir = tempDir();
  writeFileSync(at('base.raw'), Buffer.alloc(65536, 7));
  await create({
    path: at('middle.qcow2'),
    format: 'qcow2',
    backing: { name: at('base.raw'), format: 'raw' },
  });
  await create({
    path: at('with-data.qcow2'),
    format: 'qcow2',
    size: 65536,
    qcow2: { dataFile: at('data.raw') },
  });
});

describe('create never writes over what the new image needs', () => {
  const overMiddle = { name: 'middle.qcow2', format: 'qcow2' };
  const cases: Record<string, () => Omit<CreateRequest, 'format'>> = {
    'its backing file': () => ({ path: at('middle.qcow2'), backing: overMiddle }),
    'its backing file under another name': () => {
      symlinkSync('middle.qcow2', at('other'));
      return { path: at('middle.qcow2'), backing: { name: at('other'), format: 'qcow2' } };
    },
    'its backing file through a hard link': () => {
      linkSync(at('middle.qcow2'), at('linked'));
      return { path: at('linked'), backing: overMiddle };
    },
    'the backing file of its backing file': () => ({ path: at('base.raw'), backing: overMiddle }),
    'the data file of its backing file': () => ({
      path: at('data.raw'),
      backing: { name: 'with-data.qcow2', format: 'qcow2' },
    }),
    'its backing file, with a data file': () => ({
      path: at('new.qcow2'),
      backing: overMiddle,
      qcow2: { dataFile: at('middle.qcow2') },
    }),
    'a lower backing file, with a data file': () => ({
      path: at('new.qcow2'),
      backing: overMiddle,
      qcow2: { dataFile: at('base.raw') },
    }),
    'itself, with a data file that does not exist yet': () => ({
      path: at('new.qcow2'),
      size: 65536,
      qcow2: { dataFile: `${dir}/./new.qcow2` },
    }),
    'itself, with a data file that exists': () => ({
      path: at('base.raw'),
      size: 65536,
      qcow2: { dataFile: at('base.raw') },
    }),
    'an unchecked backing file': () => ({
      path: at('base.raw'),
      size: 65536,
      backing: { name: 'base.raw', format: 'raw', unchecked: true },
    }),
  };
  for (const [name, request] of Object.entries(cases)) {
    it(name, async () => {
      const asked = request();
      const before = everything();
      await expect(create({ ...asked, format: 'qcow2' })).rejects.toMatchObject({
        code: expect.stringMatching(/^(BACKING_LOOP|BAD_OPTION)$/) as string,
        path: asked.path,
      });
      expect(everything()).toEqual(before);
    });
  }
});

describe('create', () => {
  it('takes size and place from a relative backing file beside the image', async () => {
    await create({
      path: at('top.qcow2'),
      format: 'qcow2',
      backing: { name: 'middle.qcow2', format: 'qcow2' },
    });
    const made = await info(at('top.qcow2'));
    expect(made).toMatchObject({
      virtualSize: 65536,
      backingName: 'middle.qcow2',
      backingPath: at('middle.qcow2'),
    });
  });

  it('replaces an existing image only when all is well', async () => {
    const before = everything();
    const failing: Omit<CreateRequest, 'path'>[] = [
      { format: 'qcow2', size: 65536, qcow2: { clusterSize: 1000 } },
      { format: 'qcow2', size: 65536, backing: { name: 'missing', format: 'raw' } },
      { format: 'qcow2', size: 2 ** 52, qcow2: { clusterSize: 512 } },
      { format: 'raw', size: 65536, preallocation: 'metadata' },
      { format: 'raw', size: 65536, allocation: 'thin', preallocation: 'full' },
      { format: 'vmdk', size: 65536 },
      { format: 'raw' },
    ];
    for (const request of failing)
      await expect(create({ path: at('base.raw'), ...request })).rejects.toThrow();
    expect(everything()).toEqual(before);
    await create({ path: at('base.raw'), size: 1000 });
    expect(readFileSync(at('base.raw'))).toEqual(Buffer.alloc(1024));
  });

  it('can be aborted, and leaves nothing', async () => {
    const before = everything();
    const abort = new AbortController();
    const request = {
      path: at('base.raw'),
      size: 64 * 1024 ** 2,
      allocation: 'thick-eager' as const,
      signal: abort.signal,
    };
    const work = create({ ...request, onStart: () => abort.abort() });
    await expect(work).rejects.toThrow();
    expect(everything()).toEqual(before);
  });
});
