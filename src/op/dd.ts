import { SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import { convertInto, refuseSame, type Converted, type ConvertSource, type NewTarget } from './convert.ts';
import { imagePart } from './copy/source.ts';
import { openImageFile } from './open.ts';

/** Which part of a disk is copied. */
export interface DdOptions extends Working {
  /** Bytes of a block, 1 to 2^31 - 1. Default: 512. */
  readonly blockSize?: number | undefined;
  /** Blocks from the start of the source that count, those that are skipped too. Default: all. */
  readonly count?: number | undefined;
  /** Blocks at the start of the source that are left out. Default: 0. */
  readonly skip?: number | undefined;
  /** Told that the source ends before the first block that was asked for: the new image is empty. */
  onBeyond?(): void;
}

/** The most bytes of a block. */
export const MOST_BLOCK = 2 ** 31 - 1;

/**
 * Copies a part of the disk in an image to a new image, which replaces a file of its name only when it is complete. Zeroes
 * stay holes. The new disk has whole sectors.
 * @throws SpindleError BAD_OPTION, and as {@link convert}
 */
export async function dd(
  source: ConvertSource,
  target: NewTarget,
  options: DdOptions = {},
): Promise<Converted> {
  const { blockSize = 512, count = Infinity, skip = 0, signal, onProgress } = options;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (!(Number.isInteger(blockSize) && blockSize >= 1 && blockSize <= MOST_BLOCK))
    throw bad(`a block has 1 to ${String(MOST_BLOCK)} bytes, not ${String(blockSize)}`);
  if (!(count >= 0 && skip >= 0)) throw bad('there are no fewer than 0 blocks to copy or to skip');
  const image = await openImageFile(source.path, source);
  try {
    await refuseSame([image], target.path);
    const end = Math.min(image.size, count * blockSize);
    const start = skip * blockSize;
    if (start > end) options.onBeyond?.();
    const part = imagePart(image, Math.min(start, end), Math.max(end - start, 0));
    return await convertInto(part, [image], target, { signal, onProgress });
  } finally {
    await image.close();
  }
}
