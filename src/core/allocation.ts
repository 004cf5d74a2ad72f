import { isSpindleError, SpindleError } from './errors.ts';
import type { Storage } from './storage.ts';
import { stopIfAborted, type Working } from './working.ts';

/**
 * Who pays for a block, and when. `thin`: blocks appear at the first write. `thick-lazy`: blocks are reserved at
 * creation and cleared at the first write. `thick-eager`: zeroes are written at creation.
 */
export type AllocationPolicy = 'thin' | 'thick-lazy' | 'thick-eager';

/** All policies, thinnest first. */
export const ALLOCATION_POLICIES: readonly AllocationPolicy[] = ['thin', 'thick-lazy', 'thick-eager'];

/** A storage that can hold space before anything is written to it. */
export interface Reservable extends Storage {
  /** Reserves blocks for the range, growing the storage unless `keepSize`. @throws UNSUPPORTED, NO_SPACE */
  reserve(at: number, length: number, keepSize?: boolean): Promise<void>;
  /** Writes zeroes physically: no block of the range is left merely reserved. @throws UNSUPPORTED, NO_SPACE */
  writePhysicalZeroes(at: number, length: number): Promise<unknown>;
}

/** `storage` as one that can reserve space. @throws SpindleError UNSUPPORTED when it cannot */
export function reservable(storage: Storage): Reservable {
  const candidate = storage as Partial<Reservable> & Storage;
  if (typeof candidate.reserve === 'function' && typeof candidate.writePhysicalZeroes === 'function') {
    return candidate as Reservable;
  }
  throw new SpindleError(
    'UNSUPPORTED',
    'this storage cannot reserve space; only files and block devices can',
  );
}

/** Bytes of zeroes between two looks at the signal. */
const STEP = 256 * 1024 * 1024;

/**
 * Gives a range that holds nothing yet its blocks: reserved, or, where the file system cannot do that (ext2 and ext3, NFS
 * before 4.2), written with zeroes, as posix_fallocate(3) does.
 * @throws SpindleError NO_SPACE, UNSUPPORTED (a device, or no file), ABORTED
 */
export async function reserveNew(
  storage: Storage,
  at: number,
  length: number,
  working: Working = {},
): Promise<void> {
  const target = reservable(storage);
  try {
    await target.reserve(at, length);
  } catch (error) {
    if (!isSpindleError(error, 'UNSUPPORTED') || !target.can.resize) throw error;
    await fillWithZeroes(storage, at, length, working);
  }
}

/**
 * Writes zeroes physically, in steps between which the work can be stopped. The whole range is reserved first where that
 * works, so that a lack of space shows before anything is written.
 * @throws SpindleError NO_SPACE, UNSUPPORTED, ABORTED
 */
export async function fillWithZeroes(
  storage: Storage,
  at: number,
  length: number,
  working: Working = {},
): Promise<void> {
  const target = reservable(storage);
  if (target.can.resize) {
    await target.reserve(at, length).catch((error: unknown) => {
      if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
    });
  }
  for (let done = 0; done < length;) {
    stopIfAborted(working.signal);
    const step = Math.min(STEP, length - done);
    await target.writePhysicalZeroes(at + done, step);
    done += step;
    working.onProgress?.(done, length);
  }
}
