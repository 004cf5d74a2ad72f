import { setImmediate as turn } from 'node:timers/promises';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Storage } from '../../src/core/storage.ts';
import { bench, benchStorage, type BenchRequest } from '../../src/op/bench.ts';
import { secretOf } from '../../src/op/open.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { PASSPHRASE } from '../tool/encrypted.ts';
import { imageOpts, KINDS, SECRET_OBJECT, sourceArgs } from '../tool/kinds.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

/** What a storage saw. */
class Watched {
  readonly requests: { readonly kind: 'read' | 'write'; readonly at: number; readonly length: number }[] = [];
  /** Requests in flight, and those begun before, when each flush began. */
  readonly flushes: { readonly inFlight: number; readonly begun: number }[] = [];
  most = 0;
  inFlight = 0;
  #turns = 0;
  readonly storage: Storage;

  constructor(inner: Storage, failAt = Infinity) {
    const slow = async (kind: 'read' | 'write', bytes: Uint8Array, at: number): Promise<void> => {
      this.requests.push({ kind, at, length: bytes.length });
      if (this.requests.length > failAt) throw new Error('broken');
      this.most = Math.max(this.most, ++this.inFlight);
      for (let left = this.#turns++ % 4; left >= 0; left--) await turn();
      await inner[kind](bytes, at);
      this.inFlight--;
    };
    this.storage = Object.create(inner, {
      size: { get: () => inner.size },
      read: { value: (into: Uint8Array, at: number) => slow('read', into, at) },
      write: { value: (from: Uint8Array, at: number) => slow('write', from, at) },
      flush: {
        value: async () => {
          this.flushes.push({ inFlight: this.inFlight, begun: this.requests.length });
          await turn();
        },
      },
    }) as Storage;
  }
}

const MIB = 1024 ** 2;

describe('bench', () => {
  it('keeps as many requests in flight as it may, each once, in order', async () => {
    for (const [depth, count] of [
      [1, 20],
      [7, 100],
      [64, 10],
    ] as const) {
      const watched = new Watched(new MemoryStorage(MIB));
      const done = await benchStorage(watched.storage, {
        depth,
        count,
        length: 4096,
        step: 8192,
        offset: 512,
      });
      expect(watched.most).toBe(Math.min(depth, count));
      expect(watched.requests).toEqual(
        Array.from({ length: count }, (_, index) => ({ kind: 'read', at: 512 + index * 8192, length: 4096 })),
      );
      expect(done).toMatchObject({ requests: count, bytes: count * 4096, flushes: 0 });
      expect(done.seconds).toBeGreaterThan(0);
    }
  });

  it('goes on at the start of the disk', async () => {
    const watched = new Watched(new MemoryStorage(10_000));
    await benchStorage(watched.storage, { count: 30, depth: 3, length: 1000, step: 3000, offset: 9000 });
    expect(watched.requests.map(({ at }) => at).slice(0, 8)).toEqual([
      9000, 2000, 5000, 8000, 1000, 4000, 7000, 0,
    ]);
  });

  it('flushes when what was sent before is done, or at once', async () => {
    for (const drain of [true, false]) {
      const watched = new Watched(new MemoryStorage(MIB));
      const request = { write: true, count: 22, depth: 4, flushInterval: 5, drain };
      expect(await benchStorage(watched.storage, request)).toMatchObject({ flushes: 5 });
      // Counted from the end, as qemu-img does: the last flush covers everything.
      expect(watched.flushes.map(({ begun }) => begun)).toEqual([2, 7, 12, 17, 22]);
      const busy = watched.flushes.some(({ inFlight }) => inFlight > 0);
      expect(busy).toBe(!drain);
      expect(watched.most).toBeLessThanOrEqual(4);
    }
    const through = new Watched(new MemoryStorage(MIB));
    await benchStorage(through.storage, { write: true, count: 6, depth: 2, through: true });
    expect(through.flushes.length).toBe(6);
    const unsafe = new Watched(new MemoryStorage(MIB));
    await benchStorage(unsafe.storage, { write: true, count: 6, depth: 2, flushInterval: 2, unsafe: true });
    expect(unsafe.flushes.length).toBe(0);
  });

  it('refuses what does not fit before it writes anything', async () => {
    const misfits: BenchRequest[] = [
      { count: 0 },
      { depth: 0 },
      { length: 0 },
      { length: 2 ** 31 },
      { step: -1 },
      { offset: -1 },
      { pattern: 256 },
      { flushInterval: 64, write: false },
      { flushInterval: 3, depth: 4 },
      { count: 1, offset: MIB },
      { count: 1, offset: MIB - 4095 },
      { count: 1, length: 2 * MIB },
      // The eleventh passes the end.
      { count: 20, length: 100_000 },
      { count: 2 ** 31 - 1, length: 4096, step: 4095 },
    ];
    for (const misfit of misfits) {
      const watched = new Watched(new MemoryStorage(MIB));
      const failure = benchStorage(watched.storage, { write: true, ...misfit });
      await expect(failure).rejects.toMatchObject({
        code: expect.stringMatching(/^(BAD_OPTION|OUT_OF_RANGE)$/) as string,
      });
      expect(watched.requests).toEqual([]);
    }
    await benchStorage(new Watched(new MemoryStorage(MIB)).storage, {
      write: true,
      count: 10,
      length: 100_000,
    });
  });

  it('ends with the first failure, when nothing is in flight any more', async () => {
    const watched = new Watched(new MemoryStorage(MIB), 9);
    await expect(benchStorage(watched.storage, { count: 100, depth: 4 })).rejects.toThrow('broken');
    expect(watched.inFlight).toBe(0);
    expect(watched.requests.length).toBeLessThan(20);
  });

  it('can be stopped', async () => {
    const watched = new Watched(new MemoryStorage(MIB));
    const controller = new AbortController();
    const onProgress = (done: number): void => {
      if (done >= 40 * 4096) controller.abort();
    };
    const failure = benchStorage(watched.storage, {
      count: 200,
      depth: 4,
      signal: controller.signal,
      onProgress,
    });
    await expect(failure).rejects.toMatchObject({ code: 'ABORTED' });
    expect(watched.inFlight).toBe(0);
    expect(watched.requests.length).toBeLessThan(60);
  });

  it('that reads changes nothing', async () => {
    const path = join(tempDir(), 'image');
    const bytes = Buffer.from(new Random(seedOf('bench reads')).bytes(100_000));
    writeFileSync(path, bytes);
    await bench(path, { format: 'raw', count: 500, length: 1000, step: 777, depth: 8 }).catch(
      () => undefined,
    );
    await bench(path, { format: 'raw', count: 500, length: 512 });
    expect(readFileSync(path).equals(bytes)).toBe(true);
    await expect(bench(path, { format: 'raw', write: true, share: true })).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
    expect(readFileSync(path).equals(bytes)).toBe(true);
  });
});

qemu.describeWithQemu('bench writes what qemu-img bench writes', () => {
  // (qemu-img bench takes no secrets.)
  const open = KINDS.filter(({ name, encrypted }) => name !== 'external data file' && encrypted !== true);
  for (const kind of open) {
    it(kind.name, { timeout: 300_000 }, async () => {
      const dir = tempDir();
      const random = new Random(seedOf(`bench ${kind.name}`));
      const [ours, theirs] = [join(dir, 'ours'), join(dir, 'theirs')];
      const size = 2048 * 512;
      await kind.make(ours, size, [{ at: 4096, length: 200_704, pattern: 0x55 }]);
      copyFileSync(ours, theirs);
      for (let round = 0; round < 3; round++) {
        const length = random.pick([512, 1000, 4096, 65_536]);
        const step = random.pick([length, 512, 5000, 200_000]);
        const [count, depth] = [random.between(1, 12), random.between(1, 6)];
        const offset = random.below(size - length - count * step > 0 ? size - length - count * step : 1);
        const pattern = random.between(1, 255);
        const flushInterval = random.pick([0, 6]);
        const drain = random.chance(0.5);
        const request = { count, depth, length, step, offset, pattern, flushInterval, drain, write: true };
        const where = `${kind.name} ${JSON.stringify(request)} (SPINDLE_SEED=${String(random.seed)})`;
        const args = [
          ...['bench', '-w', '-c', count, '-d', depth, '-s', length, '-S', step, '-o', offset],
          ...['--pattern', pattern, '--flush-interval', flushInterval],
          ...(drain ? [] : ['--no-drain']),
        ];
        const judged = await qemu.qemuImg([...args.map(String), ...sourceArgs(kind, theirs)], {
          expect: 'any',
        });
        const failed = await bench(ours, {
          ...request,
          format: kind.format,
          secret: secretOf(PASSPHRASE),
        }).then(
          () => 0,
          () => 1,
        );
        expect(failed, where).toBe(judged.code);
        if (failed === 1) {
          // qemu-img has written some of it; here nothing is.
          copyFileSync(ours, theirs);
          continue;
        }
        const same = [
          'compare',
          '--object',
          SECRET_OBJECT,
          '--image-opts',
          imageOpts(kind, ours),
          imageOpts(kind, theirs),
        ];
        expect((await qemu.qemuImg(same, { expect: 'any' })).code, where).toBe(0);
      }
      if (kind.format === 'qcow2') {
        const { code, stderr } = await qemu.check(ours, { source: sourceArgs(kind, ours) });
        expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      }
    });
  }
});
