import { dirname } from 'node:path';
import { alignDown, alignUp } from '../core/align.ts';
import { SpindleError, isSpindleError } from '../core/errors.ts';
import type { Extent, HostExtent } from '../core/extent.ts';
import { RangeLock, type Held } from '../core/range-lock.ts';
import { checkRange, isWithin, type Storage, type StorageCan, type ZeroOptions } from '../core/storage.ts';
import { native } from '../native/binding.ts';
import type { FallocateMode, ZeroReport } from '../native/types.ts';
import { abilities, hasExtentSizeHints, type Abilities } from './ability.ts';
import { Batches } from './batches.ts';
import { CachedReads } from './cached-reads.ts';
import { DataMap } from './data-map.ts';
import {
  closeDescriptor,
  closeFlushed,
  readUpTo,
  statDescriptor,
  syncDescriptor,
  syncDirectory,
  truncateDescriptor,
  writeAll,
} from './descriptor.ts';
import { DirectIo } from './direct.ts';
import { cutOff, hostError } from './errno.ts';
import { hostExtents } from './host-extents.ts';
import { identityOf } from './identity.ts';
import { isWriting, openHost, type FileOptions, type Opened } from './open.ts';
import { undoOfReserve } from './undo-reserve.ts';
import { ZERO_CHUNK, zeroRange, type ZeroTarget } from './zeroing.ts';

export type { FileOptions } from './open.ts';

/**
 * Opens a regular file or block device.
 * @throws NOT_FOUND, EXISTS, PERMISSION, READ_ONLY, NOT_A_FILE (directories, FIFOs, sockets, character devices),
 * UNSUPPORTED (direct I/O that the platform or file system does not have), NO_SPACE, IN_USE, IO
 */
export async function openFile(path: string, options: FileOptions = {}): Promise<FileStorage> {
  const opened = await openHost(path, options);
  try {
    const can = await abilities(path, opened, isWriting(options), options.direct === true);
    return new FileStorage(path, opened, can, options);
  } catch (error) {
    await closeDescriptor(opened.fd, path);
    throw error;
  }
}

/**
 * A regular file or a block device of the host; {@link openFile} makes them.
 *
 * Changes of overlapping ranges are done one after the other, so that none is torn. `discard` punches files and does
 * nothing where the file system cannot; a discarded range of a file reads as zeroes or as before, of a device as
 * the device likes. `close` waits for what is running. After a `flush` failed all later ones fail too: the kernel
 * drops what it could not write and reports that once, so that nothing written before can be vouched for any more.
 */
export class FileStorage implements Storage {
  readonly can: StorageCan;
  /** As it was given to {@link openFile}. */
  readonly path: string;
  /** `dev:ino` of a file: equal for two storages of one file, whatever their paths. `block:rdev` of a device. */
  readonly identity: string;
  /** Whether this is a block device. */
  readonly isDevice: boolean;
  readonly hostExtents?: (at: number, length: number) => Promise<HostExtent[]>;

  readonly #fd: number;
  readonly #alignment: number;
  readonly #direct: DirectIo | undefined;
  readonly #cached: CachedReads | undefined;
  readonly #batches: Batches;
  readonly #zeroes: ZeroTarget;
  readonly #lock = new RangeLock();
  readonly #map: DataMap | undefined;
  readonly #cannot = new Set<string>();
  #size: number;
  #sizeChanged = false;
  /** Something was changed since the last flush. */
  #unflushed = false;
  /** Made by this storage, and its name not durable yet. */
  #isNew: boolean;
  #flushFailure: unknown;
  #running = 0;
  #closing: Promise<void> | undefined;
  #idle: (() => void) | undefined;
  readonly #unsafe: boolean;
  readonly #beforeClose: (() => void)[] = [];

  /** Takes over the descriptor. Use {@link openFile}. */
  constructor(path: string, opened: Opened, { can, fiemap }: Abilities, options: FileOptions) {
    const { fd, stats, isDevice, size, alignment } = opened;
    this.path = path;
    this.can = can;
    this.isDevice = isDevice;
    this.identity = identityOf(stats);
    this.#fd = fd;
    this.#size = size;
    this.#alignment = alignment;
    this.#isNew = options.create === 'exclusive';
    this.#unsafe = options.unsafe === true;
    this.#direct = can.direct ? new DirectIo(fd, alignment, path) : undefined;
    this.#cached = can.direct || native().kind === 'twin' ? undefined : new CachedReads(fd);
    this.#batches = new Batches(fd, can.direct ? alignment : undefined);
    this.#zeroes = {
      ...{ fd, path, isDevice, alignment },
      buffer: (length) => this.buffer(length),
      write: (from, at) => this.#write(from, at),
      try: (what, work) => this.#try(what, work),
    };
    this.#map = can.extents
      ? new DataMap((at, length, limit) =>
          this.#native('find data', () => native().dataExtents(fd, at, length, limit)),
        )
      : undefined;
    if (fiemap) this.hostExtents = (at, length) => this.#hostExtents(at, length);
  }

  /** Bytes of the blocks that the host has allocated (st_blocks). 0 for a block device. */
  allocatedSize(): Promise<number> {
    return this.#run(() => Promise.resolve(Number(statDescriptor(this.#fd, this.path).blocks) * 512));
  }

  get size(): number {
    return this.#size;
  }

  /** The descriptor, for native functions and locks; it stays this storage's. @throws CLOSED */
  get fd(): number {
    this.#checkOpen();
    return this.#fd;
  }

  /** Tells that bytes up to `end` were changed through {@link fd}, by which the file may have grown. */
  changed(end: number): void {
    this.#unflushed = true;
    this.#map?.changed();
    if (end <= this.#size) return;
    this.#size = end;
    this.#sizeChanged = true;
  }

  /** Whether `close` was called. */
  get closed(): boolean {
    return this.#closing !== undefined;
  }

  /** Zeroed memory that direct I/O takes without copying, also in aligned parts; plain memory without `direct`. */
  buffer(size: number): Uint8Array {
    return this.#direct?.buffer(size) ?? new Uint8Array(size);
  }

  read(into: Uint8Array, at: number): Promise<void> {
    if (this.readNow(into, at)) return Promise.resolve();
    return this.#run(async () => {
      checkRange(this.#size, at, into.length);
      if (this.#batches.takes(at, into.length) && (await this.#batches.read(into, at))) return;
      const count = await (this.#direct?.readUpTo(into, at) ?? readUpTo(this.#fd, into, at, this.path));
      if (count < into.length) throw cutOff(this.path, at + count, this.#size);
    });
  }

  readNow(into: Uint8Array, at: number): boolean {
    if (this.closed || !isWithin(this.#size, at, into.length)) return false;
    return this.#cached?.tryRead(into, at) === into.length;
  }

  write(from: Uint8Array, at: number): Promise<void> {
    return this.#writeSmall(from, at) ?? this.#change(at, from.length, () => this.#write(from, at));
  }

  /** As {@link #change} and {@link #write}, where nothing stands in the way of a small write: with less around it. */
  #writeSmall(from: Uint8Array, at: number): Promise<void> | undefined {
    if (!this.#batches.takes(at, from.length) || !isWithin(this.#size, at, from.length)) return undefined;
    if (this.closed || !this.can.write) return undefined;
    const held = this.#lock.tryHold(at, from.length, 'exclusive');
    if (held === undefined) return undefined;
    this.#running++;
    this.#unflushed = true;
    this.#map?.changed();
    return new Promise((resolve, reject) => {
      this.#batches.write(from, at, (whole) => {
        if (whole) {
          this.#writeEnded(held);
          resolve();
        } else
          this.#write(from, at)
            .finally(() => this.#writeEnded(held))
            .then(resolve, reject);
      });
    });
  }

  #writeEnded(held: Held): void {
    this.#map?.changed();
    this.#lock.release(held);
    this.#ended();
  }

  /** Never changes the size. `fastOnly` fails with UNSUPPORTED before it has changed anything. */
  zero(at: number, length: number, how: ZeroOptions = {}): Promise<void> {
    return this.#change(at, length, () => zeroRange(this.#zeroes, at, length, how));
  }

  discard(at: number, length: number): Promise<void> {
    return this.#change(at, length, async () => {
      if (!this.isDevice) {
        await this.#try('punch', () => native().fallocate(this.#fd, 'punch', at, length));
        return;
      }
      const start = alignUp(at, this.#alignment);
      const end = alignDown(at + length, this.#alignment);
      if (start < end) await this.#try('discard', () => native().deviceDiscard(this.#fd, start, end - start));
    });
  }

  /**
   * Makes a hole of a range of a file, or fails; blocks behind the end of the file go with a range that ends there.
   * @throws UNSUPPORTED, also for a block device
   */
  punch(at: number, length: number): Promise<void> {
    return this.#change(at, length, () => {
      const end = at + length === this.#size ? alignUp(this.#size, ZERO_CHUNK) : at + length;
      return this.#native('make a hole', () => native().fallocate(this.#fd, 'punch', at, end - at));
    });
  }

  /** Where the file system cannot tell (`can.extents` is false), all is data. */
  extent(at: number, length: number): Promise<Extent> {
    return this.#run(async () => {
      checkRange(this.#size, at, length);
      return (await this.#map?.extent(at, length, this.#size)) ?? { offset: at, length, flags: 0 };
    });
  }

  /** @throws UNSUPPORTED for a block device, unless it has that size already */
  resize(size: number): Promise<void> {
    return this.#run(() => {
      this.#checkWrite();
      if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`${String(size)} is no size`);
      return size > this.#size && !this.isDevice ? this.#extend(size) : this.#setSize(size);
    });
  }

  #setSize(size: number): Promise<void> {
    return this.#lock.run(0, Infinity, 'exclusive', async () => {
      if (size === this.#size) return;
      if (this.isDevice) {
        const message = `${this.path}: a block device cannot be resized; it has ${String(this.#size)} bytes`;
        throw new SpindleError('UNSUPPORTED', message, { path: this.path });
      }
      await this.#mapping(() => this.#truncate(size));
    });
  }

  /** Makes the file longer without waiting for writes to the blocks that it has, but for the last: they may cut it. */
  async #extend(size: number): Promise<void> {
    const start = alignDown(this.#size, this.#alignment);
    const fits = await this.#lock.run(start, Infinity, 'exclusive', async () => {
      if (this.#size < start || this.#size >= size) return false;
      await this.#mapping(() => this.#truncate(size));
      return true;
    });
    // Something else changed the size first.
    if (!fits) await this.#setSize(size);
  }

  flush(): Promise<void> {
    return this.#run(async () => {
      if (!this.can.write || this.#unsafe) return;
      if (this.#flushFailure !== undefined) throw this.#flushFailure as Error;
      const dataOnly = !this.#sizeChanged && !this.#isNew;
      // Changes from here on are for the next flush.
      this.#sizeChanged = false;
      this.#unflushed = false;
      try {
        await syncDescriptor(this.#fd, this.path, dataOnly);
        if (this.#isNew) await syncDirectory(dirname(this.path));
        this.#isNew = false;
      } catch (error) {
        this.#flushFailure = error;
        throw error;
      }
    });
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      // The number of a closed descriptor may be given out again: nothing may still be using it.
      if (this.#running > 0) {
        await new Promise<void>((resolve) => {
          this.#idle = resolve;
        });
      }
      for (const work of this.#beforeClose) work();
      if (this.#unflushed) await closeDescriptor(this.#fd, this.path);
      else closeFlushed(this.#fd, this.path);
    })();
    return this.#closing;
  }

  /** Has `work` done right before the descriptor is closed. */
  beforeClose(work: () => void): void {
    this.#beforeClose.push(work);
  }

  /**
   * Writes zeroes physically: afterwards the range is allocated and written, not just reserved. A file grows when the
   * range passes its end. Not durable until `flush`. @throws NO_SPACE, OUT_OF_RANGE (a device)
   */
  writePhysicalZeroes(at: number, length: number): Promise<ZeroReport> {
    return this.#grow(at, length, true, () =>
      this.#native('write zeroes', () => native().writeZeroes(this.#fd, at, length)),
    );
  }

  /**
   * Reserves blocks for the range without writing them; what it reads does not change. With `keepSize` the file never
   * grows, else it does when the range passes its end. One that fails gives back what it got; where the file system does
   * not tell its extents, only what lies past the end, and what was reserved there before goes with it.
   * @throws NO_SPACE, UNSUPPORTED
   */
  async reserve(at: number, length: number, keepSize = false): Promise<void> {
    const mode: FallocateMode = keepSize ? 'reserve-keep-size' : 'reserve';
    await this.#grow(at, length, !keepSize, async () => {
      const knows = this.hostExtents !== undefined;
      const undo = await this.#native('map', () => undoOfReserve(this.#fd, this.#size, at, length, knows));
      try {
        await this.#native('reserve space', () => native().fallocate(this.#fd, mode, at, length));
      } catch (error) {
        // What failed is what counts; space that cannot be given back is only space.
        await undo().catch(() => undefined);
        throw error;
      }
    });
  }

  /**
   * Turns copy-on-write of the file system off for the file (btrfs), which counts only while it is empty. Does nothing
   * where there is no such switch.
   */
  setNoCow(): Promise<void> {
    return this.#run(async () => {
      this.#checkWrite();
      if (!this.isDevice) await this.#native('turn copy-on-write off', () => native().setNoCow(this.#fd));
    });
  }

  /**
   * Sets the unit in bytes in which the file is given space (XFS), or takes it away (0); the file must be empty.
   * @throws UNSUPPORTED where there is no such hint, IO when the file system refuses it
   */
  setExtentSizeHint(bytes: number): Promise<void> {
    return this.#run(async () => {
      this.#checkWrite();
      const set = (): Promise<void> => native().setExtentSizeHint(this.#fd, bytes);
      if (!this.isDevice && hasExtentSizeHints(this.#fd))
        return this.#native('set the extent size hint', set);
      const message = `${this.path}: a ${this.isDevice ? 'block device' : 'file here'} has no extent size hint`;
      if (bytes !== 0) throw new SpindleError('UNSUPPORTED', message, { path: this.path });
    });
  }

  /** What {@link setExtentSizeHint} set; 0 for nothing, and where nobody can tell. */
  extentSizeHint(): Promise<number> {
    return this.#run(async () => {
      if (this.isDevice || !hasExtentSizeHints(this.#fd)) return 0;
      try {
        return await this.#native('ask the extent size hint', () => native().extentSizeHint(this.#fd));
      } catch (error) {
        if (isSpindleError(error, 'UNSUPPORTED')) return 0;
        throw error;
      }
    });
  }

  async #write(from: Uint8Array, at: number): Promise<void> {
    if (this.#direct === undefined) return writeAll(this.#fd, from, at, this.path);
    try {
      await this.#direct.write(from, at);
    } finally {
      // Whole blocks were written; what passes the end is cut off. The caller holds the last block.
      if (!this.isDevice && alignUp(at + from.length, this.#alignment) > this.#size) {
        await truncateDescriptor(this.#fd, this.#size, this.path);
      }
    }
  }

  async #hostExtents(at: number, length: number): Promise<HostExtent[]> {
    return this.#run(async () => {
      checkRange(this.#size, at, length);
      // What was just written does not count as unwritten.
      return this.#native('map', () => hostExtents(this.#fd, at, length, true));
    });
  }

  /** Runs `work` unless closed; `close` waits for it. */
  async #run<T>(work: () => Promise<T>): Promise<T> {
    this.#checkOpen();
    this.#running++;
    try {
      return await work();
    } finally {
      this.#ended();
    }
  }

  #ended(): void {
    this.#running--;
    if (this.#running === 0) this.#idle?.();
  }

  /** Runs a change of a range within the size, alone on its blocks. */
  #change(at: number, length: number, work: () => Promise<void>): Promise<void> {
    return this.#run(async () => {
      checkRange(this.#size, at, length);
      this.#checkWrite();
      if (length === 0) return;
      const unit = this.#direct === undefined ? 1 : this.#alignment;
      const start = alignDown(at, unit);
      await this.#lock.run(start, alignUp(at + length, unit) - start, 'exclusive', () => {
        // A resize may have come first.
        checkRange(this.#size, at, length);
        return this.#mapping(work);
      });
    });
  }

  /** Runs a change that makes a file grow when its range passes the end; undoes the growth when it fails. */
  #grow<T>(at: number, length: number, grows: boolean, work: () => Promise<T>): Promise<T> {
    return this.#run(async () => {
      if (this.isDevice) checkRange(this.#size, at, length);
      else checkRange(Number.MAX_SAFE_INTEGER, at, length);
      this.#checkWrite();
      return this.#lock.run(0, Infinity, 'exclusive', () =>
        this.#mapping(async () => {
          const size =
            !grows || this.isDevice || length === 0 ? this.#size : Math.max(this.#size, at + length);
          try {
            const result = await work();
            if (size !== this.#size) this.#sizeChanged = true;
            this.#size = size;
            return result;
          } catch (error) {
            if (size !== this.#size) await this.#truncate(this.#size);
            throw error;
          }
        }),
      );
    });
  }

  /** Runs a change of what is data and what is a hole. */
  async #mapping<T>(work: () => Promise<T>): Promise<T> {
    this.#unflushed = true;
    this.#map?.changed();
    try {
      return await work();
    } finally {
      this.#map?.changed();
    }
  }

  async #truncate(size: number): Promise<void> {
    await truncateDescriptor(this.#fd, size, this.path);
    this.#size = size;
    this.#sizeChanged = true;
  }

  /** Whether `work` could be done; what is UNSUPPORTED once is not tried again. */
  async #try(what: string, work: () => Promise<void>): Promise<boolean> {
    if (this.#cannot.has(what)) return false;
    try {
      await this.#native(what, work);
      return true;
    } catch (error) {
      if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
      this.#cannot.add(what);
      return false;
    }
  }

  async #native<T>(doing: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw hostError(error, this.path, doing);
    }
  }

  #checkOpen(): void {
    if (this.closed)
      throw new SpindleError('CLOSED', `${this.path}: the file is closed`, { path: this.path });
  }

  #checkWrite(): void {
    if (!this.can.write)
      throw new SpindleError('READ_ONLY', `${this.path}: opened for reading only`, { path: this.path });
  }
}
