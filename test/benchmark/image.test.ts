import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { deflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { ACCESSES, drawer, type Drawing } from '../../src/benchmark/access.ts';
import { benchImages, type ImageBench } from '../../src/benchmark/image.ts';
import type { ImageBenchRequest } from '../../src/benchmark/image-plan.ts';
import { seedOf as partOf } from '../../src/benchmark/random.ts';
import { LatencyCounter, needed, SeriesRecorder } from '../../src/benchmark/recorder.ts';
import { quantile } from '../../src/benchmark/statistics.ts';
import { create } from '../../src/op/create.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { onTerminal, ptyMissing } from '../tool/pty.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;
const BLOCK = 4096;
const seed = seedOf('bench image');
const bySeed = `(SPINDLE_SEED=${String(seed)})`;

beforeAll(builtCli);

function drawing(more: Partial<Drawing>): Drawing {
  return {
    ...{ access: 'sequential', sizes: [{ size: BLOCK, weight: 1 }], step: BLOCK, start: 0, end: 10 * BLOCK },
    ...{ readPercent: 100, seed, ...more },
  };
}

function placesOf(more: Partial<Drawing>, count: number): number[] {
  const draw = drawer(drawing(more));
  return Array.from({ length: count }, () => draw().at / BLOCK);
}

describe(`where requests lie ${bySeed}`, () => {
  it('in order, backwards, in strides', () => {
    expect(placesOf({ end: 4 * BLOCK + 100 }, 6)).toEqual([0, 1, 2, 3, 0, 1]);
    expect(placesOf({ start: 2 * BLOCK, end: 5 * BLOCK }, 5)).toEqual([2, 3, 4, 2, 3]);
    expect(placesOf({ access: 'reverse', end: 4 * BLOCK }, 6)).toEqual([3, 2, 1, 0, 3, 2]);
    expect(placesOf({ access: 'strided', step: 4 * BLOCK }, 11)).toEqual([0, 4, 8, 1, 5, 9, 2, 6, 3, 7, 0]);
    // Requests that overlap need no second way through.
    expect(placesOf({ access: 'strided', step: BLOCK / 2, end: 2 * BLOCK }, 5)).toEqual([0, 0.5, 1, 0, 0.5]);
  });

  it('by chance: everywhere in the range, about as often, in multiples of their size', () => {
    const counts = new Map<number, number>();
    const access = 'random';
    for (const at of placesOf({ access, start: 3 * BLOCK, end: 13 * BLOCK }, 10_000))
      counts.set(at, (counts.get(at) ?? 0) + 1);
    expect([...counts.keys()].sort((a, b) => a - b)).toEqual([3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    // 1000 each, give or take six standard deviations of 30.
    for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(180);
    expect(placesOf({ access }, 50)).toEqual(placesOf({ access }, 50));
    expect(placesOf({ access }, 50)).not.toEqual(placesOf({ access, seed: seed + 1 }, 50));
  });

  it('never pass the range, whatever is asked', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...ACCESSES),
        fc.array(
          fc.record({ size: fc.integer({ min: 1, max: 5000 }), weight: fc.integer({ min: 1, max: 9 }) }),
          {
            minLength: 1,
            maxLength: 4,
          },
        ),
        fc.nat(10_000),
        fc.integer({ min: 5000, max: 60_000 }),
        fc.integer({ min: 1, max: 20_000 }),
        (access, sizes, start, length, step) => {
          const draw = drawer(drawing({ access, sizes, start, end: start + length, step }));
          for (let index = 0; index < 200; index++) {
            const request = draw();
            expect(request.at).toBeGreaterThanOrEqual(start);
            expect(request.at + request.length).toBeLessThanOrEqual(start + length);
          }
        },
      ),
      { seed },
    );
  });

  it('reads, writes and sizes come as often as asked, and do not shift each other', () => {
    const mixed = {
      readPercent: 70,
      sizes: [
        { size: 512, weight: 3 },
        { size: BLOCK, weight: 1 },
      ],
    };
    const draw = drawer(drawing(mixed));
    const drawn = Array.from({ length: 20_000 }, draw);
    // Six standard deviations: 65 and 61.
    expect(Math.abs(drawn.filter(({ write }) => !write).length - 14_000)).toBeLessThan(390);
    expect(Math.abs(drawn.filter(({ length }) => length === 512).length - 15_000)).toBeLessThan(370);
    const writes = (more: Partial<Drawing>): boolean[] => {
      const next = drawer(drawing({ ...mixed, ...more }));
      return Array.from({ length: 100 }, () => next().write);
    };
    expect(writes({ access: 'random' })).toEqual(writes({}));
    for (const readPercent of [0, 100]) {
      const next = drawer(drawing({ readPercent }));
      expect(Array.from({ length: 500 }, () => next().write)).toEqual(
        Array.from({ length: 500 }, () => readPercent === 0),
      );
    }
  });
});

describe(`what is counted ${bySeed}`, () => {
  it('quantiles are those of the values, to 1.1 %, and none where nothing lies beyond', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 1, max: 1e12, noNaN: true }), { minLength: 1, maxLength: 2000 }),
        (values) => {
          const counter = new LatencyCounter();
          values.forEach((value) => {
            counter.add(value);
          });
          const sorted = Float64Array.from(values).sort();
          const { p50, p90, p99, p999, min, max } = counter.tail();
          expect([min, max]).toEqual([sorted[0], sorted.at(-1)]);
          for (const [found, part] of [
            [p50, 0.5],
            [p90, 0.9],
            [p99, 0.99],
            [p999, 0.999],
          ] as const) {
            if (values.length < 1 / (1 - part) - 1e-6) {
              expect(found).toBeNull();
              continue;
            }
            const exact = sorted[Math.ceil(values.length * part) - 1]!;
            expect(found).toBeGreaterThanOrEqual(exact * (1 - 1e-9));
            expect(found).toBeLessThanOrEqual(exact * 1.011);
          }
          expect(counter.buckets().reduce((sum, { count }) => sum + count, 0)).toBe(values.length);
        },
      ),
      { seed },
    );
    expect([needed(0.5), needed(0.9), needed(0.99), needed(0.999)]).toEqual([2, 10, 100, 1000]);
    expect(new LatencyCounter().tail()).toMatchObject({ min: null, mean: null, p50: null, max: null });
    expect(quantile([1, 2], 0.5)).toBe(1.5);
  });

  it('series lose nothing, however long', () => {
    const series = new SeriesRecorder();
    for (let at = 0; at < 5000; at++) series.add(at * 37, 10, at);
    const { interval, parts } = series.series();
    expect(parts.length).toBeLessThanOrEqual(600);
    expect(interval).toBe(0.4);
    expect(parts.reduce((sum, { requests }) => sum + requests, 0)).toBe(5000);
    expect(parts.reduce((sum, { bytes }) => sum + bytes, 0)).toBe(50_000);
    expect(Math.max(...parts.map(({ max }) => max))).toBe(4999);
  });
});

/** A disk of random bytes. */
async function filled(path: string, format: 'raw' | 'qcow2', size: number): Promise<void> {
  const raw = `${path}.bytes`;
  writeFileSync(raw, new Random(seed).bytes(size));
  await qemu.qemuImg(['convert', '-f', 'raw', '-O', format, raw, path]);
}

/** The bytes of a disk, as qemu-img reads them. */
async function bytesOf(path: string, format: string): Promise<Buffer> {
  await qemu.qemuImg(['convert', '-f', format, '-O', 'raw', path, `${path}.read`]);
  return readFileSync(`${path}.read`);
}

function digest(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

qemu.describeWithQemu(`bench image, judged by qemu ${bySeed}`, () => {
  for (const format of ['raw', 'qcow2'] as const) {
    const expected: Readonly<Record<string, readonly number[]>> = {
      sequential: Array.from({ length: 40 }, (_, at) => 8 + at),
      reverse: Array.from({ length: 40 }, (_, at) => 207 - at),
      strided: Array.from({ length: 40 }, (_, at) => 8 + at * 5),
    };
    it.each([...ACCESSES])(`${format}: %s writes where it says, and nowhere else`, async (access) => {
      const path = join(tempDir(), 'disk');
      await filled(path, format, 2 * MIB);
      const before = await bytesOf(path, format);
      const found = await benchImages([{ path, format }], {
        ...{ access, write: true, data: 0xa5, count: 40, depth: 7, seed, offset: 8 * BLOCK },
        ...{ range: 200 * BLOCK, step: access === 'strided' ? 5 * BLOCK : undefined },
      });
      expect(found.total.writes.requests).toBe(40);
      const draw = drawer(
        drawing({
          ...{ access, start: 8 * BLOCK, end: 208 * BLOCK, readPercent: 0 },
          seed: partOf(seed, 'image', 0),
        }),
      );
      const places = new Set(expected[access] ?? Array.from({ length: 40 }, () => draw().at / BLOCK));
      expect(places.size).toBeGreaterThan(30);
      const after = await bytesOf(path, format);
      const byte = Buffer.alloc(BLOCK, 0xa5);
      for (let block = 0; block < (2 * MIB) / BLOCK; block++) {
        const [from, to] = [block * BLOCK, (block + 1) * BLOCK];
        const wanted = places.has(block) ? byte : before.subarray(from, to);
        expect(after.subarray(from, to).equals(wanted), `block ${String(block)}`).toBe(true);
      }
      if (format === 'qcow2') expect((await qemu.check(path)).code).toBe(0);
    });

    it(`${format}: reads change no byte of the file`, async () => {
      const path = join(tempDir(), 'disk');
      await filled(path, format, MIB);
      const before = [digest(path), statSync(path).mtimeMs];
      for (const access of ACCESSES)
        await benchImages([{ path, format }], {
          access,
          count: 300,
          step: access === 'strided' ? MIB / 8 : undefined,
        });
      // Writes that are not consented to are refused, not done.
      for (const request of [{ readPercent: 50 }, { data: 1 }, { flushInterval: 64 }])
        await expect(benchImages([{ path, format }], request)).rejects.toMatchObject({ code: 'BAD_OPTION' });
      expect([digest(path), statSync(path).mtimeMs]).toEqual(before);
    });

    it(`${format}: a mix of sizes, reads and noise on a new disk, with flushes`, async () => {
      const path = join(tempDir(), 'disk');
      await create({ path, format, size: 64 * MIB });
      const request: ImageBenchRequest = {
        ...{
          access: 'random' as const,
          write: true,
          readPercent: 40,
          count: 1500,
          depth: 16,
          seed,
          flushInterval: 100,
        },
        sizes: [
          { size: BLOCK, weight: 3 },
          { size: 65_536, weight: 1 },
        ],
      };
      const { total, plan } = await benchImages([{ path, format }], request);
      // Six standard deviations of 19.
      expect(Math.abs(total.reads.requests - 600)).toBeLessThan(114);
      expect(total.reads.requests + total.writes.requests).toBe(1500);
      expect(total.flushes).toBe(15);
      expect(total.flushSeconds).not.toBeNull();
      expect(plan.seed).toBe(seed);
      const bytes = await bytesOf(path, format);
      const written = Buffer.concat(
        Array.from({ length: bytes.length / BLOCK }, (_, at) =>
          bytes.subarray(at * BLOCK, (at + 1) * BLOCK),
        ).filter((block) => block.some((byte) => byte !== 0)),
      );
      // What stands there is of the writes, and does not compress.
      expect(written.length).toBeGreaterThan(0);
      expect(written.length).toBeLessThanOrEqual(total.writes.bytes);
      expect(deflateRawSync(written.subarray(0, 4 * MIB)).length).toBeGreaterThan(
        Math.min(written.length, 4 * MIB) * 0.95,
      );
      if (format === 'qcow2') expect((await qemu.check(path)).code).toBe(0);
      // The same seed writes the same places again.
      const other = join(tempDir(), 'disk');
      await create({ path: other, format, size: 64 * MIB });
      await benchImages([{ path: other, format }], { ...request, depth: 1, flushInterval: 0 });
      const map = async (of: string): Promise<unknown> =>
        (await qemu.map(of, { format })).map(({ start, length, data }) => [start, length, data]);
      if (format === 'qcow2') expect(await map(other)).toEqual(await map(path));
    });
  }

  it.each(['SIGINT', 'SIGTERM'] as const)('%s leaves a valid image', async (signal) => {
    const path = join(tempDir(), 'disk.qcow2');
    await create({ path, format: 'qcow2', size: 256 * MIB });
    const args = [
      'bench',
      'image',
      '-w',
      '--access',
      'random',
      '--duration',
      '100',
      '--flush-interval',
      '100',
      path,
    ];
    const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    let stderr = '';
    child.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
    const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
    const start = statSync(path).size;
    while (statSync(path).size < start + 8 * MIB && child.exitCode === null) await sleep(10);
    child.kill(signal);
    expect(await ended).toBe(signal === 'SIGINT' ? 130 : 143);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(await qemu.check(path)).toMatchObject({ code: 0, stderr: '' });
    expect((await qemu.map(path)).some(({ data }) => data)).toBe(true);
  });
});

describe('several images', () => {
  it('each have their queue, and all of them a sum', async () => {
    const dir = tempDir();
    const images = [
      { path: join(dir, 'a'), format: 'raw' },
      { path: join(dir, 'b'), format: 'qcow2' },
      { path: join(dir, 'c'), format: 'raw' },
    ] as const;
    for (const image of images) await create({ ...image, size: 4 * MIB });
    const {
      images: each,
      total,
      cpuSeconds,
    } = await benchImages(images, { write: true, count: 150, depth: 3, seed });
    expect(each.map(({ path }) => path)).toEqual(images.map(({ path }) => path));
    for (const { writes, all, series } of each) {
      expect([writes.requests, writes.bytes]).toEqual([150, 150 * BLOCK]);
      expect(all.histogram.reduce((sum, { count }) => sum + count, 0)).toBe(150);
      expect(series.parts.reduce((sum, { requests }) => sum + requests, 0)).toBe(150);
      expect([all.latency.p99 === null, all.latency.p999]).toEqual([false, null]);
    }
    expect([total.all.requests, total.all.bytes]).toEqual([450, 450 * BLOCK]);
    expect(cpuSeconds).toBeGreaterThan(0);
    // Seeds of their own: two disks do not get the same bytes.
    expect(digest(images[0].path)).not.toBe(digest(images[2].path));
  });

  it('are not touched where one of them does not fit, or is named twice', async () => {
    const dir = tempDir();
    const [large, small] = [join(dir, 'large'), join(dir, 'small')];
    writeFileSync(large, Buffer.alloc(MIB, 7));
    writeFileSync(small, Buffer.alloc(1024, 7));
    const images = [large, small].map((path) => ({ path, format: 'raw' }));
    const before = [digest(large), digest(small)];
    await expect(benchImages(images, { write: true })).rejects.toMatchObject({
      code: 'OUT_OF_RANGE',
      path: small,
    });
    for (const twice of [large, `${dir}/../${dir.split('/').pop() ?? ''}/large`])
      await expect(
        benchImages([images[0]!, { path: twice, format: 'raw' }], { write: true }),
      ).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(benchImages([{ ...images[0]!, share: true }], { write: true })).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
    await expect(benchImages([], {})).rejects.toMatchObject({ code: 'BAD_OPTION' });
    expect([digest(large), digest(small)]).toEqual(before);
  });

  it('stop together', async () => {
    const dir = tempDir();
    const images = ['a', 'b'].map((name) => ({ path: join(dir, name), format: 'qcow2' }));
    for (const { path } of images) await create({ path, format: 'qcow2', size: 4 * MIB });
    const controller = new AbortController();
    let heard = 0;
    const stopped = benchImages(images, {
      ...{ count: 2 ** 31 - 1, signal: controller.signal },
      onProgress: () => {
        if (++heard === 100) controller.abort();
      },
    });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    const failing = benchImages(images, {
      onProgress: () => {
        throw new Error('made to fail');
      },
    });
    await expect(failing).rejects.toThrow('made to fail');
    // All are closed: nobody else is kept from them.
    for (const { path } of images) await benchImages([{ path }], { write: true, count: 1, depth: 1 });
  });
});

describe('spindle bench image', () => {
  it('prints its seed, a table and a histogram; all of it as JSON; progress as lines of JSON', async () => {
    const cwd = tempDir();
    await spindle(['create', '-f', 'qcow2', 'a', '8M'], { cwd });
    await spindle(['create', '-f', 'raw', 'b', '8M'], { cwd });
    for (const env of [{}, { SPINDLE_ADDON: 'off' }] as Record<string, string>[]) {
      const args = [
        'bench',
        'image',
        '-w',
        '--access',
        'random',
        '--read-percent',
        '50',
        '-c',
        '200',
        '--seed',
        '5',
      ];
      const { stdout, stderr, code } = await spindle([...args, 'a', 'b'], { cwd, env });
      expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
      expect(stdout).toMatch(
        /^2 images, 200 requests each, 64 at a time: 50 % read.*random.*noise, seed 5\n/,
      );
      expect(stdout).toMatch(
        /^image +requests +per second +throughput +p50 +p90 +p99 +p99\.9 +max\n(a|b|all)? /m,
      );
      for (const row of [/^a +read /m, /^ +write /m, /^ +both +200 /m, /^b +read /m, /^all +read /m])
        expect(stdout).toMatch(row);
      expect(stdout).toContain('p99.9 1000');
      const shares = [...stdout.matchAll(/ to .* #* +(\d+\.\d+) % +(\d+)$/gm)];
      expect(shares.reduce((sum, [, , count]) => sum + Number(count), 0)).toBe(400);
      expect(stdout).toMatch(/s of processor time.*event loop/);
    }
    const json = await spindle(
      ['bench', 'image', '--duration', '0.7', '--progress', 'json', '--output', 'json', '--seed', '9', 'a'],
      { cwd },
    );
    const found = JSON.parse(json.stdout) as ImageBench;
    expect([found.kind, found.plan.seed, found.plan.duration]).toEqual(['spindle bench image', 9, 0.7]);
    expect(found.total.reads.requests).toBeGreaterThan(0);
    const [first, ...lines] = json.stderr.trim().split('\n');
    expect(first).toBe('seed 9');
    const told = lines.map((line) => JSON.parse(line) as { done: number; total: number });
    expect(told.at(-1)).toMatchObject({ done: found.total.all.bytes, total: found.total.all.bytes });
  });

  const missing = ptyMissing();
  it.skipIf(missing !== undefined && process.env['SPINDLE_REQUIRE_JUDGES'] !== '1')(
    'shows a bar on a terminal, and takes it away',
    async () => {
      expect(missing).toBeUndefined();
      const cwd = tempDir();
      await spindle(['create', '-f', 'raw', 'a', '8M'], { cwd });
      const args = [process.execPath, MAIN, 'bench', 'image', '--duration', '2', 'a'];
      const { shown, code } = await onTerminal(args, [], cwd);
      expect(code).toBe(0);
      expect(shown).toMatch(/\r\u001b\[K\[=* *\] +\d+ % {2}/);
      expect(shown.lastIndexOf('\r\u001b[K')).toBe(shown.lastIndexOf('\r\u001b[Kimage'));
    },
  );

  it('names what is wrong in one line, and touches nothing', async () => {
    const cwd = tempDir();
    await spindle(['create', '-f', 'qcow2', 'a', '1M'], { cwd });
    const before = digest(join(cwd, 'a'));
    for (const [args, says] of [
      ['--read-percent 50 a', /needs -w/],
      ['--read-percent 101 -w a', /0 to 100/],
      ['--data noise a', /needs -w/],
      ['--data 256 -w a', /0 to 255/],
      ['--data 1 --pattern 2 -w a', /one of the two/],
      ['--access sideways a', /sequential, reverse, strided, random/],
      ['--access strided a', /needs a step/],
      ['--access random -S 8k a', /strided/],
      ['-s 4k --sizes 4k:1 a', /one of the two/],
      ['--sizes 4k:x a', /weights/],
      ['--sizes 4k:0 a', /weight/],
      ['--duration 0 a', /above 0/],
      ['-c 0 a', /requests/],
      ['-d 0 a', /depth/],
      ['-o 1M -w a', /passes the end/],
      ['--range 2M -w a', /past the end/],
      ['-s 2G a', /size of a request|1 GiB/],
      ['-w -U a', /for looking/],
      ['-w a ./a', /named twice/],
      ['-n a', /-t none/],
      ['--flush-interval 1 -w a', /shorter/],
      ['absent', /absent/],
      ['', /missing|argument/],
    ] as const) {
      const { stdout, stderr, code } = await spindle(['bench', 'image', ...args.split(' ').filter(Boolean)], {
        cwd,
      });
      expect([code, stdout], args).toEqual([1, '']);
      expect(stderr, args).toMatch(says);
      expect(stderr.trim().split('\n'), args).toHaveLength(1);
    }
    expect(digest(join(cwd, 'a'))).toBe(before);
  });
});
