import type { Packing } from '../core/codec.ts';

/**
 * The functions that only native code can do, or can do fast. Each takes an open descriptor or a buffer, holds no
 * policy, and exists twice: in the Rust addon and as a TypeScript twin (`fallback.ts`). All offsets, lengths and sizes
 * are bytes. Failures are SpindleError (NO_SPACE, UNSUPPORTED, IO, PERMISSION...), whichever of the two runs.
 */
export interface Native {
  /** `addon`, or `twin` for the TypeScript twins. */
  readonly kind: 'addon' | 'twin';

  /**
   * fallocate(2). `reserve` allocates unwritten blocks and grows the file when the range passes its end;
   * `reserve-keep-size` never grows it; `punch` makes a hole; `zero-range` makes the range read as zeroes,
   * keeping it allocated (as unwritten extents), and never changes the size.
   * @throws UNSUPPORTED when the file system cannot, NO_SPACE
   */
  fallocate(fd: number, mode: FallocateMode, offset: number, length: number): Promise<void>;

  /**
   * Writes zeroes physically: afterwards the range is allocated and written, not reserved. The file grows when the
   * range passes its end. Not durable until fsync.
   */
  writeZeroes(fd: number, offset: number, length: number): Promise<ZeroReport>;

  /**
   * Data runs of a descriptor within the range as `[start, end, start, end, ...]`, by SEEK_DATA and SEEK_HOLE, at most
   * `limit` runs. What lies between is holes. When `limit` runs were found the answer may be incomplete past the last.
   */
  dataExtents(fd: number, offset: number, length: number, limit: number): Promise<number[]>;

  /**
   * FIEMAP: what the file system holds under the range, ascending, at most `limit` extents; `sync` writes delayed
   * blocks out first, so that their state is settled.
   * @throws UNSUPPORTED where the file system has no FIEMAP
   */
  fiemap(fd: number, offset: number, length: number, limit: number, sync: boolean): Promise<FiemapExtent[]>;

  /**
   * Makes runs of the file `target` share the blocks that hold those of `source` (reflink), one after the other; `runs` holds
   * from, to, length of each. The file grows when a run passes its end. What was done before a failure stays.
   * @throws UNSUPPORTED where the file system cannot, the files lie on two, or a run is not whole blocks; and always the
   * twin
   */
  cloneRuns(source: number, target: number, runs: Float64Array): Promise<void>;

  /**
   * Copies runs of the file `source` to `target`, one after the other; `runs` holds from, to, length of each. Units of
   * `skip` bytes, counted from the start of each run, that are all zeroes are left out; 0: everything is written. The
   * bytes that were written. What was done before a failure stays.
   * @throws IO also where the source ends before a run does; NO_SPACE
   */
  copyRuns(source: number, target: number, runs: Float64Array, skip: number): Promise<number>;

  /**
   * The first byte that differs between ranges of two files, counted over the ranges one after the other; -1: none does.
   * `pairs` holds first, second, length, sides of each: where it begins in either file, and 3 for both files, 1 or 2 for
   * that one against zeroes.
   * @throws IO also where a file ends before its range does
   */
  compareRuns(first: number, second: number, pairs: Float64Array): Promise<number>;

  /**
   * One byte a unit of `unit` bytes of each range of a file, the ranges (offset, length of each) one after the other: 1
   * where all bytes are zero, else 0. The last unit of a range may be short.
   * @throws IO also where the file ends before a range does
   */
  zeroRanges(fd: number, ranges: Float64Array, unit: number): Promise<Uint8Array>;

  /**
   * Writes pieces of the file `source` to `target`, one after the other; `pieces` holds from, to, length, packed, first of
   * each. Where `packed` is 0, `length` plain bytes; else the compressed cluster of which the stream lies within the
   * `packed` bytes at `from`, and of what it decodes to `length` bytes after the `first`. Units of `skip` bytes as in
   * {@link copyRuns}. The bytes that were written. What was done before a failure stays.
   * @throws BAD_COMPRESSED; IO also where the source ends before a plain piece does, or a part passes its cluster; NO_SPACE
   */
  expandPieces(
    source: number,
    target: number,
    pieces: Float64Array,
    packing: Packing,
    skip: number,
  ): Promise<number>;

  /**
   * Compresses the clusters of ranges of a file (offset, length of each; the last cluster of a range may be short, and
   * gets zeroes behind it), as {@link deflateRaw} and {@link zstdCompress} do.
   * @throws IO also where the file ends before a range does; UNSUPPORTED as {@link zstdCompress}
   */
  packRanges(fd: number, ranges: Float64Array, packing: Packing, level: number): Promise<PackedClusters>;

  /**
   * Does operations (offset, length, {@link OperationKind} of each) on a file in their order, `depth` of them at a time,
   * and times each. What is written is noise, no two blocks alike, the same for the same seed and depth of 1. Reads and
   * writes must fit what the descriptor is open for: with O_DIRECT offsets and lengths of whole blocks. The twin counts
   * the event loop in. The first failure ends the run.
   * @throws IO also where a read passes the end of the file; NO_SPACE
   */
  runWorkload(fd: number, operations: Float64Array, how: WorkloadOptions): Promise<WorkloadReport>;

  /**
   * Does many small requests to one file in one call; `ranges` holds offset, length of each, and their bytes, read or
   * `write`n, lie in `memory` one after the other and fill it. With `together` the device sees them all at once where the
   * kernel lets it (io_uring); else they are done one after the other. The numbers of the requests that were not done
   * whole, for whatever reason: to be done again alone, which tells it. Memory given to a call that failed must not be
   * used again.
   */
  runBatch(
    fd: number,
    write: boolean,
    ranges: Float64Array,
    memory: Uint8Array,
    together: boolean,
  ): Promise<readonly number[]>;

  /**
   * Fills the start of `into` from `offset` on, at once, as far as the page cache of the host holds it; the bytes, 0 at
   * the end of the file. -1 where nothing can be had without waiting, and always for the twin.
   */
  readCached(fd: number, into: Uint8Array, offset: number): number;

  /**
   * One byte a unit of `granularity` bytes of `buffer`: 1 where all bytes of the unit are zero, else 0.
   * The last unit may be short.
   */
  zeroUnits(buffer: Uint8Array, granularity: number): Uint8Array;

  /** Size and sector sizes of a block device. @throws UNSUPPORTED when `fd` is none */
  deviceInfo(fd: number): Promise<DeviceInfo>;

  /** BLKDISCARD. @throws UNSUPPORTED */
  deviceDiscard(fd: number, offset: number, length: number): Promise<void>;

  /** BLKZEROOUT: the device zeroes by itself where it can, else the kernel writes zeroes. @throws UNSUPPORTED */
  deviceZeroOut(fd: number, offset: number, length: number): Promise<void>;

  /**
   * Turns copy-on-write off for a file (FS_NOCOW_FL), which counts only while it is empty. Whether it is off
   * afterwards: file systems without the switch (all but btrfs) and files that hold data stay as they are.
   */
  setNoCow(fd: number): Promise<boolean>;

  /** The extent size hint of a file, the unit in which it is given space (FS_XFLAG_EXTSIZE); 0 where there is none. */
  extentSizeHint(fd: number): Promise<number>;

  /**
   * Sets the extent size hint, at most 2^32 - 1, or takes it away (0). IO (EINVAL) for a size that is not whole blocks,
   * and for a file that holds data. @throws UNSUPPORTED where the file system has no such hint (all but XFS)
   */
  setExtentSizeHint(fd: number, bytes: number): Promise<void>;

  /** A zeroed buffer whose address is a multiple of `alignment`, for O_DIRECT. @throws UNSUPPORTED (twin) */
  alignedBuffer(size: number, alignment: number): Uint8Array;

  /**
   * Takes shared open-file-description locks on single bytes of the file (fcntl F_OFD_SETLK, F_RDLCK).
   * They last until the descriptor closes. @throws UNSUPPORTED (twin, or the file system)
   */
  lockBytes(fd: number, bytes: readonly number[]): void;

  /** Drops locks taken by {@link lockBytes}. */
  unlockBytes(fd: number, bytes: readonly number[]): void;

  /** The first of `bytes` on which another open file description holds a lock, or -1 (F_OFD_GETLK as F_WRLCK). */
  findLocked(fd: number, bytes: readonly number[]): number;

  /**
   * Decompresses a raw deflate stream from `source` until `into` is full; bytes past the end of the stream are ignored,
   * and a stream may go on past the end of `into`. The caller must not touch `into` before this settles.
   * @throws BAD_COMPRESSED
   */
  inflate(source: Uint8Array, into: Uint8Array): Promise<void>;

  /**
   * Compresses `source` to a raw deflate stream, no distance of which passes 4096, at a level of 0 to 9; null where it
   * would have `limit` bytes or more, or where (addon) the bytes look so random that it would. `source` must not change
   * before this settles. The bytes of the twin are others, but they decompress to the same.
   */
  deflateRaw(source: Uint8Array, level: number, limit: number): Promise<Uint8Array | null>;

  /**
   * Decompresses zstd frames from `source` until `into` is full: several frames follow one another, skippable ones are
   * passed over, bytes past the end of `into` are ignored unless a frame decodes past it.
   * @throws BAD_COMPRESSED
   */
  zstdDecompress(source: Uint8Array, into: Uint8Array): Promise<void>;

  /**
   * Compresses `source` to one zstd frame with its content size and no checksum; null where the frame would have
   * `limit` bytes or more. `source` must not change before this settles. The bytes of the twin may be others, as Node
   * has a libzstd of its own, but they decompress to the same.
   * @throws UNSUPPORTED (twin) on Node before 22.15, which has no zstd encoder
   */
  zstdCompress(source: Uint8Array, level: number, limit: number): Promise<Uint8Array | null>;
}

/** Clusters that were compressed. */
export interface PackedClusters {
  /** Bytes of the stream of each cluster: 0 for a cluster of zeroes, the size of a cluster where none is smaller. */
  readonly lengths: Uint32Array;
  /** The streams, one right after the other. */
  readonly streams: Uint8Array;
}

/** What an operation of {@link Native.runWorkload} does. `writeSync` is a write and then fdatasync; `punch` makes a hole. */
export const OperationKind = { read: 0, write: 1, writeSync: 2, punch: 3, sync: 4 } as const;

/** How operations are done. */
export interface WorkloadOptions {
  /** In flight at a time, 1 to 256. */
  readonly depth: number;
  /** Of the bytes that are written: a whole number. */
  readonly seed: number;
  /** Nanoseconds after which none begins any more; 0 (default): never. */
  readonly limit?: number;
  /** Threads, even where there is io_uring. */
  readonly threads?: boolean;
}

/** What was measured, in nanoseconds. */
export interface WorkloadReport {
  /** `event loop`: the twin, whose figures include what Node does between operations. */
  readonly engine: 'io_uring' | 'threads' | 'event loop';
  /** Why it was not io_uring, as an error name, where the kernel gave one. */
  readonly refused?: string;
  readonly elapsed: number;
  /** Of the operations that were begun, the first of the list, in their order: from beginning to end. */
  readonly latencies: Float64Array;
  /** When each ended, after the start of the run. */
  readonly finishes: Float64Array;
}

/** The modes of {@link Native.fallocate}. */
export type FallocateMode = 'reserve' | 'reserve-keep-size' | 'punch' | 'zero-range';

/** Which way {@link Native.writeZeroes} went: the device zeroed, or zeroes were written past or through the cache. */
export interface ZeroReport {
  readonly way: 'offload' | 'direct' | 'buffered';
  /** Bytes that passed through write calls (0 for offload). */
  readonly written: number;
}

/** One FIEMAP extent. `physical` is 0 where it is unknown. */
export interface FiemapExtent {
  readonly logical: number;
  readonly physical: number;
  readonly length: number;
  readonly unwritten: boolean;
  readonly shared: boolean;
  readonly delayed: boolean;
  /** Encoded, inline or otherwise not plain blocks. */
  readonly encoded: boolean;
}

/** A block device. */
export interface DeviceInfo {
  readonly size: number;
  readonly logicalSector: number;
  readonly physicalSector: number;
}
