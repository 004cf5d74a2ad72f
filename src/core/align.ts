/*
 * Arithmetic on offsets up to 2^53. Bit operators are 32 bits wide in JavaScript and must never touch an offset;
 * `unit` is always a power of two here, for which division is exact.
 */

/** The largest multiple of `unit` that is not above `value`. */
export function alignDown(value: number, unit: number): number {
  return Math.floor(value / unit) * unit;
}

/** The smallest multiple of `unit` that is not below `value`. */
export function alignUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

/** How far `value` lies past the last multiple of `unit`. */
export function offsetIn(value: number, unit: number): number {
  return value - Math.floor(value / unit) * unit;
}

/** Whether `value` is a multiple of `unit`. */
export function isAligned(value: number, unit: number): boolean {
  return Math.floor(value / unit) * unit === value;
}

/** `value / unit`, rounded up to a whole number. */
export function divUp(value: number, unit: number): number {
  return Math.ceil(value / unit);
}

/** Whether `value` is a positive power of two. */
export function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 1 && 2 ** Math.round(Math.log2(value)) === value;
}
