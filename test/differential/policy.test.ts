import { closeSync, openSync } from 'node:fs';
import { readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../src/core/allocation.ts';
import { native } from '../../src/native/binding.ts';
import { create, type Qcow2Options } from '../../src/op/create.ts';
import type { HostUsage } from '../../src/op/host-usage.ts';
import { infoJson } from '../../src/op/info-json.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile } from '../../src/op/open.ts';
import { outcome } from '../native/help.ts';
import { allocatedBytes, blockRuns, bytesIn, joined, type BlockRun } from '../tool/extents.ts';
import { FILE_SYSTEMS, fileSystemMissing, SMALLEST, withFileSystem } from '../tool/filesystem.ts';
import * as qemu from '../tool/qemu.ts';

/*
 * What the host holds is judged by st_blocks and by filefrag, where guest bytes lie in a qcow2 file by qemu-img map.
 */

const KIB = 1024;
const MIB = 1024 * KIB;

/** A kind of image. */
interface Variant {
  readonly name: string;
  readonly format: 'raw' | 'qcow2';
  readonly qcow2?: Omit<Qcow2Options, 'dataFile'>;
  readonly dataFile?: true;
}

const VARIANTS: readonly Variant[] = [
  { name: 'raw', format: 'raw' },
  { name: 'qcow2', format: 'qcow2' },
  { name: 'qcow2-4k', format: 'qcow2', qcow2: { clusterSize: 4 * KIB } },
  { name: 'qcow2-extended', format: 'qcow2', qcow2: { clusterSize: 128 * KIB, extendedL2: true } },
  { name: 'qcow2-data', format: 'qcow2', dataFile: true },
  { name: 'qcow2-data-raw', format: 'qcow2', dataFile: true, qcow2: { dataFileRaw: true } },
];

const SIZES = [1000, MIB + 512, 9 * MIB + 5 * KIB, 24 * MIB];

/** An image that was made, and the file that holds its guest data. */
interface Made {
  readonly path: string;
  readonly data: string;
  readonly size: number;
}

async function make(
  folder: string,
  variant: Variant,
  size: number,
  allocation: AllocationPolicy,
): Promise<Made> {
  const path = join(folder, `${variant.name}-${String(size)}-${allocation}`);
  const data = variant.dataFile === true ? `${path}.data` : path;
  const qcow2 = { ...variant.qcow2, ...(variant.dataFile === true ? { dataFile: data } : {}) };
  const { format } = variant;
  const made = await create({ path, format, size, allocation, ...(format === 'raw' ? {} : { qcow2 }) });
  return { path, data, size: made.size };
}

async function usage({ path }: Made, { format }: Variant): Promise<HostUsage> {
  const { allocation } = await info(path, { format, allocation: true });
  if (allocation === null) throw new Error('info tells no allocation');
  const { written, unwritten, delayed, hole, unmapped, compressed, size } = allocation;
  expect(written + unwritten + delayed + hole + unmapped + compressed, 'the sum of all kinds').toBe(size);
  expect(delayed + compressed).toBe(0);
  return allocation;
}

/** Expects that our own FIEMAP says what filefrag says. */
async function expectSameRuns(path: string, judged: readonly BlockRun[]): Promise<void> {
  const { size } = await stat(path);
  const fd = openSync(path, 'r');
  try {
    const extents = await native().fiemap(fd, 0, size, 1e6, true);
    const ours = extents.map(({ logical, length, unwritten }) => ({
      start: logical,
      end: Math.min(logical + length, size),
      unwritten,
    }));
    expect(joined(ours)).toEqual(judged);
  } finally {
    closeSync(fd);
  }
}

/** Where qemu-img says that guest data lies, as far as it says so. */
async function guestRanges({ path }: Made, { format }: Variant): Promise<[from: number, to: number][]> {
  const map = await qemu.map(path, { format });
  return map.flatMap(({ offset, length }) => (offset === undefined ? [] : [[offset, offset + length]]));
}

async function expectThin(made: Made, variant: Variant): Promise<void> {
  const runs = await blockRuns(made.data);
  await expectSameRuns(made.data, runs);
  if (made.data !== made.path || variant.format === 'raw') {
    expect(runs, 'no block holds guest data').toEqual([]);
    expect(await allocatedBytes(made.data)).toBe(0);
  } else {
    const mapped = await guestRanges(made, variant);
    expect(mapped, 'nothing is mapped').toEqual([]);
    expect((await stat(made.path)).size, 'metadata only').toBeLessThanOrEqual(MIB);
  }
  const told = await usage(made, variant);
  expect(told).toMatchObject({ policy: 'thin', written: 0, unwritten: 0 });
}

/** Expects that the file that holds guest data has no hole, and as many blocks as that takes. */
async function expectThick(made: Made): Promise<BlockRun[]> {
  const runs = await blockRuns(made.data);
  await expectSameRuns(made.data, runs);
  const { size } = await stat(made.data);
  expect(size).toBeGreaterThanOrEqual(made.size);
  expect(bytesIn(runs, true) + bytesIn(runs, false), 'every byte has its block').toBe(size);
  expect(await allocatedBytes(made.data), 'st_blocks').toBeGreaterThanOrEqual(made.size);
  return runs;
}

async function expectLazy(made: Made, variant: Variant): Promise<void> {
  const runs = await expectThick(made);
  // All blocks but those of the metadata: nothing of the guest's was written.
  const { size } = await stat(made.data);
  const written = bytesIn(runs, false);
  if (variant.format === 'raw' || made.data !== made.path) expect(written, 'nothing is written').toBe(0);
  else expect(written, 'only metadata is written').toBeLessThanOrEqual(size - made.size);
  for (const [from, to] of await guestRanges(made, variant)) {
    expect(bytesIn(runs, false, from, to), 'written guest data').toBe(0);
  }
  expect(await usage(made, variant)).toMatchObject({
    policy: 'thick-lazy',
    unwritten: made.size,
    written: 0,
  });
}

async function expectEager(made: Made, variant: Variant): Promise<void> {
  const runs = await expectThick(made);
  expect(bytesIn(runs, true), 'unwritten').toBe(0);
  expect(await usage(made, variant)).toMatchObject({
    policy: 'thick-eager',
    written: made.size,
    unwritten: 0,
  });
}

const EXPECT = { thin: expectThin, 'thick-lazy': expectLazy, 'thick-eager': expectEager } as const;

/** Names the image in a failure. */
async function about<T>(made: Made, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Error) error.message = `${made.path}: ${error.message}`;
    throw error;
  }
}

/** A guest write in the middle of a lazy image, then a discard of a part of it and of what was never written. */
async function expectUse(made: Made, variant: Variant): Promise<void> {
  const at = 4 * MIB;
  const length = 2 * MIB;
  const raw = variant.format === 'raw';
  if (raw) {
    const image = await openImageFile(made.path, { format: 'raw', write: true });
    await image.write(new Uint8Array(length).fill(0x5a), at);
    await image.flush();
    await image.close();
  } else {
    await qemu.fill(made.path, [{ do: 'write', at, length, pattern: 0x5a }]);
  }
  const used = await usage(made, variant);
  expect(used.policy).toBe('thick-lazy');
  // File systems may write out what lies beside the data, in small measure.
  expect(used.written).toBeGreaterThanOrEqual(length);
  expect(used.written).toBeLessThanOrEqual(length + 256 * KIB);
  expect(used.unwritten).toBe(made.size - used.written);
  const runs = await expectThick(made);
  if (raw) expect([used.written, used.unwritten]).toEqual([bytesIn(runs, false), bytesIn(runs, true)]);

  const before = await allocatedBytes(made.data);
  if (raw) {
    const image = await openImageFile(made.path, { format: 'raw', write: true });
    await image.discard(at + MIB, 2 * MIB);
    await image.flush();
    await image.close();
  } else {
    const source = ['-d', 'unmap', '-f', 'qcow2', made.path];
    await qemu.fill(made.path, [{ do: 'discard', at: at + MIB, length: 2 * MIB }], { source });
  }
  const rest = await usage(made, variant);
  expect(rest.hole + rest.unmapped, 'discarded').toBe(2 * MIB);
  expect(rest.policy, 'some of it is reserved, some is not').toBe('mixed');
  const punched = await blockRuns(made.data);
  await expectSameRuns(made.data, punched);
  if (raw) {
    expect(bytesIn(punched, true, at + MIB, at + 3 * MIB)).toBe(0);
    expect(bytesIn(punched, false, at + MIB, at + 3 * MIB)).toBe(0);
  }
  // A file in more pieces may take a block more for the list of them. On btrfs an extent goes when none of it is needed any more.
  if ((await fileSystemOf(made.data)) !== 'btrfs') {
    expect(await allocatedBytes(made.data)).toBeLessThanOrEqual(before - 2 * MIB + 64 * KIB);
  }
  expect(await qemu.holds(made.path, { at, length: MIB, pattern: 0x5a }, variant)).toBe(true);
  expect(await qemu.holds(made.path, { at: at + MIB, length: MIB, pattern: 0 }, variant)).toBe(true);
}

async function fileSystemOf(path: string): Promise<string> {
  return (await qemu.run('stat', ['-f', '-c', '%T', path])).stdout.trim();
}

for (const type of FILE_SYSTEMS) {
  const missing = fileSystemMissing(type) ?? qemu.qemuMissing();
  qemu.describeUnlessMissing(`allocation policies on ${type}`, missing, () => {
    it.for(ALLOCATION_POLICIES)('%s is what the host holds', { timeout: 300_000 }, async (policy) => {
      await withFileSystem(type, 600, async (folder) => {
        for (const variant of VARIANTS) {
          // A data file that is the raw disk is mapped at once: thin then is preallocation=metadata.
          const mapped = variant.qcow2?.dataFileRaw === true && policy === 'thin';
          for (const size of SIZES) {
            const made = await make(folder, variant, size, policy);
            await about(made, async () => {
              if (mapped) expect((await usage(made, variant)).policy).toBe('thin');
              await EXPECT[policy](made, variant);
              if (variant.format === 'qcow2') expect((await qemu.check(made.path)).code).toBe(0);
            });
            await rm(made.data);
            await rm(made.path, { force: true });
          }
        }
      });
    });

    it('a lazy image in use stays lazy, and shows what was written', { timeout: 300_000 }, async () => {
      await withFileSystem(type, 600, async (folder) => {
        for (const variant of VARIANTS) {
          const made = await make(folder, variant, 24 * MIB + 512, 'thick-lazy');
          await about(made, () => expectUse(made, variant));
        }
      });
    });

    it('a thin image in use stays thin', { timeout: 300_000 }, async () => {
      await withFileSystem(type, 600, async (folder) => {
        for (const variant of VARIANTS) {
          const made = await make(folder, variant, 24 * MIB, 'thin');
          // Parts of clusters, and of the 1 MiB in which XFS gives space: the rest of each stays unwritten.
          await qemu.fill(
            made.path,
            [1, 7, 8, 15].map((i) => ({
              do: 'write',
              at: i * MIB + 20 * KIB,
              length: 4 * KIB,
              pattern: 0xc3,
            })),
            { format: variant.format },
          );
          const told = await about(made, () => usage(made, variant));
          expect(told.policy, made.path).toBe('thin');
          expect(told.written, made.path).toBeGreaterThanOrEqual(4 * 4 * KIB);
        }
      });
    });

    it('too little space: NO_SPACE, and nothing has changed', { timeout: 300_000 }, async () => {
      await withFileSystem(type, SMALLEST[type], async (folder) => {
        const size = 1024 * MIB;
        const variants = VARIANTS.filter(({ qcow2 }) => qcow2 === undefined);
        const before = await readdir(folder);
        for (const variant of variants) {
          for (const policy of ['thick-lazy', 'thick-eager'] as const) {
            const failed = await outcome(() => make(folder, variant, size, policy));
            expect(failed, `${variant.name} ${policy}`).toEqual({ code: 'NO_SPACE' });
            expect(await readdir(folder), 'nothing is left behind').toEqual(before);
            const path = join(folder, `${variant.name}-${String(size)}-${policy}`);
            const old = variant.dataFile === true ? [path, `${path}.data`] : [path];
            for (const file of old) await writeFile(file, `this was there before: ${file}`);
            expect(await outcome(() => make(folder, variant, size, policy))).toEqual({ code: 'NO_SPACE' });
            for (const file of old) {
              expect(await readFile(file, 'utf8')).toBe(`this was there before: ${file}`);
              await rm(file);
            }
            expect(await readdir(folder), 'nothing is left behind').toEqual(before);
          }
          const made = await make(folder, variant, size, 'thin');
          expect((await usage(made, variant)).policy).toBe('thin');
          await rm(made.data);
          await rm(made.path, { force: true });
        }
      });
    });

    it('the switches of the file system are set as qemu-img sets them', { timeout: 300_000 }, async () => {
      await withFileSystem(type, SMALLEST[type], async (folder) => {
        const [path, data] = [join(folder, 'ours'), join(folder, 'ours.data')];
        const theirs = { path: join(folder, 'theirs'), data: join(folder, 'theirs.data') };
        for (const hint of [undefined, 0, 65_536, 2 * MIB, 1000]) {
          for (const noCow of [undefined, true]) {
            // What qemu-img replaces keeps its switches.
            for (const file of Object.values(theirs)) await rm(file, { force: true });
            const warnings: string[] = [];
            const request = { path, format: 'qcow2', size: MIB, qcow2: { dataFile: data } };
            await create({
              ...request,
              noCow,
              extentSizeHint: hint,
              onWarning: (message) => warnings.push(message),
            });
            await qemu.create(theirs.path, MIB, {
              options: {
                data_file: theirs.data,
                ...(noCow === true ? { nocow: 'on' } : {}),
                ...(hint === undefined ? {} : { extent_size_hint: hint }),
              },
            });
            const seen = [path, data].map(switches);
            expect(await Promise.all(seen), String(hint)).toEqual(
              await Promise.all([theirs.path, theirs.data].map(switches)),
            );
            const fails = hint !== undefined && hint > 0 && (type !== 'xfs' || hint === 1000);
            expect(warnings.length > 0, `a warning for ${String(hint)}`).toBe(fails);
            for (const file of [path, data]) {
              const format = file === path ? 'qcow2' : 'raw';
              expect(infoJson(await info(file, { format }))).toEqual(await qemu.info(file, { format }));
            }
          }
        }
      });
    });
  });
}

/** The attribute letters and the extent size hint of a file, by their own tools. */
async function switches(path: string): Promise<{ noCow: boolean; hint: string }> {
  const { stdout } = await qemu.run('lsattr', ['-d', path]);
  const hint = await qemu.run('xfs_io', ['-r', '-c', 'extsize', path], { expect: 'any' });
  return {
    noCow: stdout.split(' ')[0]?.includes('C') === true,
    hint: hint.stdout.replace(path, '').trim(),
  };
}
