import type { HostExtent } from '../core/extent.ts';
import type { FiemapExtent } from '../native/types.ts';

/** Host extents asked for at once. */
const FIEMAP_RUNS = 512;

/**
 * What the file system holds under a range, clipped to it; `ask` is {@link Native.fiemap} of the file. The first answer
 * writes delayed blocks out: what was just written does not count as unwritten.
 */
export async function hostExtents(
  at: number,
  length: number,
  ask: (at: number, length: number, limit: number, sync: boolean) => Promise<FiemapExtent[]>,
): Promise<HostExtent[]> {
  const end = at + length;
  const found: HostExtent[] = [];
  for (let from = at; from < end;) {
    const page = await ask(from, end - from, FIEMAP_RUNS, from === at);
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
