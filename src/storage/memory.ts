import { SpindleError } from '../core/errors.ts';
import { ExtentFlag, type Extent } from '../core/extent.ts';
import { checkRange, type Storage, type StorageCan, type ZeroOptions } from '../core/storage.ts';

const PAGE = 65536;

/** Stands for an allocated page of zeroes; replaced by a page of its own before its first write. */
const ZEROES = new Uint8Array(PAGE);

/** How a {@link MemoryStorage} behaves. */
export interface MemoryOptions {
  /** Refuse every change. */
  readonly readOnly?: boolean;
}

/**
 * A storage in memory, in pages of 64 KiB that appear when they are first written: a size of 1 TiB costs nothing.
 * `zero` and `discard` free whole pages; extents tell missing pages as holes. `flush` has nothing to do.
 */
export class MemoryStorage implements Storage {
  readonly can: StorageCan;
  readonly #pages = new Map<number, Uint8Array>();
  #size: number;
  #closed = false;

  /** `size` zero bytes, none of them allocated. */
  constructor(size = 0, options: MemoryOptions = {}) {
    checkSize(size);
    this.#size = size;
    const write = options.readOnly !== true;
    this.can = { write, resize: write, zero: write, discard: write, extents: true, direct: false };
  }

  /** A storage that holds a copy of `bytes`; pages of zeroes stay holes. */
  static from(bytes: Uint8Array, options: MemoryOptions = {}): MemoryStorage {
    const storage = new MemoryStorage(bytes.length, options);
    for (let at = 0; at < bytes.length; at += PAGE) {
      const part = bytes.subarray(at, at + PAGE);
      if (part.some((byte) => byte !== 0)) storage.#page(at / PAGE).set(part);
    }
    return storage;
  }

  get size(): number {
    return this.#size;
  }

  /** A copy of everything. @throws RangeError when that is more than one array can hold */
  toBytes(): Uint8Array {
    const bytes = new Uint8Array(this.#size);
    for (const [index, page] of this.#pages) {
      bytes.set(page.subarray(0, Math.min(PAGE, this.#size - index * PAGE)), index * PAGE);
    }
    return bytes;
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- a failure is a rejection, never a throw
  async read(into: Uint8Array, at: number): Promise<void> {
    this.#check(at, into.length);
    for (const { index, from, to, offset } of pagesOf(at, into.length)) {
      const page = this.#pages.get(index);
      if (page === undefined) into.fill(0, offset, offset + to - from);
      else into.set(page.subarray(from, to), offset);
    }
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async write(from: Uint8Array, at: number): Promise<void> {
    this.#checkChange(at, from.length);
    for (const { index, from: start, to, offset } of pagesOf(at, from.length)) {
      this.#page(index).set(from.subarray(offset, offset + to - start), start);
    }
  }

  /** With `keepAllocated` every page of the range costs a little, as a hole costs nothing. */
  // eslint-disable-next-line @typescript-eslint/require-await
  async zero(at: number, length: number, how: ZeroOptions = {}): Promise<void> {
    this.#checkChange(at, length);
    if (how.keepAllocated === true) {
      for (const { index, from, to } of pagesOf(at, length)) {
        if (to - from === PAGE || !this.#pages.has(index)) this.#pages.set(index, ZEROES);
        else this.#page(index).fill(0, from, to);
      }
    } else {
      this.#clear(at, length);
    }
  }

  /** The range reads as zeroes afterwards. */
  // eslint-disable-next-line @typescript-eslint/require-await
  async discard(at: number, length: number): Promise<void> {
    this.#checkChange(at, length);
    this.#clear(at, length);
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async extent(at: number, length: number): Promise<Extent> {
    this.#check(at, length);
    const first = Math.floor(at / PAGE);
    const last = Math.floor((at + length - 1) / PAGE);
    const flags = flagsOf(this.#pages.get(first));
    let next = first + 1;
    // A hole may be far wider than there are pages: then the pages are asked, not the places.
    const patience = first + 1 + this.#pages.size;
    while (next <= last && flagsOf(this.#pages.get(next)) === flags) {
      if (next > patience) {
        next = last + 1;
        for (const index of this.#pages.keys()) if (index > first && index < next) next = index;
        break;
      }
      next++;
    }
    return { offset: at, length: Math.min(next * PAGE, at + length) - at, flags };
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async resize(size: number): Promise<void> {
    this.#checkChange(0, 0);
    checkSize(size);
    if (size < this.#size) this.#clear(size, this.#size - size);
    this.#size = size;
    for (const index of this.#pages.keys()) if (index * PAGE >= size) this.#pages.delete(index);
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async flush(): Promise<void> {
    this.#check(0, 0);
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#pages.clear();
    return Promise.resolve();
  }

  #check(at: number, length: number): void {
    if (this.#closed) throw new SpindleError('CLOSED', 'the storage is closed');
    checkRange(this.#size, at, length);
  }

  #checkChange(at: number, length: number): void {
    this.#check(at, length);
    if (!this.can.write) throw new SpindleError('READ_ONLY', 'opened for reading only');
  }

  /** The page at `index`, to be written. */
  #page(index: number): Uint8Array {
    let page = this.#pages.get(index);
    if (page === undefined || page === ZEROES) {
      page = new Uint8Array(PAGE);
      this.#pages.set(index, page);
    }
    return page;
  }

  #clear(at: number, length: number): void {
    const end = at + length;
    // The end of the storage counts as the end of its last page.
    const whole = (index: number): boolean =>
      index * PAGE >= at && ((index + 1) * PAGE <= end || end === this.#size);
    const clear = (index: number): void => {
      if (whole(index)) this.#pages.delete(index);
      else if (this.#pages.has(index)) {
        this.#page(index).fill(0, Math.max(at - index * PAGE, 0), Math.min(end - index * PAGE, PAGE));
      }
    };
    if (length === 0) return;
    const first = Math.floor(at / PAGE);
    const last = Math.floor((end - 1) / PAGE);
    if (last - first < this.#pages.size) for (let index = first; index <= last; index++) clear(index);
    else for (const index of [...this.#pages.keys()]) if (index >= first && index <= last) clear(index);
  }
}

function flagsOf(page: Uint8Array | undefined): number {
  if (page === undefined) return ExtentFlag.HOLE | ExtentFlag.ZERO;
  return page === ZEROES ? ExtentFlag.ZERO : 0;
}

function checkSize(size: number): void {
  if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`${String(size)} is no size`);
}

/** The parts of `length` bytes at `at`, page by page; `offset` counts from `at`. */
function* pagesOf(
  at: number,
  length: number,
): Generator<{ index: number; from: number; to: number; offset: number }> {
  for (let offset = 0; offset < length;) {
    const index = Math.floor((at + offset) / PAGE);
    const from = at + offset - index * PAGE;
    const to = Math.min(PAGE, from + length - offset);
    yield { index, from, to, offset };
    offset += to - from;
  }
}
