import { stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Where a file is or will be. */
export interface Place {
  /** Of the file system, as in st_dev; undefined for a block device, which is no file of one. */
  readonly device: bigint | undefined;
  /** Bytes that an ordinary user can still take there; null for a block device. */
  readonly free: number | null;
  /** Something is there. */
  readonly exists: boolean;
}

/** Looks at the place that `path` names, through symbolic links; null where that cannot be told. */
export async function placeOf(path: string): Promise<Place | null> {
  const there = await stat(path, { bigint: true }).catch(() => null);
  if (there?.isBlockDevice() === true) return { device: undefined, free: null, exists: true };
  try {
    const folder = dirname(path);
    const { dev } = await stat(folder, { bigint: true });
    const { bavail, bsize } = await statfs(folder, { bigint: true });
    return { device: there?.dev ?? dev, free: Number(bavail * bsize), exists: there !== null };
  } catch {
    return null;
  }
}
