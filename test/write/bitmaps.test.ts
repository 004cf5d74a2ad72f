import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { setU64, viewOf } from '../../src/core/bytes.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import { HeaderOffset, Incompatible } from '../../src/format/qcow2/layout.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { fault } from '../../src/layer/fault.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { changeBitmap, type BitmapAction } from '../../src/op/bitmaps.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile } from '../../src/op/open.ts';
import { resize } from '../../src/op/resize.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../src/op/snapshots.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { addonHere } from '../native/help.ts';
import { describeWithNbd, listed, ourRanges, qemuRanges } from '../tool/bitmaps.ts';
import { FIXTURES } from '../tool/fixtures.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

async function clean(path: string): Promise<void> {
  const judged = await qemu.check(path);
  expect(judged.code, judged.stderr + JSON.stringify(judged.json)).toBe(0);
  expect((await checkFile(path, { format: 'qcow2' })).problems).toEqual([]);
}

/** What the bitmaps of an image are and say, in the order of the directory. */
async function everything(path: string): Promise<unknown[]> {
  const list = await listed(path);
  const sound = list.filter(({ flags }) => !flags.includes('in-use')).map(({ name }) => name);
  const ranges = await qemuRanges(path, sound);
  return list.map(({ name, granularity, flags }) => [name, granularity, flags, ranges[sound.indexOf(name)]]);
}

async function makeDisk(
  size: string | number,
  options: Record<string, string | number> = {},
): Promise<string> {
  const path = join(tempDir(), 'disk.qcow2');
  await qemu.create(path, size, { options });
  return path;
}

/** The bitmap is marked as in use by a program that died. */
async function leaveInUse(path: string): Promise<void> {
  await qemu.fill(path, [{ do: 'write', at: 0, length: 512, pattern: 1 }, { do: 'flush' }, { do: 'kill' }]);
}

function toWords(action: BitmapAction): string[] {
  if (action.do === 'add') {
    return ['--add', ...(action.granularity === undefined ? [] : ['-g', String(action.granularity)])];
  }
  if (action.do !== 'merge') return [`--${action.do}`];
  return ['--merge', action.source];
}

/** What the bitmaps of the fixtures say; see fixtures/README.md for how they were made. */
const FIXED = [
  ['bitmaps.qcow2', 'fine', '0+512 65536+4096 524288+4096 999936+512'],
  ['bitmaps.qcow2', 'default', '0+4096 65536+4096 999424+4096'],
  ['bitmaps.qcow2', 'coarse, disabled', ''],
  ['bitmap-ones.qcow2', 'all', '0+1048576'],
] as const;

describe('the bitmaps of the fixtures', () => {
  it.each(FIXED)('%s, %s', async (file, name, ranges) => {
    expect(await ourRanges(join(FIXTURES, 'good', file), name)).toBe(ranges);
  });

  it('in use or untrusted say nothing', async () => {
    const read = (file: string, name: string): Promise<string> =>
      ourRanges(join(FIXTURES, 'good', file), name);
    await expect(read('bitmap-in-use.qcow2', 'lost')).rejects.toMatchObject({ code: 'BAD_BITMAP' });
    await expect(read('bitmap-untrusted.qcow2', 'stale')).rejects.toMatchObject({ code: 'BITMAP_NOT_FOUND' });
  });
});

describeWithNbd('bitmaps', () => {
  it.each(FIXED)('of the fixtures: %s, %s', async (file, name, ranges) => {
    // A server cannot be told a name with a comma in it.
    if (!name.includes(',')) expect(await qemuRanges(join(FIXTURES, 'good', file), [name])).toEqual([ranges]);
  });

  it('changed at random are as qemu-img makes them, and mistakes are mistakes for both', async () => {
    const random = new Random(seedOf('bitmaps like qemu'));
    for (let round = 0; round < 4; round++) {
      const clusterSize = random.pick([512, 4096, 65536]);
      const size = random.between(2000, 20_000) * 512;
      const ours = await makeDisk(size, { cluster_size: clusterSize });
      for (let i = 0; i < 3; i++) {
        const granularity = random.pick([512, 4096, 65536, 262144]);
        await qemu.bitmap(ours, `b${String(i)}`, ['--add', '-g', String(granularity)]);
        const at = random.below(size / 512) * 512;
        const length = Math.min(size - at, random.between(1, 2000) * 512);
        await qemu.fill(ours, [{ do: 'write', at, length, pattern: 5 }]);
      }
      const theirs = join(tempDir(), 'theirs.qcow2');
      copyFileSync(ours, theirs);
      for (let i = 0; i < 20; i++) {
        const name = `b${String(random.below(5))}`;
        const source = `b${String(random.below(5))}`;
        const action = random.pick<BitmapAction>([
          { do: 'add', granularity: random.pick([undefined, 512, 1000, 65536, 2 ** 31, 2 ** 32]) },
          ...(['remove', 'clear', 'enable', 'disable'] as const).map((one) => ({ do: one })),
          { do: 'merge', source },
          { do: 'merge', source },
        ]);
        const context = `${name} ${JSON.stringify(action)} (SPINDLE_SEED=${String(random.seed)})`;
        const failed = await changeBitmap(ours, name, [action]).then(
          () => false,
          (error: unknown) => isSpindleError(error),
        );
        const judged = await qemu.qemuImg(['bitmap', ...toWords(action), theirs, name], { expect: [0, 1] });
        expect(failed, `${context} ${judged.stderr}`).toBe(judged.code !== 0);
      }
      expect(await everything(ours), `SPINDLE_SEED=${String(random.seed)}`).toEqual(await everything(theirs));
      await clean(ours);
    }
  });

  it('are merged from another image, whatever the granularities', async () => {
    const from = await makeDisk('5M', { cluster_size: 512 });
    await qemu.bitmap(from, 'fine', ['--add', '-g', '512']);
    await qemu.fill(from, [
      { do: 'write', at: 5120, length: 512, pattern: 1 },
      { do: 'write', at: 1_000_448, length: 70_000 - (70_000 % 512), pattern: 1 },
      { do: 'write', at: 5 * 1024 ** 2 - 512, length: 512, pattern: 1 },
    ]);
    for (const granularity of [512, 2048, 65536, 1048576, 2 ** 31]) {
      const ours = await makeDisk('5M');
      const theirs = await makeDisk('5M');
      await changeBitmap(ours, 'b', [
        { do: 'add', granularity },
        { do: 'merge', source: 'fine', from: { path: from, format: 'qcow2' } },
      ]);
      const actions = ['--add', '-g', String(granularity), '--merge', 'fine', '-b', from, '-F', 'qcow2'];
      await qemu.bitmap(theirs, 'b', actions);
      expect(await everything(ours)).toEqual(await everything(theirs));
      await clean(ours);
    }
    const other = await makeDisk('4M');
    const merging = changeBitmap(other, 'b', [
      { do: 'add' },
      { do: 'merge', source: 'fine', from: { path: from } },
    ]);
    await expect(merging).rejects.toMatchObject({ code: 'BAD_SIZE' });
    expect(await listed(other)).toEqual([]);
    // Named by its path, an image is the same as not named.
    await changeBitmap(from, 'copy', [{ do: 'add' }, { do: 'merge', source: 'fine', from: { path: from } }]);
    expect(await ourRanges(from, 'copy')).toBe('4096+4096 999424+73728 5238784+4096');
  });

  it('in the all-ones form say that everything is dirty', async () => {
    const path = await makeDisk(1_000_448, { cluster_size: 4096 });
    await qemu.bitmap(path, 'all', ['--add', '-g', '4k']);
    const storage = MemoryStorage.from(readFileSync(path));
    const { bitmaps } = await readMetadata(storage, 'data');
    const bytes = new Uint8Array(8);
    setU64(viewOf(bytes), 0, 1);
    await storage.write(bytes, bitmaps[0]?.tableOffset ?? 0);
    writeFileSync(path, storage.toBytes());
    expect(await ourRanges(path, 'all')).toBe('0+1000448');
    expect(await qemuRanges(path, ['all'])).toEqual(['0+1000448']);
    await changeBitmap(path, 'copy', [
      { do: 'add', granularity: 512 },
      { do: 'disable' },
      { do: 'merge', source: 'all' },
    ]);
    await resize(path, 2_000_896);
    expect(await qemuRanges(path, ['copy'])).toEqual(['0+1000448']);
    await clean(path);
  });

  it('are not touched by opening an image and closing it, nor by reading', async () => {
    const path = await makeDisk('1M');
    await qemu.bitmap(path, 'b', ['--add']);
    await changeBitmap(path, 'c', [{ do: 'add' }, { do: 'disable' }]);
    const before = readFileSync(path);
    const image = await openImageFile(path, { write: true });
    await image.read(new Uint8Array(65536), 0);
    await image.flush();
    await image.close();
    await changeBitmap(path, 'b', [{ do: 'enable' }, { do: 'clear' }, { do: 'disable' }, { do: 'enable' }]);
    expect(Buffer.compare(readFileSync(path), before)).toBe(0);
  });

  it('are marked as in use from the first change to the end, and flushes do not end it', async () => {
    const path = await makeDisk('1M');
    await changeBitmap(path, 'on', [{ do: 'add' }]);
    await changeBitmap(path, 'off', [{ do: 'add' }, { do: 'disable' }]);
    const flags = async (): Promise<unknown> =>
      (await info(path, { share: true })).qcow2?.bitmaps.map((one) => one.flags);
    const image = await openImageFile(path, { write: true });
    expect(await flags()).toEqual([['auto'], []]);
    const writing = image.write(new Uint8Array(512).fill(1), 70_000);
    await writing;
    expect(await flags()).toEqual([['in-use', 'auto'], []]);
    const seen = (await qemu.info(path, { forceShare: true })) as object;
    expect(JSON.stringify(seen)).toContain('in-use');
    await image.flush();
    expect(await flags()).toEqual([['in-use', 'auto'], []]);
    await image.close();
    expect(await everything(path)).toEqual([
      ['on', 65536, ['auto'], '65536+65536'],
      ['off', 65536, [], ''],
    ]);
    await clean(path);
  });

  it('record every kind of change that the guest can make', async () => {
    const path = await makeDisk('4M', { cluster_size: 4096 });
    await changeBitmap(path, 'b', [{ do: 'add', granularity: 512 }]);
    const image = (await openImageFile(path, { write: true })) as DiskImage;
    await image.write(new Uint8Array(1024), 512);
    await image.zero(100_352, 5120);
    await image.zero(1_048_576, 65536, { keepAllocated: true });
    await image.discard(2_097_152, 12_288);
    await image.writeCompressed(new Uint8Array(8192).fill(7), 3_145_728);
    await image.close();
    const expected = '512+1024 100352+5120 1048576+65536 2097152+12288 3145728+8192';
    expect(await qemuRanges(path, ['b'])).toEqual([expected]);
    // qemu goes on where we have ended, and we where it has.
    await qemu.fill(path, [{ do: 'write', at: 4_000_256, length: 512, pattern: 3 }]);
    expect(await ourRanges(path, 'b')).toBe(`${expected} 4000256+512`);
    await clean(path);
  });

  it('that were in use are kept, not recorded, and can only be removed', async () => {
    const path = await makeDisk('1M');
    await qemu.bitmap(path, 'lost', ['--add']);
    await leaveInUse(path);
    await changeBitmap(path, 'new', [{ do: 'add' }]);
    for (const action of [
      { do: 'clear' },
      { do: 'enable' },
      { do: 'disable' },
      { do: 'merge', source: 'new' },
    ] as const) {
      await expect(changeBitmap(path, 'lost', [action])).rejects.toMatchObject({ code: 'BAD_BITMAP' });
    }
    const merging = changeBitmap(path, 'new', [{ do: 'merge', source: 'lost' }]);
    await expect(merging).rejects.toMatchObject({ code: 'BAD_BITMAP' });
    await expect(ourRanges(path, 'lost')).rejects.toMatchObject({ code: 'BAD_BITMAP' });
    const image = await openImageFile(path, { write: true });
    await image.write(new Uint8Array(512), 0);
    await image.resize(3 * 1024 ** 2);
    await image.close();
    expect(await everything(path)).toEqual([
      ['lost', 65536, ['in-use', 'auto'], undefined],
      ['new', 65536, ['auto'], '0+65536 1048576+2097152'],
    ]);
    await clean(path);
    await changeBitmap(path, 'lost', [{ do: 'remove' }]);
    await changeBitmap(path, 'new', [{ do: 'remove' }]);
    expect(await listed(path)).toEqual([]);
    expect(readFileSync(path).includes(Buffer.from([0x23, 0x85, 0x28, 0x75]))).toBe(false);
    await clean(path);
  });

  it('that say nonsense since they were in use do not keep anybody from writing, nor from removing them', async () => {
    const path = await makeDisk('1M', { cluster_size: 4096 });
    await qemu.bitmap(path, 'lost', ['--add', '-g', '512']);
    await qemu.fill(path, [{ do: 'write', at: 0, length: 65536, pattern: 1 }]);
    await leaveInUse(path);
    const storage = MemoryStorage.from(readFileSync(path));
    const { bitmaps, header } = await readMetadata(storage, 'data');
    const bytes = new Uint8Array(8);
    setU64(viewOf(bytes), 0, header.l1TableOffset);
    await storage.write(bytes, bitmaps[0]?.tableOffset ?? 0);
    writeFileSync(path, storage.toBytes());
    const image = await openImageFile(path, { write: true });
    await image.write(new Uint8Array(65536).fill(2), 65536);
    await image.close();
    await changeBitmap(path, 'lost', [{ do: 'remove' }]);
    const found = await checkFile(path);
    expect(found.corruptions).toBe(0);
    expect(await qemu.holds(path, { at: 65536, length: 65536, pattern: 2 })).toBe(true);
  });

  it('over other metadata keep everybody from writing', async () => {
    const path = await makeDisk('1M', { cluster_size: 4096 });
    await qemu.bitmap(path, 'b', ['--add', '-g', '512']);
    const storage = MemoryStorage.from(readFileSync(path));
    const { bitmaps, header } = await readMetadata(storage, 'data');
    const bytes = new Uint8Array(8);
    setU64(viewOf(bytes), 0, header.l1TableOffset);
    await storage.write(bytes, bitmaps[0]?.tableOffset ?? 0);
    writeFileSync(path, storage.toBytes());
    const before = readFileSync(path);
    await expect(openImageFile(path, { write: true })).rejects.toMatchObject({ code: 'CORRUPT' });
    await expect(changeBitmap(path, 'b', [{ do: 'clear' }])).rejects.toMatchObject({ code: 'CORRUPT' });
    expect(Buffer.compare(readFileSync(path), before)).toBe(0);
  });

  it('of a program that does not know them are dropped, and their space is only leaked', async () => {
    const path = await makeDisk('1M', { cluster_size: 4096 });
    await qemu.bitmap(path, 'stale', ['--add', '-g', '512']);
    const bytes = readFileSync(path);
    bytes.fill(0, HeaderOffset.autoclearFeatures, HeaderOffset.autoclearFeatures + 8);
    writeFileSync(path, bytes);
    const image = await openImageFile(path, { write: true });
    await image.close();
    expect(readFileSync(path).includes(Buffer.from([0x23, 0x85, 0x28, 0x75]))).toBe(false);
    const judged = await qemu.check(path);
    expect([judged.code, judged.json?.leaks]).toEqual([3, 2]);
    await changeBitmap(path, 'stale', [{ do: 'add' }]);
    expect(await everything(path)).toEqual([['stale', 4096, ['auto'], '']]);
    expect((await qemu.check(path)).code).toBe(3);
  });

  it('follow the disk to another size as far as qemu does, and call dirty what it grows by', async () => {
    for (const clusterSize of [512, 65536]) {
      const path = await makeDisk('3M', { cluster_size: clusterSize });
      await qemu.bitmap(path, 'on', ['--add', '-g', '4k']);
      await qemu.fill(path, [
        { do: 'write', at: 0, length: 512, pattern: 1 },
        { do: 'write', at: 2_500_096, length: 512, pattern: 1 },
      ]);
      await changeBitmap(path, 'off', [
        { do: 'add', granularity: 512 },
        { do: 'merge', source: 'on' },
        { do: 'disable' },
      ]);
      await resize(path, 1_000_448, { shrink: true });
      expect(await qemuRanges(path, ['on', 'off'])).toEqual(['0+4096 999424+1024', '0+4096']);
      await resize(path, 40 * 1024 ** 2);
      const tail = String(40 * 1024 ** 2 - 999_424);
      expect(await qemuRanges(path, ['on', 'off'])).toEqual([`0+4096 999424+${tail}`, '0+4096']);
      await clean(path);
    }
  });

  it('record what an applied snapshot changes, and nothing else', async () => {
    const path = await makeDisk('1M', { cluster_size: 4096 });
    await qemu.fill(path, [{ do: 'write', at: 0, length: 131_072, pattern: 1 }]);
    await createSnapshot(path, 'then');
    await qemu.fill(path, [{ do: 'write', at: 8192, length: 4096, pattern: 2 }]);
    await resize(path, 917_504, { shrink: true });
    await changeBitmap(path, 'on', [{ do: 'add' }]);
    await changeBitmap(path, 'off', [{ do: 'add' }, { do: 'disable' }]);
    await applySnapshot(path, 'then');
    expect(await qemuRanges(path, ['on', 'off'])).toEqual(['8192+4096 917504+131072', '']);
    await clean(path);
    await changeBitmap(path, 'on', [{ do: 'clear' }]);
    const before = await everything(path);
    await applySnapshot(path, 'then');
    await createSnapshot(path, 'now');
    await deleteSnapshot(path, 'then');
    expect(await everything(path)).toEqual(before);
    await clean(path);
  });

  it('need neither the backing file, nor the data file, nor the secret', async () => {
    const dir = tempDir();
    const overlay = join(dir, 'overlay.qcow2');
    await qemu.qemuImg([
      'create',
      '-q',
      '-f',
      'qcow2',
      '-u',
      '-b',
      'gone.qcow2',
      '-F',
      'qcow2',
      overlay,
      '1M',
    ]);
    const external = join(dir, 'external.qcow2');
    await qemu.create(external, '1M', { options: { data_file: join(dir, 'data') } });
    const secret = ['--object', 'secret,id=s,data=abc'];
    const encrypted = join(dir, 'encrypted.qcow2');
    const luks = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10';
    await qemu.qemuImg(['create', '-q', '-f', 'qcow2', ...secret, '-o', luks, encrypted, '1M']);
    for (const path of [overlay, external, encrypted]) {
      await changeBitmap(path, 'b', [{ do: 'add' }]);
      await changeBitmap(path, 'b', [{ do: 'disable' }]);
      expect(await listed(path)).toMatchObject([{ name: 'b', flags: [] }]);
      expect((await checkFile(path)).problems).toEqual([]);
    }
    expect((await qemu.check(external)).code).toBe(0);
    const image = await openImageFile(external, { write: true });
    await image.write(new Uint8Array(512).fill(1), 0);
    await image.close();
    expect((await qemu.check(external)).code).toBe(0);
  });

  it('are refused where they cannot be, before anything is changed', async () => {
    const dir = tempDir();
    const path = await makeDisk('1M');
    const add = (name: string, file = path): Promise<void> => changeBitmap(file, name, [{ do: 'add' }]);
    const long = 'ü'.repeat(511) + 'x';
    await add(long);
    expect((await listed(path)).map(({ name }) => name)).toEqual([long]);
    const before = readFileSync(path);
    await expect(add(`${long}y`)).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(add('')).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(add(long)).rejects.toMatchObject({ code: 'EXISTS' });
    await expect(changeBitmap(path, 'none', [{ do: 'clear' }])).rejects.toMatchObject({
      code: 'BITMAP_NOT_FOUND',
      path,
    });
    expect(Buffer.compare(readFileSync(path), before)).toBe(0);
    const refused = async (
      code: string,
      make: (file: string) => Promise<void>,
      format = 'qcow2',
    ): Promise<void> => {
      const file = join(dir, `${code}-${format}`);
      await make(file);
      const bytes = readFileSync(file);
      await expect(
        changeBitmap(file, 'b', [{ do: 'add', granularity: 512 }], { format }),
      ).rejects.toMatchObject({
        code,
        path: file,
      });
      expect(Buffer.compare(readFileSync(file), bytes)).toBe(0);
    };
    await refused('UNSUPPORTED', (file) => qemu.create(file, '1M', { options: { compat: 'v2' } }));
    await refused('UNSUPPORTED', (file) => qemu.create(file, '1M', { format: 'raw' }), 'raw');
    await refused('BAD_SIZE', (file) => qemu.create(file, 0));
    await refused('LIMIT', (file) => qemu.create(file, '2049G'));
    for (const [code, bit] of [
      ['CORRUPT', Incompatible.CORRUPT],
      ['DIRTY', Incompatible.DIRTY],
    ] as const) {
      await refused(code, async (file) => {
        await qemu.create(file, '1M');
        const bytes = readFileSync(file);
        bytes[HeaderOffset.incompatibleFeatures + 7] = bit;
        writeFileSync(file, bytes);
      });
    }
  });

  // The twin has no locks between parts of one process.
  it.runIf(addonHere)('are refused while somebody else uses the image', async () => {
    const path = await makeDisk('1M');
    const image = await openImageFile(path);
    await expect(changeBitmap(path, 'b', [{ do: 'add' }])).rejects.toMatchObject({ code: 'IN_USE' });
    await image.close();
    await changeBitmap(path, 'b', [{ do: 'add' }]);
  });

  it('that cannot be stored stay in use, and what the guest wrote is there', async () => {
    const path = await makeDisk('1M');
    await changeBitmap(path, 'b', [{ do: 'add' }]);
    const storage = MemoryStorage.from(readFileSync(path));
    storage.close = () => Promise.resolve();
    const failing = fault(storage);
    const metadata = await readMetadata(failing, 'data');
    const driver = await Qcow2WriteDriver.open(failing, metadata, null, nodeCodec, { backed: false });
    const image = new DiskImage(driver, failing, null);
    await image.write(new Uint8Array(65536).fill(9), 0);
    await image.flush();
    // The bits are the next thing that is written.
    failing.inject({ on: 'write', times: 1, code: 'NO_SPACE' });
    await expect(image.close()).rejects.toMatchObject({ code: 'NO_SPACE' });
    writeFileSync(path, storage.toBytes());
    expect(await listed(path)).toMatchObject([{ name: 'b', flags: ['in-use', 'auto'] }]);
    expect(await qemu.holds(path, { at: 0, length: 65536, pattern: 9 })).toBe(true);
    await clean(path);
  });

  it('in great number go in and out of the image', async () => {
    const path = await makeDisk('1M', { cluster_size: 512 });
    const names = Array.from({ length: 40 }, (_, index) => `bitmap ${String(index)}`);
    for (const name of names) await changeBitmap(path, name, [{ do: 'add', granularity: 512 }]);
    await qemu.fill(path, [{ do: 'write', at: 0, length: 512, pattern: 1 }]);
    const image = await openImageFile(path, { write: true });
    await image.write(new Uint8Array(512), 512 * 1024);
    await image.close();
    expect((await everything(path)).map((one) => (one as unknown[])[3])).toEqual(
      names.map(() => '0+512 524288+512'),
    );
    await clean(path);
    for (const name of names) await changeBitmap(path, name, [{ do: 'remove' }]);
    expect(await listed(path)).toEqual([]);
    await clean(path);
  });
});
