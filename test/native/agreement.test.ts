import { createRequire } from 'node:module';
import { fstatSync, fsyncSync, ftruncateSync, readFileSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { addonStatus, native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import type { FallocateMode } from '../../src/native/types.ts';
import { addonHere, outcome, randomFrom, scratch, seed } from './help.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const MODES: FallocateMode[] = ['reserve', 'reserve-keep-size', 'punch', 'zero-range'];

/** Without fs-ext, which compiles on install, the twin calls everything data: right, but not the same. */
const fsExtLoads = ((): boolean => {
  try {
    createRequire(import.meta.url)('fs-ext');
    return true;
  } catch {
    return false;
  }
})();

describe.runIf(addonHere)(`the addon and its twin agree (seed ${String(seed)})`, () => {
  const { open, path } = scratch();
  const addon = native();
  const random = randomFrom(seed);
  console.log(`test/native/agreement: SPINDLE_SEED=${String(seed)}`);

  it('the addon is loaded', () => {
    expect(addonStatus()).toMatchObject({ loaded: true });
    expect(addon.kind).toBe('addon');
  });

  function sparseFile(name: string): number {
    const fd = open(name);
    ftruncateSync(fd, 8 * MIB + random(5000));
    for (let count = 0; count < 30; count++) {
      const data = Buffer.alloc(1 + random(64 * KIB), 1 + random(255));
      writeSync(fd, data, 0, data.length, random(8 * MIB));
    }
    return fd;
  }

  it.runIf(fsExtLoads)('dataExtents of random sparse files, whole, in parts and limited', async () => {
    for (let round = 0; round < 5; round++) {
      const fd = sparseFile(`extents-${String(round)}`);
      fsyncSync(fd);
      for (let part = 0; part < 8; part++) {
        const offset = part === 0 ? 0 : random(9 * MIB);
        const length = part === 0 ? 16 * MIB : random(4 * MIB);
        const limit = part % 2 === 0 ? 1000 : 1 + random(4);
        const found = await addon.dataExtents(fd, offset, length, limit);
        expect(found).toEqual(await twins.dataExtents(fd, offset, length, limit));
        expect(found.length).toBeLessThanOrEqual(limit * 2);
        for (const edge of found) expect(edge >= offset && edge <= offset + length).toBe(true);
      }
    }
  });

  it.runIf(fsExtLoads)('dataExtents beyond 4 GiB', async () => {
    const fd = open('far');
    writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, 5 * 1024 * MIB);
    const found = await addon.dataExtents(fd, 0, 2 ** 50, 10);
    expect(found).toEqual([5 * 1024 * MIB, 5 * 1024 * MIB + 4096]);
    expect(await twins.dataExtents(fd, 0, 2 ** 50, 10)).toEqual(found);
  });

  it('fiemap kinds of random files, whole, in parts and limited', async () => {
    for (let round = 0; round < 3; round++) {
      const fd = sparseFile(`fiemap-${String(round)}`);
      for (let count = 0; count < 4; count++) {
        await addon
          .fallocate(fd, 'reserve', 4096 * random(2048), 4096 * (1 + random(32)))
          .catch(() => undefined);
      }
      for (let part = 0; part < 6; part++) {
        const offset = part === 0 ? 0 : random(9 * MIB);
        const length = part === 0 ? 16 * MIB : random(4 * MIB);
        const limit = part % 2 === 0 ? 1000 : 1 + random(4);
        const ours = await outcome(() => addon.fiemap(fd, offset, length, limit, true));
        expect(ours).toEqual(await outcome(() => twins.fiemap(fd, offset, length, limit, true)));
      }
    }
  });

  it('fiemap of blocks that are not settled', async () => {
    const fd = open('delayed');
    writeSync(fd, Buffer.alloc(MIB, 1));
    const ours = await outcome(() => addon.fiemap(fd, 0, MIB, 10, false));
    expect(await outcome(() => twins.fiemap(fd, 0, MIB, 10, false))).toEqual(ours);
  });

  it('fallocate: the same size, blocks, bytes and extents after the same random calls', async () => {
    const pair = [addon, twins].map((side) => ({ side, path: path(`fallocate-${side.kind}`) }));
    const files = pair.map((file) => ({ ...file, fd: open(file.path) }));
    for (const { fd } of files) writeSync(fd, Buffer.alloc(MIB, 0x5a));
    for (let step = 0; step < 16; step++) {
      const mode = MODES[random(MODES.length)] ?? 'punch';
      const offset = 4096 * random(512);
      const length = 4096 * (1 + random(128)) + (step % 3 === 0 ? random(4096) : 0);
      const results = [];
      const counts: number[] = [];
      for (const { side, fd } of files) {
        const result = await outcome(() => side.fallocate(fd, mode, offset, length));
        fsyncSync(fd);
        const { size, blocks } = fstatSync(fd);
        const extents = await outcome(() => side.fiemap(fd, 0, 64 * MIB, 1000, true));
        results.push({ result, size, extents: layout(extents) });
        counts.push(blocks);
      }
      // The file system's own blocks for the extents count too, and depend on where these happen to lie.
      expect(Math.abs((counts[0] ?? 0) - (counts[1] ?? 0))).toBeLessThanOrEqual(16);
      expect(results[0], `${mode} ${String(length)} at ${String(offset)}`).toEqual(results[1]);
    }
    const [ours, theirs] = pair.map((file) => readFileSync(file.path));
    expect(theirs?.equals(ours ?? Buffer.alloc(0))).toBe(true);
  });

  it('fallocate modes do to st_blocks and size what they say', async () => {
    for (const side of [addon, twins]) {
      const fd = open(`modes-${side.kind}`);
      await side.fallocate(fd, 'reserve-keep-size', 0, MIB);
      expect(fstatSync(fd)).toMatchObject({ size: 0, blocks: 2048 });
      await side.fallocate(fd, 'reserve', 0, 2 * MIB);
      expect(fstatSync(fd)).toMatchObject({ size: 2 * MIB, blocks: 4096 });
      await side.fallocate(fd, 'punch', MIB, MIB);
      expect(fstatSync(fd)).toMatchObject({ size: 2 * MIB, blocks: 2048 });
      await side.fallocate(fd, 'punch', 0, 0);
      writeSync(fd, Buffer.alloc(MIB, 1), 0, MIB, 0);
      await side.fallocate(fd, 'zero-range', 0, MIB);
      expect(fstatSync(fd)).toMatchObject({ size: 2 * MIB, blocks: 2048 });
      expect(readFileSync(path(`modes-${side.kind}`)).every((byte) => byte === 0)).toBe(true);
    }
  });

  it('writeZeroes: the same bytes, with odd edges, over data and past the end', async () => {
    for (const [offset, length] of [
      [0, 3 * MIB],
      [1, 10],
      [4095, 4098],
      [777, 5 * MIB + 13],
      [6 * MIB, 4 * MIB + 1],
      [9, 0],
    ] as const) {
      const contents = [];
      for (const side of [addon, twins]) {
        const fd = open(`zero-${side.kind}`);
        writeSync(fd, Buffer.alloc(6 * MIB + 100, 0xa5));
        const { way, written } = await side.writeZeroes(fd, offset, length);
        if (way !== 'offload') expect(written).toBe(length);
        fsyncSync(fd);
        const after = await addon.dataExtents(fd, 0, 2 ** 40, 10);
        contents.push({ bytes: readFileSync(path(`zero-${side.kind}`)), after });
      }
      expect(contents[0]?.bytes.equals(contents[1]?.bytes ?? Buffer.alloc(0))).toBe(true);
      expect(contents[0]?.after).toEqual(contents[1]?.after);
    }
  });

  it('writeZeroes writes where it is told on a descriptor opened for appending', async () => {
    for (const side of [addon, twins]) {
      const name = `append-${side.kind}`;
      writeSync(open(name), Buffer.alloc(2 * MIB, 7));
      await side.writeZeroes(open(name, 'a+'), 100, MIB + 50);
      const bytes = readFileSync(path(name));
      expect(bytes.length).toBe(2 * MIB);
      expect([bytes[99], bytes[100], bytes[MIB + 149], bytes[MIB + 150]]).toEqual([7, 0, 0, 7]);
    }
  });

  it.each([1, 7, 512, 4096])('zeroUnits at granularity %i', (granularity) => {
    for (const length of [0, 1, 6, 7, 511, 513, 65536, 100_003]) {
      // Odd offsets into the memory, too.
      const buffer = new Uint8Array(length + 3).subarray(3);
      for (let count = 0; count < 5 && length > 0; count++) buffer[random(length)] = random(2);
      const units = addon.zeroUnits(buffer, granularity);
      expect(Buffer.from(units).equals(twins.zeroUnits(buffer, granularity))).toBe(true);
      expect(units.length).toBe(Math.ceil(length / granularity));
    }
  });

  it('deviceInfo and the device functions refuse a file', async () => {
    const fd = open('no-device');
    for (const side of [addon, twins]) {
      expect(await outcome(() => side.deviceInfo(fd))).toEqual({ code: 'UNSUPPORTED' });
      expect(await outcome(() => side.deviceDiscard(fd, 0, 512))).toEqual({ code: 'UNSUPPORTED' });
      expect(await outcome(() => side.deviceZeroOut(fd, 0, 512))).toEqual({ code: 'UNSUPPORTED' });
    }
  });

  it('alignedBuffer is aligned and zeroed, and outlives a collection; the twin has none', async () => {
    const buffers = Array.from({ length: 50 }, () => addon.alignedBuffer(MIB, 4096));
    for (const buffer of buffers) {
      expect(buffer.length).toBe(MIB);
      expect(buffer.every((byte) => byte === 0)).toBe(true);
      buffer.fill(1);
    }
    expect(await outcome(() => twins.alignedBuffer(512, 512))).toEqual({ code: 'UNSUPPORTED' });
  });
});

/** What a file's extents say without where on the disk they lie: runs of one kind, joined. */
function layout(found: unknown): unknown {
  const { value } = found as { value?: { logical: number; length: number; unwritten: boolean }[] };
  if (value === undefined) return found;
  const runs: { from: number; to: number; unwritten: boolean }[] = [];
  for (const { logical, length, unwritten } of value) {
    const last = runs.at(-1);
    if (last?.to === logical && last.unwritten === unwritten) last.to = logical + length;
    else runs.push({ from: logical, to: logical + length, unwritten });
  }
  return runs;
}
