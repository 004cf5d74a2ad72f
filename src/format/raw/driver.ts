import { alignUp } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import { ExtentFlag } from '../../core/extent.ts';
import type { Storage, StorageCan, ZeroOptions } from '../../core/storage.ts';
import type { DataMapping, FormatDriver, Mapping } from '../driver.ts';

/** Guests see whole sectors. */
const SECTOR = 512;

/**
 * Driver of a raw image: guest offsets are file offsets. A file whose length is not a multiple of a sector is seen
 * rounded up; the missing bytes read as zeroes and come into being when they are written.
 */
export class RawDriver implements FormatDriver {
  readonly format = 'raw';
  readonly granularity = 1;
  readonly data: Storage;

  constructor(storage: Storage) {
    this.data = storage;
  }

  get size(): number {
    return alignUp(this.data.size, SECTOR);
  }

  get can(): StorageCan {
    return this.data.can;
  }

  sparseData(): boolean {
    return false;
  }

  map(at: number, length: number, precise = false): Mapping | Promise<Mapping> {
    if (!precise || !this.data.can.extents) return { kind: 'data', length, storage: this.data, at };
    return this.#precise(at, length);
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

  async ensureData(at: number, length: number): Promise<DataMapping> {
    await this.#reach(at + length);
    return { storage: this.data, at, length };
  }

  async zero(at: number, length: number, how?: ZeroOptions): Promise<boolean> {
    await this.#reach(at + length);
    await this.data.zero(at, length, how);
    return true;
  }

  async discard(at: number, length: number): Promise<void> {
    const there = Math.min(length, this.data.size - at);
    if (there > 0) await this.data.discard(at, there);
  }

  resize(size: number): Promise<void> {
    return this.data.resize(size);
  }

  flush(): Promise<void> {
    return this.data.flush();
  }

  /** The storage is closed by whoever opened it. */
  close(): Promise<void> {
    return Promise.resolve();
  }

  /** Grows a file that ends inside its last sector, when a write reaches past its end. */
  async #reach(end: number): Promise<void> {
    if (end > this.data.size) await this.data.resize(end);
  }
}
