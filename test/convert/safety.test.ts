import { fork } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { SpindleError } from '../../src/core/errors.ts';
import { native } from '../../src/native/binding.ts';
import { create } from '../../src/op/create.ts';
import { convert } from '../../src/op/convert.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile } from '../../src/op/open.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { addonHere } from '../native/help.ts';

const MIB = 1024 ** 2;
const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

/** A raw file with data and holes. */
async function fill(path: string, size: number, random: Random): Promise<void> {
  await create({ path, format: 'raw', size });
  const image = await openImageFile(path, { format: 'raw', write: true });
  for (let at = 0; at + MIB < size; at += 2 * MIB)
    await image.write(
      random.bytes(MIB).map((byte) => byte & 15),
      at,
    );
  await image.close();
}

describe('convert', () => {
  it('stopped on request leaves no file, and an existing target as it was', async () => {
    const dir = tempDir();
    const [from, to] = [join(dir, 'from.raw'), join(dir, 'to.qcow2')];
    await fill(from, 64 * MIB, new Random(1));
    for (const old of [false, true]) {
      if (old) writeFileSync(to, 'something else');
      const stop = new AbortController();
      const work = convert(
        [{ path: from, format: 'raw' }],
        { path: to, format: 'qcow2' },
        {
          signal: stop.signal,
          onProgress: (done) => {
            if (done > 10 * MIB) stop.abort();
          },
        },
      );
      await expect(work).rejects.toMatchObject({ code: 'ABORTED' });
      expect(readdirSync(dir).sort()).toEqual(old ? ['from.raw', 'to.qcow2'] : ['from.raw']);
      if (old) expect(readFileSync(to, 'utf8')).toBe('something else');
    }
  });

  it(
    'killed at random moments harms neither the source nor an existing target',
    { timeout: 300_000 },
    async () => {
      const dir = tempDir();
      const random = new Random(seedOf('convert killed'));
      const [from, to] = [join(dir, 'from.raw'), join(dir, 'to.qcow2')];
      await fill(from, 128 * MIB, random);
      writeFileSync(to, 'what was there');
      const before = sha256(from);
      let killed = 0;
      for (let round = 0; round < 12; round++) {
        const child = fork(join(import.meta.dirname, 'convert-child.ts'), [from, to], {
          execArgv: ['--import', 'tsx'],
          stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
        });
        await new Promise((resolve) => child.once('message', resolve));
        await sleep(random.below(120));
        child.kill('SIGKILL');
        await new Promise((resolve) => child.once('exit', resolve));
        const content = readFileSync(to);
        if (content.toString('latin1', 0, 4) === 'QFI\u00fb') {
          expect((await info(to)).virtualSize).toBe(128 * MIB);
          writeFileSync(to, 'what was there');
        } else {
          expect(content.toString(), `SPINDLE_SEED=${String(random.seed)}`).toBe('what was there');
          killed++;
        }
      }
      expect(sha256(from)).toBe(before);
      expect(killed).toBeGreaterThan(0);
    },
  );

  it('refuses to write over what it reads', async () => {
    const dir = tempDir();
    const [base, top] = [join(dir, 'base.raw'), join(dir, 'top.qcow2')];
    await fill(base, 4 * MIB, new Random(2));
    await create({ path: top, format: 'qcow2', backing: { name: 'base.raw', format: 'raw' } });
    const before = [base, top].map(sha256);
    for (const path of [base, top, join(dir, '.', 'base.raw')]) {
      for (const target of [
        { path, format: 'raw' },
        { path, existing: true as const },
      ]) {
        await expect(convert([{ path: top }], target)).rejects.toMatchObject({ code: 'BAD_OPTION', path });
      }
    }
    expect([base, top].map(sha256)).toEqual(before);
    expect(readdirSync(dir).sort()).toEqual(['base.raw', 'top.qcow2']);
  });

  it('refuses options that exclude each other before it makes anything', async () => {
    const dir = tempDir();
    const from = join(dir, 'from.raw');
    await fill(from, 4 * MIB, new Random(3));
    const path = join(dir, 'to');
    const sources = [{ path: from, format: 'raw' }];
    const cases = [
      convert([], { path }),
      convert(sources, { path, format: 'raw' }, { compress: true }),
      convert(sources, { path, format: 'qcow2', qcow2: { dataFile: join(dir, 'd') } }, { compress: true }),
      convert(sources, { path }, { sparse: 1000 }),
      convert(sources, { path }, { sparse: 32 * MIB }),
      convert([...sources, ...sources], { path, format: 'qcow2', backing: { name: from, format: 'raw' } }),
    ];
    for (const work of cases) await expect(work).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(convert([{ path: join(dir, 'absent') }], { path })).rejects.toMatchObject({
      code: 'NOT_FOUND',
    });
    expect(readdirSync(dir)).toEqual(['from.raw']);
  });

  it('keeps the policy of the source', async () => {
    const dir = tempDir();
    for (const allocation of ['thin', 'thick-lazy', 'thick-eager'] as const) {
      const [from, to] = [join(dir, allocation), join(dir, `${allocation}.copy`)];
      await create({ path: from, format: 'qcow2', size: 8 * MIB, allocation });
      for (const format of ['raw', 'qcow2']) {
        await convert([{ path: from }], { path: to, format, allocation: 'keep' });
        expect((await info(to, { format, allocation: true })).allocation?.policy).toBe(allocation);
      }
    }
  });

  it('goes no faster than it is told', async () => {
    const dir = tempDir();
    const [from, to] = [join(dir, 'from.raw'), join(dir, 'to.raw')];
    await fill(from, 8 * MIB, new Random(4));
    const start = performance.now();
    await convert([{ path: from, format: 'raw' }], { path: to }, { rate: 16 * MIB });
    // 4 MiB of data at 16 MiB a second.
    expect(performance.now() - start).toBeGreaterThan(200);
    expect(sha256(to)).toBe(sha256(from));
  });

  it('fills with zeroes what cannot be read, when told so', async () => {
    const dir = tempDir();
    const [from, to] = [join(dir, 'from.qcow2'), join(dir, 'to.raw')];
    const plain = join(dir, 'plain.raw');
    await fill(plain, 4 * MIB, new Random(5));
    await convert([{ path: plain, format: 'raw' }], { path: from, format: 'qcow2' }, { compress: true });
    // The last streams are cut off.
    truncateSync(from, statSync(from).size - 100_000);
    await expect(convert([{ path: from }], { path: to })).rejects.toMatchObject({ code: 'BAD_COMPRESSED' });
    const lost: [number, number][] = [];
    await convert([{ path: from }], { path: to }, { onUnreadable: (at, length) => lost.push([at, length]) });
    const [expected, found] = [readFileSync(plain), readFileSync(to)];
    expect(lost.length).toBeGreaterThan(0);
    for (const [at, length] of lost) expected.fill(0, at, at + length);
    // A stream that is cut in two may decode to anything: it has no checksum.
    const first = lost[0]?.[0] ?? 0;
    for (const bytes of [expected, found]) bytes.fill(0, first - 65_536, first);
    expect(found.equals(expected)).toBe(true);
    expect(lost.reduce((sum, [, length]) => sum + length, 0) / 65_536).toBeOneOf([2, 3, 4]);
  });
});

// The twins share no blocks.
for (const type of addonHere ? (['xfs', 'btrfs'] as const) : []) {
  describeWithFileSystem(`convert on ${type}`, type, () => {
    it('shares the blocks of the source, unless told not to', { timeout: 300_000 }, async () => {
      await withFileSystem(type, 400, async (mount) => {
        const dir = mkdtempSync(join(mount, 'd'));
        const raw = join(dir, 'a.raw');
        await fill(raw, 32 * MIB, new Random(6));
        for (const [from, fromFormat, to, toFormat] of [
          [raw, 'raw', join(dir, 'b.qcow2'), 'qcow2'],
          [join(dir, 'b.qcow2'), 'qcow2', join(dir, 'c.raw'), 'raw'],
          [raw, 'raw', join(dir, 'd.raw'), 'raw'],
        ] as const) {
          const shared = await convert([{ path: from, format: fromFormat }], { path: to, format: toFormat });
          expect(shared.shared).toBeGreaterThan(15 * MIB);
          expect((await info(to, { format: toFormat, allocation: true })).allocation?.shared).toBeGreaterThan(
            15 * MIB,
          );
          expect(await qemu.compare({ path: from, format: fromFormat }, { path: to, format: toFormat })).toBe(
            true,
          );
          if (toFormat === 'qcow2') expect((await qemu.check(to)).code).toBe(0);
          const own = join(dir, 'own');
          for (const [target, options] of [
            [{}, { share: false }],
            [{ allocation: 'thick-lazy' as const }, {}],
          ] as const) {
            const copied = await convert(
              [{ path: from, format: fromFormat }],
              { path: own, format: toFormat, ...target },
              options,
            );
            expect(copied.shared).toBe(0);
            expect((await info(own, { format: toFormat, allocation: true })).allocation?.shared).toBe(0);
            rmSync(own);
          }
        }
      });
    });

    // Fails like a file system that shares up to its limit, in the middle of a call that shares many runs.
    it.each([0, 1, 300, 700])(
      'goes on by copying when sharing ends after %i runs',
      { timeout: 300_000 },
      async (most) => {
        await withFileSystem(type, 400, async (mount) => {
          const from = join(mount, 'a.qcow2');
          const random = new Random(most);
          const order = Array.from({ length: 1000 }, (_, cluster) => (cluster * 379) % 1000);
          await create({ path: from, format: 'qcow2', size: 2000 * 65_536 });
          const image = await openImageFile(from, { write: true });
          for (const cluster of order) await image.write(random.bytes(65_536), cluster * 2 * 65_536);
          await image.close();
          const { cloneRuns } = native();
          let left = most;
          const calls: number[] = [];
          const limited = vi.spyOn(native(), 'cloneRuns').mockImplementation(async (source, target, runs) => {
            calls.push(runs.length / 3);
            const now = Math.min(left, runs.length / 3);
            left -= now;
            await cloneRuns(source, target, runs.subarray(0, now * 3));
            if (now < runs.length / 3) throw new SpindleError('UNSUPPORTED', 'no more');
          });
          try {
            for (const format of ['raw', 'qcow2'] as const) {
              [left, calls.length] = [most, 0];
              const to = join(mount, `b.${format}`);
              const copied = await convert([{ path: from }], { path: to, format });
              expect(copied.shared).toBeLessThanOrEqual(most * 65_536);
              expect(copied.shared + copied.written).toBe(1000 * 65_536);
              if (most === 700) expect(Math.max(...calls)).toBeGreaterThan(100);
              expect(await qemu.compare({ path: from, format: 'qcow2' }, { path: to, format })).toBe(true);
              if (format === 'qcow2') expect((await qemu.check(to)).code).toBe(0);
            }
          } finally {
            limited.mockRestore();
          }
        });
      },
    );
  });
}
