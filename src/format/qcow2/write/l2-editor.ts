import type { Storage } from '../../../core/storage.ts';
import { COMPRESSED, COPIED, compressedPlace, offsetHi, offsetLo, offsetOf, ZERO } from '../entry.ts';
import type { Geometry } from '../geometry.ts';
import type { L1Table, L2Slice, L2Source } from '../tables.ts';
import { sliceSizeOf } from '../tables.ts';
import type { Allocator } from './allocator.ts';
import type { ClusterKinds } from './cluster-kinds.ts';
import { Rank, type OrderedCache, type Page } from './ordered-cache.ts';

/** An L2 entry in halves; `zeros` and `data` are the subcluster bitmaps of an extended one, else 0. */
export interface L2Entry {
  readonly hi: number;
  readonly lo: number;
  readonly zeros: number;
  readonly data: number;
}

/** What the editor needs of the image around it. */
export interface EditorHost {
  readonly storage: Storage;
  readonly geometry: Geometry;
  readonly cache: OrderedCache;
  readonly kinds: ClusterKinds;
  readonly allocator: Allocator;
  /** Makes the file long enough for a write that ends at `end`. */
  readonly reach: (end: number) => Promise<void>;
}

/** The L1 table and L2 tables of an image that is written to. Changes run under the mutex of the image. */
export class L2Editor implements L2Source {
  readonly l1: L1Table;
  readonly #host: EditorHost;
  readonly #sliceSize: number;

  constructor(host: EditorHost, l1: L1Table) {
    this.#host = host;
    this.l1 = l1;
    this.#sliceSize = sliceSizeOf(host.geometry);
  }

  slice(table: number, index: number): L2Slice | Promise<L2Slice> {
    const { number, first } = this.#sliceOf(index);
    const page = this.#host.cache.page(table + number * this.#sliceSize, this.#sliceSize, Rank.L2);
    return page instanceof Promise ? page.then(({ view }) => ({ view, first })) : { view: page.view, first };
  }

  #sliceOf(index: number): { readonly number: number; readonly first: number } {
    const perSlice = this.#sliceSize / this.#host.geometry.l2EntrySize;
    const number = Math.floor(index / perSlice);
    return { number, first: number * perSlice };
  }

  /** The entry of a guest cluster; all zero where there is no L2 table. */
  async entry(cluster: number): Promise<L2Entry> {
    const { l2Entries } = this.#host.geometry;
    const table = this.l1.l2Offset(Math.floor(cluster / l2Entries));
    if (table === 0) return { hi: 0, lo: 0, zeros: 0, data: 0 };
    const index = cluster % l2Entries;
    const { view, first } = await this.slice(table, index);
    return readEntry(view, (index - first) * this.#host.geometry.l2EntrySize, this.#host.geometry.extendedL2);
  }

  /** {@link entry} where the table is in memory, else undefined. */
  entryNow(cluster: number): L2Entry | undefined {
    const { l2Entries, l2EntrySize, extendedL2 } = this.#host.geometry;
    const table = this.l1.l2Offset(Math.floor(cluster / l2Entries));
    if (table === 0) return NOWHERE;
    const index = cluster % l2Entries;
    const slice = this.slice(table, index);
    if (slice instanceof Promise) {
      slice.catch(() => undefined);
      return undefined;
    }
    return readEntry(slice.view, (index - slice.first) * l2EntrySize, extendedL2);
  }

  /** The first cluster from `cluster` on that has an L2 table, `end` when there is none before it. */
  nextMapped(cluster: number, end: number): number {
    const { l2Entries } = this.#host.geometry;
    const index = Math.floor(cluster / l2Entries);
    if (this.l1.l2Offset(index) !== 0) return cluster;
    return Math.min(end, this.l1.nextUsed(index + 1, Math.ceil(end / l2Entries)) * l2Entries);
  }

  /** Sets the entry of a guest cluster. Its L2 table must be writable: {@link ensureTable}. */
  async set(cluster: number, entry: L2Entry): Promise<void> {
    const { l2Entries, l2EntrySize, extendedL2 } = this.#host.geometry;
    const index = cluster % l2Entries;
    const { number, first } = this.#sliceOf(index);
    const at = this.l1.l2Offset(Math.floor(cluster / l2Entries)) + number * this.#sliceSize;
    const page = await this.#host.cache.page(at, this.#sliceSize, Rank.L2);
    const within = (index - first) * l2EntrySize;
    page.view.setUint32(within, entry.hi >>> 0);
    page.view.setUint32(within + 4, entry.lo >>> 0);
    if (extendedL2) {
      page.view.setUint32(within + 8, entry.zeros >>> 0);
      page.view.setUint32(within + 12, entry.data >>> 0);
    }
    this.#host.cache.mark(page, within, within + l2EntrySize);
  }

  /** Makes the L2 table of a guest cluster one that this image owns alone: a new one, or a copy of a shared one. */
  async ensureTable(cluster: number): Promise<void> {
    const { cache, kinds, allocator, geometry, reach } = this.#host;
    const index = Math.floor(cluster / geometry.l2Entries);
    const old = this.l1.l2Offset(index);
    if (old !== 0 && this.l1.copied(index)) return;
    const { start } = await allocator.take(1);
    const table = start * geometry.clusterSize;
    await reach(table + geometry.clusterSize);
    kinds.claimNew(table, geometry.clusterSize, 'L2 table');
    for (let at = 0; at < geometry.clusterSize; at += this.#sliceSize) {
      const source = old === 0 ? null : (await cache.page(old + at, this.#sliceSize, Rank.L2)).bytes.slice();
      const page = cache.create(table + at, this.#sliceSize, Rank.L2);
      if (source !== null) page.bytes.set(source);
    }
    await this.setL1(index, table);
    if (old !== 0) allocator.give(old / geometry.clusterSize, 1);
  }

  /** Points an L1 entry to an L2 table, or to none. */
  async setL1(index: number, table: number): Promise<void> {
    const { cache, reach } = this.#host;
    const at = this.l1.entryOffset(index);
    await reach(at + 8);
    const pageAt = Math.floor(at / this.#sliceSize) * this.#sliceSize;
    const page: Page = await cache.page(pageAt, this.#sliceSize, Rank.L1);
    page.view.setUint32(at - pageAt, table === 0 ? 0 : (offsetHi(table) | COPIED) >>> 0);
    page.view.setUint32(at - pageAt + 4, offsetLo(table));
    cache.mark(page, at - pageAt, at - pageAt + 8);
    this.l1.set(index, table);
  }
}

/** The bitmap of all 32 subclusters. */
export const ALL = 0xffff_ffff;

/** The bitmap of subclusters `first` to `last`, both included. */
export function subclusters(first: number, last: number): number {
  return last - first === 31 ? ALL : ((2 ** (last - first + 1) - 1) * 2 ** first) >>> 0;
}

/** The entry of a cluster that was never written. */
export const NOWHERE: L2Entry = { hi: 0, lo: 0, zeros: 0, data: 0 };

/** An entry that points to a cluster of this image's own. */
export function pointTo(offset: number, zeros: number, data: number): L2Entry {
  return { hi: (offsetHi(offset) | COPIED) >>> 0, lo: offsetLo(offset), zeros, data };
}

/** Whether two entries are the same. */
export function sameEntry(a: L2Entry, b: L2Entry): boolean {
  return a.hi === b.hi && a.lo === b.lo && a.zeros === b.zeros && a.data === b.data;
}

/** The entry at byte `at` of a view. */
export function readEntry(view: DataView, at: number, extended: boolean): L2Entry {
  return {
    hi: view.getUint32(at),
    lo: view.getUint32(at + 4),
    zeros: extended ? view.getUint32(at + 8) : 0,
    data: extended ? view.getUint32(at + 12) : 0,
  };
}

/** Whether a cluster is compressed. */
export function isCompressed(entry: L2Entry): boolean {
  return (entry.hi & COMPRESSED) !== 0;
}

/** Whether a standard entry has the zero flag. */
export function hasZeroFlag(entry: L2Entry): boolean {
  return (entry.lo & ZERO) !== 0;
}

/** Whether what the entry points to belongs to this image alone. */
export function isCopied(entry: L2Entry): boolean {
  return (entry.hi & COPIED) !== 0;
}

/** Gives back what an entry points to: its cluster, or the clusters that its compressed stream touches. */
export function giveEntry(entry: L2Entry, geometry: Geometry, allocator: Allocator): void {
  const { clusterSize, clusterBits } = geometry;
  if (isCompressed(entry)) {
    const place = compressedPlace(entry.hi, entry.lo, clusterBits);
    if (place === null) return;
    const first = Math.floor(place.offset / clusterSize);
    allocator.give(first, Math.floor((place.offset + place.length - 1) / clusterSize) - first + 1);
    return;
  }
  const offset = offsetOf(entry.hi, entry.lo);
  if (offset !== 0) allocator.give(offset / clusterSize, 1);
}
