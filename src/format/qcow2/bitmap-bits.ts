/*
 * The bits of dirty bitmaps as the format has them: bit n is bit n % 8, counted from the lowest, of byte n / 8.
 */

/** Sets the bits from `from` up to `to` (0 to 8 times the bytes; `to` is not included). */
export function setBits(bytes: Uint8Array, from: number, to: number): void {
  each(from, to, (byte, mask) => {
    bytes[byte] = (bytes[byte] ?? 0) | mask;
  });
}

/** Clears the bits from `from` up to `to`, which is not included. */
export function clearBits(bytes: Uint8Array, from: number, to: number): void {
  each(from, to, (byte, mask) => {
    bytes[byte] = (bytes[byte] ?? 0) & ~mask;
  });
}

function each(from: number, to: number, work: (byte: number, mask: number) => void): void {
  for (let bit = from; bit < to;) {
    const byte = Math.floor(bit / 8);
    const first = bit - byte * 8;
    const last = Math.min(8, to - byte * 8);
    work(byte, ((1 << last) - 1) & ~((1 << first) - 1));
    bit = byte * 8 + last;
  }
}

/** A run of set bits: from `from` up to `to`, which is not included. */
export interface BitRun {
  readonly from: number;
  readonly to: number;
}

/** The runs of set bits among the first `count` bits. */
export function* bitRuns(bytes: Uint8Array, count: number): Generator<BitRun> {
  const end = Math.min(count, bytes.length * 8);
  let from = -1;
  for (let bit = 0; bit < end;) {
    const value = bytes[Math.floor(bit / 8)] ?? 0;
    const whole = bit % 8 === 0 && bit + 8 <= end;
    if (whole && value === (from < 0 ? 0 : 0xff)) {
      bit += 8;
      continue;
    }
    const set = ((value >>> (bit % 8)) & 1) !== 0;
    if (set && from < 0) from = bit;
    if (!set && from >= 0) {
      yield { from, to: bit };
      from = -1;
    }
    bit++;
  }
  if (from >= 0) yield { from, to: end };
}

/** Bytes of a page of {@link DirtyBits}. */
const PAGE = 4096;
const PAGE_BITS = PAGE * 8;
/** A page of which every bit is set; never changed. */
const FULL = new Uint8Array(PAGE).fill(0xff);

/** Bits of which few are set, in pages that exist where one is. */
export class DirtyBits {
  readonly #pages = new Map<number, Uint8Array>();

  /** Whether no bit is set. */
  get empty(): boolean {
    return this.#pages.size === 0;
  }

  /** Sets the bits from `from` up to `to`, which is not included. */
  set(from: number, to: number): void {
    for (let bit = from; bit < to;) {
      const number = Math.floor(bit / PAGE_BITS);
      const start = number * PAGE_BITS;
      const end = Math.min(PAGE_BITS, to - start);
      this.#setIn(number, bit - start, end);
      bit = start + end;
    }
  }

  #setIn(number: number, from: number, to: number): void {
    let page = this.#pages.get(number);
    if (page === FULL) return;
    if (to - from === PAGE_BITS) {
      this.#pages.set(number, FULL);
      return;
    }
    if (page === undefined) {
      page = new Uint8Array(PAGE);
      this.#pages.set(number, page);
    }
    setBits(page, from, to);
  }

  /** Clears all bits from `bit` on. */
  dropFrom(bit: number): void {
    for (const [number, page] of this.#pages) {
      const start = number * PAGE_BITS;
      if (start >= bit) this.#pages.delete(number);
      else if (start + PAGE_BITS > bit) {
        const kept = page.slice();
        clearBits(kept, bit - start, PAGE_BITS);
        this.#pages.set(number, kept);
      }
    }
  }

  /** The numbers of the chunks of `bytes` bytes (a power of two) in which a bit may be set, in ascending order. */
  chunks(bytes: number): number[] {
    const found = new Set<number>();
    for (const number of this.#pages.keys()) {
      const last = Math.floor(((number + 1) * PAGE - 1) / bytes);
      for (let chunk = Math.floor((number * PAGE) / bytes); chunk <= last; chunk++) found.add(chunk);
    }
    return [...found].sort((a, b) => a - b);
  }

  /** Sets in `chunk` what is set in the bytes of the same number from byte `at` on, which is a multiple of 512. */
  orInto(chunk: Uint8Array, at: number): void {
    const last = Math.floor((at + chunk.length - 1) / PAGE);
    for (let number = Math.floor(at / PAGE); number <= last; number++) {
      const page = this.#pages.get(number);
      if (page === undefined) continue;
      const from = Math.max(at, number * PAGE);
      const to = Math.min(at + chunk.length, (number + 1) * PAGE);
      for (let byte = from; byte < to; byte++) {
        const value = page[byte - number * PAGE] ?? 0;
        if (value !== 0) chunk[byte - at] = (chunk[byte - at] ?? 0) | value;
      }
    }
  }
}
