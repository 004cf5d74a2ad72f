import { alignDown } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import type { Storage, StorageCan } from '../../core/storage.ts';
import type { PlainData } from '../crypto/encrypted-storage.ts';
import type { LuksHeader } from '../crypto/luks-header.ts';
import type { DataMapping, FormatDriver, Mapping } from '../driver.ts';

const SECTOR = 512;

/** Driver of a raw image inside a LUKS volume: a header with key slots, then the encrypted sectors of the disk. */
export class LuksDriver implements FormatDriver {
  readonly format = 'luks';
  readonly granularity = SECTOR;
  readonly data: Storage;
  readonly header: LuksHeader;
  readonly #plain: PlainData;

  constructor(storage: Storage, header: LuksHeader, plain: PlainData) {
    this.data = storage;
    this.header = header;
    this.#plain = plain;
  }

  get size(): number {
    return alignDown(Math.max(0, this.data.size - this.header.payloadOffset), SECTOR);
  }

  get can(): StorageCan {
    return { ...this.data.can, zero: false, extents: false };
  }

  sparseData(): boolean {
    return false;
  }

  map(at: number, length: number): Mapping {
    const host = this.header.payloadOffset + at;
    return { kind: 'data', length, storage: this.#plain.view(at, host), at: host, encrypted: true };
  }

  readCompressed(_into: Uint8Array, _at: number): Promise<void> {
    return Promise.reject(new SpindleError('UNSUPPORTED', 'LUKS volumes have no compressed clusters'));
  }

  ensureData(at: number, length: number): Promise<DataMapping> {
    const host = this.header.payloadOffset + at;
    return Promise.resolve({ storage: this.#plain.view(at, host), at: host, length });
  }

  /** Zeroes are encrypted like all data: they have to be written. */
  zero(_at: number, _length: number): Promise<boolean> {
    return Promise.resolve(false);
  }

  /** Gives space back; what was there reads as noise afterwards. */
  async discard(at: number, length: number): Promise<void> {
    await this.data.discard(this.header.payloadOffset + at, length);
  }

  /** Writes encrypted zeroes into a grown part: fresh space of the host would read as noise. */
  async resize(size: number): Promise<void> {
    const before = this.size;
    const host = this.header.payloadOffset + before;
    await this.data.resize(this.header.payloadOffset + size);
    if (size > before) await this.#plain.view(before, host).zero(host, size - before);
  }

  flush(): Promise<void> {
    return this.data.flush();
  }

  /** The storage is closed by whoever opened it. */
  close(): Promise<void> {
    return Promise.resolve();
  }
}
