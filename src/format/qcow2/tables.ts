import { isAligned } from '../../core/align.ts';
import { viewOf } from '../../core/bytes.ts';
import { formatError } from '../../core/errors.ts';
import { Lru } from '../../core/lru.ts';
import { readAvailable, readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import { COPIED, offsetHi, offsetLo, offsetOf, offsetTooLarge } from './entry.ts';
import type { Geometry } from './geometry.ts';
import { TABLE_ENTRY } from './layout.ts';

/** L2 tables are read in slices of at most this many bytes. */
const SLICE = 64 * 1024;
/** Bytes of L2 slices kept in memory. */
const CACHE = 32 * 1024 * 1024;

/** A part of an L2 table in memory. */
export interface L2Slice {
  readonly view: DataView;
  /** Number of its first entry within the table. */
  readonly first: number;
}

/** Where L2 tables come from. */
export interface L2Source {
  /** The slice of the L2 table at host offset `table` that holds entry `index`; synchronous when it is in memory. */
  slice(table: number, index: number): L2Slice | Promise<L2Slice>;
}

/** Bytes in which L2 tables are read. */
export function sliceSizeOf(geometry: Geometry): number {
  return Math.min(SLICE, geometry.clusterSize);
}

/**
 * Loads metadata tables of one image file: the only place that reads L1 and L2 tables. The slices are kept by host
 * offset, so an image and its internal snapshots share one cache.
 */
export class Tables implements L2Source {
  readonly storage: Storage;
  readonly geometry: Geometry;
  readonly sliceSize: number;
  readonly #slices: Lru<DataView>;

  constructor(storage: Storage, geometry: Geometry) {
    this.storage = storage;
    this.geometry = geometry;
    this.sliceSize = sliceSizeOf(geometry);
    this.#slices = new Lru({ budget: CACHE, cost: (view) => view.byteLength });
  }

  slice(table: number, index: number): L2Slice | Promise<L2Slice> {
    const perSlice = this.sliceSize / this.geometry.l2EntrySize;
    const number = Math.floor(index / perSlice);
    const at = table + number * this.sliceSize;
    const first = number * perSlice;
    const view = this.#slices.peek(at);
    if (view !== undefined) return { view, first };
    return this.#slices.load(at, () => this.#read(at)).then((loaded) => ({ view: loaded, first }));
  }

  async #read(at: number): Promise<DataView> {
    const bytes = new Uint8Array(this.sliceSize);
    await readPadded(this.storage, bytes, at);
    return viewOf(bytes);
  }
}

/** An L1 table in memory. Entries past the end of the file are zero and take no room. */
export class L1Table {
  readonly entries: number;
  readonly #view: DataView;
  readonly #stored: number;
  readonly #offset: number;
  readonly #clusterSize: number;

  constructor(bytes: Uint8Array, offset: number, entries: number, clusterSize: number) {
    this.#view = viewOf(bytes);
    this.#stored = Math.floor(bytes.length / TABLE_ENTRY);
    this.#offset = offset;
    this.#clusterSize = clusterSize;
    this.entries = entries;
  }

  /** Reads the table of `entries` entries at host offset `offset`. */
  static async read(
    storage: Storage,
    offset: number,
    entries: number,
    clusterSize: number,
  ): Promise<L1Table> {
    const length = entries * TABLE_ENTRY;
    let bytes = await readAvailable(storage, offset, length);
    // A file may end inside its last entry.
    if (bytes.length < length && bytes.length % TABLE_ENTRY !== 0) {
      const padded = new Uint8Array(Math.ceil(bytes.length / TABLE_ENTRY) * TABLE_ENTRY);
      padded.set(bytes);
      bytes = padded;
    }
    return new L1Table(bytes, offset, entries, clusterSize);
  }

  /**
   * Host offset of L2 table number `index`, 0 when there is none.
   * @throws SpindleError BAD_ENTRY, LIMIT
   */
  l2Offset(index: number): number {
    if (index >= this.#stored) return 0;
    const hi = this.#view.getUint32(index * TABLE_ENTRY);
    const lo = this.#view.getUint32(index * TABLE_ENTRY + 4);
    const at = this.#offset + index * TABLE_ENTRY;
    if (offsetTooLarge(hi))
      throw formatError('LIMIT', 'L1 entry', 'an L2 table at 2^53 or more', { offset: at });
    const offset = offsetOf(hi, lo);
    if (!isAligned(offset, this.#clusterSize)) {
      throw formatError('BAD_ENTRY', 'L1 entry', 'an L2 table that is not cluster aligned', { offset: at });
    }
    return offset;
  }

  /** The table with room for every entry in memory, for an image that is written to. */
  static async readWhole(
    storage: Storage,
    offset: number,
    entries: number,
    clusterSize: number,
  ): Promise<L1Table> {
    const bytes = new Uint8Array(entries * TABLE_ENTRY);
    await readPadded(storage, bytes, offset);
    return new L1Table(bytes, offset, entries, clusterSize);
  }

  /** Host offset of the table in bytes. */
  get offset(): number {
    return this.#offset;
  }

  /** Host offset of entry `index` in bytes. */
  entryOffset(index: number): number {
    return this.#offset + index * TABLE_ENTRY;
  }

  /** Whether the copied flag of entry `index` is set: its L2 table belongs to this L1 table alone. */
  copied(index: number): boolean {
    return index < this.#stored && this.#view.getUint32(index * TABLE_ENTRY) >= COPIED;
  }

  /** Points entry `index` to an L2 table; 0: to none. In memory only. */
  set(index: number, offset: number): void {
    this.#view.setUint32(index * TABLE_ENTRY, offset === 0 ? 0 : (offsetHi(offset) | COPIED) >>> 0);
    this.#view.setUint32(index * TABLE_ENTRY + 4, offsetLo(offset));
  }

  /** The first number from `index` on whose entry is not zero, `limit` when there is none before it. */
  nextUsed(index: number, limit: number): number {
    const end = Math.min(limit, this.#stored);
    for (let i = index; i < end; i++) {
      if (this.#view.getUint32(i * TABLE_ENTRY) !== 0 || this.#view.getUint32(i * TABLE_ENTRY + 4) !== 0) {
        if (this.l2Offset(i) !== 0) return i;
      }
    }
    return limit;
  }
}
