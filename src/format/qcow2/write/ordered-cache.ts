import { viewOf } from '../../../core/bytes.ts';
import { readPadded } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';

/**
 * The order in which metadata reaches the disk. What has a higher rank points to what has a lower one, so a page is
 * written only when everything dirty below it, and all guest data written so far, is durable: at any instant of a
 * power cut refcounts are not lower than the references on disk, and no table points to what was not written.
 */
export const Rank = { REFCOUNT_BLOCK: 0, REFCOUNT_TABLE: 1, L2: 2, L1: 3 } as const;

/** One of the ranks. */
export type Rank = (typeof Rank)[keyof typeof Rank];

const RANKS: readonly Rank[] = [Rank.REFCOUNT_BLOCK, Rank.REFCOUNT_TABLE, Rank.L2, Rank.L1];

/** A part of a table in memory. */
export interface Page {
  /** Host offset in bytes. */
  readonly at: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly rank: Rank;
  /** The bytes that differ from the disk: from `dirtyFrom` up to `dirtyTo`; none when they are equal. */
  dirtyFrom: number;
  dirtyTo: number;
  /** When it was put behind all others in the order of use. */
  used: number;
}

/** Uses within which a page keeps its place in the order of use. */
const RECENT = 64;

/** Bytes of dirty pages above which they should be written. */
const DIRTY_LIMIT = 16 * 1024 * 1024;
/** Bytes of refcounts above which they are not put off any longer. */
const LATE_LIMIT = DIRTY_LIMIT / 2;

/** What the cache needs of the image around it. */
export interface CacheOptions {
  /** Bytes of clean pages to keep. */
  readonly budget: number;
  /** Every page begins at a multiple of this many bytes. */
  readonly unit: number;
  /** Refuses to write metadata where other metadata lies; called with every range before it is written. */
  guard(at: number, length: number, rank: Rank): void;
  /**
   * Refcounts may be written late: makes it durable that those on disk are out of date. Called before anything is
   * written that needs others. Undefined where refcounts come first, always.
   */
  readonly markLate?: (() => Promise<void>) | undefined;
  /** For tests: write the ranks in another order, which must break the promises above. */
  readonly brokenOrder?: boolean;
}

/**
 * Write-back cache of metadata. Pages are changed in memory, marked, and written in the order of their ranks.
 *
 * All changes and flushes of one image run under one mutex, held by the caller: nothing here may run while another
 * call is under way. A page may be dropped while its caller waits for something else, so it has to be asked for anew
 * after every wait.
 */
export class OrderedCache {
  readonly #storage: Storage;
  readonly #options: CacheOptions;
  /** In order of use. */
  readonly #pages = new Map<number, Page>();
  readonly #dirty: Set<Page>[] = RANKS.map(() => new Set());
  #bytes = 0;
  #dirtyBytes = 0;
  /** Counts what pages were asked for. */
  #uses = 0;
  /** Counts what makes bytes read earlier worthless. */
  #epoch = 0;
  /** Something was written since the storage was flushed. */
  #unsynced = false;

  constructor(storage: Storage, options: CacheOptions) {
    this.#storage = storage;
    this.#options = options;
  }

  /** Whether so much is dirty that a flush is due. */
  get full(): boolean {
    return this.#dirtyBytes > DIRTY_LIMIT;
  }

  /** The page at `at` when it is in memory. */
  peek(at: number): Page | undefined {
    const page = this.#pages.get(at);
    if (page === undefined) return page;
    // The order of use need not be exact, and keeping it costs more than looking.
    if (++this.#uses - page.used > RECENT) {
      page.used = this.#uses;
      this.#pages.delete(at);
      this.#pages.set(at, page);
    }
    return page;
  }

  /** The page of `length` bytes at `at`, read when it is not in memory. */
  page(at: number, length: number, rank: Rank): Page | Promise<Page> {
    return this.peek(at) ?? this.#load(at, length, rank);
  }

  async #load(at: number, length: number, rank: Rank): Promise<Page> {
    const bytes = new Uint8Array(length);
    // Readers load pages while changes go on: what was written meanwhile may or may not be in what was read.
    for (let epoch = -1; epoch !== this.#epoch;) {
      epoch = this.#epoch;
      await readPadded(this.#storage, bytes, at);
    }
    // Somebody else may have loaded it too; there must be one copy only.
    return (
      this.peek(at) ??
      this.#keep({ at, bytes, view: viewOf(bytes), rank, dirtyFrom: length, dirtyTo: 0, used: this.#uses })
    );
  }

  /** A page of zeroes for space that is new, so that nothing needs to be read; dirty as a whole. */
  create(at: number, length: number, rank: Rank): Page {
    this.drop(at, length);
    const bytes = new Uint8Array(length);
    const page = this.#keep({
      at,
      bytes,
      view: viewOf(bytes),
      rank,
      dirtyFrom: length,
      dirtyTo: 0,
      used: this.#uses,
    });
    this.mark(page, 0, length);
    return page;
  }

  #keep(page: Page): Page {
    this.#pages.set(page.at, page);
    this.#bytes += page.bytes.length;
    for (const [at, old] of this.#pages) {
      if (this.#bytes <= this.#options.budget || old === page) break;
      if (old.dirtyTo > old.dirtyFrom) continue;
      this.#pages.delete(at);
      this.#bytes -= old.bytes.length;
    }
    return page;
  }

  /** Marks bytes of a page as changed. Has to follow the change without a wait between. */
  mark(page: Page, from: number, to: number): void {
    if (page.dirtyTo <= page.dirtyFrom) {
      this.#dirty[page.rank]?.add(page);
      this.#dirtyBytes += page.bytes.length;
    }
    page.dirtyFrom = Math.min(page.dirtyFrom, from);
    page.dirtyTo = Math.max(page.dirtyTo, to);
  }

  /** Forgets all pages in a range of the file, changed or not: its space belongs to something else now. */
  drop(at: number, length: number): void {
    this.#epoch++;
    for (let start = at; start < at + length; start += this.#options.unit) {
      const page = this.#pages.get(start);
      if (page === undefined) continue;
      this.#pages.delete(page.at);
      this.#bytes -= page.bytes.length;
      this.#clean(page);
    }
  }

  /** Forgets everything, changed or not. */
  clear(): void {
    this.#epoch++;
    this.#pages.clear();
    this.#dirty.forEach((pages) => pages.clear());
    this.#bytes = 0;
    this.#dirtyBytes = 0;
  }

  #clean(page: Page): void {
    if (page.dirtyTo <= page.dirtyFrom) return;
    this.#dirty[page.rank]?.delete(page);
    this.#dirtyBytes -= page.bytes.length;
    page.dirtyFrom = page.bytes.length;
    page.dirtyTo = 0;
  }

  /** Tells that guest data, or metadata beside the cache, was written to the storage. */
  noteWritten(): void {
    this.#unsynced = true;
  }

  /** Writes everything dirty up to `highest`, in order. Durable only after {@link sync}. */
  async writeUpTo(highest: Rank): Promise<void> {
    const order = this.#options.brokenOrder === true ? [...RANKS].reverse() : RANKS;
    for (const rank of order) {
      if (rank > highest || this.#dirty[rank]?.size === 0) continue;
      // Refcount blocks point to nothing; all others need what they point to on the disk.
      if (rank !== Rank.REFCOUNT_BLOCK && this.#options.brokenOrder !== true) await this.sync();
      await this.#writeRank(rank);
    }
  }

  async #writeRank(rank: Rank): Promise<void> {
    const pages = [...(this.#dirty[rank] ?? [])].sort((a, b) => a.at - b.at);
    for (const page of pages) {
      const { dirtyFrom, dirtyTo } = page;
      this.#options.guard(page.at + dirtyFrom, dirtyTo - dirtyFrom, rank);
      this.#unsynced = true;
      await this.#storage.write(page.bytes.subarray(dirtyFrom, dirtyTo), page.at + dirtyFrom);
      this.#epoch++;
      this.#clean(page);
    }
  }

  /** Makes durable what was written. */
  async sync(): Promise<void> {
    if (!this.#unsynced) return;
    await this.#storage.flush();
    this.#unsynced = false;
  }

  /** Writes everything, in order, and makes it durable; refcounts only where they may not come late. */
  async flush(): Promise<void> {
    const { markLate, brokenOrder } = this.#options;
    if (markLate === undefined || brokenOrder === true || this.#lateBytes() > LATE_LIMIT) {
      await this.flushAll();
      return;
    }
    for (const rank of [Rank.L2, Rank.L1]) {
      if (this.#dirty[rank]?.size === 0) continue;
      if (this.#lateBytes() > 0) await markLate();
      await this.sync();
      await this.#writeRank(rank);
    }
    await this.sync();
  }

  /** Writes everything, refcounts too, in order, and makes it durable. */
  async flushAll(): Promise<void> {
    await this.writeUpTo(Rank.L1);
    await this.sync();
  }

  /** Writes refcounts that were lowered, unless that may wait. Durable only after {@link sync}. */
  async writeLowered(): Promise<void> {
    if (this.#options.markLate === undefined) await this.writeUpTo(Rank.REFCOUNT_BLOCK);
  }

  /** Bytes of refcounts that are not on disk. */
  #lateBytes(): number {
    let bytes = 0;
    for (const rank of [Rank.REFCOUNT_BLOCK, Rank.REFCOUNT_TABLE])
      for (const page of this.#dirty[rank] ?? []) bytes += page.bytes.length;
    return bytes;
  }
}
