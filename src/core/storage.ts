import { SpindleError } from './errors.ts';
import type { Extent, HostExtent } from './extent.ts';

/** What a storage can do. Fixed once the storage is open. */
export interface StorageCan {
  /** `write` works. */
  readonly write: boolean;
  /** `resize` works. */
  readonly resize: boolean;
  /** `zero` is faster than writing zeroes. */
  readonly zero: boolean;
  /** `discard` gives space back. */
  readonly discard: boolean;
  /** `extent` tells holes from data. */
  readonly extents: boolean;
  /** I/O bypasses the page cache of the host. */
  readonly direct: boolean;
}

/** How {@link Storage.zero} may do its work. */
export interface ZeroOptions {
  /** Keep the range allocated (no hole); default: the storage may do either. */
  readonly keepAllocated?: boolean;
  /** Fail with UNSUPPORTED rather than write zeroes one by one. */
  readonly fastOnly?: boolean;
}

/**
 * Bytes at offsets: a file, a block device, memory, or the disk that a guest sees. All offsets and lengths are bytes.
 * Every method throws OUT_OF_RANGE when its range passes `size`, and CLOSED after `close`.
 */
export interface Storage {
  /** Length in bytes. */
  readonly size: number;
  readonly can: StorageCan;
  /** Fills all of `into` from `at`, or throws. */
  read(into: Uint8Array, at: number): Promise<void>;
  /**
   * Fills all of `into` from `at` before it returns, or says that it could not: then `into` may hold anything, and `read` is
   * the way, which also says what is wrong. Never waits for a device. Optional: for storages that often can.
   */
  readNow?(into: Uint8Array, at: number): boolean;
  /** Writes all of `from` at `at`, or throws. Durable only after `flush`. */
  write(from: Uint8Array, at: number): Promise<void>;
  /** Makes the range read as zeroes. */
  zero(at: number, length: number, how?: ZeroOptions): Promise<void>;
  /** Gives the range's space back where possible; what it reads afterwards is for the storage to say. */
  discard(at: number, length: number): Promise<void>;
  /** The first run of equal status at `at`: 1 to `length` bytes. "All data" is always a correct answer. */
  extent(at: number, length: number): Promise<Extent>;
  /** Changes `size`; a grown part reads as zeroes. */
  resize(size: number): Promise<void>;
  /** Everything written before is durable when this resolves. */
  flush(): Promise<void>;
  close(): Promise<void>;
  /**
   * What the host holds under the range: runs in ascending order, clipped to it; what no run covers is a hole.
   * Absent where nobody can tell (memory, network).
   */
  hostExtents?(at: number, length: number): Promise<HostExtent[]>;
  /** Bytes that the host has allocated for the storage (st_blocks). Absent where nobody can tell. */
  allocatedSize?(): Promise<number>;
  /** Bytes in which the host gives space to the storage where that is more than its blocks; 0 for blocks (XFS). */
  extentSizeHint?(): Promise<number>;
}

/** Capabilities of a storage that can only be read. */
export const READ_ONLY: StorageCan = {
  write: false,
  resize: false,
  zero: false,
  discard: false,
  extents: false,
  direct: false,
};

/** Whether `length` bytes at `at` lie within `size`. */
export function isWithin(size: number, at: number, length: number): boolean {
  return at >= 0 && length >= 0 && at + length <= size && Number.isSafeInteger(at);
}

/** Throws OUT_OF_RANGE unless `length` bytes at `at` lie within `size`. */
export function checkRange(size: number, at: number, length: number): void {
  if (!isWithin(size, at, length)) {
    throw new SpindleError(
      'OUT_OF_RANGE',
      `${String(length)} bytes at offset ${String(at)} pass the end at ${String(size)}`,
    );
  }
}

/**
 * Base of a source that implements only `size`, `read` and `close`: all data, and every change fails with READ_ONLY.
 */
export abstract class ReadOnlyStorage implements Storage {
  abstract readonly size: number;
  readonly can: StorageCan = READ_ONLY;
  abstract read(into: Uint8Array, at: number): Promise<void>;
  abstract close(): Promise<void>;

  write(_from: Uint8Array, _at: number): Promise<void> {
    return Promise.reject(readOnly());
  }

  zero(_at: number, _length: number, _how?: ZeroOptions): Promise<void> {
    return Promise.reject(readOnly());
  }

  discard(_at: number, _length: number): Promise<void> {
    return Promise.reject(readOnly());
  }

  extent(at: number, length: number): Promise<Extent> {
    return Promise.resolve({ offset: at, length, flags: 0 });
  }

  resize(_size: number): Promise<void> {
    return Promise.reject(readOnly());
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }
}

function readOnly(): SpindleError {
  return new SpindleError('READ_ONLY', 'opened for reading only');
}
