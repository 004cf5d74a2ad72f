import { alignUp } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import { ExtentFlag } from '../../core/extent.ts';
import { Mutex } from '../../core/mutex.ts';
import type { Storage, StorageCan, ZeroOptions } from '../../core/storage.ts';
import type { DataMapping, FormatDriver, Mapping, Place } from '../driver.ts';

/** Guests see whole sectors. */
const SECTOR = 512;

/** The part of a file that a raw image is in, in bytes; without `size` up to the end of the file. */
export interface RawWindow {
  readonly offset: number;
  readonly size: number | undefined;
}

/**
 * Driver of a raw image: guest offsets are file offsets, or start where its window does. A file whose length is not a multiple of a sector is seen
 * rounded up; the missing bytes read as zeroes and come into being when they are written.
 */
export class RawDriver implements FormatDriver {
  readonly format = 'raw';
  readonly granularity = 1;
  readonly data: Storage;
  readonly #offset: number;
  readonly #growing = new Mutex();
  readonly #size: number | undefined;

  /** @throws SpindleError BAD_OPTION for a window that the file does not hold */
  constructor(storage: Storage, { offset, size }: RawWindow = { offset: 0, size: undefined }) {
    this.data = storage;
    this.#offset = offset;
    this.#size = size;
    if (offset + (size ?? 0) > storage.size)
      throw new SpindleError(
        'BAD_OPTION',
        `the part from ${String(offset)} to ${String(offset + (size ?? 0))} is not within the ${String(storage.size)} bytes of the file`,
      );
  }

  get size(): number {
    return this.#size ?? alignUp(this.data.size - this.#offset, SECTOR);
  }

  /** Bytes of the image that the file has: all, but for the rest of the last sector. */
  get length(): number {
    return this.#size ?? this.data.size - this.#offset;
  }

  get can(): StorageCan {
    return this.#size === undefined ? this.data.can : { ...this.data.can, resize: false };
  }

  sparseData(): boolean {
    return false;
  }

  map(at: number, length: number, precise = false): Mapping | Promise<Mapping> {
    const place = this.#offset + at;
    if (!precise || !this.data.can.extents) return { kind: 'data', length, storage: this.data, at: place };
    return this.#precise(place, length);
  }

  async #precise(at: number, length: number): Promise<Mapping> {
    const there = Math.min(length, this.data.size - at);
    if (there <= 0) return { kind: 'zero', length, reserved: at };
    const extent = await this.data.extent(at, there);
    return (extent.flags & ExtentFlag.ZERO) !== 0
      ? { kind: 'zero', length: extent.length, reserved: at }
      : { kind: 'data', length: extent.length, storage: this.data, at };
  }

  readCompressed(_into: Uint8Array, _at: number): Promise<void> {
    return Promise.reject(new SpindleError('UNSUPPORTED', 'raw images have no compressed clusters'));
  }

  async ensureData(start: number, length: number): Promise<DataMapping> {
    const at = this.#offset + start;
    await this.#reach(at + length);
    return { storage: this.data, at, length };
  }

  placeNow(start: number, length: number): Place | undefined {
    const at = this.#offset + start;
    return at + length > this.data.size ? undefined : { storage: this.data, at };
  }

  async zero(start: number, length: number, how?: ZeroOptions): Promise<boolean> {
    const at = this.#offset + start;
    await this.#reach(at + length);
    await this.data.zero(at, length, how);
    return true;
  }

  async discard(start: number, length: number): Promise<void> {
    const at = this.#offset + start;
    const there = Math.min(length, this.data.size - at);
    if (there > 0) await this.data.discard(at, there);
  }

  async resize(size: number): Promise<void> {
    if (this.#size !== undefined)
      throw new SpindleError('UNSUPPORTED', 'a part of fixed size of a file cannot be resized');
    await this.data.resize(this.#offset + size);
  }

  flush(): Promise<void> {
    return this.data.flush();
  }

  /** The storage is closed by whoever opened it. */
  close(): Promise<void> {
    return Promise.resolve();
  }

  /** Grows a file that ends inside its last sector, when a write reaches past its end. */
  /** Makes the file reach to `end`. One after the other: of two that grow it the later must not cut it. */
  #reach(end: number): Promise<void> {
    return end > this.data.size
      ? this.#growing.run(async () => {
          if (end > this.data.size) await this.data.resize(end);
        })
      : Promise.resolve();
  }
}
