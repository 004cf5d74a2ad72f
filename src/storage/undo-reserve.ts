import fs from 'node:fs';
import { alignDown, alignUp } from '../core/align.ts';
import type { HostExtent } from '../core/extent.ts';
import { native } from '../native/binding.ts';
import { hostExtents } from './host-extents.ts';

/**
 * Looks where a file of `size` bytes has no blocks in a range that is going to be reserved. The answer undoes that:
 * it cuts off what is past the end, unless something was reserved there before, and makes holes again of what was one
 * and is reserved but unwritten. Where extents are not told (`knows`) it only cuts.
 */
export async function undoOfReserve(
  fd: number,
  size: number,
  at: number,
  length: number,
  knows: boolean,
): Promise<() => Promise<void>> {
  const block = fs.fstatSync(fd).blksize;
  const start = alignDown(at, block);
  const end = Math.min(alignUp(at + length, block), Number.MAX_SAFE_INTEGER);
  const had = knows && length > 0 ? await hostExtents(fd, start, end - start, false) : undefined;
  const isPast = (extent: HostExtent): boolean => extent.offset + extent.length > alignUp(size, block);
  const holes = had === undefined ? [] : between(had, start, end);
  return async () => {
    if (end > size && had?.some(isPast) !== true) fs.ftruncateSync(fd, size);
    for (const [from, to] of holes)
      for (const { offset, length: bytes, kind } of await hostExtents(fd, from, to - from, true))
        if (kind === 'unwritten') await native().fallocate(fd, 'punch', offset, bytes);
  };
}

/** The gaps between extents of a range, which are in order. */
function between(extents: readonly HostExtent[], start: number, end: number): [number, number][] {
  const gaps: [number, number][] = [];
  let from = start;
  for (const { offset, length } of [...extents, { offset: end, length: 0 }]) {
    if (offset > from) gaps.push([from, offset]);
    from = Math.max(from, offset + length);
  }
  return gaps;
}
