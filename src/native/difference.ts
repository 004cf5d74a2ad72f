/** Where two pieces of equal length differ first, in bytes from their start; -1 where they are the same. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (a.length !== b.length) throw new RangeError('pieces of equal length are compared');
  if (Buffer.compare(a, b) === 0) return -1;
  let at = 0;
  let length = a.length;
  // What is before `at` is the same, and a difference is in the `length` bytes from there.
  while (length > 1) {
    const half = length >> 1;
    if (Buffer.compare(a.subarray(at, at + half), b.subarray(at, at + half)) === 0) {
      at += half;
      length -= half;
    } else length = half;
  }
  return at;
}
