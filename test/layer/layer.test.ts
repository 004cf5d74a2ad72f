import { describe, expect, it, vi } from 'vitest';
import { ExtentFlag, type HostExtent } from '../../src/core/extent.ts';
import type { Storage } from '../../src/core/storage.ts';
import { checked } from '../../src/layer/checked.ts';
import { fault } from '../../src/layer/fault.ts';
import { Layer } from '../../src/layer/layer.ts';
import { readOnly } from '../../src/layer/readonly.ts';
import { trace } from '../../src/layer/trace.ts';
import { window } from '../../src/layer/window.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { expectCode, storageSuite } from '../suite/storage.ts';

const ALL = { write: true, resize: true, zero: true, discard: true, extents: true, direct: false };
const NONE = { ...ALL, write: false, resize: false, zero: false, discard: false };

/** A suite over memory that holds `content` between `before` and `after` other bytes. */
function suite(name: string, wrap: (next: Storage) => Storage, can = ALL, before = 0, after = 0): void {
  storageSuite(name, {
    can,
    make: (content) => {
      const bytes = new Uint8Array(before + content.length + after).fill(0xbb);
      bytes.set(content, before);
      const memory = MemoryStorage.from(bytes);
      const storage = wrap(memory);
      return Promise.resolve({
        storage,
        dispose: async () => {
          // What a layer does not show it does not touch.
          if (after > 0 && memory.can.write) {
            const edges = memory.toBytes();
            if (edges.length === bytes.length && edges.some((byte) => byte !== 0)) {
              expect(edges.subarray(0, before).every((byte) => byte === 0xbb)).toBe(true);
              expect(edges.subarray(-after).every((byte) => byte === 0xbb)).toBe(true);
            }
          }
          await storage.close();
        },
      });
    },
  });
}

suite('layer', (next) => new Layer(next));
suite('checked', (next) => checked(next));
suite('readonly', (next) => readOnly(next), NONE);
suite('fault, none planned', (next) => fault(next));
suite('fault, delayed', (next) => fault(next, { delay: 1 }));
suite('trace', (next) => trace(next, { keepBytes: true }));
suite('window to the end', (next) => window(next, { offset: 1000 }), ALL, 1000);
suite(
  'window of a fixed size',
  (next) => window(next, { offset: 777, size: next.size - 777 - 333 }),
  { ...ALL, resize: false },
  777,
  333,
);
suite('layers on layers', (next) => trace(checked(window(fault(next), { offset: 0 }))));

/** A storage that tells host extents. */
class Hosted extends Layer {
  constructor(size: number) {
    super(new MemoryStorage(size));
    this.hostExtents = (at, length) =>
      Promise.resolve([{ offset: at, length, kind: 'written', shared: false } satisfies HostExtent]);
  }
}

describe('hostExtents', () => {
  it('is forwarded by every layer when it is there, and absent when it is not', async () => {
    const wraps: ((next: Storage) => Storage)[] = [
      (next) => new Layer(next),
      checked,
      readOnly,
      (next) => fault(next),
      (next) => trace(next),
      (next) => window(next, { offset: 0 }),
    ];
    for (const wrap of wraps) {
      expect(wrap(new MemoryStorage(100)).hostExtents).toBeUndefined();
      expect(await wrap(new Hosted(100)).hostExtents?.(10, 20)).toEqual([
        { offset: 10, length: 20, kind: 'written', shared: false },
      ]);
    }
  });

  it('is shifted by a window', async () => {
    const shifted = window(new Hosted(100), { offset: 30, size: 50 });
    expect(await shifted.hostExtents?.(10, 20)).toEqual([
      { offset: 10, length: 20, kind: 'written', shared: false },
    ]);
    await expectCode(shifted.hostExtents?.(40, 20) ?? Promise.resolve(), 'OUT_OF_RANGE');
  });
});

describe('window', () => {
  it('must lie within the storage', () => {
    const memory = new MemoryStorage(100);
    for (const options of [
      { offset: 101 },
      { offset: -1 },
      { offset: 50, size: 51 },
      { offset: 0, size: -1 },
    ]) {
      expect(() => window(memory, options)).toThrow(/pass the end at 100/);
    }
    expect(window(memory, { offset: 100 }).size).toBe(0);
  });

  it('follows the end when it has no size', async () => {
    const memory = new MemoryStorage(100);
    const open = window(memory, { offset: 60 });
    await memory.resize(160);
    expect(open.size).toBe(100);
    await open.resize(10);
    expect(memory.size).toBe(70);
  });
});

describe('checked', () => {
  it('refuses arguments that are none', async () => {
    const storage = checked(new MemoryStorage(100));
    const bytes = new Uint8Array(1);
    const wrong = <T>(value: unknown): T => value as T;
    for (const attempt of [
      () => storage.read(wrong([0]), 0),
      () => storage.write(wrong('x'), 0),
      () => storage.read(bytes, wrong('0')),
      () => storage.zero(0, wrong(undefined)),
      () => storage.zero(0, 1, wrong({ fast: true })),
      () => storage.zero(0, 1, wrong({ fastOnly: 1 })),
      () => storage.zero(0, 1, wrong(true)),
    ]) {
      await expect(attempt()).rejects.toThrow(TypeError);
    }
    for (const attempt of [
      () => storage.read(bytes, -1),
      () => storage.read(bytes, 0.5),
      () => storage.read(bytes, NaN),
      () => storage.discard(0, 2 ** 53),
      () => storage.extent(0, 0),
      () => storage.resize(-1),
    ]) {
      await expect(attempt()).rejects.toThrow(RangeError);
    }
    await expectCode(storage.read(bytes, 100), 'OUT_OF_RANGE');
  });

  it('catches answers that break the contract', async () => {
    const answers = [
      { offset: 1, length: 1, flags: 0 },
      { offset: 0, length: 0, flags: 0 },
      { offset: 0, length: 11, flags: 0 },
      { offset: 0, length: 1.5, flags: 0 },
      { offset: 0, length: 1, flags: 8 },
    ];
    for (const answer of answers) {
      const memory = new MemoryStorage(100);
      vi.spyOn(memory, 'extent').mockResolvedValue(answer);
      await expect(checked(memory).extent(0, 10)).rejects.toThrow(TypeError);
    }
    const cannot = new Layer(new MemoryStorage(100), { ...ALL, extents: false });
    await expect(checked(cannot).extent(0, 10)).rejects.toThrow(/'extents' is false/);
    const hosted = new Hosted(100);
    for (const runs of [
      [{ offset: 5, length: 10 }],
      [{ offset: 0, length: 0 }],
      [
        { offset: 4, length: 4 },
        { offset: 0, length: 4 },
      ],
    ]) {
      hosted.hostExtents = () =>
        Promise.resolve(runs.map((run) => ({ ...run, kind: 'written', shared: false })));
      await expect(checked(hosted).hostExtents?.(0, 10)).rejects.toThrow(/out of order/);
    }
  });

  it('catches a size that changes by itself', async () => {
    const memory = new MemoryStorage(100);
    const storage = checked(memory);
    await memory.resize(50);
    await expect(storage.read(new Uint8Array(1), 0)).rejects.toThrow(/from 100 to 50 without a resize/);
    const stubborn = new MemoryStorage(100);
    vi.spyOn(stubborn, 'resize').mockResolvedValue();
    await expect(checked(stubborn).resize(50)).rejects.toThrow(/gave 100 bytes/);
  });
});

describe('fault', () => {
  it('fails the calls it was told to', async () => {
    const storage = fault(new MemoryStorage(1000), {
      faults: [
        { on: 'read', after: 1, times: 2, code: 'NO_SPACE', message: 'planned' },
        { on: ['write', 'zero'], offset: 100, length: 50 },
        { on: 'flush', code: 'PERMISSION' },
      ],
    });
    const bytes = new Uint8Array(10);
    await storage.read(bytes, 0);
    await expect(storage.read(bytes, 0)).rejects.toThrow('planned');
    await expectCode(storage.read(bytes, 0), 'NO_SPACE');
    await storage.read(bytes, 0);
    await storage.write(bytes, 90);
    await storage.zero(150, 10);
    await expectCode(storage.write(bytes, 91), 'IO');
    await expectCode(storage.zero(149, 1), 'IO');
    await expectCode(storage.flush(), 'PERMISSION');
    storage.heal();
    await storage.flush();
    storage.inject({});
    await expectCode(storage.extent(0, 1), 'IO');
    await expectCode(storage.resize(1), 'IO');
    await storage.close();
  });

  it('tears the write that passes its limit, and fails all after it', async () => {
    const memory = new MemoryStorage(100);
    const storage = fault(memory, { faults: [{ on: 'write', afterBytes: 25, code: 'NO_SPACE' }] });
    await storage.write(new Uint8Array(10).fill(1), 0);
    await storage.write(new Uint8Array(10).fill(2), 10);
    await expectCode(storage.write(new Uint8Array(10).fill(3), 20), 'NO_SPACE');
    await expectCode(storage.write(new Uint8Array(10).fill(4), 30), 'NO_SPACE');
    const expected = new Uint8Array(100).fill(1, 0, 10).fill(2, 10, 20).fill(3, 20, 25);
    expect(memory.toBytes()).toEqual(expected);
    await storage.read(new Uint8Array(1), 0);
  });
});

describe('trace', () => {
  it('records exact requests in order', async () => {
    const storage = trace(new MemoryStorage(4096), { keepBytes: true });
    const bytes = new Uint8Array(2).fill(5);
    await storage.write(bytes, 7);
    bytes.fill(6);
    await storage.zero(512, 512, { keepAllocated: true });
    await storage.discard(0, 4096);
    await storage.extent(0, 4096);
    await storage.read(bytes, 4094);
    await storage.resize(8192);
    await storage.flush();
    await expectCode(storage.read(bytes, 9000), 'OUT_OF_RANGE');
    await storage.close();
    expect(storage.requests()).toEqual([
      'write 7+2',
      'zero 512+512 keepAllocated',
      'discard 0+4096',
      'extent 0+4096',
      'read 4094+2',
      'resize 8192',
      'flush',
      'read 9000+2',
      'close',
    ]);
    expect(storage.requests('read', 'flush')).toEqual(['read 4094+2', 'flush', 'read 9000+2']);
    const records = storage.take();
    expect(records[0]?.bytes).toEqual(Uint8Array.of(5, 5));
    expect(records[7]?.error).toBeDefined();
    expect(storage.records).toEqual([]);
  });

  it('tells what ran together from what came after', async () => {
    const storage = trace(fault(new MemoryStorage(100), { delay: 2 }));
    await Promise.all([storage.write(new Uint8Array(1), 0), storage.write(new Uint8Array(1), 1)]);
    const running = storage.flush();
    expect(storage.records[2]?.ended).toBeUndefined();
    await running;
    const [one, two, three] = storage.records;
    expect(two?.started).toBeLessThan(one?.ended ?? 0);
    expect(three?.started).toBeGreaterThan(Math.max(one?.ended ?? 0, two?.ended ?? 0));
  });
});

describe('readonly', () => {
  it('keeps what reading can do', async () => {
    const storage = readOnly(new MemoryStorage(100));
    expect(storage.can).toEqual(NONE);
    expect((await storage.extent(0, 100)).flags).toBe(ExtentFlag.HOLE | ExtentFlag.ZERO);
  });
});
