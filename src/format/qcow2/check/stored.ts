import { hex64, viewOf } from '../../../core/bytes.ts';
import { isSpindleError } from '../../../core/errors.ts';
import { readAvailable } from '../../../core/read.ts';
import { TABLE_ENTRY } from '../layout.ts';
import { getRefcount } from '../refcount.ts';
import { refcountBlockOffset, refcountTableReserved } from '../refcount-table.ts';
import type { CheckContext } from './context.ts';
import { readTables, type Part, type Piece } from './read-tables.ts';

/** Table entries without a block, and with one that cannot be read. All others give the number of a block. */
const NONE = -1;
const UNREADABLE = -2;

/** No program can read at or past this offset: 2^63 rounded down to whole GiB. */
const HOST_LIMIT = 2 ** 63 - 2 ** 30;

/** A refcount block. */
export interface RefcountBlock extends Piece {
  /** Number of its entry in the refcount table. */
  readonly index: number;
}

/**
 * The refcounts as the image stores them. Kept in memory is only which are exactly one, a bit each, because that is
 * what copied flags, in any order, are compared with.
 */
export class StoredRefcounts {
  /** Entries of the refcount table; those past the end of the file are zero. */
  readonly entries: number;
  readonly #table: DataView;
  readonly #perBlock: number;
  readonly #clusterSize: number;
  readonly #fileSize: number;
  readonly #order: number;
  readonly #blocks: Int32Array;
  /** For each block its bits; null where all its refcounts are zero. */
  readonly #ones: (Uint32Array | null)[] = [];
  /** Numbers of blocks that could not be read. */
  readonly #failed = new Set<number>();
  // The table entry used last, its bits, and the answer where there are none.
  #index = -1;
  #bits: Uint32Array | null = null;
  #otherwise: 0 | -1 = 0;

  private constructor(context: CheckContext, table: DataView) {
    const { geometry } = context.metadata;
    this.#table = table;
    this.#perBlock = geometry.refcountsPerBlock;
    this.#clusterSize = geometry.clusterSize;
    this.#order = geometry.refcountOrder;
    this.#fileSize = context.storage.size;
    this.entries = Math.floor(table.byteLength / TABLE_ENTRY);
    this.#blocks = new Int32Array(this.entries).fill(NONE);
  }

  /** Reads the refcount table and each block once. `onRead` is told the bytes of blocks. */
  static async read(context: CheckContext, onRead: (bytes: number) => void): Promise<StoredRefcounts> {
    const { header, geometry } = context.metadata;
    const length = header.refcountTableClusters * geometry.clusterSize;
    let bytes: Uint8Array = new Uint8Array(0);
    try {
      bytes = await readAvailable(context.storage, header.refcountTableOffset, length);
    } catch (error) {
      if (!isSpindleError(error)) throw error;
      context.unreadable('refcount table', header.refcountTableOffset, error);
    }
    // A file may end inside the last entry.
    if (bytes.length % TABLE_ENTRY !== 0) {
      const padded = new Uint8Array(Math.ceil(bytes.length / TABLE_ENTRY) * TABLE_ENTRY);
      padded.set(bytes);
      bytes = padded;
    }
    const stored = new StoredRefcounts(context, viewOf(bytes));
    const blocks = stored.#number();
    for await (const parts of readTables(context.storage, blocks, context.signal)) {
      for (const part of parts) {
        stored.#keep(part);
        onRead(part.length);
      }
    }
    return stored;
  }

  /** Bytes of the different blocks. */
  get bytes(): number {
    return this.#ones.length * this.#clusterSize;
  }

  /** Whether the refcount of a cluster is one: 1 yes, 0 no, -1 it cannot be read. */
  isOne(cluster: number): 0 | 1 | -1 {
    const index = Math.floor(cluster / this.#perBlock);
    if (index !== this.#index) this.#seek(index);
    if (this.#bits === null) return this.#otherwise;
    const within = cluster - index * this.#perBlock;
    return (((this.#bits[within >>> 5] ?? 0) >>> (within & 31)) & 1) as 0 | 1;
  }

  /** Whether refcount table entry `index` has a block that can be read and holds anything but zeroes. */
  isFilled(index: number): boolean {
    const block = this.#blocks[index] ?? NONE;
    return block >= 0 && this.#ones[block] !== null && !this.#failed.has(block);
  }

  /** Whether refcount table entry `index` has a block that cannot be read. */
  isUnreadable(index: number): boolean {
    const block = this.#blocks[index] ?? NONE;
    return block === UNREADABLE || this.#failed.has(block);
  }

  /** The block of refcount table entry `index` cannot be read. */
  setUnreadable(index: number): void {
    this.#failed.add(this.#blocks[index] ?? NONE);
  }

  /** The blocks that hold anything but zeroes, of the first `clusters` clusters, by table entry. */
  *filled(clusters: number): Generator<RefcountBlock> {
    const end = Math.min(this.entries, Math.ceil(clusters / this.#perBlock));
    for (let index = 0; index < end; index++) {
      if (!this.isFilled(index)) continue;
      const at = this.offset(index);
      yield { index, at, end: at + this.#clusterSize };
    }
  }

  /** Offset of the block of refcount table entry `index`, 0 when it has none. */
  offset(index: number): number {
    return refcountBlockOffset(this.#table, index);
  }

  isReserved(index: number): boolean {
    return refcountTableReserved(this.#table, index);
  }

  isAligned(index: number): boolean {
    return (this.#table.getUint32(index * TABLE_ENTRY + 4) & (this.#clusterSize - 1) & ~511) === 0;
  }

  /** The entry as it stands, for messages. */
  text(index: number): string {
    return hex64(this.#table.getUint32(index * TABLE_ENTRY), this.#table.getUint32(index * TABLE_ENTRY + 4));
  }

  /** Gives each different block inside the file a number. */
  #number(): RefcountBlock[] {
    const numbers = new Map<number, number>();
    const blocks: RefcountBlock[] = [];
    for (let index = 0; index < this.entries; index++) {
      const at = this.offset(index);
      if (at === 0) continue;
      if (!this.isAligned(index) || at > HOST_LIMIT - this.#clusterSize) this.#blocks[index] = UNREADABLE;
      else if (at < this.#fileSize) {
        const known = numbers.get(at);
        this.#blocks[index] = known ?? blocks.length;
        if (known !== undefined) continue;
        numbers.set(at, blocks.length);
        blocks.push({ index, at, end: at + this.#clusterSize });
        this.#ones.push(null);
      }
    }
    return blocks;
  }

  #keep(part: Part<RefcountBlock>): void {
    const block = this.#blocks[part.piece.index] ?? NONE;
    if (block < 0) return;
    if (part.view === null) {
      this.setUnreadable(part.piece.index);
      return;
    }
    const perCluster = this.#perBlock / this.#clusterSize;
    const first = (part.at - part.piece.at) * perCluster;
    let bits = this.#ones[block] ?? null;
    const { view } = part;
    const count = part.length * perCluster;
    const order = this.#order;
    for (let i = 0; i < count; i++) {
      const refcount = getRefcount(view, order, i);
      if (refcount === 0) continue;
      if (bits === null) {
        bits = new Uint32Array(Math.ceil(this.#perBlock / 32));
        this.#ones[block] = bits;
      }
      if (refcount !== 1) continue;
      const at = first + i;
      bits[at >>> 5] = (bits[at >>> 5] ?? 0) | (1 << (at & 31));
    }
  }

  #seek(index: number): void {
    this.#index = index;
    const block = this.#blocks[index] ?? NONE;
    this.#otherwise = this.isUnreadable(index) ? -1 : 0;
    this.#bits = this.#otherwise === 0 ? (this.#ones[block] ?? null) : null;
  }
}
