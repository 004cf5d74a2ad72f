import { readPadded } from '../../../core/read.ts';
import { checkRange, ReadOnlyStorage, type Storage } from '../../../core/storage.ts';

/** An image as it will be once some bytes are written, for planning what follows: nothing is changed through it. */
export class PlannedStorage extends ReadOnlyStorage {
  readonly #image: Storage;
  readonly #at: number;
  readonly #bytes: Uint8Array;

  /** `bytes` will be written at host offset `at`. */
  constructor(image: Storage, at: number, bytes: Uint8Array) {
    super();
    this.#image = image;
    this.#at = at;
    this.#bytes = bytes;
  }

  get size(): number {
    return Math.max(this.#image.size, this.#at + this.#bytes.length);
  }

  async read(into: Uint8Array, at: number): Promise<void> {
    checkRange(this.size, at, into.length);
    await readPadded(this.#image, into, at);
    const from = Math.max(at, this.#at);
    const to = Math.min(at + into.length, this.#at + this.#bytes.length);
    if (from < to) into.set(this.#bytes.subarray(from - this.#at, to - this.#at), from - at);
  }

  /** The image is closed by whoever opened it. */
  close(): Promise<void> {
    return Promise.resolve();
  }
}
