import { describe, expect, it } from 'vitest';
import { alignDown, alignUp } from '../../src/core/align.ts';
import { isZero } from '../../src/core/bytes.ts';
import { isSpindleError, type ErrorCode } from '../../src/core/errors.ts';
import { ExtentFlag, type Extent } from '../../src/core/extent.ts';
import type { Storage, StorageCan, ZeroOptions } from '../../src/core/storage.ts';
import { checked } from '../../src/layer/checked.ts';
import { Random, withRandom } from '../tool/random.ts';

/** A storage under test. */
export interface Made {
  readonly storage: Storage;
  /** The same bytes, opened anew after `storage` was closed. */
  reopen?(): Promise<Storage>;
  /** Closes what is open and removes what was made. */
  dispose(): Promise<void>;
}

/** How {@link storageSuite} gets its storages, and what it may ask of them. */
export interface StorageSuiteOptions {
  /** A storage that holds `content`. */
  make(content: Uint8Array): Promise<Made>;
  /** What the storages are expected to be able to do; tests of the rest do not run. */
  readonly can: StorageCan;
  /** Sizes are multiples of this. Default 1. */
  readonly sizeGranularity?: number;
  /** The smallest content there can be. Default 0. */
  readonly minimumSize?: number;
  /** Bytes of the larger contents. Default 300,001, rounded down to the granularity. */
  readonly contentSize?: number;
}

/** Lengths and places where mistakes live: around bytes, sectors, pages and clusters. */
const EDGES = [0, 1, 2, 3, 7, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537];

/**
 * The behaviour that every storage has, whatever is behind it. Everything runs through `checked`; what must fail is
 * asked of the bare storage too.
 */
export function storageSuite(name: string, options: StorageSuiteOptions): void {
  const { can, make } = options;
  const unit = options.sizeGranularity ?? 1;
  const size = alignDown(options.contentSize ?? 300_001, unit);

  /** Runs `work` on a storage that holds `content`, and disposes of it. */
  const using = async (
    content: Uint8Array,
    work: (storage: Storage, made: Made) => Promise<void>,
  ): Promise<void> => {
    const made = await make(content);
    try {
      await work(checked(made.storage), made);
    } finally {
      await made.dispose();
    }
  };

  /** A test on random content, with a printed seed. */
  const test = (
    title: string,
    work: (storage: Storage, content: Uint8Array, random: Random, made: Made) => Promise<void>,
  ): void => {
    it(title, () =>
      withRandom(`${name}: ${title}`, async (random) => {
        const content = patchwork(random, size);
        await using(content, (storage, made) => work(storage, content.slice(), random, made));
      }),
    );
  };

  describe(name, () => {
    describe('reading', () => {
      test('declares what it can', async (storage) => {
        await Promise.resolve();
        expect({ ...storage.can }).toEqual({ ...can });
      });

      const sizes = [options.minimumSize ?? 0, unit, alignUp(511, unit), alignUp(65537, unit)];
      for (const length of new Set(sizes)) {
        it(`has the size of its content: ${String(length)}`, async () => {
          const content = new Random(length).bytes(length);
          await using(content, async (storage) => {
            expect(storage.size).toBe(length);
            await expectContent(storage, content);
          });
        });
      }

      test('reads at all alignments', async (storage, content) => {
        for (const at of [...EDGES, size - 513, size - 1]) {
          for (const length of EDGES) {
            if (at + length > size) continue;
            expectSame(await readAt(storage, at, length), content.subarray(at, at + length), at);
          }
        }
      });

      test('fills just the buffer it is given', async (storage, content) => {
        const arena = new Uint8Array(4096).fill(0xee);
        await storage.read(arena.subarray(1001, 3002), 77);
        expectSame(arena.subarray(1001, 3002), content.subarray(77, 77 + 2001), 77);
        expect(arena.subarray(0, 1001).every((byte) => byte === 0xee)).toBe(true);
        expect(arena.subarray(3002).every((byte) => byte === 0xee)).toBe(true);
      });

      test('reads at once what it says it did, and nothing that is not there', async (_, content, random, made) => {
        const { storage } = made;
        await readAt(storage, 0, size);
        for (let round = 0; round < 64; round++) {
          const { at, length } = rangeIn(random, size);
          const into = new Uint8Array(length);
          if (storage.readNow?.(into, at) === true) expectSame(into, content.subarray(at, at + length), at);
        }
        for (const [at, length] of [
          [size, 1],
          [size - 1, 2],
          [-1, 1],
          [Number.NaN, 1],
          [2 ** 60, 1],
        ] as const)
          expect(storage.readNow?.(new Uint8Array(length), at) ?? false).toBe(false);
        await storage.close();
        expect(storage.readNow?.(new Uint8Array(1), 0) ?? false).toBe(false);
      });

      test('reads many ranges at once', async (storage, content, random) => {
        await Promise.all(
          Array.from({ length: 32 }, async () => {
            const { at, length } = rangeIn(random, size);
            expectSame(await readAt(storage, at, length), content.subarray(at, at + length), at);
          }),
        );
      });

      test('refuses ranges past the end', async (storage, _content, _random, { storage: bare }) => {
        for (const target of [storage, bare]) {
          await expectCode(target.read(new Uint8Array(1), size), 'OUT_OF_RANGE');
          await expectCode(target.read(new Uint8Array(2), size - 1), 'OUT_OF_RANGE');
          await expectCode(target.read(new Uint8Array(1), Number.MAX_SAFE_INTEGER), 'OUT_OF_RANGE');
          await expectCode(target.extent(size, 1), 'OUT_OF_RANGE');
        }
        // No offsets at all: a programmer's mistake, which a storage may also tell as such.
        for (const at of [-1, Number.NaN, 0.5]) {
          await expect(bare.read(new Uint8Array(1), at)).rejects.toSatisfy(
            (error) => error instanceof RangeError || isSpindleError(error, 'OUT_OF_RANGE'),
          );
        }
      });

      test('takes ranges of no bytes, also at the very end', async (storage, content) => {
        for (const at of [0, 1, size]) await storage.read(new Uint8Array(0), at);
        if (can.write) {
          for (const at of [0, 1, size]) {
            await storage.write(new Uint8Array(0), at);
            await storage.zero(at, 0);
            await storage.discard(at, 0);
          }
          await expectContent(storage, content);
        }
      });

      test('covers everything with extents that agree with the content', async (storage, content, random) => {
        await expectExtents(storage, content);
        for (let i = 0; i < 64; i++) {
          const { at, length } = rangeIn(random, size - 1);
          expectAgrees(await storage.extent(at, length + 1), content);
        }
      });

      test('can flush', (storage) => storage.flush());

      test('is closed after close, and closing again is harmless', async (storage, _content, _random, made) => {
        await storage.close();
        await storage.close();
        await made.storage.close();
        for (const target of [storage, made.storage]) {
          await expectCode(target.read(new Uint8Array(1), 0), 'CLOSED');
          await expectCode(target.extent(0, 1), 'CLOSED');
          if (can.write) {
            await expectCode(target.write(new Uint8Array(1), 0), 'CLOSED');
            await expectCode(target.zero(0, 1), 'CLOSED');
            await expectCode(target.discard(0, 1), 'CLOSED');
            await expectCode(target.flush(), 'CLOSED');
          }
          if (can.resize) await expectCode(target.resize(0), 'CLOSED');
        }
      });

      test('reads the same when opened again', async (storage, content, _random, made) => {
        await storage.close();
        const again = await made.reopen?.();
        if (again !== undefined) await expectContent(checked(again), content);
      });
    });

    describe.runIf(!can.write)('read-only', () => {
      test('refuses every change', async (storage, content, _random, { storage: bare }) => {
        for (const target of [storage, bare]) {
          await expectCode(target.write(new Uint8Array(1), 0), 'READ_ONLY');
          await expectCode(target.zero(0, 1), 'READ_ONLY');
          await expectCode(target.discard(0, 1), 'READ_ONLY');
          await expectCode(target.resize(0), 'READ_ONLY');
          await target.flush();
        }
        await expectContent(storage, content);
      });
    });

    describe.runIf(can.write)('writing', () => {
      test('refuses changes past the end', async (storage, content, _random, { storage: bare }) => {
        for (const target of [storage, bare]) {
          await expectCode(target.write(new Uint8Array(1), size), 'OUT_OF_RANGE');
          await expectCode(target.write(new Uint8Array(2), size - 1), 'OUT_OF_RANGE');
          await expectCode(target.zero(size - 1, 2), 'OUT_OF_RANGE');
          await expectCode(target.discard(0, size + 1), 'OUT_OF_RANGE');
        }
        await expectContent(storage, content);
      });

      test('writes at all alignments, and nothing beside', async (storage, content, random) => {
        for (const at of [...EDGES, size - 70_000, size - 513, size - 1]) {
          for (const length of [1, 511, 512, 4097, 65536]) {
            const end = Math.min(at + length, size);
            const bytes = random.bytes(end - at);
            await storage.write(bytes, at);
            content.set(bytes, at);
          }
        }
        await expectContent(storage, content);
      });

      test('keeps what was written when opened again', async (storage, content, random, made) => {
        const bytes = random.bytes(5000);
        await storage.write(bytes, 1234);
        content.set(bytes, 1234);
        await storage.flush();
        await storage.close();
        const again = await made.reopen?.();
        if (again !== undefined) await expectContent(checked(again), content);
      });

      test('does not care what becomes of the buffer afterwards', async (storage, content) => {
        const bytes = new Uint8Array(3000).fill(1);
        await storage.write(bytes, 100);
        content.set(bytes, 100);
        bytes.fill(2);
        await expectContent(storage, content);
      });

      for (const how of [{}, { keepAllocated: true }, { keepAllocated: false }] satisfies ZeroOptions[]) {
        test(`zeroes at all alignments: ${JSON.stringify(how)}`, async (storage, content) => {
          for (const at of [...EDGES, size - 513, size - 1]) {
            for (const length of [1, 511, 4097, 65536]) {
              const end = Math.min(at + length, size);
              if (at % 3 === 0) {
                await storage.write(new Uint8Array(end - at).fill(0xa5), at);
                content.fill(0xa5, at, end);
              }
              const cut = Math.min(at + Math.ceil(length / 2), size);
              await storage.zero(at, cut - at, how);
              content.fill(0, at, cut);
            }
          }
          await expectContent(storage, content);
          await expectExtents(storage, content);
        });
      }

      test('zeroes a large range', async (storage, content) => {
        await storage.zero(0, size);
        await expectContent(storage, new Uint8Array(content.length));
        await expectExtents(storage, new Uint8Array(content.length));
      });

      test('keeps zeroed ranges allocated when asked to', async (storage) => {
        await storage.write(new Uint8Array(size).fill(1), 0);
        await storage.zero(0, size, { keepAllocated: true });
        expect(isZero(await readAt(storage, 0, size))).toBe(true);
        // SEEK_HOLE tells reserved blocks as a hole, so that only the host's own word counts.
        const host = await storage.hostExtents?.(0, size);
        if (host !== undefined) expect(host.reduce((sum, { length }) => sum + length, 0)).toBe(size);
      });

      test('zeroes fast or changes nothing', async (storage, content) => {
        for (const { at, length } of [
          { at: 65536, length: 65536 },
          { at: 100, length: 70_000 },
        ]) {
          try {
            await storage.zero(at, length, { fastOnly: true });
            content.fill(0, at, at + length);
          } catch (error) {
            if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
          }
          await expectContent(storage, content);
        }
      });

      test('discards nothing beside the range', async (storage, content) => {
        for (const { at, length } of [
          { at: 0, length: 65536 },
          { at: 70_000, length: 100_000 },
          { at: size - 1000, length: 1000 },
        ]) {
          await storage.discard(at, length);
          content.set(await readAt(storage, at, length), at);
          await expectContent(storage, content);
        }
        await expectExtents(storage, content);
      });

      test('agrees with an array over many operations', async (storage, content, random) => {
        const log: string[] = [];
        for (let i = 0; i < 250; i++) {
          const { at, length } = rangeIn(random, size);
          const end = at + length;
          const action = random.pick([
            'write',
            'write',
            'write',
            'zero',
            'zero',
            'discard',
            'read',
            'extent',
            'flush',
          ]);
          log.push(`${action} ${String(at)}+${String(length)}`);
          if (action === 'write') {
            const bytes = random.bytes(length);
            await storage.write(bytes, at);
            content.set(bytes, at);
          } else if (action === 'zero') {
            await storage.zero(at, length, { keepAllocated: random.chance(0.5) });
            content.fill(0, at, end);
          } else if (action === 'discard') {
            await storage.discard(at, length);
            content.set(await readAt(storage, at, length), at);
          } else if (action === 'flush') {
            if (random.chance(0.2)) await storage.flush();
          } else if (action === 'extent') {
            if (length > 0) expectAgrees(await storage.extent(at, length), content);
          } else {
            expectSame(await readAt(storage, at, length), content.subarray(at, end), at, log);
          }
        }
        await expectContent(storage, content, log);
        await expectExtents(storage, content);
      });

      test('tears no overlapping writes', async (storage) => {
        const at = 1000;
        const length = 90_000;
        for (let round = 0; round < 8; round++) {
          // Each writer has a byte of its own and a place of its own, all over the middle.
          const writers = Array.from({ length: 6 }, (_, i) => ({ byte: round * 8 + i + 1, at: at + i * 37 }));
          await Promise.all(
            writers.map((writer) => storage.write(new Uint8Array(length).fill(writer.byte), writer.at)),
          );
          const middle = await readAt(storage, at + 500, length - 500);
          const [winner] = middle;
          expect(writers.some(({ byte }) => byte === winner)).toBe(true);
          expect(middle.every((byte) => byte === winner)).toBe(true);
        }
      });

      test('does not lose neighbours that are written at the same time', async (storage, content, random) => {
        for (let round = 0; round < 4; round++) {
          let at = random.below(100);
          const writes: Promise<void>[] = [];
          while (writes.length < 64) {
            const length = Math.min(random.between(1, 3000), size - at);
            if (length <= 0) break;
            const bytes = random.bytes(length);
            content.set(bytes, at);
            writes.push(storage.write(bytes, at));
            at += length;
          }
          await Promise.all(writes);
          await expectContent(storage, content);
        }
      });
    });

    describe.runIf(can.write && !can.resize)('fixed size', () => {
      test('refuses to be resized', async (storage, content, _random, { storage: bare }) => {
        await expectCode(storage.resize(size + unit), 'UNSUPPORTED');
        await expectCode(bare.resize(size + unit), 'UNSUPPORTED');
        await expectContent(storage, content);
      });
    });

    describe.runIf(can.resize)('resizing', () => {
      test('grows with zeroes', async (storage, content) => {
        const grown = alignUp(size + 100_001, unit);
        await storage.resize(grown);
        expect(storage.size).toBe(grown);
        await expectContent(storage, padded(content, grown));
        await expectExtents(storage, padded(content, grown));
        await storage.write(Uint8Array.of(7), grown - 1);
        expect(await readAt(storage, grown - 1, 1)).toEqual(Uint8Array.of(7));
        await storage.flush();
      });

      test('shrinks, and grows with zeroes where it was cut', async (storage, content, random) => {
        for (const cut of [size - 1, size - 513, 70_001, 65536, 4097, 1, 0]) {
          const shrunk = alignDown(cut, unit);
          await storage.write(new Uint8Array(storage.size).fill(0x5a), 0);
          await storage.resize(shrunk);
          expect(storage.size).toBe(shrunk);
          await expectCode(storage.read(new Uint8Array(1), shrunk), 'OUT_OF_RANGE');
          const grown = alignUp(shrunk + random.between(1, 10_000), unit);
          await storage.resize(grown);
          const expected = new Uint8Array(grown).fill(0x5a, 0, shrunk);
          await expectContent(storage, expected);
          await storage.resize(size);
          await expectContent(storage, padded(expected, size));
        }
        expect(storage.size).toBe(content.length);
      });

      test('keeps its size when resized to it', async (storage, content) => {
        await storage.resize(size);
        await expectContent(storage, content);
      });

      test('writes that meet the end leave the size alone', async (storage, content, random) => {
        const bytes = random.bytes(777);
        await storage.write(bytes, size - bytes.length);
        content.set(bytes, size - bytes.length);
        expect(storage.size).toBe(size);
        await expectContent(storage, content);
      });

      test('keeps its size when opened again', async (storage, content, _random, made) => {
        const grown = alignUp(size + 12_345, unit);
        await storage.resize(grown);
        await storage.flush();
        await storage.close();
        const again = await made.reopen?.();
        if (again !== undefined) await expectContent(checked(again), padded(content, grown));
      });
    });
  });
}

/** Content of `size` bytes: runs of random bytes, of equal bytes, and of zeroes large and small. */
export function patchwork(random: Random, size: number): Uint8Array {
  const content = new Uint8Array(size);
  for (let at = 0; at < size;) {
    const length = Math.min(random.pick([512, 4096, 65536, random.between(1, 100_000)]), size - at);
    const kind = random.below(3);
    if (kind === 0) content.set(random.bytes(length), at);
    else if (kind === 1) content.fill(random.between(1, 255), at, at + length);
    at += length;
  }
  return content;
}

/** A range within `size`, often aligned, sometimes empty. */
function rangeIn(random: Random, size: number): { at: number; length: number } {
  const unit = random.pick([1, 1, 512, 4096, 65536]);
  const at = alignDown(random.below(size), unit);
  const length = Math.min(alignDown(random.below(random.pick([1000, 10_000, size])), unit), size - at);
  return { at, length };
}

function padded(content: Uint8Array, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  bytes.set(content.subarray(0, size));
  return bytes;
}

async function readAt(storage: Storage, at: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xcc);
  await storage.read(into, at);
  return into;
}

/** Compares without printing hundreds of thousands of bytes. */
function expectSame(actual: Uint8Array, expected: Uint8Array, at: number, log: readonly string[] = []): void {
  expect(actual.length).toBe(expected.length);
  const first = actual.findIndex((byte, i) => byte !== expected[i]);
  if (first < 0) return;
  const after = log.length === 0 ? '' : `, after ${log.slice(-12).join(', ')}`;
  const differs = `${String(actual[first])} instead of ${String(expected[first])}`;
  expect.fail(`byte ${String(at + first)} is ${differs}${after}`);
}

async function expectContent(storage: Storage, content: Uint8Array, log?: readonly string[]): Promise<void> {
  expect(storage.size).toBe(content.length);
  expectSame(await readAt(storage, 0, storage.size), content, 0, log);
}

function expectAgrees({ offset, length, flags }: Extent, content: Uint8Array): void {
  if ((flags & (ExtentFlag.HOLE | ExtentFlag.ZERO)) === 0) return;
  if ((flags & ExtentFlag.ZERO) === 0) return;
  if (!isZero(content.subarray(offset, offset + length))) {
    expect.fail(`the extent ${String(offset)}+${String(length)} is told as zero but holds data`);
  }
}

/** Walks all extents: together they cover the storage, and what they tell as zero reads as zero. */
async function expectExtents(storage: Storage, content: Uint8Array): Promise<void> {
  let at = 0;
  while (at < storage.size) {
    const extent = await storage.extent(at, storage.size - at);
    expect(extent.offset).toBe(at);
    expectAgrees(extent, content);
    at += extent.length;
  }
  expect(at).toBe(content.length);
}

/** Expects a failure with a code. */
export async function expectCode(attempt: Promise<unknown>, code: ErrorCode): Promise<void> {
  const outcome = await attempt.then(
    () => 'no failure',
    (error: unknown) => (isSpindleError(error) ? error.code : String(error)),
  );
  expect(outcome).toBe(code);
}
