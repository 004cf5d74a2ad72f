import { SpindleError } from '../core/errors.ts';
import type { Extent } from '../core/extent.ts';
import { checkRange, type Storage, type StorageCan } from '../core/storage.ts';

/** Bytes that are kept together. */
const PAGE = 4096;

/** How an {@link OverlayLayer} behaves. */
export interface OverlayOptions {
  /** Whether `resize` works. Default: true. */
  readonly resize?: boolean;
}

/** A storage whose changes stay in memory: what is below is read, and never changed. */
export function overlay(next: Storage, options: OverlayOptions = {}): OverlayLayer {
  return new OverlayLayer(next, options);
}

/** See {@link overlay}. Memory is that of the pages of 4 KiB that were changed. */
export class OverlayLayer implements Storage {
  readonly can: StorageCan;
  readonly #next: Storage;
  readonly #pages = new Map<number, Uint8Array>();
  #size: number;
  /** Where what is below ends, as far as it still shows. */
  #shown: number;

  constructor(next: Storage, options: OverlayOptions = {}) {
    this.#next = next;
    this.can = {
      ...{ write: true, resize: options.resize !== false },
      ...{ zero: false, discard: false, extents: false, direct: false },
    };
    this.#size = next.size;
    this.#shown = next.size;
  }

  get size(): number {
    return this.#size;
  }

  async read(into: Uint8Array, at: number): Promise<void> {
    checkRange(this.#size, at, into.length);
    const below = Math.max(0, Math.min(into.length, this.#shown - at));
    if (below > 0) await this.#next.read(into.subarray(0, below), at);
    into.fill(0, below);
    const end = at + into.length;
    for (let index = Math.floor(at / PAGE); index * PAGE < end; index++) {
      const page = this.#pages.get(index);
      if (page === undefined) continue;
      const from = Math.max(at, index * PAGE);
      const to = Math.min(end, (index + 1) * PAGE);
      into.set(page.subarray(from - index * PAGE, to - index * PAGE), from - at);
    }
  }

  async write(from: Uint8Array, at: number): Promise<void> {
    checkRange(this.#size, at, from.length);
    const end = at + from.length;
    for (let index = Math.floor(at / PAGE); index * PAGE < end; index++) {
      const page = await this.#page(index);
      const start = Math.max(at, index * PAGE);
      const stop = Math.min(end, (index + 1) * PAGE);
      page.set(from.subarray(start - at, stop - at), start - index * PAGE);
    }
  }

  async zero(at: number, length: number): Promise<void> {
    checkRange(this.#size, at, length);
    const zeroes = new Uint8Array(Math.min(length, 256 * PAGE));
    for (let done = 0; done < length; done += zeroes.length)
      await this.write(zeroes.subarray(0, Math.min(zeroes.length, length - done)), at + done);
  }

  /** Does nothing but check the range: what is discarded may read as before. */
  discard(at: number, length: number): Promise<void> {
    return Promise.resolve().then(() => {
      checkRange(this.#size, at, length);
    });
  }

  extent(at: number, length: number): Promise<Extent> {
    return Promise.resolve({ offset: at, length, flags: 0 });
  }

  async resize(size: number): Promise<void> {
    if (size === this.#size) return;
    if (!this.can.resize) throw new SpindleError('UNSUPPORTED', 'this storage cannot be resized');
    if (size < this.#size) {
      if (size % PAGE !== 0) (await this.#page(Math.floor(size / PAGE))).fill(0, size % PAGE);
      for (const index of this.#pages.keys()) if (index * PAGE >= size) this.#pages.delete(index);
      this.#shown = Math.min(this.#shown, size);
    }
    this.#size = size;
  }

  /** There is nothing to make durable. */
  flush(): Promise<void> {
    return Promise.resolve();
  }

  /** Drops the changes, and closes what is below. */
  async close(): Promise<void> {
    this.#pages.clear();
    await this.#next.close();
  }

  async #page(index: number): Promise<Uint8Array> {
    const known = this.#pages.get(index);
    if (known !== undefined) return known;
    const page = new Uint8Array(PAGE);
    const below = Math.max(0, Math.min(PAGE, this.#shown - index * PAGE));
    if (below > 0) await this.#next.read(page.subarray(0, below), index * PAGE);
    this.#pages.set(index, page);
    return page;
  }
}
