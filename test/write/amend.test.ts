import { copyFileSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { amend, type AmendRequest } from '../../src/op/amend.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile } from '../../src/op/open.ts';
import { createSnapshot } from '../../src/op/snapshots.ts';
import { describePoint, gridPoints, inParallel } from '../differential/grid.ts';
import { History, readAll } from '../tool/history.ts';
import { Model } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_MODEL_SEQUENCES', 120);
const STEPS = 25;
const ROUNDS = 4;
const MIX = { snapshots: 0.12, resize: 0, qemu: 0 };

/** The list of `qemu-img amend -o` that says the same. */
function optionsOf({ version, refcountBits, lazyRefcounts, size }: AmendRequest): string {
  const options: Record<string, string | number> = {};
  if (version !== undefined) options['compat'] = version === 2 ? '0.10' : '1.1';
  if (refcountBits !== undefined) options['refcount_bits'] = refcountBits;
  if (lazyRefcounts !== undefined) options['lazy_refcounts'] = lazyRefcounts ? 'on' : 'off';
  if (size !== undefined) options['size'] = size;
  return qemu.optionList(options);
}

function randomRequest(random: Random, size: number): AmendRequest {
  const request: { -readonly [K in keyof AmendRequest]: AmendRequest[K] } = {};
  if (random.chance(0.5)) request.version = random.pick([2, 3]);
  if (random.chance(0.5)) request.refcountBits = random.pick([1, 2, 4, 8, 16, 16, 32, 64]);
  if (random.chance(0.3)) request.lazyRefcounts = random.chance(0.5);
  const sized = request.version === undefined && random.chance(0.3);
  if (sized || Object.keys(request).length === 0) {
    request.size = Math.max(
      512,
      random.pick([size + 70_144, size - 70_144, 2 * size, size / 2 - ((size / 2) % 512)]),
    );
    request.shrink = true;
  }
  return request;
}

async function specific(path: string): Promise<unknown> {
  const { 'format-specific': found, 'virtual-size': size } = (await qemu.info(path)) as Record<
    string,
    unknown
  >;
  return { found, size };
}

async function clean(path: string): Promise<void> {
  expect((await checkFile(path, { format: 'qcow2' })).problems).toEqual([]);
  const judged = await qemu.check(path);
  expect(judged.code, judged.stderr).toBe(0);
}

/** Amends an image by us, and a copy of it by qemu; expects the same answer. Whether it was done. */
async function bothAmend(history: History, request: AmendRequest, log: string[]): Promise<boolean> {
  const { path } = history;
  const options = optionsOf(request);
  const copy = `${path}.copy`;
  copyFileSync(path, copy);
  const before = readFileSync(path);
  log.push(`amend ${options}`);
  const { code, stderr } = await qemu.qemuImg(['amend', '-f', 'qcow2', '-o', options, copy], {
    expect: [0, 1],
  });
  let refusal: unknown;
  await amend(path, { ...request, format: 'qcow2' }).catch((error: unknown) => (refusal = error));
  if (refusal !== undefined) {
    if (!isSpindleError(refusal)) throw refusal;
    log.push(`(${refusal.code})`);
    expect(Buffer.compare(readFileSync(path), before), `changed, though refused: ${refusal.message}`).toBe(0);
    // qemu forgets lazy refcounts without a word where the version has none.
    const contradicts = request.version === 2 && request.lazyRefcounts === true;
    // qemu looks for compressed clusters in the disk, not in its snapshots, which it then cannot read any more.
    const overlooked = history.snapshots.length > 0 && refusal.message.includes('compressed with zstd');
    if (!contradicts && !overlooked) expect(code, `we refuse: ${refusal.message}`).toBe(1);
    return false;
  }
  expect(code, `qemu refuses: ${stderr}`).toBe(0);
  await clean(path);
  expect(await specific(path)).toEqual(await specific(copy));
  // What qemu made of it is for us what it is for qemu, which at times leaves a copied flag that is wrong.
  const { corruptions, leaks } = await checkFile(copy, { format: 'qcow2' });
  const { json } = await qemu.check(copy);
  expect({ corruptions, leaks }).toEqual({ corruptions: json?.corruptions ?? 0, leaks: json?.leaks ?? 0 });
  const [ours, theirs] = await Promise.all(
    [path, copy].map((one) => openImageFile(one, { format: 'qcow2' })),
  );
  try {
    expect(Buffer.compare(await readAll(ours!), await readAll(theirs!))).toBe(0);
  } finally {
    await Promise.all([ours!.close(), theirs!.close()]);
    rmSync(copy);
  }
  return true;
}

qemu.describeWithQemu('amending', () => {
  it(
    `${String(SEQUENCES)} images, ${String(ROUNDS)} random changes each, agree with qemu and keep all data`,
    { timeout: 3_600_000 },
    async () => {
      const dir = tempDir();
      const random = new Random(seedOf('amend'));
      const points = gridPoints().filter(({ clusterSize }) => clusterSize <= 65536);
      const cases = Array.from({ length: SEQUENCES }, (_, index) => ({ index, seed: random.u32() }));
      const done = { changed: 0, refused: 0 };
      await inParallel(cases, 3, async ({ index, seed }) => {
        const own = new Random(seed);
        const point = own.pick(points);
        const history = await History.make(dir, String(index), point, own);
        const log: string[] = [];
        try {
          for (let i = 0; i < STEPS; i++) await history.run(history.next(MIX));
          for (let i = 0; i < ROUNDS; i++) {
            await history.image.close();
            const request = randomRequest(own, history.model.size);
            const changed = await bothAmend(history, request, log);
            done[changed ? 'changed' : 'refused']++;
            history.image = await openImageFile(history.path, { format: 'qcow2', write: true });
            if (changed && request.size !== undefined) {
              const bytes = new Uint8Array(request.size);
              bytes.set(history.model.bytes.subarray(0, request.size));
              history.model = new Model(bytes);
            }
            for (let k = 0; k < 3; k++) await history.run(history.next({ snapshots: 0, resize: 0, qemu: 0 }));
          }
          await history.judge();
        } catch (error) {
          throw new Error(
            `${describePoint(point)}, sequence ${String(index)}: ${log.slice(-9).join(' ')} (SPINDLE_SEED=${String(random.seed)}): ${String(error)}`,
            { cause: error },
          );
        } finally {
          await history.close();
        }
      });
      expect(done.changed).toBeGreaterThan(SEQUENCES);
      expect(done.refused).toBeGreaterThan(SEQUENCES / 4);
    },
  );

  it.each([512, 4096, 65536, 2097152])(
    'every width of refcounts becomes every other (clusters of %i)',
    { timeout: 600_000 },
    async (clusterSize) => {
      const path = join(tempDir(), 'width.qcow2');
      const size = Math.min(64 * 1024 * 1024, clusterSize * 2048);
      await qemu.create(path, size, { options: { cluster_size: clusterSize } });
      const length = Math.min(size, 4 * 1024 * 1024);
      await qemu.fill(path, [{ do: 'write', at: 0, length, pattern: 9 }]);
      const widths = [1, 2, 4, 8, 16, 32, 64];
      let now = 16;
      for (const from of widths)
        for (const to of widths) {
          // Large blocks take long to look through.
          if (from === to || (clusterSize > 65536 && from !== 1)) continue;
          for (const refcountBits of [from, to]) {
            if (refcountBits === now) continue;
            await amend(path, { refcountBits });
            now = refcountBits;
            expect((await checkFile(path)).problems).toEqual([]);
          }
          expect((await qemu.check(path)).code).toBe(0);
        }
      expect(await qemu.holds(path, { at: 0, length, pattern: 9 })).toBe(true);
      // The old structures were given back.
      expect((await info(path)).qcow2?.refcountBits).toBe(now);
      expect(readFileSync(path).length).toBeLessThan(3 * length + 64 * clusterSize);
    },
  );

  it('a refcount that is too large for the new width is refused, with its place, and nothing changes', async () => {
    const path = join(tempDir(), 'shared.qcow2');
    await qemu.create(path, '1M', { options: { cluster_size: 4096 } });
    await qemu.fill(path, [{ do: 'write', at: 0, length: 65536, pattern: 7 }]);
    for (let i = 0; i < 4; i++) await createSnapshot(path, `s${String(i)}`);
    const before = readFileSync(path);
    for (const refcountBits of [1, 2]) {
      await expect(amend(path, { refcountBits, lazyRefcounts: true })).rejects.toMatchObject({
        code: 'LIMIT',
        message: /has 5 references/,
      });
      expect(Buffer.compare(readFileSync(path), before)).toBe(0);
    }
    await amend(path, { refcountBits: 4 });
    await clean(path);
  });

  it('zero clusters of every kind become data or nothing, and nothing of the backing file shows', async () => {
    for (const backed of [false, true])
      for (const clusterSize of [512, 4096, 65536]) {
        const dir = tempDir();
        const path = join(dir, 'zero.qcow2');
        const unit = clusterSize;
        const size = 64 * unit;
        const base = join(dir, 'base.raw');
        writeFileSync(base, Buffer.alloc(size, 0xbb));
        const backing = backed ? { backing: { path: base, format: 'raw' } } : {};
        await qemu.create(path, size, { options: { cluster_size: clusterSize }, ...backing });
        await qemu.fill(path, [
          { do: 'write', at: 0, length: 16 * unit, pattern: 1 },
          { do: 'zero', at: 0, length: 2 * unit },
          { do: 'zero', at: 4 * unit, length: 2 * unit, unmap: true },
          { do: 'zero', at: 40 * unit, length: 2 * unit },
        ]);
        await createSnapshot(path, 'first');
        // Allocated zeroes whose place holds data of the snapshot: it must not be written to.
        await qemu.fill(path, [
          { do: 'zero', at: 8 * unit, length: 2 * unit },
          { do: 'write', at: 20 * unit, length: unit, pattern: 2 },
        ]);
        await createSnapshot(path, 'second');
        await qemu.fill(path, [{ do: 'discard', at: 10 * unit, length: unit }]);
        const contents = async (): Promise<Uint8Array[]> => {
          const found: Uint8Array[] = [];
          for (const snapshot of [undefined, '1', '2']) {
            const image = await openImageFile(path, { format: 'qcow2', snapshot });
            found.push(await readAll(image));
            await image.close();
          }
          return found;
        };
        const before = await contents();
        expect(before[0]!.subarray(8 * unit, 10 * unit).every((byte) => byte === 0)).toBe(true);
        expect(before[1]!.subarray(8 * unit, 10 * unit).every((byte) => byte === 1)).toBe(true);
        await amend(path, { version: 2 });
        await clean(path);
        const after = await contents();
        for (const [index, bytes] of before.entries()) expect(Buffer.compare(after[index]!, bytes)).toBe(0);
        const raw = join(dir, 'out.raw');
        for (const [index, id] of [undefined, '1', '2'].entries()) {
          await qemu.convert(path, raw, id === undefined ? {} : { more: ['-l', `snapshot.id=${id}`] });
          expect(Buffer.compare(readFileSync(raw), before[index]!)).toBe(0);
        }
        // And back: version 3 sees the same.
        await amend(path, { version: 3 });
        await clean(path);
        for (const [index, bytes] of (await contents()).entries())
          expect(Buffer.compare(bytes, before[index]!)).toBe(0);
      }
  });

  it('refuses what cannot be, before anything is changed', async () => {
    const dir = tempDir();
    const make = async (
      name: string,
      options: Record<string, string | number>,
      work: readonly qemu.Fill[] = [],
    ): Promise<string> => {
      const path = join(dir, name);
      await qemu.create(path, '2M', { options });
      if (work.length > 0) await qemu.fill(path, work);
      return path;
    };
    const plain = await make('plain', {});
    const old = await make('old', { compat: 'v2' });
    const narrow = await make('narrow', { refcount_bits: 8 });
    const extended = await make('extended', { extended_l2: 'on' });
    const external = await make('external', { data_file: join(dir, 'data') });
    const zstd = await make('zstd', { compression_type: 'zstd' }, [
      { do: 'compress', at: 0, length: 65536, pattern: 1 },
    ]);
    const marked = await make('marked', {});
    await qemu.bitmap(marked, 'b', ['--add']);
    const resized = await make('resized', {});
    await createSnapshot(resized, 'a');
    await qemu.qemuImg(['resize', '-q', resized, '4M']);
    const raw = join(dir, 'raw');
    await qemu.create(raw, '1M', { format: 'raw' });
    const refused: readonly (readonly [path: string, request: AmendRequest, code: string])[] = [
      [plain, {}, 'BAD_OPTION'],
      [plain, { refcountBits: 3 }, 'BAD_OPTION'],
      [plain, { refcountBits: 128 }, 'BAD_OPTION'],
      [plain, { version: 2, refcountBits: 8 }, 'BAD_OPTION'],
      [plain, { version: 2, lazyRefcounts: true }, 'BAD_OPTION'],
      [plain, { dataFile: 'x', force: true }, 'BAD_OPTION'],
      [plain, { dataFile: '' }, 'BAD_OPTION'],
      [plain, { dataFileRaw: true }, 'BAD_OPTION'],
      [plain, { backing: { name: 'base' } }, 'BAD_OPTION'],
      [plain, { backing: { format: 'raw' } }, 'BAD_OPTION'],
      [plain, { size: 1024 * 1024, refcountBits: 64 }, 'BAD_OPTION'],
      [plain, { size: 1000, shrink: true, refcountBits: 64 }, 'BAD_SIZE'],
      [plain, { size: 2 ** 52, version: 2 }, 'LIMIT'],
      [plain, { keySlots: { state: 'inactive', slot: 0 }, lazyRefcounts: true }, 'UNSUPPORTED'],
      [old, { lazyRefcounts: true }, 'BAD_OPTION'],
      [old, { refcountBits: 32 }, 'BAD_OPTION'],
      [narrow, { version: 2 }, 'BAD_OPTION'],
      [extended, { version: 2 }, 'BAD_OPTION'],
      [external, { version: 2 }, 'BAD_OPTION'],
      [external, { dataFileRaw: true }, 'BAD_OPTION'],
      [external, { dataFile: join(dir, 'nowhere') }, 'DATA_FILE_NOT_FOUND'],
      [external, { dataFile: raw }, 'BAD_OPTION'],
      [external, { dataFile: '' }, 'BAD_OPTION'],
      [zstd, { version: 2 }, 'BAD_OPTION'],
      [marked, { version: 2 }, 'BAD_OPTION'],
      [resized, { version: 2 }, 'BAD_OPTION'],
      [raw, { size: 2 ** 21 }, 'UNSUPPORTED'],
    ];
    for (const [path, request, code] of refused) {
      const before = readFileSync(path);
      await expect(amend(path, request), JSON.stringify(request)).rejects.toMatchObject({ code });
      expect(Buffer.compare(readFileSync(path), before), JSON.stringify(request)).toBe(0);
    }
    // Without compressed clusters the type of compression is no obstacle.
    const empty = await make('empty', { compression_type: 'zstd' }, [
      { do: 'write', at: 0, length: 65536, pattern: 1 },
    ]);
    await amend(empty, { version: 2 });
    await clean(empty);
    // What is so already is no change.
    const before = readFileSync(plain);
    await amend(plain, {
      version: 3,
      refcountBits: 16,
      lazyRefcounts: false,
      dataFileRaw: false,
      size: 2 ** 21,
    });
    expect(Buffer.compare(readFileSync(plain), before)).toBe(0);
  });

  it('records where a data file went, whatever the length of its name', { timeout: 300_000 }, async () => {
    for (const clusterSize of [512, 4096, 65536]) {
      const dir = tempDir();
      const path = join(dir, 'disk.qcow2');
      let name = 'a';
      await qemu.create(path, '1M', { options: { cluster_size: clusterSize, data_file: join(dir, name) } });
      await qemu.fill(path, [{ do: 'write', at: 0, length: 65536, pattern: 5 }]);
      for (const length of [1, 60, 110, 200, 30, 2]) {
        const next = String.fromCharCode(98 + (length % 20)).repeat(length);
        renameSync(join(dir, name), join(dir, next));
        name = next;
        await amend(path, { dataFile: join(dir, name) });
        expect((await info(path)).qcow2?.dataFile).toBe(join(dir, name));
        await clean(path);
        expect(await qemu.holds(path, { at: 0, length: 65536, pattern: 5 })).toBe(true);
      }
      const before = readFileSync(path);
      await expect(amend(path, { dataFile: 'x'.repeat(500), force: true })).rejects.toMatchObject({
        code: 'LIMIT',
      });
      expect(Buffer.compare(readFileSync(path), before)).toBe(0);
      // A name for later, and none; then only amend opens the image.
      await amend(path, { dataFile: 'later', force: true });
      expect((await info(path)).qcow2?.dataFile).toBe('later');
      renameSync(join(dir, name), join(dir, 'later'));
      await amend(path, { dataFile: '', force: true });
      await expect(openImageFile(path)).rejects.toMatchObject({ code: 'DATA_FILE_NOT_FOUND' });
      await amend(path, { dataFile: join(dir, 'later') });
      await clean(path);
    }
  });

  it('a raw data file need not stay one', async () => {
    const path = join(tempDir(), 'disk.qcow2');
    const data = join(tempDir(), 'data');
    await qemu.create(path, '1M', { options: { data_file: data, data_file_raw: 'on' } });
    await amend(path, { dataFileRaw: true });
    expect((await info(path)).qcow2?.dataFileRaw).toBe(true);
    await amend(path, { dataFileRaw: false, lazyRefcounts: true });
    expect(await qemu.info(path)).toMatchObject({
      'format-specific': { data: { 'data-file-raw': false, 'lazy-refcounts': true } },
    });
    await clean(path);
  });

  it.each([0, 1, 100, 300, 340, 370, 450, 900, 1000])(
    'a backing file name of about %i bytes survives both ways',
    async (length) => {
      for (const clusterSize of [512, 1024, 4096, 65536]) {
        const dir = tempDir();
        const name =
          length === 0
            ? 'b'
            : `./${'d/'.repeat((length - 1) / 2)}b`.replaceAll(/(d\/)+/g, (all) =>
                // The same directory again and again.
                './'.repeat(all.length / 2),
              );
        writeFileSync(join(dir, 'b'), Buffer.alloc(65536, 0xab));
        const path = join(dir, 'disk.qcow2');
        const made = await qemu.qemuImg(
          [
            'create',
            '-q',
            '-f',
            'qcow2',
            '-u',
            '-b',
            name,
            '-F',
            'raw',
            '-o',
            `compat=v2,cluster_size=${String(clusterSize)}`,
            path,
            '65536',
          ],
          { expect: [0, 1] },
        );
        // Small clusters do not have room for every name.
        if (made.code !== 0) continue;
        for (const version of [3, 2, 3, 2] as const) {
          const before = readFileSync(path);
          try {
            await amend(path, { version });
          } catch (error) {
            // Refused only where there is no room for the name a second time.
            expect(isSpindleError(error, 'LIMIT') && clusterSize < 2 * name.length + 300, String(error)).toBe(
              true,
            );
            expect(Buffer.compare(readFileSync(path), before)).toBe(0);
            break;
          }
          expect(await qemu.info(path)).toMatchObject({
            'backing-filename': name,
            'backing-filename-format': 'raw',
            'format-specific': { data: { compat: version === 2 ? '0.10' : '1.1' } },
          });
          await clean(path);
          expect(await qemu.holds(path, { at: 0, length: 65536, pattern: 0xab })).toBe(true);
        }
      }
    },
  );

  it('an image that qemu left dirty is repaired first', async () => {
    const path = join(tempDir(), 'dirty.qcow2');
    await qemu.create(path, '1M', { options: { lazy_refcounts: 'on', cluster_size: 4096 } });
    await qemu.fill(path, [
      { do: 'write', at: 0, length: 262_144, pattern: 3 },
      { do: 'flush' },
      { do: 'kill' },
    ]);
    await amend(path, { refcountBits: 2, lazyRefcounts: false });
    await clean(path);
    expect(await qemu.info(path)).toMatchObject({ 'format-specific': { data: { 'refcount-bits': 2 } } });
    expect(await qemu.holds(path, { at: 0, length: 262_144, pattern: 3 })).toBe(true);
  });
});
