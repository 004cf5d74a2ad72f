import { native } from '../native/binding.ts';

/** Bytes up to which a read is tried: copying more takes as long as a turn of the thread pool. */
const LARGEST = 65536;

/** Reads at once in a row: promises that settle without a turn of the event loop would keep signals and timers waiting. */
const IN_A_ROW = 256;

/** Reads in a row that the page cache could not serve, after which only every {@link RETRY}th is tried. */
const GIVE_UP = 16;
const RETRY = 64;

/**
 * Reads of a descriptor that the page cache of the host serves at once, without a turn of the thread pool, which takes
 * ten times as long as copying a few pages. What it cannot serve is the caller's to read as usual.
 */
export class CachedReads {
  readonly #fd: number;
  #row = 0;
  #misses = 0;

  /** Of a descriptor that does not bypass the page cache. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Fills the start of `into` from `at` on as far as can be had at once; the bytes, often 0. */
  tryRead(into: Uint8Array, at: number): number {
    if (into.length === 0 || into.length > LARGEST) return 0;
    if (++this.#row > IN_A_ROW) {
      this.#row = 0;
      return 0;
    }
    if (this.#misses >= GIVE_UP && ++this.#misses % RETRY !== 0) return 0;
    const count = native().readCached(this.#fd, into, at);
    if (count === into.length) this.#misses = 0;
    else this.#misses++;
    return Math.max(count, 0);
  }
}
