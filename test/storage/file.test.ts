import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { isSpindleError, type SpindleError } from '../../src/core/errors.ts';
import { ExtentFlag, type HostExtent } from '../../src/core/extent.ts';
import { native } from '../../src/native/binding.ts';
import { openFile, type FileOptions, type FileStorage } from '../../src/storage/file.ts';
import { expectCode, storageSuite, type Made } from '../suite/storage.ts';
import { attachLoop, noLoop } from '../tool/loop.ts';
import { Random } from '../tool/random.ts';
import { tempDir, tempPath, umask } from '../tool/temp.ts';

const addon = native().kind === 'addon';
const WRITABLE = { write: true, resize: true, zero: addon, discard: addon, extents: true, direct: false };
const READABLE = { write: false, resize: false, zero: false, discard: false, extents: true, direct: false };

async function makeFile(content: Uint8Array, options: FileOptions): Promise<Made> {
  const path = tempPath();
  await writeFile(path, content);
  const open: FileStorage[] = [await openFile(path, options)];
  return {
    storage: open[0] as FileStorage,
    reopen: async () => {
      const again = await openFile(path, options);
      open.push(again);
      return again;
    },
    dispose: async () => {
      for (const storage of open) await storage.close();
      fs.unlinkSync(path);
    },
  };
}

storageSuite('file', { can: WRITABLE, make: (content) => makeFile(content, { write: true }) });
storageSuite('file, read-only', { can: READABLE, make: (content) => makeFile(content, {}) });

if (addon) {
  storageSuite('file, direct', {
    can: { ...WRITABLE, direct: true },
    make: (content) => makeFile(content, { write: true, direct: true }),
  });
  storageSuite('file, direct, large', {
    can: { ...WRITABLE, direct: true },
    make: (content) => makeFile(content, { write: true, direct: true }),
    contentSize: 3_300_007,
  });
}

const loopMissing = noLoop();

async function makeDevice(content: Uint8Array, options: FileOptions, sector: number): Promise<Made> {
  const device = attachLoop(content, sector);
  const open = [await openFile(device.path, options)];
  return {
    storage: open[0] as FileStorage,
    reopen: async () => {
      const again = await openFile(device.path, options);
      open.push(again);
      return again;
    },
    dispose: async () => {
      for (const storage of open) await storage.close();
      device.detach();
      fs.unlinkSync(device.file);
    },
  };
}

describe.runIf(loopMissing === undefined)('block devices', () => {
  const can = { write: true, resize: false, zero: addon, discard: addon, extents: false, direct: false };
  for (const sector of [512, 4096]) {
    storageSuite(`block device, ${String(sector)}-byte sectors`, {
      can,
      make: (content) => makeDevice(content, { write: true }, sector),
      sizeGranularity: 4096,
      minimumSize: sector,
    });
    if (addon) {
      storageSuite(`block device, ${String(sector)}-byte sectors, direct`, {
        can: { ...can, direct: true },
        make: (content) => makeDevice(content, { write: true, direct: true }, sector),
        sizeGranularity: 4096,
        minimumSize: sector,
      });
    }
  }

  it('gives space back when zeroed or discarded', async () => {
    const { storage, dispose } = await makeDevice(new Random(1).bytes(1024 ** 2), { write: true }, 512);
    try {
      await storage.zero(100, 1024 ** 2 - 200);
      const into = new Uint8Array(1024 ** 2 - 200);
      await storage.read(into, 100);
      expect(into.every((byte) => byte === 0)).toBe(true);
      expect((storage as FileStorage).isDevice).toBe(true);
      await expectCode(storage.resize(512), 'UNSUPPORTED');
      await storage.resize(1024 ** 2);
    } finally {
      await dispose();
    }
  });
});

describe('openFile', () => {
  it('says what is wrong in one line with the path', async () => {
    const directory = tempDir();
    const existing = `${directory}/existing`;
    fs.writeFileSync(existing, 'x');
    fs.symlinkSync('circle', `${directory}/circle`);
    const cases: [string, FileOptions, string][] = [
      [`${directory}/missing`, {}, 'NOT_FOUND'],
      [`${directory}/missing/deeper`, { create: 'exclusive' }, 'NOT_FOUND'],
      [`${existing}/below`, {}, 'NOT_FOUND'],
      [`${directory}/circle`, {}, 'NOT_FOUND'],
      [`${directory}/${'n'.repeat(300)}`, {}, 'NOT_FOUND'],
      [existing, { create: 'exclusive' }, 'EXISTS'],
      [`${directory}/circle`, { create: 'exclusive' }, 'EXISTS'],
      [directory, {}, 'NOT_A_FILE'],
      [directory, { write: true }, 'NOT_A_FILE'],
      ['/dev/zero', { write: true }, 'NOT_A_FILE'],
      ['/sys/kernel/spindle', { create: 'exclusive' }, 'PERMISSION'],
    ];
    for (const [path, options, code] of cases) {
      const error = await failure(openFile(path, options));
      expect([path, error.code]).toEqual([path, code]);
      expect(error.path).toBe(path);
      expect(error.message).toMatch(/^[^\n]+$/);
      expect(error.message.startsWith(`${path}: `)).toBe(true);
    }
    expect(fs.readdirSync(directory).sort()).toEqual(['circle', 'existing']);
    await expectCode(openFile('a\0b'), 'NOT_FOUND');
  });

  it('refuses a FIFO without hanging', { timeout: 3000 }, async () => {
    const directory = tempDir();
    execFileSync('mkfifo', [`${directory}/fifo`]);
    for (const options of [{}, { write: true }])
      await expectCode(openFile(`${directory}/fifo`, options), 'NOT_A_FILE');
    fs.symlinkSync('fifo', `${directory}/link`);
    await expectCode(openFile(`${directory}/link`), 'NOT_A_FILE');
  });

  it('leaves no descriptor behind when it fails', async () => {
    const count = (): number => fs.readdirSync('/proc/self/fd').length;
    const directory = tempDir();
    const before = count();
    for (let i = 0; i < 20; i++) await failure(openFile(directory));
    expect(count()).toBeLessThanOrEqual(before);
  });

  it('makes new files with mode 0644 less the umask', async () => {
    const path = tempPath();
    const storage = await openFile(path, { create: 'exclusive' });
    expect(storage.size).toBe(0);
    expect(storage.can.write).toBe(true);
    await storage.resize(10);
    await storage.flush();
    await storage.close();
    expect(fs.statSync(path).mode & 0o777).toBe(0o644 & ~umask());
    expect(fs.statSync(path).size).toBe(10);
  });

  it('knows one file by two names', async () => {
    const path = tempPath();
    await writeFile(path, 'x');
    fs.linkSync(path, `${path}-link`);
    const [one, two] = [await openFile(path), await openFile(`${path}-link`)];
    expect(one.identity).toBe(two.identity);
    expect(one.identity).toBe(`${String(fs.statSync(path).dev)}:${String(fs.statSync(path).ino)}`);
    await one.close();
    await two.close();
    expect(() => one.fd).toThrow('closed');
  });
});

describe('FileStorage', () => {
  it('says so when the file was truncated behind its back', async () => {
    const path = tempPath();
    await writeFile(path, new Uint8Array(10_000));
    for (const options of addon ? [{}, { direct: true }] : [{}]) {
      fs.truncateSync(path, 10_000);
      const storage = await openFile(path, options);
      fs.truncateSync(path, 5000);
      await storage.read(new Uint8Array(5000), 0);
      const error = await failure(storage.read(new Uint8Array(200), 4900));
      expect(error.code).toBe('IO');
      expect(error.message).toMatch(/ends at 5000 .* 10000 .* truncated/);
      expect(error.path).toBe(path);
      await storage.close();
    }
  });

  it('waits for what is running before it closes', async () => {
    const path = tempPath();
    const storage = await openFile(path, { create: 'exclusive' });
    await storage.resize(8 * 1024 ** 2);
    const bytes = new Random(5).bytes(1024 ** 2);
    const writes = Array.from({ length: 8 }, (_, i) => storage.write(bytes, i * bytes.length));
    const closing = storage.close();
    await expectCode(storage.read(new Uint8Array(1), 0), 'CLOSED');
    await closing;
    await Promise.all(writes);
    const content = await readFile(path);
    for (let i = 0; i < 8; i++) {
      expect(content.subarray(i * bytes.length, (i + 1) * bytes.length).equals(bytes)).toBe(true);
    }
  });

  it('tells holes from data, with own changes seen at once', async () => {
    const path = tempPath();
    const storage = await openFile(path, { create: 'exclusive' });
    const size = 1024 ** 2 * 64;
    await storage.resize(size);
    const hole = ExtentFlag.HOLE | ExtentFlag.ZERO;
    expect(await storage.extent(0, size)).toEqual({ offset: 0, length: size, flags: hole });
    await storage.write(new Uint8Array(65536).fill(1), 131_072);
    expect(await storage.extent(0, size)).toEqual({ offset: 0, length: 131_072, flags: hole });
    expect(await storage.extent(131_072, size / 2)).toEqual({ offset: 131_072, length: 65536, flags: 0 });
    await storage.discard(131_072, 32_768);
    expect(await storage.extent(0, size)).toEqual({ offset: 0, length: 163_840, flags: hole });
    await storage.close();
  });

  it('walks more runs than one batch holds', async () => {
    const path = tempPath();
    const storage = await openFile(path, { create: 'exclusive' });
    const unit = 8192;
    const count = 700;
    await storage.resize(unit * count);
    for (let i = 0; i < count; i += 2) await storage.write(new Uint8Array(unit).fill(1), i * unit);
    const flags: number[] = [];
    for (let at = 0; at < storage.size;) {
      const extent = await storage.extent(at, storage.size - at);
      expect(extent.length).toBe(unit);
      flags.push(extent.flags);
      at += extent.length;
    }
    expect(flags).toEqual(Array.from({ length: count }, (_, i) => (i % 2 === 0 ? 0 : 3)));
    const host = await storage.hostExtents?.(0, storage.size);
    if (host !== undefined) expect(host.length).toBe(count / 2);
    await storage.close();
  });

  it.runIf(addon)('tells reserved blocks from written ones', async () => {
    const path = tempPath();
    const storage = await openFile(path, { create: 'exclusive' });
    await storage.reserve(0, 1024 ** 2);
    expect(storage.size).toBe(1024 ** 2);
    await storage.reserve(0, 2 * 1024 ** 2, true);
    expect(storage.size).toBe(1024 ** 2);
    await storage.write(new Uint8Array(65536).fill(1), 65536);
    expect(kinds(await storage.hostExtents?.(0, storage.size))).toEqual([
      'unwritten 0+65536',
      'written 65536+65536',
      'unwritten 131072+917504',
    ]);
    expect(kinds(await storage.hostExtents?.(65_000, 1000))).toEqual([
      'unwritten 65000+536',
      'written 65536+464',
    ]);
    const report = await storage.writePhysicalZeroes(0, 2 * 1024 ** 2);
    expect(storage.size).toBe(2 * 1024 ** 2);
    expect(['direct', 'buffered', 'offload']).toContain(report.way);
    await storage.flush();
    for (const kind of (await storage.hostExtents?.(0, storage.size)) ?? [])
      expect(kind.kind).toBe('written');
    await storage.zero(0, 1024 ** 2, { keepAllocated: true });
    expect((await storage.hostExtents?.(0, 1024 ** 2))?.every(({ kind }) => kind === 'unwritten')).toBe(true);
    await storage.zero(0, 1024 ** 2);
    expect(await storage.hostExtents?.(0, 1024 ** 2)).toEqual([]);
    await storage.close();
  });

  it.runIf(addon)('does not grow when a reservation fails', async () => {
    const path = tempPath();
    const storage = await openFile(path, { create: 'exclusive' });
    await storage.resize(1000);
    // More than a file can have: what only fills the file system would be taken from all others meanwhile.
    const error = await failure(storage.reserve(0, 2 ** 52));
    expect(['NO_SPACE', 'LIMIT']).toContain(error.code);
    expect(error.path).toBe(path);
    expect(storage.size).toBe(1000);
    expect(fs.statSync(path).size).toBe(1000);
    await storage.close();
  });

  it.runIf(addon)('keeps an odd size with direct writes', async () => {
    const path = tempPath();
    await writeFile(path, new Uint8Array(5001).fill(1));
    const storage = await openFile(path, { write: true, direct: true });
    await storage.write(Uint8Array.of(7), 5000);
    await storage.write(Uint8Array.of(8), 0);
    const aligned = storage.buffer(4096).fill(9);
    await storage.write(aligned, 0);
    await storage.read(aligned.fill(0), 0);
    expect(aligned.every((byte) => byte === 9)).toBe(true);
    await storage.close();
    const content = fs.readFileSync(path);
    expect(content.length).toBe(5001);
    expect([content[0], content[4095], content[4096], content[5000]]).toEqual([9, 9, 1, 7]);
  });
});

function kinds(extents: HostExtent[] | undefined): string[] {
  // Extents of one kind that follow one another are one run, however the file system cut them.
  const runs: { kind: string; offset: number; length: number }[] = [];
  for (const { kind, offset, length } of extents ?? []) {
    const last = runs.at(-1);
    if (last?.kind === kind && last.offset + last.length === offset) last.length += length;
    else runs.push({ kind, offset, length });
  }
  return runs.map(({ kind, offset, length }) => `${kind} ${String(offset)}+${String(length)}`);
}

async function failure(attempt: Promise<unknown>): Promise<SpindleError> {
  try {
    await attempt;
  } catch (error) {
    if (isSpindleError(error)) return error;
    throw error;
  }
  throw new Error('it did not fail');
}
