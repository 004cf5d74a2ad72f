import type { Packing } from '../core/codec.ts';

/*
 * Checks of the numbers that come in, the same for the addon and the twins: a bad one is the caller's mistake, and
 * never reaches a system call.
 */

/** @throws RangeError unless `fd` is a whole number from 0 to 2^31 - 1 */
export function checkDescriptor(fd: number): void {
  if (!(Number.isInteger(fd) && fd >= 0 && fd <= 0x7fff_ffff)) {
    throw new RangeError(`a file descriptor is a whole number from 0, not ${String(fd)}`);
  }
}

/** @throws RangeError unless `value` is a whole number from `least` to 2^53 - 1; `name` is for the message */
export function checkWhole(name: string, value: number, least = 0): void {
  if (!(Number.isSafeInteger(value) && value >= least)) {
    throw new RangeError(`${name} is a whole number from ${String(least)} to 2^53 - 1, not ${String(value)}`);
  }
}

/** @throws RangeError unless descriptor, offset and length are sound, and offset + length too */
export function checkSpan(fd: number, offset: number, length: number): void {
  checkDescriptor(fd);
  checkWhole('offset', offset);
  checkWhole('length', length);
  checkWhole('offset + length', offset + length);
}

/** Checks an extent size hint, which is stored in 32 bits. @throws RangeError unless it and the descriptor are sound */
export function checkExtentSizeHint(fd: number, bytes: number): void {
  checkDescriptor(fd);
  checkWhole('an extent size hint', bytes);
  if (bytes > 0xffff_ffff)
    throw new RangeError(`an extent size hint is smaller than 4 GiB, not ${String(bytes)}`);
}

/** @throws RangeError unless every byte offset to be locked is sound */
export function checkBytes(fd: number, bytes: readonly number[]): void {
  checkDescriptor(fd);
  for (const byte of bytes) checkWhole('a byte to lock', byte);
}

/** @throws RangeError unless `level` is one of zstd's from 1 to 22, and `limit` a number of bytes */
export function checkCompression(level: number, limit: number): void {
  checkWhole('limit', limit);
  checkWhole('a compression level', level, 1);
  if (level > 22) throw new RangeError(`a compression level is at most 22, not ${String(level)}`);
}

/** @throws RangeError unless `level` is one of zlib, 0 to 9, and `limit` a length */
export function checkDeflate(level: number, limit: number): void {
  checkWhole('limit', limit);
  checkWhole('a compression level', level);
  if (level > 9) throw new RangeError(`a level of deflate is at most 9, not ${String(level)}`);
}

/** @throws RangeError unless `size` is 1 to 2^32 - 1 and `alignment` is a power of two up to 2^30 */
export function checkBuffer(size: number, alignment: number): void {
  checkWhole('size', size, 1);
  if (size > 0xffff_ffff) throw new RangeError(`a buffer is smaller than 4 GiB, not ${String(size)} bytes`);
  if (!(alignment >= 1 && alignment <= 2 ** 30 && Number.isInteger(Math.log2(alignment)))) {
    throw new RangeError(`an alignment is a power of two up to 2^30, not ${String(alignment)}`);
  }
}

/** @throws RangeError unless `runs` is from, to, length of each, whole numbers, and `skip` a length */
export function checkRuns(source: number, target: number, runs: Float64Array, skip = 0): void {
  checkDescriptor(source);
  checkDescriptor(target);
  checkNumbers(runs, 3);
  checkWhole('a unit', skip);
}

/** @throws RangeError unless `pairs` is first, second, length, sides of each, whole numbers, and sides 1 to 3 */
export function checkPairs(first: number, second: number, pairs: Float64Array): void {
  checkDescriptor(first);
  checkDescriptor(second);
  checkNumbers(pairs, 4);
  for (let i = 3; i < pairs.length; i += 4)
    if (pairs[i] === 0 || (pairs[i] ?? 0) > 3)
      throw new RangeError(`sides are 1, 2 or 3, not ${String(pairs[i])}`);
}

/** @throws RangeError unless `ranges` is offset, length of each, whole numbers, and `unit` at least 1 */
export function checkRanges(fd: number, ranges: Float64Array, unit: number): void {
  checkDescriptor(fd);
  checkNumbers(ranges, 2);
  checkWhole('a unit', unit, 1);
}

/** @throws RangeError unless `ranges` is offset, length of each, whole numbers, and all of them are `memory` */
export function checkBatch(fd: number, ranges: Float64Array, memory: Uint8Array): void {
  checkDescriptor(fd);
  checkNumbers(ranges, 2);
  let all = 0;
  for (let i = 1; i < ranges.length; i += 2) all += ranges[i] ?? 0;
  if (all !== memory.length)
    throw new RangeError(
      `requests for ${String(all)} bytes need as much memory, not ${String(memory.length)}`,
    );
}

/** @throws RangeError unless `operations` is offset, length, kind of each, and the rest sound */
export function checkWorkload(
  fd: number,
  operations: Float64Array,
  depth: number,
  seed: number,
  limit: number,
): void {
  checkDescriptor(fd);
  checkNumbers(operations, 3);
  checkWhole('a seed', seed);
  checkWhole('a limit', limit);
  checkWhole('a depth', depth, 1);
  if (depth > 256) throw new RangeError(`a depth is at most 256, not ${String(depth)}`);
}

/** @throws RangeError unless `pieces` is five whole numbers of each, and the rest sound */
export function checkPieces(
  source: number,
  target: number,
  pieces: Float64Array,
  { clusterSize }: Packing,
  skip: number,
): void {
  checkDescriptor(source);
  checkDescriptor(target);
  checkNumbers(pieces, 5);
  checkCluster(clusterSize);
  checkWhole('a unit', skip);
}

/** @throws RangeError unless `ranges` is offset, length of each, and size and level are sound */
export function checkPacking(
  fd: number,
  ranges: Float64Array,
  { type, clusterSize }: Packing,
  level: number,
): void {
  checkDescriptor(fd);
  checkNumbers(ranges, 2);
  checkCluster(clusterSize);
  if (type === 'zstd') checkCompression(level, clusterSize);
  else checkDeflate(level, clusterSize);
}

function checkCluster(size: number): void {
  checkWhole('the size of a cluster', size, 1);
  if (size > 2 * 1024 * 1024) throw new RangeError(`a cluster has at most 2 MiB, not ${String(size)} bytes`);
}

function checkNumbers(values: Float64Array, each: number): void {
  if (values.length % each !== 0)
    throw new RangeError(`a list of ranges has ${String(each)} numbers for each`);
  for (const value of values) checkWhole('an offset or a length', value);
}
