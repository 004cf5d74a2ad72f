import { SpindleError } from '../core/errors.ts';
import { ExtentFlag, type Extent } from '../core/extent.ts';
import { readPadded } from '../core/read.ts';
import { checkRange, type Storage, type StorageCan, type ZeroOptions } from '../core/storage.ts';
import type { FormatDriver, Mapping } from './driver.ts';
import type { Image } from './image.ts';
import { blockStatus } from './status.ts';

/**
 * The executor: walks the backing chain and moves the bytes that the drivers locate. Closing it closes the storages
 * that it was given, and the images below.
 */
export class DiskImage implements Image {
  readonly driver: FormatDriver;
  readonly storage: Storage;
  readonly backing: Image | null;
  readonly name: string | undefined;
  #closed = false;

  constructor(driver: FormatDriver, storage: Storage, backing: Image | null, name?: string) {
    this.driver = driver;
    this.storage = storage;
    this.backing = backing;
    this.name = name;
  }

  get format(): string {
    return this.driver.format;
  }

  get size(): number {
    return this.driver.size;
  }

  get can(): StorageCan {
    return this.driver.can;
  }

  async read(into: Uint8Array, at: number): Promise<void> {
    this.#check(at, into.length);
    // Every part is awaited, also after a failure: none may still write to `into` once this has settled.
    const parts: Promise<void>[] = [];
    let failure: { readonly reason: unknown } | undefined;
    try {
      for (let done = 0; done < into.length;) {
        const answer = this.driver.map(at + done, into.length - done);
        const mapping = answer instanceof Promise ? await answer : answer;
        const part = into.subarray(done, done + mapping.length);
        const fetching = this.#fetch(mapping, part, at + done);
        if (fetching !== null) parts.push(fetching);
        done += mapping.length;
      }
    } catch (error) {
      failure = { reason: error };
    }
    for (const result of await Promise.allSettled(parts)) {
      if (result.status === 'rejected') failure ??= { reason: result.reason };
    }
    if (failure !== undefined) throw this.#named(failure.reason);
  }

  /** Fills `part` from where its mapping says; null when that is done already. */
  #fetch(mapping: Mapping, part: Uint8Array, at: number): Promise<void> | null {
    switch (mapping.kind) {
      case 'data':
        if (mapping.encrypted)
          throw new SpindleError('ENCRYPTED', 'the data is encrypted and no secret was given');
        return readPadded(mapping.storage, part, mapping.at);
      case 'backing':
        if (this.backing !== null) return readPadded(this.backing, part, at);
        part.fill(0);
        return null;
      case 'zero':
        part.fill(0);
        return null;
      case 'compressed':
        return this.driver.readCompressed(part, at);
    }
  }

  async write(from: Uint8Array, at: number): Promise<void> {
    this.#check(at, from.length);
    for (let done = 0; done < from.length;) {
      const place = await this.driver.ensureData(at + done, from.length - done);
      await place.storage.write(from.subarray(done, done + place.length), place.at);
      done += place.length;
    }
  }

  async zero(at: number, length: number, how?: ZeroOptions): Promise<void> {
    this.#check(at, length);
    if (length > 0) await this.driver.zero(at, length, how);
  }

  async discard(at: number, length: number): Promise<void> {
    this.#check(at, length);
    if (length > 0) await this.driver.discard(at, length);
  }

  async extent(at: number, length: number): Promise<Extent> {
    this.#check(at, length);
    if (length === 0) return { offset: at, length: 0, flags: 0 };
    const status = await blockStatus(this, at, length);
    const flags =
      (status.allocated ? 0 : ExtentFlag.HOLE) |
      (status.zero ? ExtentFlag.ZERO : 0) |
      (status.compressed ? ExtentFlag.COMPRESSED : 0);
    return { offset: at, length: status.length, flags };
  }

  async resize(size: number): Promise<void> {
    this.#check(0, 0);
    await this.driver.resize(size);
  }

  async flush(): Promise<void> {
    this.#check(0, 0);
    await this.driver.flush();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const results = await Promise.allSettled([
      this.driver.close().then(() => this.storage.close()),
      this.backing?.close(),
    ]);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /** An error of this layer with the name of its image. */
  #named(error: unknown): unknown {
    if (error instanceof SpindleError) error.path ??= this.name;
    return error;
  }

  #check(at: number, length: number): void {
    if (this.#closed) throw new SpindleError('CLOSED', 'the image is closed', { path: this.name });
    checkRange(this.size, at, length);
  }
}
