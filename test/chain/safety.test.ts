import { fork, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { checkFile } from '../../src/op/check-file.ts';
import { commit } from '../../src/op/commit.ts';
import { convert } from '../../src/op/convert.ts';
import { create } from '../../src/op/create.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile, secretOf } from '../../src/op/open.ts';
import { rebase } from '../../src/op/rebase.ts';
import { suspects } from '../../src/op/rebase/suspects.ts';
import { createSnapshot } from '../../src/op/snapshots.ts';
import type { Image } from '../../src/format/image.ts';
import { readHash } from '../tool/agree.ts';
import { createEncrypted, encryptedSource, PASSPHRASE } from '../tool/encrypted.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';
import { patternOf } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { addonHere } from '../native/help.ts';

const MIB = 1024 ** 2;
const KILLS = Math.max(4, Math.ceil(Number(process.env['SPINDLE_KILLS'] ?? 200) / 10));
const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

async function hashOf(path: string): Promise<string> {
  const image = await openImageFile(path);
  try {
    return await readHash(image);
  } finally {
    await image.close();
  }
}

/** Writes data at every second piece of a disk, from piece `first` on. */
async function scatter(
  path: string,
  format: string,
  first: number,
  piece: number,
  seed: number,
): Promise<void> {
  const image = await openImageFile(path, { format, write: true });
  for (let at = first * piece; at + piece <= image.size; at += 2 * piece)
    await image.write(patternOf(seed + at, piece), at);
  await image.close();
}

interface Pair {
  readonly dir: string;
  readonly base: string;
  readonly top: string;
}

/** A raw base and an overlay, both with data. */
async function pair(size = 4 * MIB, piece = 96 * 1024): Promise<Pair> {
  const dir = tempDir();
  const [base, top] = [join(dir, 'base.raw'), join(dir, 'top.qcow2')];
  await create({ path: base, format: 'raw', size });
  await scatter(base, 'raw', 0, piece, 1);
  await create({ path: top, format: 'qcow2', backing: { name: 'base.raw', format: 'raw' } });
  await scatter(top, 'qcow2', 1, piece * 2, 2);
  return { dir, base, top };
}

describe('commit', { timeout: 300_000 }, () => {
  it('refuses what it cannot do, and changes nothing', async () => {
    const { dir, base, top } = await pair();
    const other = join(dir, 'other.raw');
    writeFileSync(other, new Uint8Array(MIB));
    const before = [base, top].map(sha256);
    await expect(commit(base, { format: 'raw' })).rejects.toMatchObject({ code: 'UNSUPPORTED', path: base });
    for (const name of ['other.raw', other, top, 'absent'])
      await expect(commit(top, { base: name })).rejects.toMatchObject({ code: 'BAD_OPTION', path: top });
    await expect(commit(join(dir, 'absent'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
    // The twins hold no locks.
    if (addonHere) {
      const one = await openImageFile(base, { format: 'raw', write: true });
      await expect(commit(top)).rejects.toMatchObject({ code: 'IN_USE', path: base });
      await one.close();
      const reader = await openImageFile(top);
      for (const options of [{}, { keep: true }])
        await expect(commit(top, options)).rejects.toMatchObject({ code: 'IN_USE' });
      await reader.close();
    }
    expect([base, top].map(sha256)).toEqual(before);
    rmSync(base);
    await expect(commit(top)).rejects.toMatchObject({ code: 'BACKING_NOT_FOUND' });
  });

  it('refuses images that are marked corrupt, and circles', async () => {
    const { dir, base, top } = await pair();
    const bytes = readFileSync(top);
    bytes[79] = 2;
    writeFileSync(top, bytes);
    const before = sha256(base);
    for (const keep of [true, false])
      await expect(commit(top, { keep })).rejects.toMatchObject({ code: 'CORRUPT', path: top });
    expect(sha256(base)).toBe(before);
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    await create({
      path: a,
      format: 'qcow2',
      size: MIB,
      backing: { name: 'b', format: 'qcow2', unchecked: true },
    });
    await create({
      path: b,
      format: 'qcow2',
      size: MIB,
      backing: { name: 'a', format: 'qcow2', unchecked: true },
    });
    await expect(commit(a)).rejects.toMatchObject({ code: 'BACKING_LOOP' });
  });

  it('finds the base by any name that it has', async () => {
    for (const name of ['base.raw', './base.raw', 'link', 'file:base.raw']) {
      const { dir, base, top } = await pair();
      symlinkSync('base.raw', join(dir, 'link'));
      const before = await hashOf(top);
      const done = await commit(top, { base: name });
      expect(done).toMatchObject({ emptied: false, between: [] });
      expect(await hashOf(base)).toBe(before);
    }
  });

  it('stopped on request leaves the disk as it was; doing it again finishes it', async () => {
    const { base, top } = await pair(32 * MIB);
    const before = await hashOf(top);
    const stop = new AbortController();
    const onProgress = (done: number): void => {
      if (done > 8 * MIB) stop.abort();
    };
    await expect(commit(top, { signal: stop.signal, onProgress })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(await hashOf(top)).toBe(before);
    const { size, emptied } = await commit(top);
    expect([size, emptied]).toEqual([32 * MIB, true]);
    expect([await hashOf(top), await hashOf(base)]).toEqual([before, before]);
    expect(statSync(top).size).toBeLessThan(MIB);
  });

  it('leaves a disk that has all of its space with all of it', async () => {
    for (const allocation of ['thin', 'thick-lazy'] as const) {
      for (const format of ['raw', 'qcow2'] as const) {
        const dir = tempDir();
        const [base, top] = [join(dir, 'base'), join(dir, 'top.qcow2')];
        await create({ path: base, format, size: 4 * MIB, allocation });
        await scatter(base, format, 0, 128 * 1024, 1);
        await create({ path: top, format: 'qcow2', backing: { name: 'base', format } });
        const image = await openImageFile(top, { write: true });
        await image.zero(0, 3 * MIB);
        await image.close();
        await commit(top);
        const { actualSize } = await info(base, { format });
        if (allocation === 'thin') expect(actualSize).toBeLessThan(2 * MIB);
        else expect(actualSize).toBeGreaterThanOrEqual(4 * MIB);
      }
    }
  });

  it('keeps the snapshots of the overlay it empties', async () => {
    const { base, top } = await pair();
    const before = await hashOf(top);
    await createSnapshot(top, 'one');
    await scatter(top, 'qcow2', 5, 64 * 1024, 77);
    const now = await hashOf(top);
    await commit(top);
    expect([await hashOf(base), await hashOf(top)]).toEqual([now, now]);
    expect((await checkFile(top)).problems).toEqual([]);
    const image = await openImageFile(top, { snapshot: 'one' });
    // What the snapshot does not hold itself is the base's, which has changed.
    const part = new Uint8Array(64 * 1024);
    await image.read(part, 192 * 1024);
    expect(Buffer.from(part).equals(patternOf(2 + 192 * 1024, 192 * 1024).subarray(0, part.length))).toBe(
      true,
    );
    await image.close();
    expect(now).not.toBe(before);
  });
});

describe('rebase', { timeout: 300_000 }, () => {
  it('refuses what it cannot do, and changes nothing', async () => {
    const { dir, base, top } = await pair();
    const over = join(dir, 'over.qcow2');
    await create({ path: over, format: 'qcow2', backing: { name: 'top.qcow2', format: 'qcow2' } });
    const uses = join(dir, 'uses.qcow2');
    await create({ path: uses, format: 'qcow2', size: MIB, qcow2: { dataFile: join(dir, 'uses.data') } });
    const small = join(dir, 'small.qcow2');
    await create({
      path: small,
      format: 'qcow2',
      size: MIB,
      qcow2: { clusterSize: 512 },
      backing: { name: 'base.raw', format: 'raw' },
    });
    const files = [base, top, over, uses, small];
    const before = files.map(sha256);
    const to = (name: string, format = 'qcow2') => ({ name, format });
    for (const unsafe of [false, true]) {
      const loops: [string, string][] = [
        [top, 'top.qcow2'],
        [top, './top.qcow2'],
        [top, 'over.qcow2'],
        [top, over],
        [join(dir, 'uses.data'), 'uses.qcow2'],
      ];
      for (const [path, name] of loops)
        await expect(rebase(path, to(name), { unsafe })).rejects.toMatchObject({
          code: 'BACKING_LOOP',
          path,
        });
      await expect(rebase(base, null, { unsafe, format: 'raw' })).rejects.toMatchObject({
        code: 'UNSUPPORTED',
      });
      await expect(rebase(top, to('base.raw', 'vmdk'), { unsafe })).rejects.toMatchObject({
        code: 'UNKNOWN_FORMAT',
      });
      await expect(rebase(join(dir, 'absent'), null, { unsafe })).rejects.toMatchObject({
        code: 'NOT_FOUND',
      });
      symlinkSync(base, join(dir, 'n'.repeat(250)), undefined);
      const long = `${'./'.repeat(100)}${'n'.repeat(250)}`;
      await expect(rebase(small, to(long, 'raw'), { unsafe })).rejects.toMatchObject({
        code: 'BAD_OPTION',
        path: small,
      });
      await expect(
        rebase(top, to(`${'./'.repeat(500)}${'n'.repeat(250)}`, 'raw'), { unsafe }),
      ).rejects.toMatchObject({ code: 'BAD_OPTION' });
      rmSync(join(dir, 'n'.repeat(250)));
      if (!addonHere) continue;
      const reader = await openImageFile(top);
      await expect(rebase(top, null, { unsafe })).rejects.toMatchObject({ code: 'IN_USE' });
      await reader.close();
    }
    await expect(rebase(top, to('absent'))).rejects.toMatchObject({ code: 'BACKING_NOT_FOUND', path: top });
    await expect(rebase(uses, null, { compress: true })).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    if (addonHere) {
      const writer = await openImageFile(base, { format: 'raw', write: true });
      await expect(rebase(top, null)).rejects.toMatchObject({ code: 'IN_USE' });
      await writer.close();
    }
    expect(files.map(sha256)).toEqual(before);
  });

  it('refuses a backing file for an image whose data file is a disk by itself', async () => {
    const { dir } = await pair();
    const path = join(dir, 'd.qcow2');
    await create({
      path,
      format: 'qcow2',
      size: MIB,
      qcow2: { dataFile: join(dir, 'd.raw'), dataFileRaw: true },
    });
    for (const unsafe of [false, true])
      await expect(rebase(path, { name: 'base.raw', format: 'raw' }, { unsafe })).rejects.toMatchObject({
        code: 'UNSUPPORTED',
      });
  });

  it('changes nothing but the reference when it is unsafe', async () => {
    const { dir, base, top } = await pair();
    const before = readFileSync(top);
    expect(await rebase(top, { name: 'gone', format: 'qcow2' }, { unsafe: true })).toEqual({
      before: 'base.raw',
      copied: 0,
      zeroed: 0,
    });
    expect(await info(top)).toMatchObject({ backingName: 'gone', backingFormat: 'qcow2' });
    await expect(openImageFile(top)).rejects.toMatchObject({ code: 'BACKING_NOT_FOUND' });
    await rebase(top, null, { unsafe: true });
    expect(await info(top)).toMatchObject({ backingName: null, backingFormat: null });
    await rebase(top, { name: 'base.raw', format: 'raw' }, { unsafe: true });
    expect(readFileSync(top).equals(before)).toBe(true);
    expect(readdirSync(dir).sort()).toEqual(['base.raw', 'top.qcow2']);
    expect(statSync(base).size).toBe(4 * MIB);
  });

  it('reads nothing of what both chains share', async () => {
    const { dir, top } = await pair(4 * MIB);
    const middle = join(dir, 'middle.qcow2');
    await create({ path: middle, format: 'qcow2', backing: { name: 'base.raw', format: 'raw' } });
    const [old, next] = await Promise.all([top, middle].map((path) => openImageFile(path)));
    const found: unknown[] = [];
    for await (const range of suspects(old as Image, next as Image)) found.push(range);
    expect(found).toEqual([]);
    await old?.close();
    await next?.close();
    expect(await rebase(top, { name: 'middle.qcow2', format: 'qcow2' })).toMatchObject({
      copied: 0,
      zeroed: 0,
    });
    const image = await openImageFile(middle, { write: true });
    await image.write(patternOf(5, 4096), 400 * 1024);
    await image.close();
    // Only that one piece is different, in a cluster that the overlay does not hold.
    expect(await rebase(top, { name: 'base.raw', format: 'raw' })).toMatchObject({ copied: 65_536 });
  });

  it('stopped on request leaves the disk over the old file as it was', async () => {
    const { top } = await pair(32 * MIB);
    const before = await hashOf(top);
    const stop = new AbortController();
    const onProgress = (done: number): void => {
      if (done > 8 * MIB) stop.abort();
    };
    await expect(rebase(top, null, { signal: stop.signal, onProgress })).rejects.toMatchObject({
      code: 'ABORTED',
    });
    expect((await info(top)).backingName).toBe('base.raw');
    expect(await hashOf(top)).toBe(before);
    expect((await checkFile(top)).problems).toEqual([]);
    await rebase(top, null);
    expect((await info(top)).backingName).toBeNull();
    expect(await hashOf(top)).toBe(before);
  });
});

qemu.describeWithQemu('commit and rebase beside qemu', () => {
  it.runIf(addonHere)('leave alone what a program of qemu uses', { timeout: 300_000 }, async () => {
    const dir = tempDir();
    const [base, top, other] = [join(dir, 'base'), join(dir, 'top'), join(dir, 'other')];
    // (qemu lets a raw file be written that backs somebody's disk.)
    await create({ path: base, format: 'qcow2', size: MIB });
    const backing = { name: 'base', format: 'qcow2' };
    for (const path of [top, other]) await create({ path, format: 'qcow2', backing });
    await scatter(top, 'qcow2', 1, 64 * 1024, 2);
    const before = [base, top].map(sha256);
    // Somebody's disk is backed by the base.
    for (const path of [other, top]) {
      const user = spawn('qemu-io', [path], { stdio: ['pipe', 'pipe', 'ignore'] });
      await new Promise((resolve) => user.stdout.once('data', resolve));
      await expect(commit(top), path).rejects.toMatchObject({ code: 'IN_USE' });
      if (path === top) await expect(rebase(top, null)).rejects.toMatchObject({ code: 'IN_USE' });
      user.stdin.end('quit\n');
      await new Promise((resolve) => user.once('exit', resolve));
    }
    expect([base, top].map(sha256)).toEqual(before);
  });

  it('work on encrypted layers', { timeout: 300_000 }, async () => {
    const dir = tempDir();
    const [base, top] = [join(dir, 'base.qcow2'), join(dir, 'top.qcow2')];
    const secret = secretOf(PASSPHRASE);
    const fast = { format: 'luks', 'iter-time': '10' };
    await createEncrypted(base, 2 * MIB, 'qcow2', fast);
    await qemu.qemuIo(['-c', 'write -P 1 0 2M', ...encryptedSource(base, 'qcow2')]);
    await createEncrypted(top, 3 * MIB, 'qcow2', fast, { backing_file: 'base.qcow2', backing_fmt: 'qcow2' });
    const source = (path: string): string[] => {
      const args = encryptedSource(path, 'qcow2');
      return path === base
        ? args
        : [...args.slice(0, -1), `${args.at(-1) ?? ''},backing.encrypt.key-secret=s`];
    };
    await qemu.qemuIo([
      '-c',
      'write -P 2 100k 300k',
      '-c',
      'write -z 512k 128k',
      '-c',
      'write -P 3 2M 70k',
      ...source(top),
    ]);
    const content = async (path: string): Promise<string> => {
      await qemu.qemuImg(['convert', '-O', 'raw', ...source(path), join(dir, 'scratch')]);
      return sha256(join(dir, 'scratch'));
    };
    const before = await content(top);
    const plain = join(dir, 'plain.qcow2');
    await convert([{ path: base, secret }], { path: plain, format: 'qcow2' });
    await rebase(top, { name: 'plain.qcow2', format: 'qcow2' }, { secret });
    expect((await info(top)).backingName).toBe('plain.qcow2');
    await rebase(top, { name: 'base.qcow2', format: 'qcow2' }, { secret });
    expect(await content(top)).toBe(before);
    await expect(commit(top)).rejects.toMatchObject({ code: 'ENCRYPTED' });
    await commit(top, { secret });
    expect([await content(base), await content(top)]).toEqual([before, before]);
    for (const path of [base, top]) expect((await qemu.check(path, { source: source(path) })).code).toBe(0);
  });

  it(
    `commit killed at random moments loses nothing: ${String(KILLS)} times`,
    { timeout: 600_000 },
    async () => {
      const { base, top } = await pair(48 * MIB, 64 * 1024);
      const random = new Random(seedOf('commit killed'));
      const before = await hashOf(top);
      let killed = 0;
      for (let round = 0; round < KILLS; round++) {
        const ended = await runAndKill(['commit', top], random.below(90));
        if (!ended) killed++;
        const context = `round ${String(round)}, SPINDLE_SEED=${String(random.seed)}`;
        expect([0, 3], context).toContain((await qemu.check(top)).code);
        expect(await hashOf(top), context).toBe(before);
        // Once it is emptied there is something to do again.
        if (ended || statSync(top).blocks * 512 < MIB) {
          expect(await hashOf(base), context).toBe(before);
          await refill(top);
        }
      }
      expect(killed).toBeGreaterThan(0);
      await commit(top);
      expect([await hashOf(base), await hashOf(top)]).toEqual([before, before]);
    },
  );

  it(
    `rebase killed at random moments loses nothing: ${String(KILLS)} times`,
    { timeout: 600_000 },
    async () => {
      const { dir, top } = await pair(48 * MIB, 64 * 1024);
      const other = join(dir, 'other.raw');
      await create({ path: other, format: 'raw', size: 48 * MIB });
      await scatter(other, 'raw', 3, 128 * 1024, 9);
      const random = new Random(seedOf('rebase killed'));
      const before = await hashOf(top);
      const seen = new Set<string | null>();
      const kept = readFileSync(top);
      for (let round = 0; round < KILLS; round++) {
        const work = ['rebase', top, 'other.raw', '', 'base.raw'];
        await runAndKill(work, random.below(120), round % 2 === 0 ? 'started' : 'switched');
        const context = `round ${String(round)}, SPINDLE_SEED=${String(random.seed)}`;
        expect([0, 3], context).toContain((await qemu.check(top)).code);
        seen.add((await info(top)).backingName);
        expect(await hashOf(top), context).toBe(before);
        writeFileSync(top, kept);
      }
      expect(seen.size, JSON.stringify([...seen])).toBeGreaterThan(1);
    },
  );
});

/** Makes an emptied overlay hold again all that its base has. */
async function refill(top: string): Promise<void> {
  const image = await openImageFile(top, { write: true });
  const bytes = new Uint8Array(64 * 1024);
  for (let at = 0; at < image.size; at += 2 * bytes.length) {
    await image.read(bytes, at);
    await image.write(bytes, at);
  }
  await image.close();
}

/** Runs a verb in a child and kills it a while after it tells `from`; whether it had ended by then. */
async function runAndKill(args: readonly string[], milliseconds: number, from = 'started'): Promise<boolean> {
  const child = fork(join(import.meta.dirname, 'chain-child.ts'), args, {
    execArgv: ['--import', 'tsx'],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  let ended = false;
  await new Promise<void>((resolve) => {
    child.on('message', (message) => {
      if (message === 'ended') ended = true;
      if (message === from) resolve();
    });
  });
  const exit = new Promise((resolve) => child.once('exit', resolve));
  await Promise.race([sleep(milliseconds), exit]);
  child.kill('SIGKILL');
  await exit;
  return ended;
}

describeWithFileSystem('commit and rebase on a full file system', 'ext4', () => {
  it('fail clearly and lose nothing', { timeout: 300_000 }, async () => {
    await withFileSystem('ext4', 64, async (mount) => {
      const dir = join(mount, 'd');
      mkdirSync(dir);
      for (const verb of ['commit', 'rebase'] as const) {
        for (const format of ['raw', 'qcow2'] as const) {
          const [base, top] = [join(dir, `${verb}.${format}`), join(dir, `${verb}.${format}.top`)];
          const size = 40 * MIB;
          await create({ path: base, format, size });
          const image = await openImageFile(base, { format, write: true });
          await image.write(patternOf(3, 10 * MIB), 0);
          await image.close();
          await create({ path: top, format: 'qcow2', backing: { name: base, format } });
          const overlay = await openImageFile(top, { write: true });
          await overlay.write(patternOf(4, 14 * MIB), 20 * MIB);
          await overlay.close();
          const before = await hashOf(top);
          const ballast = join(dir, 'ballast');
          fillUp(ballast, 4 * MIB);
          const work = verb === 'commit' ? commit(top) : rebase(top, null);
          await expect(work).rejects.toMatchObject({ code: 'NO_SPACE' });
          expect((await info(top)).backingName).toBe(base);
          expect(await hashOf(top)).toBe(before);
          expect((await checkFile(top)).corruptions).toBe(0);
          if (format === 'qcow2') expect((await checkFile(base)).corruptions).toBe(0);
          rmSync(ballast);
          if (verb === 'commit') await commit(top);
          else await rebase(top, null);
          expect(await hashOf(top)).toBe(before);
          if (verb === 'commit') expect(await hashOf(base)).toBe(before);
          rmSync(base);
          rmSync(top);
        }
      }
    });
  });
});

/** Takes the space of a file system, but for about `left` bytes. */
function fillUp(path: string, left: number): void {
  const chunk = patternOf(1, MIB / 4);
  try {
    for (;;) writeFileSync(path, chunk, { flag: 'a' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
  const { size } = statSync(path);
  writeFileSync(path, readFileSync(path).subarray(0, Math.max(0, size - left)));
}
