import type { HostExtent } from '../core/extent.ts';
import { native } from '../native/binding.ts';
import type { FiemapExtent } from '../native/types.ts';

/** Host extents asked for at once. */
const FIEMAP_RUNS = 512;

/** The extents of a range, also past the end of the file; `settled` writes delayed blocks out first. */
export async function hostExtents(
  fd: number,
  at: number,
  length: number,
  settled: boolean,
): Promise<HostExtent[]> {
  const end = at + length;
  const found: HostExtent[] = [];
  for (let from = at; from < end;) {
    // The first page writes delayed blocks out for all.
    const page = await native().fiemap(fd, from, end - from, FIEMAP_RUNS, settled && from === at);
    for (const extent of page) {
      const clipped = clip(extent, at, end);
      if (clipped !== undefined) found.push(clipped);
    }
    const last = page.at(-1);
    if (last === undefined || page.length < FIEMAP_RUNS || last.logical + last.length <= from) break;
    from = last.logical + last.length;
  }
  return found;
}

function clip(extent: FiemapExtent, start: number, end: number): HostExtent | undefined {
  const offset = Math.max(extent.logical, start);
  const length = Math.min(extent.logical + extent.length, end) - offset;
  if (length <= 0) return undefined;
  const kind = extent.delayed ? 'delayed' : extent.unwritten ? 'unwritten' : 'written';
  return { offset, length, kind, shared: extent.shared };
}
