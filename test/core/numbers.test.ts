import { describe, expect, it } from 'vitest';
import { alignDown, alignUp, divUp, isAligned, isPowerOfTwo, offsetIn } from '../../src/core/align.ts';
import {
  bytesOf,
  getU64,
  hex,
  hex64,
  isZero,
  sameBytes,
  setU64,
  textOf,
  viewOf,
} from '../../src/core/bytes.ts';
import { isSpindleError } from '../../src/core/errors.ts';
import { withRandom } from '../tool/random.ts';

const FAR = 2 ** 53 - 1;

describe('align', () => {
  it('agrees with BigInt on offsets up to 2^53', () =>
    withRandom('align', (random) => {
      for (let i = 0; i < 20_000; i++) {
        const unit = 2 ** random.below(31);
        const value = Math.floor(random.u32() * 2 ** random.below(21)) + random.below(3);
        const [v, u] = [BigInt(value), BigInt(unit)];
        expect(BigInt(alignDown(value, unit))).toBe((v / u) * u);
        expect(BigInt(offsetIn(value, unit))).toBe(v % u);
        expect(BigInt(divUp(value, unit))).toBe((v + u - 1n) / u);
        expect(BigInt(alignUp(value, unit))).toBe(((v + u - 1n) / u) * u);
        expect(isAligned(value, unit)).toBe(v % u === 0n);
      }
    }));

  it('is exact at the far end', () => {
    expect(alignDown(FAR, 65536)).toBe(2 ** 53 - 65536);
    expect(alignUp(FAR, 65536)).toBe(2 ** 53);
    expect(offsetIn(FAR, 65536)).toBe(65535);
    expect([alignDown(0, 512), alignUp(0, 512), alignUp(1, 512), alignUp(512, 512)]).toEqual([
      0, 0, 512, 512,
    ]);
  });

  it('knows powers of two', () => {
    for (let power = 0; power < 53; power++) expect(isPowerOfTwo(2 ** power)).toBe(true);
    for (const value of [0, -1, -2, 3, 0.5, 6, 2 ** 31 - 1, 2 ** 49 + 1, NaN])
      expect(isPowerOfTwo(value)).toBe(false);
  });
});

describe('bytes', () => {
  it('keeps 64-bit values up to 2^53 - 1, and rounds none', () => {
    const bytes = new Uint8Array(16).subarray(3, 14);
    const view = viewOf(bytes);
    for (const value of [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 5, FAR]) {
      setU64(view, 2, value);
      expect(view.getBigUint64(2)).toBe(BigInt(value));
      expect(getU64(view, 2)).toBe(value);
    }
    for (const value of [2n ** 53n, 2n ** 53n + 1n, 2n ** 64n - 1n]) {
      view.setBigUint64(2, value);
      let error: unknown;
      try {
        getU64(view, 2);
      } catch (caught) {
        error = caught;
      }
      if (!isSpindleError(error, 'LIMIT')) throw error;
      expect(error.message).toContain(value.toString(16).padStart(16, '0'));
    }
  });

  it('finds one byte anywhere that is not zero', () => {
    for (let start = 0; start < 5; start++) {
      for (let length = 0; length < 20; length++) {
        const arena = new Uint8Array(40).fill(0xff);
        const bytes = arena.subarray(start, start + length).fill(0);
        expect(isZero(bytes)).toBe(true);
        for (let at = 0; at < length; at++) {
          bytes[at] = 0x80;
          expect(isZero(bytes)).toBe(false);
          bytes[at] = 0;
        }
      }
    }
  });

  it('compares and converts', () => {
    expect(sameBytes(Uint8Array.of(1, 2), Uint8Array.of(1, 2))).toBe(true);
    expect(sameBytes(Uint8Array.of(1, 2), Uint8Array.of(1, 3))).toBe(false);
    expect(sameBytes(Uint8Array.of(1), Uint8Array.of(1, 2))).toBe(false);
    expect(textOf(bytesOf('dïsk'))).toBe('dïsk');
    expect(textOf(Uint8Array.of(0x61, 0xff))).toBe('a\ufffd');
    expect(hex64(0x1f, 0xffffffff)).toBe('0000001fffffffff');
    expect(hex(FAR)).toBe('0x1fffffffffffff');
  });
});
