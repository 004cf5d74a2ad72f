import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { bytesOf } from '../../src/core/bytes.ts';
import { isSpindleError } from '../../src/core/errors.ts';
import type { Image } from '../../src/format/image.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { create } from '../../src/op/create.ts';
import { addKey } from '../../src/op/keys.ts';
import { openImageFile, secretOf } from '../../src/op/open.ts';
import { repairFile } from '../../src/op/repair.ts';
import { resize } from '../../src/op/resize.ts';
import { applySnapshot, createSnapshot, deleteSnapshot, listSnapshots } from '../../src/op/snapshots.ts';
import { openFile } from '../../src/storage/file.ts';
import { content } from '../tool/compressed.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';
import { firstDifference } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;
const CLUSTER = 65536;
const SIZE = 40 * MIB;

/** What a disk and its snapshots hold. */
interface Seen {
  readonly disk: Uint8Array;
  readonly snapshots: ReadonlyMap<string, Uint8Array>;
}

/** Reads the disk, up to the size that it had at first: it may have become much larger. */
async function readSeen(path: string): Promise<Seen> {
  const whole = async (snapshot?: string): Promise<Uint8Array> => {
    const image = await openImageFile(path, { format: 'qcow2', snapshot });
    const bytes = new Uint8Array(Math.min(image.size, SIZE));
    await image.read(bytes, 0);
    await image.close();
    return bytes;
  };
  const snapshots = new Map<string, Uint8Array>();
  for (const { id } of await listSnapshots(path)) snapshots.set(id, await whole(id));
  return { disk: await whole(), snapshots };
}

/** Something that needs space. */
interface Case {
  readonly run: (path: string, random: Random) => Promise<void>;
  /** The same so that it fits when there is space. Default: it does. */
  readonly smaller?: (path: string) => Promise<void>;
  /** It needs so little that it may find it in what the file has. */
  readonly fits?: boolean;
  /** The part of the disk that it changes; everything else must stay. Default: none. */
  readonly changes?: readonly [at: number, length: number];
  /** The ids of snapshots that it may remove or add. */
  readonly snapshots?: readonly string[];
  /** What is done to the image before. */
  readonly before?: (path: string) => Promise<void>;
}

async function writing(path: string, work: (image: Image) => Promise<void>): Promise<void> {
  const image = await openImageFile(path, { format: 'qcow2', write: true });
  try {
    await work(image);
    await image.flush();
  } finally {
    await image.close();
  }
}

/** Refcounts that are lost, and their place with them: all of them have to be written anew, elsewhere. */
async function loseRefcounts(path: string): Promise<void> {
  const storage = await openFile(path, { write: true });
  const { header } = await readMetadata(storage, 'check');
  await storage.write(Uint8Array.of(2), header.refcountTableOffset + 6);
  await storage.close();
}

const CASES: Readonly<Record<string, Case>> = {
  'compressed writes': {
    changes: [16 * MIB, 16 * MIB],
    run: (path, random) =>
      writing(path, async (image) => {
        for (let at = 16 * MIB; at < 32 * MIB; at += 4 * CLUSTER)
          await image.writeCompressed?.(content(random, 4 * CLUSTER, 0.6), at);
      }),
  },
  'writes to shared clusters': {
    changes: [0, 8 * MIB],
    run: (path, random) =>
      writing(path, async (image) => {
        for (let at = 0; at < 8 * MIB; at += CLUSTER) await image.write(random.bytes(512), at + 512);
      }),
  },
  'zeroes in parts of shared clusters': {
    changes: [0, 8 * MIB],
    run: (path) =>
      writing(path, async (image) => {
        for (let at = 0; at < 8 * MIB; at += CLUSTER) await image.zero(at + 1024, 2048);
      }),
  },
  discards: {
    fits: true,
    changes: [0, 12 * MIB],
    run: (path) => writing(path, (image) => image.discard(0, 12 * MIB)),
  },
  'snapshot create': {
    snapshots: ['3'],
    run: async (path) => {
      await createSnapshot(path, 'new', { id: '3' });
    },
  },
  'snapshot apply': { fits: true, changes: [0, SIZE], run: (path) => applySnapshot(path, '1') },
  'snapshot delete': { snapshots: ['1'], run: (path) => deleteSnapshot(path, '1') },
  ...Object.fromEntries(
    (['metadata', 'falloc', 'full'] as const).map((preallocation): [string, Case] => [
      `resize, ${preallocation}`,
      {
        run: async (path) => {
          await resize(path, preallocation === 'metadata' ? 2 ** 36 : 90 * MIB, { preallocation });
        },
        smaller: async (path) => {
          await resize(path, SIZE + 8 * MIB, { preallocation });
        },
      },
    ]),
  ),
  'resize, off': {
    run: async (path) => {
      await resize(path, 2 ** 42);
    },
  },
  repair: {
    before: loseRefcounts,
    run: async (path) => {
      await repairFile(path, { mode: 'all' });
    },
  },
};

/** Fills a file system but for `left` bytes; gives the function that makes space again. */
async function fillUp(dir: string, left: number): Promise<() => void> {
  const ballast = join(dir, 'ballast');
  mkdirSync(ballast);
  const kept = await openFile(join(dir, 'kept'), { create: 'exclusive' });
  if (left > 0) await kept.reserve(0, left);
  for (let length = 32 * MIB, count = 0; length >= 4096; count++) {
    const file = await openFile(join(ballast, String(count)), { create: 'exclusive' });
    try {
      await file.reserve(0, length);
    } catch (error) {
      if (!isSpindleError(error, 'NO_SPACE')) throw error;
      await file.resize(0);
      length /= 2;
    } finally {
      await file.close();
    }
  }
  await kept.close();
  rmSync(join(dir, 'kept'));
  return () => {
    rmSync(ballast, { recursive: true });
  };
}

/** Runs something that a lack of space may stop; true when it did not. */
async function attempted(work: () => Promise<unknown>, context: string): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    expect(error, context).toMatchObject({ code: 'NO_SPACE' });
    expect((error as Error).message, context).toMatch(/space|full/i);
    return false;
  }
}

/** All that `was` is still there, but for what the case changes. */
function expectKept(now: Seen, was: Seen, one: Case, context: string): void {
  const [from, length] = one.changes ?? [0, 0];
  const [a, b] = [now.disk.slice(0, was.disk.length), was.disk.slice()];
  a.fill(0, from, from + length);
  b.fill(0, from, from + length);
  expect(firstDifference(a, b), context).toBe(-1);
  const ids = new Set([...was.snapshots.keys(), ...now.snapshots.keys()]);
  for (const id of ids) {
    const [before, after] = [was.snapshots.get(id), now.snapshots.get(id)];
    if (one.snapshots?.includes(id) === true && (before === undefined || after === undefined)) continue;
    expect(before !== undefined && after !== undefined, `${context}: snapshot ${id}`).toBe(true);
    expect(firstDifference(after ?? a, before ?? a), `${context}: snapshot ${id}`).toBe(-1);
  }
}

describeWithFileSystem('a full file system, in the middle of', 'ext4', () => {
  it('everything that changes an image', { timeout: 900_000 }, async () => {
    const dir = tempDir();
    const original = join(dir, 'original.qcow2');
    await qemu.create(original, SIZE);
    const random = new Random(seedOf('no space, whole'));
    await qemu.fill(original, [{ do: 'write', at: 0, length: 8 * MIB, pattern: 1 }]);
    await createSnapshot(original, 'one');
    await qemu.fill(original, [{ do: 'write', at: 4 * MIB, length: 8 * MIB, pattern: 2 }]);
    await createSnapshot(original, 'two');
    await qemu.fill(original, [{ do: 'write', at: 3 * MIB, length: MIB, pattern: 3 }]);
    const was = await readSeen(original);
    await withFileSystem('ext4', 64, async (mount) => {
      const path = join(mount, 'disk.qcow2');
      for (const [name, one] of Object.entries(CASES).filter(([n]) => n === 'repair')) {
        let failures = 0;
        for (const left of [0, 64 * 1024, MIB]) {
          const context = `${name} with ${String(left)} bytes left (SPINDLE_SEED=${String(random.seed)})`;
          // Free clusters have to be holes, or there would be room in them.
          await qemu.run('cp', ['--sparse=always', original, path]);
          await one.before?.(path);
          const makeSpace = await fillUp(mount, left);
          const seed = random.u32();
          const done = await attempted(() => one.run(path, new Random(seed)), context);
          if (!done) failures++;
          if (one.before === undefined || done) {
            const judged = await qemu.check(path);
            expect([0, 3], `${context}: ${judged.stderr}`).toContain(judged.code);
            expect((await checkFile(path)).corruptions, context).toBe(0);
          }
          const now = await readSeen(path);
          expectKept(now, was, one, context);
          makeSpace();
          const changed = done || (one.snapshots !== undefined && now.snapshots.size !== was.snapshots.size);
          if (!changed) await (one.smaller ?? one.run)(path, new Random(seed));
          expect([0, 3], context).toContain((await qemu.check(path)).code);
          expectKept(await readSeen(path), was, one, `${context}, with space`);
          rmSync(path);
        }
        if (one.fits !== true) expect(failures, name).toBeGreaterThan(0);
      }
    });
  });

  it('creating an image: nothing is left of it, and what was there is', { timeout: 300_000 }, async () => {
    await withFileSystem('ext4', 64, async (mount) => {
      const path = join(mount, 'new.qcow2');
      writeFileSync(path, 'precious');
      const requests = [
        { format: 'raw', preallocation: 'falloc' },
        { format: 'raw', preallocation: 'full' },
        { format: 'qcow2', preallocation: 'falloc' },
        { format: 'qcow2', preallocation: 'full' },
        { format: 'qcow2', preallocation: 'metadata', size: 2 ** 40 },
        { format: 'luks', preallocation: 'full' },
      ] as const;
      for (const request of requests) {
        const names = readdirSync(mount);
        const encryption = { secret: secretOf('secret'), luks: { iterTime: 10 } };
        const more = request.format === 'luks' ? { encryption } : {};
        const make = (size: number): Promise<unknown> => create({ path, size, ...request, ...more });
        const tooLarge = 'size' in request ? request.size : 90 * MIB;
        expect(await attempted(() => make(tooLarge), JSON.stringify(request))).toBe(false);
        expect(readdirSync(mount), JSON.stringify(request)).toEqual(names);
        expect(readFileSync(path, 'utf8')).toBe('precious');
      }
      await create({ path, size: 16 * MIB, format: 'qcow2', preallocation: 'full' });
      expect((await qemu.check(path)).code).toBe(0);
      expect(existsSync(path)).toBe(true);
    });
  });

  it('adding a key: the old one opens the image', { timeout: 300_000 }, async () => {
    await withFileSystem('ext4', 64, async (mount) => {
      for (const format of ['luks', 'qcow2'] as const) {
        const path = join(mount, `disk.${format}`);
        const encryption = { secret: secretOf('old'), luks: { iterTime: 10 } };
        await create({ path, size: MIB, format, encryption });
        const makeSpace = await fillUp(mount, 0);
        const add = (): Promise<number> =>
          addKey(path, { secret: bytesOf('old'), newSecret: bytesOf('new'), iterTime: 10 });
        // The header of a new image is sparse: a key slot needs blocks.
        expect(await attempted(add, format)).toBe(false);
        await (await openImageFile(path, { secret: secretOf('old') })).close();
        makeSpace();
        expect(await add()).toBe(1);
        for (const secret of ['old', 'new'])
          await (await openImageFile(path, { secret: secretOf(secret) })).close();
        rmSync(path);
      }
    });
  });
});
