/*
 * The 64-bit table entries, taken as two halves (hi: bits 63-32, lo: bits 31-0) because this is the hot path and
 * JavaScript's bit operators are 32 bits wide. Offsets come out as plain numbers; `offsetLimit` tells the rare ones
 * that no number can hold exactly.
 */
import { TWO_32 } from '../../core/bytes.ts';

/** Bit 63: the refcount of what the entry points to is exactly one. Test against `hi`. */
export const COPIED = 0x8000_0000;
/** Bit 62: the cluster is compressed. Test against `hi`. */
export const COMPRESSED = 0x4000_0000;
/** Bit 0: the cluster reads as zeroes (version 3, without extended L2). Test against `lo`. */
export const ZERO = 1;

/** Bits 9-55 of an L1, standard L2 or bitmap table entry: a host offset. */
export function offsetOf(hi: number, lo: number): number {
  return (hi & 0x00ff_ffff) * TWO_32 + ((lo & 0xffff_fe00) >>> 0);
}

/** Whether `offsetOf` would pass 2^53, where numbers stop being exact. */
export function offsetTooLarge(hi: number): boolean {
  return (hi & 0x00e0_0000) !== 0;
}

/** The high half of an entry that points to `offset` (below 2^53), without flags. */
export function offsetHi(offset: number): number {
  return Math.floor(offset / TWO_32);
}

/** The low half of an entry that points to `offset`. */
export function offsetLo(offset: number): number {
  return offset >>> 0;
}

/** Whether reserved bits of an L1 entry are set. */
export function l1Reserved(hi: number, lo: number): boolean {
  return (hi & 0x7f00_0000) !== 0 || (lo & 0x1ff) !== 0;
}

/**
 * Whether reserved bits of a standard (not compressed) L2 entry are set. Bit 0 is not among them: in version 2 it is an
 * error of its own, and extended entries ignore it.
 */
export function l2Reserved(hi: number, lo: number): boolean {
  return (hi & 0x3f00_0000) !== 0 || (lo & 0x1fe) !== 0;
}

/** Whether reserved bits of a bitmap table entry are set; bit 0 is reserved where an offset is present. */
export function bitmapReserved(hi: number, lo: number): boolean {
  if ((hi & 0xff00_0000) !== 0 || (lo & 0x1fe) !== 0) return true;
  return (lo & 1) !== 0 && offsetOf(hi, lo) !== 0;
}

/** Where a compressed cluster lies: `offset` is a byte offset, `length` the bytes of the sectors that it touches. */
export interface CompressedPlace {
  readonly offset: number;
  readonly length: number;
}

/**
 * Decodes a compressed L2 entry. With x = 62 - (clusterBits - 8): bits 0 to x-1 are the host byte offset, bits x to 61
 * the number of further sectors after the one that holds the first byte. Returns null when offset bits above 55 are
 * set or the offset passes 2^53.
 */
export function compressedPlace(hi: number, lo: number, clusterBits: number): CompressedPlace | null {
  const shift = 38 - clusterBits;
  const high = hi & (2 ** shift - 1);
  if (high > 0x1f_ffff) return null;
  const offset = high * TWO_32 + lo;
  const further = (hi >>> shift) & (2 ** (clusterBits - 8) - 1);
  return { offset, length: (further + 1) * 512 - (lo & 511) };
}

/** The two halves of a compressed L2 entry for `length` bytes at byte offset `offset`. */
export function encodeCompressed(
  offset: number,
  length: number,
  clusterBits: number,
): [hi: number, lo: number] {
  const shift = 38 - clusterBits;
  const further = Math.floor((offset + length - 1) / 512) - Math.floor(offset / 512);
  return [(COMPRESSED | (further << shift) | Math.floor(offset / TWO_32)) >>> 0, offset >>> 0];
}
