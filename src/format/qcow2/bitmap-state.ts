import { divUp } from '../../core/align.ts';
import { isZero, textOf } from '../../core/bytes.ts';
import { readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import { bitRuns, clearBits, DirtyBits, type BitRun } from './bitmap-bits.ts';
import { ALL_CLEAR, ALL_SET, readBitmapTable, type BitmapTable } from './bitmap-table.ts';
import type { BitmapEntry } from './bitmap.ts';
import { BitmapFlag } from './layout.ts';

/** A persistent bitmap as it is on disk, with the changes that are only in memory yet. */
export class BitmapState {
  readonly nameBytes: Uint8Array;
  readonly granularityBits: number;
  /** Its directory entry; null for a bitmap that is not on disk yet. */
  readonly entry: BitmapEntry | null;
  /** It was in use when the image was opened: nobody can say what it holds. */
  readonly inconsistent: boolean;
  /** It records what is written. */
  enabled: boolean;
  /** The bits set since it was read. */
  readonly added = new DirtyBits();
  /** How many bits it has: one for each granule of the disk, the last of which may be cut short. */
  #bits: number;
  /** The first bits of the table on disk: those that still count. */
  #kept: number;
  /** Bits that the table on disk was made for. */
  readonly #stored: number;

  constructor(nameBytes: Uint8Array, granularityBits: number, entry: BitmapEntry | null, size: number) {
    this.nameBytes = nameBytes;
    this.granularityBits = granularityBits;
    this.entry = entry;
    this.inconsistent = entry !== null && (entry.flags & BitmapFlag.IN_USE) !== 0;
    this.enabled = entry === null || (entry.flags & BitmapFlag.AUTO) !== 0;
    this.#bits = divUp(size, this.granularity);
    this.#stored = entry === null ? 0 : this.#bits;
    this.#kept = this.#stored;
  }

  /** The state of a bitmap of a disk of `size` bytes. */
  static of(entry: BitmapEntry, size: number): BitmapState {
    return new BitmapState(entry.nameBytes, entry.granularityBits, entry, size);
  }

  get name(): string {
    return textOf(this.nameBytes);
  }

  /** Guest bytes of one bit. */
  get granularity(): number {
    return 2 ** this.granularityBits;
  }

  get bits(): number {
    return this.#bits;
  }

  /** Bits of the table on disk that still count. */
  get kept(): number {
    return this.#kept;
  }

  /** Whether the bits of the table on disk all count, and there are no others. */
  get asStored(): boolean {
    return this.#kept === this.#stored && this.#bits === this.#stored;
  }

  /** Sets the bits of a guest range in bytes; what lies past the end of the disk has none. */
  mark(at: number, length: number): void {
    const from = Math.floor(at / this.granularity);
    const to = Math.min(this.#bits, divUp(at + length, this.granularity));
    if (length > 0) this.added.set(from, to);
  }

  /** Clears all bits. */
  clear(): void {
    this.#kept = 0;
    this.added.dropFrom(0);
  }

  /** Follows the disk to another size in bytes. What it grows by is clear. */
  resize(size: number): void {
    this.#bits = divUp(size, this.granularity);
    this.#kept = Math.min(this.#kept, this.#bits);
    this.added.dropFrom(this.#bits);
  }

  /** Whether a disk of `size` bytes has as many bits. */
  fits(size: number): boolean {
    return divUp(size, this.granularity) === this.#bits;
  }

  /** Entries of the table that the bits need. */
  tableSize(clusterSize: number): number {
    return divUp(divUp(this.#bits, 8), clusterSize);
  }

  /** Reads the table on disk; empty where there is none. @throws SpindleError BAD_BITMAP */
  readTable(storage: Storage, clusterSize: number): Promise<BitmapTable> {
    if (this.entry === null) return Promise.resolve(new Float64Array(0));
    return readBitmapTable(storage, this.entry, clusterSize);
  }

  /** The bits of chunk number `index`, of `clusterSize` bytes; null when all are clear. `table` is that on disk. */
  async chunk(
    storage: Storage,
    table: BitmapTable,
    index: number,
    clusterSize: number,
  ): Promise<Uint8Array | null> {
    const chunk = new Uint8Array(clusterSize);
    const first = index * clusterSize * 8;
    const entry = first < this.#kept ? (table[index] ?? ALL_CLEAR) : ALL_CLEAR;
    if (entry === ALL_SET) chunk.fill(0xff);
    else if (entry !== ALL_CLEAR) await readPadded(storage, chunk, entry);
    clearBits(chunk, Math.max(0, Math.min(clusterSize * 8, this.#kept - first)), clusterSize * 8);
    this.added.orInto(chunk, index * clusterSize);
    return isZero(chunk) ? null : chunk;
  }
}

/** The runs of set bits of a bitmap in the image that `storage` holds, in ascending order, as guest ranges in bytes. */
export async function* dirtyRanges(
  storage: Storage,
  clusterSize: number,
  bitmap: BitmapState,
): AsyncGenerator<{ readonly at: number; readonly length: number }> {
  const perChunk = clusterSize * 8;
  const table = await bitmap.readTable(storage, clusterSize);
  const unit = bitmap.granularity;
  const touched = new Set(bitmap.added.chunks(clusterSize));
  let open: BitRun | null = null;
  for (let index = 0; index * perChunk < bitmap.bits; index++) {
    if ((table[index] ?? ALL_CLEAR) === ALL_CLEAR && !touched.has(index)) continue;
    const chunk = await bitmap.chunk(storage, table, index, clusterSize);
    if (chunk === null) continue;
    const first = index * perChunk;
    for (const { from, to } of bitRuns(chunk, bitmap.bits - first)) {
      const run: BitRun = { from: first + from, to: first + to };
      if (open?.to === run.from) open = { from: open.from, to: run.to };
      else {
        if (open !== null) yield { at: open.from * unit, length: (open.to - open.from) * unit };
        open = run;
      }
    }
  }
  if (open !== null) yield { at: open.from * unit, length: (open.to - open.from) * unit };
}
