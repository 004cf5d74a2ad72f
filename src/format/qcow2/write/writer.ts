import { alignUp, offsetIn } from '../../../core/align.ts';
import { SpindleError } from '../../../core/errors.ts';
import { Mutex } from '../../../core/mutex.ts';
import { readPadded } from '../../../core/read.ts';
import type { Storage, ZeroOptions } from '../../../core/storage.ts';
import type { DataMapping, FormatDriver, FreshPlace } from '../../driver.ts';
import { offsetOf, ZERO } from '../entry.ts';
import { Incompatible } from '../layout.ts';
import type { PlainData } from '../../crypto/encrypted-storage.ts';
import type { Metadata } from '../metadata.ts';
import { L1Table, sliceSizeOf } from '../tables.ts';
import { Allocator, type ClusterRun } from './allocator.ts';
import { ClusterKinds, KIND_OF_RANK } from './cluster-kinds.ts';
import { claimMetadata, claimSnapshots } from './claim.ts';
import { DirtyMark } from './dirty-mark.ts';
import { checkEntry, hostOf, isBlank } from './entry-check.ts';
import { StreamPacker, type NewStream } from './compress.ts';
import {
  ALL,
  giveEntry,
  hasZeroFlag,
  isCompressed,
  isCopied,
  L2Editor,
  NOWHERE,
  pointTo,
  sameEntry,
  subclusters,
  type L2Entry,
} from './l2-editor.ts';
import { grownSize } from './growth.ts';
import { OrderedCache } from './ordered-cache.ts';
import { Refcounts } from './refcounts.ts';
import type { WholeTables, WriterOptions } from './whole.ts';

/** Bytes of metadata kept in memory. */
const CACHE = 32 * 1024 * 1024;
/** Bytes of new clusters that one request gets at once. */
const MOST_FRESH = 4 * 1024 * 1024;
/** Runs of freed clusters after which a flush is due. */
const MOST_GIVEN = 100_000;

/**
 * Changes the metadata of one image: makes room for guest data, zeroes and discards. Everything runs under one mutex;
 * guest data itself is moved by the executor, outside of it, between {@link ensureData} and its commit.
 */
export class Qcow2Writer {
  readonly editor: L2Editor;
  readonly allocator: Allocator;
  readonly refcounts: Refcounts;
  readonly cache: OrderedCache;
  readonly kinds: ClusterKinds;
  readonly mutex = new Mutex();
  readonly #storage: Storage;
  readonly #data: Storage;
  readonly #metadata: Metadata;
  readonly #packer: StreamPacker;
  readonly #external: boolean;
  readonly options: WriterOptions;
  readonly #plain: PlainData | undefined;
  readonly #backed: boolean;
  readonly #mark: DirtyMark;
  #usedEnd: number;

  private constructor(
    storage: Storage,
    metadata: Metadata,
    dataFile: Storage | null,
    l1: L1Table,
    table: Uint8Array,
    kinds: ClusterKinds,
    options: WriterOptions,
  ) {
    const { geometry } = metadata;
    this.#storage = storage;
    this.#data = dataFile ?? storage;
    this.#metadata = metadata;
    this.#external = (metadata.header.incompatible.lo & Incompatible.DATA_FILE) !== 0;
    this.options = options;
    this.#plain = options.plain;
    this.#backed = options.backed;
    this.#usedEnd = options.usedEnd ?? storage.size;
    this.kinds = kinds;
    const mark = (this.#mark = new DirtyMark(storage, metadata.header));
    this.cache = new OrderedCache(storage, {
      budget: CACHE,
      unit: sliceSizeOf(geometry),
      guard: (at, length, rank) => {
        kinds.check(at, length, KIND_OF_RANK[rank]);
      },
      markLate: mark.isLazy ? () => mark.set() : undefined,
      ...(options.brokenOrder === undefined ? {} : { brokenOrder: options.brokenOrder }),
    });
    const reach = (end: number): Promise<void> => this.#reach(end);
    const host = { storage, geometry, cache: this.cache, kinds, reach };
    this.refcounts = new Refcounts(host, metadata.header.refcountTableOffset, table);
    this.allocator = new Allocator(this.refcounts);
    this.editor = new L2Editor({ ...host, allocator: this.allocator }, l1);
    this.#packer = new StreamPacker({ ...host, refcounts: this.refcounts }, this.allocator, this.editor);
  }

  /** The writer of an image that is open for writing, alone. @throws SpindleError CORRUPT when its tables overlap */
  static async open(
    storage: Storage,
    metadata: Metadata,
    dataFile: Storage | null,
    options: WriterOptions,
  ): Promise<Qcow2Writer> {
    const { header, geometry } = metadata;
    const { clusterSize } = geometry;
    const l1 = await L1Table.readWhole(storage, header.l1TableOffset, header.l1Size, clusterSize);
    const table = new Uint8Array(header.refcountTableClusters * clusterSize);
    await readPadded(storage, table, header.refcountTableOffset);
    const kinds = new ClusterKinds(clusterSize, options.overlapCheck);
    await claimMetadata(kinds, metadata, l1, table, storage);
    if (options.overlapCheck === 'all') await claimSnapshots(kinds, storage, metadata);
    return new Qcow2Writer(storage, metadata, dataFile, l1, table, kinds, options);
  }

  async #reach(end: number): Promise<void> {
    this.#usedEnd = Math.max(this.#usedEnd, end);
    if (end <= this.#storage.size) return;
    if (!this.#storage.can.resize) {
      throw new SpindleError('NO_SPACE', `the device is full: it has ${String(this.#storage.size)} bytes`);
    }
    await this.#storage.resize(grownSize(end));
  }

  /** Makes the start of a guest range writable. @throws SpindleError NO_SPACE, LIMIT, BAD_ENTRY, CORRUPT */
  ensureData(at: number, length: number): Promise<DataMapping> {
    return this.mutex.run(() => this.#ensure(at, length));
  }

  async #ensure(at: number, length: number): Promise<DataMapping> {
    if (this.#isFull) await this.#flush();
    const { extendedL2 } = this.#metadata.geometry;
    return extendedL2 ? this.#ensureExtended(at, length) : this.#ensureStandard(at, length);
  }

  /** See {@link FormatDriver.together}. */
  together<T>(work: (ensureData: FormatDriver['ensureData']) => Promise<T>): Promise<T> {
    return this.mutex.run(() => work((at, length) => this.#ensure(at, length)));
  }

  /** Stores guest clusters as compressed streams. The host offsets of these. */
  compressedWrites(streams: readonly NewStream[]): Promise<number[]> {
    return this.mutex.run(async () => {
      if (this.#isFull) await this.#flush();
      return this.#packer.write(streams, (cluster) => this.#entry(cluster));
    });
  }

  /** Nothing changes the tables, and nothing has to be made durable first. */
  get isIdle(): boolean {
    return this.mutex.isIdle && !this.#isFull;
  }

  /** Memory is full of changes, or much is waiting to become free: a flush is due. */
  get #isFull(): boolean {
    return this.cache.full || this.allocator.pending > MOST_GIVEN;
  }

  async #ensureStandard(at: number, length: number): Promise<DataMapping> {
    const { clusterSize, l2Entries } = this.#metadata.geometry;
    const first = Math.floor(at / clusterSize);
    const within = offsetIn(at, clusterSize);
    const most = Math.min(
      Math.ceil((within + length) / clusterSize),
      l2Entries - (first % l2Entries),
      Math.max(1, Math.floor(MOST_FRESH / clusterSize)),
    );
    const entry = await this.#entry(first);
    const host = hostOf(entry, first, this.#external);
    if (host !== null && isCopied(entry)) {
      // The place is this image's own: data is written over, allocated zeroes become data.
      const zero = hasZeroFlag(entry);
      let count = 1;
      while (count < most) {
        const next = await this.#entry(first + count);
        const nextHost = hostOf(next, first + count, this.#external);
        if (nextHost !== host + count * clusterSize || !isCopied(next) || hasZeroFlag(next) !== zero) break;
        count++;
      }
      const bytes = Math.min(length, count * clusterSize - within);
      const place = { storage: this.#view(at, host + within), at: host + within, length: bytes };
      await this.#reachData(host, count * clusterSize);
      if (!zero) return place;
      const used = Math.ceil((within + bytes) / clusterSize);
      const zeroes = Array.from({ length: used }, () => entry);
      return {
        ...place,
        fresh: this.#fresh(first, { start: host / clusterSize, count: used }, false, zeroes),
      };
    }
    // New clusters, as many as the request spans and as lie together.
    const old: L2Entry[] = [entry];
    while (old.length < most) {
      const next = await this.#entry(first + old.length);
      if (hostOf(next, first + old.length, this.#external) !== null && isCopied(next)) break;
      old.push(next);
    }
    // Before the data, and not when it is written, so that the same requests make the same image.
    await this.editor.ensureTable(first);
    const { run, clean } = await this.#takeData(first, old.length);
    const used = old.slice(0, run.count);
    const bytes = Math.min(length, run.count * clusterSize - within);
    return {
      storage: this.#view(at, run.start * clusterSize + within),
      at: run.start * clusterSize + within,
      length: bytes,
      fresh: this.#fresh(first, run, clean, used),
    };
  }

  /** Clusters for guest data: new ones, or their fixed places in an external data file. */
  async #takeData(
    first: number,
    most: number,
  ): Promise<{ readonly run: ClusterRun; readonly clean: boolean }> {
    const { clusterSize } = this.#metadata.geometry;
    if (this.#external) {
      await this.#reachData(first * clusterSize, most * clusterSize);
      return { run: { start: first, count: most }, clean: false };
    }
    const end = this.#usedEnd;
    const run = await this.allocator.take(most);
    const at = run.start * clusterSize;
    try {
      await this.#reachData(at, run.count * clusterSize);
    } catch (error) {
      await this.allocator.takeBack(run);
      throw error;
    }
    // What lies past all that was ever used is a hole of the file; under a cipher a hole reads as noise.
    return { run, clean: at >= end && this.#storage.can.resize && this.#plain === undefined };
  }

  /** New places for standard clusters from number `first` on: `run` of the host; `old` are the entries they replace. */
  #fresh(first: number, run: ClusterRun, clean: boolean, old: readonly L2Entry[]): FreshPlace {
    const { geometry, size } = this.#metadata;
    const { clusterSize } = geometry;
    const placeEnd = (first + run.count) * clusterSize;
    const link = async (): Promise<void> => {
      this.cache.noteWritten();
      await this.editor.ensureTable(first);
      for (let i = 0; i < run.count; i++) {
        await this.editor.set(first + i, pointTo((run.start + i) * clusterSize, 0, 0));
      }
      for (const entry of old) this.#giveUp(entry, run, clusterSize);
    };
    return {
      start: first * clusterSize,
      end: Math.min(placeEnd, size),
      padding: this.#external ? 0 : Math.max(0, placeEnd - size),
      blank: old.every((entry) => isBlank(entry, this.#backed)),
      clean,
      link,
      commit: () => this.mutex.run(link),
      abandon: () =>
        this.mutex.run(async () => {
          if (!this.#reuses(old, run) && !this.#external) await this.allocator.takeBack(run);
        }),
    };
  }

  /** Whether a run is the place that its entries point to already. */
  #reuses(old: readonly L2Entry[], run: ClusterRun): boolean {
    const [entry] = old;
    if (entry === undefined || isCompressed(entry)) return false;
    return offsetOf(entry.hi, entry.lo) === run.start * this.#metadata.geometry.clusterSize;
  }

  /** Gives back what a replaced entry pointed to, unless it is the very place that replaces it. */
  #giveUp(entry: L2Entry, run: ClusterRun, clusterSize: number): void {
    if (this.#external && !isCompressed(entry)) return;
    const host = offsetOf(entry.hi, entry.lo) / clusterSize;
    if (!isCompressed(entry) && host >= run.start && host < run.start + run.count) return;
    giveEntry(entry, this.#metadata.geometry, this.allocator);
  }

  /** The storage through which the guest's bytes at a place are written: that of the data, or its decrypted view. */
  #view(guest: number, host: number): Storage {
    return this.#plain?.view(guest, host) ?? this.#data;
  }

  /** The entry of a guest cluster. @throws SpindleError BAD_ENTRY */
  async #entry(cluster: number): Promise<L2Entry> {
    const entry = await this.editor.entry(cluster);
    checkEntry(entry, cluster, this.#metadata, this.#external);
    return entry;
  }

  /**
   * Sees that guest data can be written to a place: it may not be metadata, whatever the tables say, and a file that
   * ends before it grows.
   */
  async #reachData(at: number, length: number): Promise<void> {
    if (!this.#external) {
      this.kinds.check(at, length);
      await this.#reach(at + length);
      return;
    }
    const end = Math.min(at + length, this.#metadata.size);
    if (end > this.#data.size) await this.#data.resize(end);
  }

  async #ensureExtended(at: number, length: number): Promise<DataMapping> {
    const { geometry, size } = this.#metadata;
    const { clusterSize, subclusterSize } = geometry;
    const cluster = Math.floor(at / clusterSize);
    const clusterStart = cluster * clusterSize;
    const within = at - clusterStart;
    const bytes = Math.min(length, clusterSize - within);
    const entry = await this.#entry(cluster);
    const host = hostOf(entry, cluster, this.#external);
    const own = host !== null && isCopied(entry);
    if (own) await this.#reachData(host, clusterSize);
    // The subclusters that the request touches, and what they become.
    const firstSub = Math.floor(within / subclusterSize);
    const lastSub = Math.floor((within + bytes - 1) / subclusterSize);
    const touched = subclusters(firstSub, lastSub);
    if (own && (entry.data & touched) >>> 0 === touched) {
      return { storage: this.#view(at, host + within), at: host + within, length: bytes };
    }
    // A cluster of others, or a compressed one, is copied as a whole; else only the touched subclusters come along.
    const whole = !own && (isCompressed(entry) || host !== null);
    const from = whole ? clusterStart : clusterStart + firstSub * subclusterSize;
    const to = clusterStart + (whole ? clusterSize : (lastSub + 1) * subclusterSize);
    if (!own) await this.editor.ensureTable(cluster);
    const taken = own ? null : await this.#takeData(cluster, 1);
    const place = taken === null ? (host ?? 0) : taken.run.start * clusterSize;
    const data = whole ? ALL : (entry.data | touched) >>> 0;
    const zeros = whole ? 0 : (entry.zeros & ~touched) >>> 0;
    const link = async (): Promise<void> => {
      this.cache.noteWritten();
      await this.editor.ensureTable(cluster);
      await this.editor.set(cluster, pointTo(place, zeros, data));
      if (!own && !(this.#external && !isCompressed(entry))) giveEntry(entry, geometry, this.allocator);
    };
    return {
      storage: this.#view(at, place + within),
      at: place + within,
      length: bytes,
      fresh: {
        start: from,
        end: Math.min(to, size),
        padding: this.#external ? 0 : Math.max(0, to - size),
        blank:
          !whole &&
          (entry.data & touched) >>> 0 === 0 &&
          (!this.#backed || (entry.zeros & touched) >>> 0 === touched),
        clean: taken?.clean ?? false,
        link,
        commit: () => this.mutex.run(link),
        abandon: () =>
          this.mutex.run(async () => {
            if (taken !== null && !this.#external) await this.allocator.takeBack(taken.run);
          }),
      },
    };
  }

  /**
   * Makes whole clusters, or subclusters, read as zeroes; false where only writing does that (version 2 over a backing
   * file).
   */
  zero(at: number, length: number, how: ZeroOptions): Promise<boolean> {
    return this.mutex.run(async () => {
      if (this.#metadata.header.version === 2) {
        if (this.#backed || how.keepAllocated === true) return false;
        await this.#each(at, length, (cluster, entry) => this.#drop(cluster, entry, false));
        return true;
      }
      await this.#each(at, length, async (cluster, entry) => {
        const keep = how.keepAllocated === true || this.#external;
        if (keep && !isCompressed(entry)) await this.#flagZero(cluster, entry);
        else await this.#drop(cluster, entry, true);
      });
      return true;
    });
  }

  /** Gives whole clusters back; they read as zeroes then, or as before where the format cannot say that they do. */
  discard(at: number, length: number): Promise<void> {
    return this.mutex.run(async () => {
      const version2 = this.#metadata.header.version === 2;
      if (version2 && this.#backed) return;
      await this.#each(at, length, async (cluster, entry) => {
        await this.#drop(cluster, entry, !version2);
      });
    });
  }

  async #each(
    at: number,
    length: number,
    work: (cluster: number, entry: L2Entry) => Promise<void>,
  ): Promise<void> {
    const { clusterSize } = this.#metadata.geometry;
    const end = Math.floor((at + length - 1) / clusterSize) + 1;
    for (let cluster = Math.floor(at / clusterSize); cluster < end; cluster++) {
      if (this.#isFull) await this.#flush();
      if (!this.#backed) cluster = this.editor.nextMapped(cluster, end);
      if (cluster >= end) return;
      const entry = await this.#entry(cluster);
      // What is nowhere reads as zeroes already, unless there is something below.
      if (this.#backed || !sameEntry(entry, NOWHERE)) await work(cluster, entry);
    }
  }

  /** Unmaps a cluster: it reads as zeroes (`zero`), or as nothing. */
  async #drop(cluster: number, entry: L2Entry, zero: boolean): Promise<void> {
    const { geometry } = this.#metadata;
    const { extendedL2 } = geometry;
    const [lo, zeros] = zero ? (extendedL2 ? [0, ALL] : [ZERO, 0]) : [0, 0];
    const next: L2Entry = { hi: 0, lo, zeros, data: 0 };
    if (sameEntry(entry, next)) return;
    await this.editor.ensureTable(cluster);
    await this.editor.set(cluster, next);
    if (!this.#external) giveEntry(entry, geometry, this.allocator);
  }

  /** Keeps the place of a cluster, and says that it reads as zeroes. */
  async #flagZero(cluster: number, entry: L2Entry): Promise<void> {
    const { extendedL2 } = this.#metadata.geometry;
    const next: L2Entry = extendedL2
      ? { ...entry, zeros: ALL, data: 0 }
      : { ...entry, lo: (entry.lo | ZERO) >>> 0 };
    if (sameEntry(entry, next)) return;
    await this.editor.ensureTable(cluster);
    await this.editor.set(cluster, next);
  }

  /** Makes everything durable, in order, and frees what was given back before. */
  flush(): Promise<void> {
    return this.mutex.run(() => this.#flush());
  }

  /** `all`: refcounts too, where they may be written late. */
  async #flush(all = false): Promise<void> {
    if (this.#external) await this.#data.flush();
    this.cache.noteWritten();
    await (all ? this.cache.flushAll() : this.cache.flush());
    if (this.allocator.pending === 0) return;
    const { clusterSize } = this.#metadata.geometry;
    await this.allocator.settle(async ({ start, count }) => {
      const at = start * clusterSize;
      this.#packer.forget({ start, count });
      this.kinds.release(at, count * clusterSize);
      this.cache.drop(at, count * clusterSize);
      const there = Math.min(count * clusterSize, this.#storage.size - at);
      if (this.options.punch !== false && there > 0) await this.#storage.discard(at, there);
    });
    await this.cache.writeLowered();
  }

  /** Bytes from the start of the file that may be in use. */
  get usedEnd(): number {
    return this.#usedEnd;
  }

  /** Runs work on the tables as a whole, when all that was done is durable and while nothing else changes them. */
  alone<T>(work: (whole: WholeTables) => Promise<T>): Promise<T> {
    return this.mutex.run(async () => {
      const whole: WholeTables = {
        storage: this.#storage,
        data: this.#data,
        metadata: this.#metadata,
        external: this.#external,
        flush: async () => {
          await this.#flush(true);
          await this.cache.flushAll();
        },
        reach: (end) => this.#reach(end),
        takeData: (first, most) => this.#takeData(first, most),
        cut: async (end) => {
          if (this.#storage.can.resize && end < this.#storage.size) await this.#storage.resize(end);
          this.#usedEnd = Math.min(this.#usedEnd, end);
        },
      };
      await whole.flush();
      return work(whole);
    });
  }

  /** Flushes and cuts the file to what is used. */
  close(): Promise<void> {
    return this.mutex.run(async () => {
      await this.#flush(true);
      await this.cache.flushAll();
      await this.#mark.clear();
      const end = alignUp(this.#usedEnd, 512);
      if (this.#storage.can.resize && end < this.#storage.size) {
        await this.#storage.resize(end);
        await this.#storage.flush();
      }
    });
  }
}
