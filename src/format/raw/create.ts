import { fillWithZeroes, reserveNew } from '../../core/allocation.ts';
import { SpindleError } from '../../core/errors.ts';
import type { Storage } from '../../core/storage.ts';
import type { Working } from '../../core/working.ts';

/** The preallocation modes of raw images. */
export type RawPreallocation = 'off' | 'falloc' | 'full';

/**
 * Makes the empty `storage` a raw image of `size` bytes that reads as zeroes.
 * @throws SpindleError NO_SPACE, UNSUPPORTED, ABORTED
 */
export async function createRaw(
  storage: Storage,
  size: number,
  preallocation: RawPreallocation,
  working: Working = {},
): Promise<void> {
  if (!storage.can.resize) {
    // A block device has the size that it has, and holds whatever it held.
    if (storage.size < size) {
      throw new SpindleError(
        'NO_SPACE',
        `the device has ${String(storage.size)} bytes; the image needs ${String(size)}`,
      );
    }
    if (preallocation === 'full') await fillWithZeroes(storage, 0, size, working);
    return;
  }
  await storage.resize(size);
  if (size === 0) return;
  if (preallocation === 'falloc') await reserveNew(storage, 0, size, working);
  if (preallocation === 'full') await fillWithZeroes(storage, 0, size, working);
}
