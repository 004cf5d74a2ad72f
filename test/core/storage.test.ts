import { describe, expect, it } from 'vitest';
import { formatError, isSpindleError, SpindleError } from '../../src/core/errors.ts';
import { ExtentFlag } from '../../src/core/extent.ts';
import { READ_ONLY, ReadOnlyStorage, checkRange } from '../../src/core/storage.ts';
import { storageSuite } from '../suite/storage.ts';

/** The least that a source can be: three members. */
class Constant extends ReadOnlyStorage {
  readonly #content: Uint8Array;
  #closed = false;

  constructor(content: Uint8Array) {
    super();
    this.#content = content;
  }

  get size(): number {
    return this.#content.length;
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async read(into: Uint8Array, at: number): Promise<void> {
    if (this.#closed) throw new SpindleError('CLOSED', 'closed');
    checkRange(this.size, at, into.length);
    into.set(this.#content.subarray(at, at + into.length));
  }

  close(): Promise<void> {
    this.#closed = true;
    return Promise.resolve();
  }

  override async extent(at: number, length: number): ReturnType<ReadOnlyStorage['extent']> {
    await this.read(new Uint8Array(0), at);
    checkRange(this.size, at, length);
    return super.extent(at, length);
  }
}

storageSuite('a source of three members', {
  can: READ_ONLY,
  make: (content) => {
    const storage = new Constant(content);
    return Promise.resolve({ storage, dispose: () => storage.close() });
  },
});

describe('extents', () => {
  it('use the bits of base:allocation', () => {
    expect([ExtentFlag.HOLE, ExtentFlag.ZERO, ExtentFlag.COMPRESSED]).toEqual([1, 2, 4]);
  });
});

describe('checkRange', () => {
  it('takes ranges within the size and no other', () => {
    for (const [at, length] of [
      [0, 0],
      [0, 10],
      [10, 0],
      [9, 1],
    ] as const) {
      checkRange(10, at, length);
    }
    for (const [at, length] of [
      [0, 11],
      [10, 1],
      [11, 0],
      [-1, 1],
      [0, -1],
      [NaN, 0],
      [0, NaN],
      [0.5, 1],
      [Infinity, 0],
      [2 ** 53, 0],
    ] as const) {
      expect(() => {
        checkRange(10, at, length);
      }).toThrow(/pass the end at 10/);
    }
  });
});

describe('errors', () => {
  it('carry a code, a path, a place and a cause', () => {
    const cause = new Error('why');
    const error = new SpindleError('IO', 'what', { path: '/p', cause });
    expect([error.code, error.message, error.path, error.cause, error.name]).toEqual([
      'IO',
      'what',
      '/p',
      cause,
      'SpindleError',
    ]);
    expect(isSpindleError(error)).toBe(true);
    expect(isSpindleError(error, 'IO')).toBe(true);
    expect(isSpindleError(error, 'LIMIT')).toBe(false);
    expect(isSpindleError(cause)).toBe(false);
    const placed = formatError('BAD_HEADER', 'header', 'no', { field: 'size', offset: 24 });
    expect(placed.message).toBe('header: no (at offset 24)');
    expect(placed.at).toEqual({ structure: 'header', field: 'size', offset: 24 });
  });
});
