import { createHash } from 'node:crypto';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { AllocationPolicy } from '../../src/core/allocation.ts';
import { allocate, type Allocated, type AllocateRequest } from '../../src/op/allocate.ts';
import { changeBitmap, readBitmap } from '../../src/op/bitmaps.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { create } from '../../src/op/create.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile, secretOf } from '../../src/op/open.ts';
import { allocatedBytes, blockRuns, bytesIn } from '../tool/extents.ts';
import { PASSPHRASE } from '../tool/encrypted.ts';
import { KINDS, randomContent, sourceArgs, type Kind } from '../tool/kinds.ts';
import { attachLoop, noLoop } from '../tool/loop.ts';
import { patternOf } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { readHash } from '../tool/agree.ts';
import { tempDir } from '../tool/temp.ts';
import { addonHere } from '../native/help.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
/** A file whose last block is short. */
const SIZE = 9 * MIB + 512;

/** A kind of image with what is special about its space. */
interface Case extends Kind {
  /** Bytes below which no zeroes are given back. */
  readonly unit: number;
  /** Something but the disk takes space, so that it cannot be said how much there is when it is thin. */
  readonly more?: boolean;
  readonly request?: Partial<AllocateRequest>;
  /** The file that holds the data, beside the image. */
  readonly data?: string;
  /** Cannot have reserved space. */
  readonly noLazy?: boolean;
}

const UNITS: Readonly<Record<string, Partial<Case>>> = {
  raw: { unit: 4096 },
  'raw without holes': { unit: 4096 },
  luks: { unit: 4096, more: true },
  'qcow2, small clusters': { unit: 4096 },
  'qcow2, large clusters': { unit: 2 * MIB },
  'extended L2': { unit: 4096 },
  'external data file': { data: 'data' },
  'compressed with zstd': { unit: 16 * KIB, more: true },
  compressed: { more: true },
  'overlay on a shorter base': { request: { copyBacking: true } },
  'with a snapshot': { more: true },
};

const legacy = (): Kind => ({
  name: 'legacy encryption',
  format: 'qcow2',
  encrypted: true,
  async make(path, size, pieces) {
    const encryption = { format: 'aes', secret: secretOf(PASSPHRASE) } as const;
    await create({ path, format: 'qcow2', size, encryption, qcow2: { version: 2 } });
    const image = await openImageFile(path, { write: true, secret: secretOf(PASSPHRASE) });
    for (const { at, length, pattern } of pieces) await image.write(new Uint8Array(length).fill(pattern), at);
    await image.close();
  },
});

function overlay(name: string, options: Record<string, string>): Kind {
  return {
    name,
    format: 'qcow2',
    async make(path, size, pieces) {
      const base = { path: `${path}.base`, format: 'raw' };
      await qemu.create(base.path, size, { format: 'raw' });
      const half = Math.floor(pieces.length / 2);
      const write = (some: typeof pieces): qemu.Fill[] =>
        some.map(({ at, length, pattern }) => ({ do: 'write', at, length, pattern }));
      await qemu.fill(base.path, write(pieces.slice(0, half)), { format: 'raw' });
      await qemu.create(path, size, { backing: base, options });
      await qemu.fill(path, write(pieces.slice(half)));
    },
  };
}

function made(name: string, options: Record<string, string>): Kind {
  return {
    name,
    format: 'qcow2',
    async make(path, size, pieces) {
      const { data_file: data, ...rest } = options;
      const own = data === undefined ? rest : { ...rest, data_file: `${path}.${data}` };
      await qemu.create(path, size, { options: own });
      await qemu.fill(
        path,
        pieces.map(({ at, length, pattern }) => ({ do: 'write', at, length, pattern })),
      );
    },
  };
}

const CASES: readonly Case[] = [
  ...KINDS,
  legacy(),
  overlay('version 2 over a base', { compat: '0.10' }),
  overlay('extended L2 over a base', { extended_l2: 'on', cluster_size: '128k' }),
  made('refcounts of one bit', { refcount_bits: '1', cluster_size: '4k' }),
  made('a raw data file', { data_file: 'data', data_file_raw: 'on' }),
  made('lazy refcounts', { lazy_refcounts: 'on' }),
].map((kind) => ({
  ...kind,
  unit: 64 * KIB,
  ...UNITS[kind.name],
  ...(kind.name.includes('over a base') ? { more: true } : {}),
  ...(kind.name === 'version 2 over a base' ? { request: { copyBacking: true } } : {}),
  ...(kind.name === 'a raw data file' ? { data: 'data' } : {}),
  ...(kind.name === 'refcounts of one bit' ? { unit: 4096 } : {}),
  ...(kind.name === 'legacy encryption' ? { noLazy: true } : {}),
}));

const secret = secretOf(PASSPHRASE);

function change(one: Case, path: string, policy: AllocationPolicy, more: object = {}): Promise<Allocated> {
  const request = { policy, format: one.format, ...one.request, ...more };
  return allocate(path, one.encrypted === true ? { ...request, secret } : request);
}

/** The disk as qemu reads it. */
async function content(one: Case, path: string, more: readonly string[] = []): Promise<Buffer> {
  const raw = `${path}.raw`;
  await qemu.qemuImg(['convert', '-O', 'raw', ...more, ...sourceArgs(one, path), raw]);
  const bytes = readFileSync(raw);
  rmSync(raw);
  return bytes;
}

/** Bytes of the units that hold anything. */
function heldBy(bytes: Buffer, unit: number): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += unit) {
    const part = bytes.subarray(at, at + unit);
    if (part.some((byte) => byte !== 0)) sum += unit;
  }
  return sum;
}

/** Where qemu says that the disk lies in the file that holds its data; all of it, for a file without tables. */
async function places(one: Case, path: string, file: string): Promise<[from: number, to: number][]> {
  if (one.format !== 'qcow2') return [[0, statSync(file).size]];
  const map = await qemu.map(path);
  const { size } = await stat(file);
  return map.flatMap(({ offset, length, depth }) =>
    offset === undefined || depth > 0 ? [] : [[offset, Math.min(size, offset + length)] as [number, number]],
  );
}

/** What the host has must be what the policy says, judged by filefrag, st_blocks and qemu's map. */
async function expectPolicy(
  one: Case,
  path: string,
  asked: AllocationPolicy,
  before: AllocationPolicy,
  bytes: Buffer,
  context: string,
): Promise<void> {
  const file = one.data === undefined ? path : `${path}.${one.data}`;
  const { allocation } = await info(path, { format: one.format, allocation: true });
  if (asked === 'thin') {
    // Tables, and the header of an encrypted image.
    const most = heldBy(bytes, one.unit) + MIB + 4 * one.unit + (one.encrypted === true ? 2 * MIB : 0);
    if (one.more !== true) expect(await allocatedBytes(file), context).toBeLessThanOrEqual(most);
    // A new volume of LUKS is all noise.
    if (allocation !== null && one.format !== 'luks')
      expect(['thin', 'mixed'], context).toContain(allocation.policy);
    // What is reserved beside data within clusters may stay.
    if (allocation !== null && one.format === 'raw') expect(allocation.policy, context).toBe('thin');
    return;
  }
  expect(await allocatedBytes(file), context).toBeGreaterThanOrEqual(bytes.length);
  if (!addonHere) return;
  // What is not said to have a place is shown from below, in reserved space.
  if (allocation !== null)
    expect(allocation.hole + allocation.unmapped + allocation.compressed, context).toBeLessThan(512);
  const eager = asked === 'thick-eager' || before === 'thick-eager';
  if (allocation !== null && eager) expect(allocation.policy, context).toBe('thick-eager');
  const runs = await blockRuns(file);
  if (one.encrypted === true) {
    // Of encrypted data qemu does not tell the place.
    const unwritten = bytesIn(runs, true);
    expect(bytesIn(runs, false) + unwritten, context).toBeGreaterThanOrEqual(bytes.length);
    // Where key slots could be, qemu leaves space unwritten.
    if (eager) expect(unwritten, context).toBeLessThanOrEqual(2 * MIB);
    return;
  }
  let held = 0;
  for (const [from, to] of await places(one, path, file)) {
    const written = bytesIn(runs, false, from, to);
    const unwritten = bytesIn(runs, true, from, to);
    expect(written + unwritten, `${context}: holes at ${String(from)}`).toBe(to - from);
    if (eager) expect(unwritten, `${context}: unwritten at ${String(from)}`).toBe(0);
    held += to - from;
  }
  // Subclusters that are the backing file's have their place, but qemu does not tell it.
  if (!one.name.includes('extended L2 over'))
    expect(held, context).toBeGreaterThanOrEqual(bytes.length - 511);
}

/** All ways from one policy to another, and to the same. */
const WAY: readonly AllocationPolicy[] = [
  ...(['thin', 'thick-lazy', 'thick-lazy', 'thick-eager', 'thick-eager', 'thick-lazy'] as const),
  ...(['thin', 'thin', 'thick-eager', 'thin', 'thick-lazy', 'thin'] as const),
];

qemu.describeWithQemu('allocate', () => {
  it.for(CASES)('from every policy to every other: $name', { timeout: 600_000 }, async (one) => {
    const random = new Random(seedOf(`allocate ${one.name}`));
    const dir = tempDir();
    const path = join(dir, 'disk');
    await one.make(path, SIZE, randomContent(random, SIZE, 12));
    const before = await content(one, path);
    const snapshot = one.name === 'with a snapshot' ? ['-l', 'snapshot.name=before'] : null;
    const old = snapshot === null ? null : await content(one, path, snapshot);
    let last: AllocationPolicy = 'thin';
    for (const [step, policy] of WAY.entries()) {
      const context = `${one.name}, step ${String(step)} ${last} to ${policy}, SPINDLE_SEED=${String(random.seed)}`;
      if (policy === 'thick-lazy' && one.noLazy === true && last === 'thin') {
        await expect(change(one, path, policy), context).rejects.toMatchObject({ code: 'UNSUPPORTED' });
        continue;
      }
      const plan = await change(one, path, policy, { plan: true });
      const done = await change(one, path, policy);
      expect(done.before, context).toEqual(plan.before);
      if (addonHere && plan.after.allocated !== null && done.after.allocated !== null)
        // Tables, and zeroes that share a block with data, are beyond a plan.
        expect(Math.abs(plan.after.allocated - done.after.allocated), `${context}: plan`).toBeLessThan(
          2 * MIB + (policy === 'thin' && one.more === true ? SIZE : 0),
        );
      expect((await content(one, path)).equals(before), `${context}: the disk`).toBe(true);
      if (old !== null && snapshot !== null)
        expect((await content(one, path, snapshot)).equals(old), `${context}: the snapshot`).toBe(true);
      if (one.format === 'qcow2') {
        const judged = await qemu.check(
          path,
          one.encrypted === true ? { source: sourceArgs(one, path) } : {},
        );
        expect(judged.code, `${context}: ${judged.stderr}`).toBe(0);
        expect((await checkFile(path)).problems, context).toEqual([]);
      }
      await expectPolicy(one, path, policy, last, before, context);
      // Reserving what is written already changes nothing.
      if (policy !== 'thick-lazy' || last !== 'thick-eager') last = policy;
    }
  });
});

/** A disk with data of every kind in it, and what its disk holds. */
async function mixed(path: string, size: number, format: 'raw' | 'qcow2', seed: number): Promise<string> {
  await create({ path, format, size });
  const image = await openImageFile(path, { format, write: true });
  for (let at = 0; at + 256 * KIB <= size; at += MIB) {
    await image.write(patternOf(seed + at, 96 * KIB), at);
    await image.zero(at + 160 * KIB, 64 * KIB, { keepAllocated: true });
    if (format === 'qcow2') await image.writeCompressed?.(new Uint8Array(64 * KIB).fill(7), at + 256 * KIB);
  }
  await image.flush();
  await image.close();
  return hashOf(path, format);
}

async function hashOf(path: string, format: string): Promise<string> {
  const image = await openImageFile(path, { format });
  try {
    return await readHash(image);
  } finally {
    await image.close();
  }
}

const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

describe('allocate', { timeout: 300_000 }, () => {
  it('refuses what it cannot do, and changes nothing', async () => {
    const dir = tempDir();
    const [base, top, path] = ['base', 'top', 'disk'].map((name) => join(dir, name)) as [
      string,
      string,
      string,
    ];
    await mixed(base, 4 * MIB, 'raw', 1);
    await create({ path: top, format: 'qcow2', backing: { name: 'base', format: 'raw' } });
    const before = [base, top].map(sha256);
    for (const policy of ['thick-lazy', 'thick-eager'] as const)
      for (const plan of [true, false])
        await expect(allocate(top, { policy, plan })).rejects.toMatchObject({
          code: 'UNSUPPORTED',
          path: top,
        });
    await expect(allocate(top, { policy: 'fat' as 'thin' })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(allocate(join(dir, 'absent'), { policy: 'thin' })).rejects.toMatchObject({
      code: 'NOT_FOUND',
    });
    // The twins hold no locks.
    if (addonHere) {
      for (const file of [base, top]) {
        const format = file === base ? 'raw' : 'qcow2';
        const user = await openImageFile(file, { format, write: true });
        await expect(allocate(file, { policy: 'thin', format })).rejects.toMatchObject({ code: 'IN_USE' });
        await user.close();
      }
    }
    expect([base, top].map(sha256)).toEqual(before);
    // A table whose clusters are counted as free: what is free is not to be punched.
    await mixed(path, 4 * MIB, 'qcow2', 3);
    const bytes = readFileSync(path);
    bytes.fill(0, 2 * 65536 + 8, 2 * 65536 + 32);
    writeFileSync(path, bytes);
    const damaged = sha256(path);
    for (const policy of ['thin', 'thick-lazy', 'thick-eager'] as const)
      await expect(allocate(path, { policy })).rejects.toMatchObject({ code: 'CORRUPT', path });
    expect(sha256(path)).toBe(damaged);
  });

  it('of an encrypted image asks for a secret before anything changes', async () => {
    const path = join(tempDir(), 'disk');
    const encryption = { secret, luks: { iterTime: 10 } };
    await create({ path, format: 'qcow2', size: 4 * MIB, encryption });
    const before = sha256(path);
    for (const policy of ['thin', 'thick-eager'] as const)
      await expect(allocate(path, { policy })).rejects.toMatchObject({ code: 'ENCRYPTED', path });
    expect(sha256(path)).toBe(before);
    // Space that is said to be zero is reserved without one; doing it again takes no more.
    const lazy = await allocate(path, { policy: 'thick-lazy' });
    expect((await allocate(path, { policy: 'thick-lazy' })).after).toEqual(lazy.after);
    if (addonHere) expect(lazy.after.policy).toBe('thick-lazy');
    expect((await checkFile(path)).problems).toEqual([]);
  });

  it('a plan changes nothing', async () => {
    for (const format of ['raw', 'qcow2'] as const) {
      const path = join(tempDir(), 'disk');
      await mixed(path, 4 * MIB, format, 5);
      const { blocks, mtimeMs } = statSync(path);
      const before = sha256(path);
      for (const policy of ['thin', 'thick-lazy', 'thick-eager'] as const) {
        const plan = await allocate(path, { policy, format, plan: true });
        expect(plan.after.policy).toBe(policy);
        if (policy !== 'thin') expect(plan.written + plan.reserved).toBeGreaterThan(2 * MIB);
      }
      expect([statSync(path).blocks, statSync(path).mtimeMs]).toEqual([blocks, mtimeMs]);
      expect(sha256(path)).toBe(before);
    }
  });

  it('stopped on request leaves the disk as it was; doing it again finishes it', async () => {
    for (const format of ['raw', 'qcow2'] as const) {
      const path = join(tempDir(), 'disk');
      const before = await mixed(path, 16 * MIB, format, 7);
      let stopped = 0;
      for (const policy of ['thick-lazy', 'thick-eager', 'thin'] as const) {
        const stop = new AbortController();
        const onProgress = (done: number, total: number): void => {
          if (done > total / 3) stop.abort();
        };
        const work = allocate(path, { policy, format, signal: stop.signal, onProgress });
        await work.catch((error: unknown) => {
          expect(error).toMatchObject({ code: 'ABORTED' });
          stopped++;
        });
        expect(await hashOf(path, format)).toBe(before);
        if (format === 'qcow2') expect((await checkFile(path)).problems).toEqual([]);
        const told: number[] = [];
        const done = await allocate(path, { policy, format, onProgress: (at, all) => told.push(at / all) });
        if (addonHere) expect(done.after.policy).toBe(policy);
        expect(told.at(-1)).toBe(1);
        expect([...told].sort((a, b) => a - b)).toEqual(told);
        expect(await hashOf(path, format)).toBe(before);
      }
      // A small raw file is done at once.
      if (format === 'qcow2') expect(stopped).toBeGreaterThan(0);
    }
  });

  it('records nothing in bitmaps, which stay valid', async () => {
    const path = join(tempDir(), 'disk');
    await mixed(path, 8 * MIB, 'qcow2', 9);
    await changeBitmap(path, 'records', [{ do: 'add', granularity: 65_536 }]);
    for (const policy of ['thick-lazy', 'thick-eager', 'thin'] as const) {
      await allocate(path, { policy });
      expect((await info(path)).qcow2?.bitmaps[0]?.flags).toEqual(['auto']);
    }
    for await (const range of readBitmap(path, 'records')) expect.unreachable(JSON.stringify(range));
  });
});

const loopMissing = noLoop();
describe.skipIf(loopMissing !== undefined || !addonHere)(
  'allocate on a block device',
  { timeout: 300_000 },
  () => {
    it('gives zeroes back, writes them, and says what makes no sense', async () => {
      const bytes = new Uint8Array(8 * MIB);
      bytes.set(patternOf(1, MIB), 2 * MIB);
      const device = attachLoop(bytes);
      try {
        const { path, file } = device;
        await expect(allocate(path, { policy: 'thick-lazy', format: 'raw' })).rejects.toMatchObject({
          code: 'UNSUPPORTED',
          path,
        });
        const same = (): void => {
          expect(readFileSync(file).equals(bytes)).toBe(true);
        };
        await allocate(path, { policy: 'thin', format: 'raw' });
        same();
        expect(await allocatedBytes(file)).toBeLessThan(2 * MIB);
        await allocate(path, { policy: 'thick-eager', format: 'raw' });
        same();
        await qemu.run('sync', [file]);
        expect(await allocatedBytes(file)).toBeGreaterThanOrEqual(8 * MIB);
      } finally {
        device.detach();
      }
    });
  },
);
