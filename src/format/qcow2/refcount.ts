/*
 * Reading and writing one refcount of a refcount block. Widths of 8 bits and more are big-endian; below a byte, entries
 * fill each byte from its least significant bit on.
 */
import { TWO_32 } from '../../core/bytes.ts';

/** Refcount number `index` of `block`, `2 ** order` bits wide. Widths of 64 bits come out rounded above 2^53. */
export function getRefcount(block: DataView, order: number, index: number): number {
  switch (order) {
    case 0:
      return (block.getUint8(index >>> 3) >>> (index & 7)) & 1;
    case 1:
      return (block.getUint8(index >>> 2) >>> ((index & 3) * 2)) & 3;
    case 2:
      return (block.getUint8(index >>> 1) >>> ((index & 1) * 4)) & 15;
    case 3:
      return block.getUint8(index);
    case 4:
      return block.getUint16(index * 2);
    case 5:
      return block.getUint32(index * 4);
    default:
      return block.getUint32(index * 8) * TWO_32 + block.getUint32(index * 8 + 4);
  }
}

/** Sets refcount number `index` of `block` to `value`, which must fit `2 ** order` bits. */
export function setRefcount(block: DataView, order: number, index: number, value: number): void {
  switch (order) {
    case 0:
      return setBits(block, index >>> 3, index & 7, 1, value);
    case 1:
      return setBits(block, index >>> 2, (index & 3) * 2, 3, value);
    case 2:
      return setBits(block, index >>> 1, (index & 1) * 4, 15, value);
    case 3:
      return block.setUint8(index, value);
    case 4:
      return block.setUint16(index * 2, value);
    case 5:
      return block.setUint32(index * 4, value);
    default:
      block.setUint32(index * 8, Math.floor(value / TWO_32));
      return block.setUint32(index * 8 + 4, value >>> 0);
  }
}

function setBits(block: DataView, at: number, shift: number, mask: number, value: number): void {
  block.setUint8(at, (block.getUint8(at) & ~(mask << shift)) | (value << shift));
}

/** The largest refcount of a width, 2^53 - 1 at most. */
export function maxRefcount(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
}
