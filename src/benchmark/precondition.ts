import { statSync } from 'node:fs';
import type { AllocationPolicy } from '../core/allocation.ts';
import { formatSize } from '../core/size.ts';
import type { Image } from '../format/image.ts';
import { hostRuns, hostUsage } from '../op/host-usage.ts';
import { openImageFile } from '../op/open.ts';
import { openFile } from '../storage/file.ts';

/** What the host holds for an image file, in bytes. */
export interface Space {
  /** st_blocks. */
  readonly blocks: number;
  readonly extents: number;
  readonly written: number;
  readonly unwritten: number;
  readonly shared: number;
}

/** Looks at the file; delayed blocks are written out first. Null where the file system has no FIEMAP. */
export async function spaceOf(path: string): Promise<Space | null> {
  const file = await openFile(path);
  try {
    if (file.hostExtents === undefined) return null;
    const extents = await file.hostExtents(0, Math.max(file.size, 1));
    const sum = (of: (extent: (typeof extents)[number]) => boolean): number =>
      extents.filter(of).reduce((total, { length }) => total + length, 0);
    return {
      blocks: statSync(path).blocks * 512,
      extents: extents.length,
      written: sum(({ kind }) => kind === 'written'),
      unwritten: sum(({ kind }) => kind === 'unwritten'),
      shared: sum(({ shared }) => shared),
    };
  } finally {
    await file.close();
  }
}

/**
 * Whether an image that was just made is what its policy says, by its tables joined with the file system's extents: thin
 * has no extent (metadata: but what its tables leave reserved), thick-lazy only unwritten ones, thick-eager only written ones. What is wrong with it, or null.
 */
export async function broken(
  path: string,
  format: 'raw' | 'qcow2',
  policy: AllocationPolicy | 'metadata',
): Promise<string | null> {
  const image = await openImageFile(path, { format, share: true });
  try {
    const usage = await hostUsage(image);
    if (usage === null)
      return 'the file system does not tell extents (no FIEMAP), so that no policy can be proven';
    const { size, written, unwritten, delayed } = usage;
    const has = `${formatSize(written + delayed)} written and ${formatSize(unwritten)} reserved of ${formatSize(size)}`;
    if (policy === 'thick-eager')
      return written === size ? null : `thick-eager, but ${has}: not all is written`;
    if (policy === 'thick-lazy')
      return unwritten === size ? null : `thick-lazy, but ${has}: not all is reserved and unwritten`;
    // Tables that a file system gives space in large units (XFS) may leave some of it reserved beside them.
    const besideTables = policy === 'metadata' && usage.policy === 'thin' ? unwritten : 0;
    const isThin = written + delayed + unwritten === besideTables;
    return isThin ? null : `${policy}, but ${has}: it has extents before the first write`;
  } finally {
    await image.close();
  }
}

/** What requests left behind, which the next ones need: blocks that are written, or that hold nothing any more. */
export type Left = 'written' | 'discarded';

/**
 * Whether the requests (offset, length, kind of each) left what they should, by the tables joined with the file system's
 * extents: a rewrite of what was never written would be a first write. What is wrong, or null.
 */
export async function missing(
  path: string,
  format: 'raw' | 'qcow2',
  operations: Float64Array,
  left: Left,
): Promise<string | null> {
  const image = await openImageFile(path, { format, share: true });
  try {
    const good: number[] = [];
    for await (const [start, end] of left === 'written' ? writtenRuns(image) : emptyRuns(image)) {
      if (good.at(-1) === start) good[good.length - 1] = end;
      else good.push(start, end);
    }
    let bad = 0;
    for (let at = 0; at < operations.length; at += 3) {
      const [start = 0, length = 0] = operations.subarray(at, at + 2);
      if (!isWithin(good, start, start + length)) bad++;
    }
    return bad === 0
      ? null
      : `${String(bad)} of ${String(operations.length / 3)} requests before it left no ${left} blocks`;
  } finally {
    await image.close();
  }
}

type Run = readonly [start: number, end: number];

async function* writtenRuns(image: Image): AsyncGenerator<Run> {
  let at = 0;
  for await (const { kind, length } of hostRuns(image, 0, image.size) ?? []) {
    if (kind === 'written') yield [at, at + length];
    at += length;
  }
}

async function* emptyRuns({ driver, size }: Image): AsyncGenerator<Run> {
  for (let at = 0; at < size;) {
    const { kind, length } = await driver.map(at, size - at, true);
    if (kind === 'zero' || kind === 'backing') yield [at, at + length];
    at += length;
  }
}

/** Whether one of the runs, ascending and apart (start, end, start...), holds all of the range. */
function isWithin(runs: readonly number[], start: number, end: number): boolean {
  let [low, high] = [0, runs.length / 2];
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((runs[middle * 2] ?? Infinity) <= start) low = middle + 1;
    else high = middle;
  }
  return low > 0 && (runs[low * 2 - 1] ?? 0) >= end;
}
