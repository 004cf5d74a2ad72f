import { SpindleError } from './errors.ts';
import type { Storage } from './storage.ts';

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
  writePhysicalZeroes(at: number, length: number, signal?: AbortSignal): Promise<unknown>;
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
