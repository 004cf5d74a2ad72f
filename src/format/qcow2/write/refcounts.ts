import { divUp, isAligned } from '../../../core/align.ts';
import { setU64, viewOf } from '../../../core/bytes.ts';
import { formatError, SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import type { Geometry } from '../geometry.ts';
import { HeaderOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import { refcountBlockOffset } from '../refcount-table.ts';
import { getRefcount, maxRefcount, setRefcount } from '../refcount.ts';
import { Rank, type OrderedCache, type Page } from './ordered-cache.ts';
import type { ClusterKinds } from './cluster-kinds.ts';

/** What the refcounts need of the image around them. */
export interface RefcountsHost {
  readonly storage: Storage;
  readonly geometry: Geometry;
  readonly cache: OrderedCache;
  readonly kinds: ClusterKinds;
  /** Makes the file long enough for a write that ends at `end`. */
  readonly reach: (end: number) => Promise<void>;
}

/**
 * The refcounts of an image: reading, changing, and the blocks and the table that hold them. A new block always lies at
 * the first cluster of the range that it describes, which is free because nothing described it before; so it describes
 * itself, and making one needs no other. Runs under the mutex of the image.
 */
export class Refcounts {
  readonly #host: RefcountsHost;
  readonly #max: number;
  #tableOffset: number;
  #tableClusters: number;
  /** The refcount table in memory; its changes go through the cache. */
  #table: DataView;

  constructor(host: RefcountsHost, tableOffset: number, table: Uint8Array) {
    this.#host = host;
    this.#max = maxRefcount(host.geometry.refcountOrder);
    this.#tableOffset = tableOffset;
    this.#tableClusters = table.length / host.geometry.clusterSize;
    this.#table = viewOf(table);
  }

  /** The largest refcount that the width of the image holds. */
  get max(): number {
    return this.#max;
  }

  /** Where the refcount table lies. */
  get table(): { readonly offset: number; readonly clusters: number } {
    return { offset: this.#tableOffset, clusters: this.#tableClusters };
  }

  /** Clusters from 0 on that the table can describe. */
  get covered(): number {
    return (this.#table.byteLength / TABLE_ENTRY) * this.#host.geometry.refcountsPerBlock;
  }

  #blockOffset(index: number): number {
    if ((index + 1) * TABLE_ENTRY > this.#table.byteLength) return 0;
    const offset = refcountBlockOffset(this.#table, index);
    if (offset !== 0 && !isAligned(offset, this.#host.geometry.clusterSize)) {
      throw formatError('BAD_ENTRY', 'refcount table', 'a refcount block that is not cluster aligned', {
        offset: this.#tableOffset + index * TABLE_ENTRY,
      });
    }
    return offset;
  }

  /** Host offset of refcount block number `index`, 0 where there is none. @throws SpindleError BAD_ENTRY */
  blockAt(index: number): number {
    return this.#blockOffset(index);
  }

  /** Copies the refcount table to the start of `bytes`, which is at least as long. */
  copyTable(bytes: Uint8Array): void {
    bytes.set(new Uint8Array(this.#table.buffer, this.#table.byteOffset, this.#table.byteLength));
  }

  #block(index: number): Page | Promise<Page> | null {
    const offset = this.#blockOffset(index);
    return offset === 0
      ? null
      : this.#host.cache.page(offset, this.#host.geometry.clusterSize, Rank.REFCOUNT_BLOCK);
  }

  /** Looks up many refcounts while nothing changes them: fast where they lie near each other. */
  scan(): RefcountScan {
    return new RefcountScan((index) => this.#block(index), this.#host.geometry);
  }

  /** The refcount of a cluster. */
  async get(cluster: number): Promise<number> {
    const { refcountsPerBlock, refcountOrder } = this.#host.geometry;
    const index = Math.floor(cluster / refcountsPerBlock);
    const block = await this.#block(index);
    return block === null ? 0 : getRefcount(block.view, refcountOrder, cluster - index * refcountsPerBlock);
  }

  /** The refcount blocks there are: which clusters each describes, and where it lies. */
  blocks(): { readonly index: number; readonly offset: number }[] {
    const found: { index: number; offset: number }[] = [];
    for (let index = 0; index < this.#table.byteLength / TABLE_ENTRY; index++) {
      const offset = this.#blockOffset(index);
      if (offset !== 0) found.push({ index, offset });
    }
    return found;
  }

  /**
   * The refcounts of the clusters from `index` times {@link perBlock} on, null where no block describes them. Worthless
   * after the next wait.
   */
  async counts(index: number): Promise<DataView | null> {
    const block = await this.#block(index);
    return block === null ? null : block.view;
  }

  /**
   * The first run of free clusters at or after `from`: 1 to `most` of them. Every cluster that nothing describes is
   * free.
   */
  async findFree(from: number, most: number): Promise<{ readonly start: number; readonly count: number }> {
    const { refcountsPerBlock, refcountOrder } = this.#host.geometry;
    if (from === 0 && (await this.get(0)) === 0) {
      throw formatError('CORRUPT', 'header', 'it is counted as free; check the image', { offset: 0 });
    }
    for (let cluster = from; ;) {
      const index = Math.floor(cluster / refcountsPerBlock);
      const first = index * refcountsPerBlock;
      const block = await this.#block(index);
      if (block === null) {
        // A block will be made at the start of the range, so what is free for others begins after it.
        const start = cluster === first ? first + 1 : cluster;
        return { start, count: Math.min(most, first + refcountsPerBlock - start) };
      }
      while (
        cluster < first + refcountsPerBlock &&
        getRefcount(block.view, refcountOrder, cluster - first) !== 0
      )
        cluster++;
      if (cluster === first + refcountsPerBlock) continue;
      let count = 1;
      while (
        count < most &&
        cluster + count < first + refcountsPerBlock &&
        getRefcount(block.view, refcountOrder, cluster + count - first) === 0
      ) {
        count++;
      }
      return { start: cluster, count };
    }
  }

  /**
   * Adds `delta` to the refcounts of `count` clusters, which blocks must describe.
   * @throws SpindleError LIMIT when one would pass the largest, CORRUPT when one would go below zero; what came before
   * it is changed already, so ask {@link room} where that matters
   */
  async change(start: number, count: number, delta: 1 | -1): Promise<void> {
    const { refcountsPerBlock, refcountOrder } = this.#host.geometry;
    for (let cluster = start; cluster < start + count;) {
      const index = Math.floor(cluster / refcountsPerBlock);
      const first = index * refcountsPerBlock;
      const end = Math.min(start + count, first + refcountsPerBlock);
      const block = await this.#block(index);
      if (block === null) throw this.#corrupt(cluster);
      for (let at = cluster; at < end; at++) {
        const value = getRefcount(block.view, refcountOrder, at - first) + delta;
        if (value < 0) throw this.#corrupt(at);
        if (value > this.#max) throw this.#overflow();
        setRefcount(block.view, refcountOrder, at - first, value);
      }
      const bits = this.#host.geometry.refcountBits;
      const from = Math.floor(((cluster - first) * bits) / 8);
      this.#host.cache.mark(block, from, Math.ceil(((end - first) * bits) / 8));
      cluster = end;
    }
  }

  /** Whether the refcount of a cluster can be raised by one. */
  async room(cluster: number): Promise<boolean> {
    return (await this.get(cluster)) < this.#max;
  }

  /**
   * Makes the blocks that describe a range. True when one had to be made: then the table may have moved, and what was
   * free before may not be any more.
   */
  async describe(start: number, count: number): Promise<boolean> {
    const { refcountsPerBlock } = this.#host.geometry;
    let made = false;
    const last = Math.floor((start + count - 1) / refcountsPerBlock);
    for (let index = Math.floor(start / refcountsPerBlock); index <= last; index++) {
      if (this.#blockOffset(index) !== 0) continue;
      await this.#makeBlock(index);
      made = true;
    }
    return made;
  }

  async #makeBlock(index: number): Promise<void> {
    const { cache, kinds, geometry, reach } = this.#host;
    const { clusterSize, refcountsPerBlock, refcountOrder, refcountBits } = geometry;
    if ((index + 1) * TABLE_ENTRY > this.#table.byteLength) await this.#growTable(index + 1);
    if (this.#blockOffset(index) !== 0) return;
    const offset = index * refcountsPerBlock * clusterSize;
    await reach(offset + clusterSize);
    kinds.claimNew(offset, clusterSize, 'refcount block');
    const block = cache.create(offset, clusterSize, Rank.REFCOUNT_BLOCK);
    setRefcount(block.view, refcountOrder, 0, 1);
    cache.mark(block, 0, Math.ceil(refcountBits / 8));
    await this.#setTableEntry(index, offset);
  }

  /** Clusters that one block describes. It lies among them, so that longer runs need {@link takeBehind}. */
  get perBlock(): number {
    return this.#host.geometry.refcountsPerBlock;
  }

  /**
   * Takes `count` clusters in one run behind all that is described, with refcounts of one; the blocks that describe them
   * lie together in front. The first cluster of the run.
   */
  async takeBehind(count: number): Promise<number> {
    const { cache, kinds, geometry, reach } = this.#host;
    const { clusterSize, refcountsPerBlock, refcountOrder } = geometry;
    let blocks = 0;
    for (let next = 1; next !== blocks; next = divUp(count + blocks, refcountsPerBlock)) blocks = next;
    let first = 0;
    for (;;) {
      first = this.#table.byteLength / TABLE_ENTRY;
      while (first > 0 && this.#blockOffset(first - 1) === 0) first--;
      if ((first + blocks) * TABLE_ENTRY <= this.#table.byteLength) break;
      await this.#growTable(first + blocks + 1);
    }
    const start = first * refcountsPerBlock;
    await reach((start + blocks + count) * clusterSize);
    for (let i = 0; i < blocks; i++) {
      const offset = (start + i) * clusterSize;
      kinds.claimNew(offset, clusterSize, 'refcount block');
      const block = cache.create(offset, clusterSize, Rank.REFCOUNT_BLOCK);
      const used = Math.max(0, Math.min(refcountsPerBlock, blocks + count - i * refcountsPerBlock));
      for (let k = 0; k < used; k++) setRefcount(block.view, refcountOrder, k, 1);
      cache.mark(block, 0, clusterSize);
      await this.#setTableEntry(first + i, offset);
    }
    return start + blocks;
  }

  async #setTableEntry(index: number, offset: number): Promise<void> {
    const { cache, geometry } = this.#host;
    const at = index * TABLE_ENTRY;
    const pageAt = Math.floor(at / geometry.clusterSize) * geometry.clusterSize;
    const page = await cache.page(this.#tableOffset + pageAt, geometry.clusterSize, Rank.REFCOUNT_TABLE);
    setU64(page.view, at - pageAt, offset);
    cache.mark(page, at - pageAt, at - pageAt + TABLE_ENTRY);
    setU64(this.#table, at, offset);
  }

  /**
   * Moves the refcount table to a place where it has room for at least `entries` entries: to the first cluster that
   * nothing describes, with the blocks that describe the new table in front of it. The header is switched when all of
   * that is durable, and the old table is given up after that.
   */
  async #growTable(entries: number): Promise<void> {
    const { storage, cache, kinds, geometry, reach } = this.#host;
    const { clusterSize, refcountsPerBlock, refcountOrder } = geometry;
    // The new table goes to the disk as it is in memory, with all the blocks that it names.
    await cache.flushAll();
    const start = this.covered;
    let blocks = 0;
    let clusters = 0;
    for (;;) {
      const last = Math.max(entries, divUp(start + blocks + clusters, refcountsPerBlock));
      const wanted = divUp(
        Math.max(last, Math.ceil(((start / refcountsPerBlock) * 3) / 2)) * TABLE_ENTRY,
        clusterSize,
      );
      const needed = divUp(start + blocks + wanted, refcountsPerBlock) - start / refcountsPerBlock;
      if (wanted === clusters && needed === blocks) break;
      clusters = wanted;
      blocks = needed;
    }
    if (clusters * clusterSize > Limit.REFCOUNT_TABLE) {
      throw new SpindleError(
        'LIMIT',
        'the refcount table cannot grow beyond 8 MiB: the image is as large as it can be',
      );
    }
    const table = new Uint8Array(clusters * clusterSize);
    table.set(new Uint8Array(this.#table.buffer, this.#table.byteOffset, this.#table.byteLength));
    const view = viewOf(table);
    const offset = start * clusterSize;
    await reach(offset + (blocks + clusters) * clusterSize);
    for (let i = 0; i < blocks; i++) {
      const block = new Uint8Array(clusterSize);
      const used = Math.max(0, Math.min(refcountsPerBlock, blocks + clusters - i * refcountsPerBlock));
      for (let k = 0; k < used; k++) setRefcount(viewOf(block), refcountOrder, k, 1);
      await storage.write(block, offset + i * clusterSize);
      setU64(view, (start / refcountsPerBlock + i) * TABLE_ENTRY, offset + i * clusterSize);
      kinds.claimNew(offset + i * clusterSize, clusterSize, 'refcount block');
    }
    const tableOffset = offset + blocks * clusterSize;
    await storage.write(table, tableOffset);
    kinds.claimNew(tableOffset, table.length, 'refcount table');
    await storage.flush();
    const switched = new Uint8Array(12);
    setU64(viewOf(switched), 0, tableOffset);
    viewOf(switched).setUint32(8, clusters);
    await storage.write(switched, HeaderOffset.refcountTableOffset);
    await storage.flush();
    const old = this.table;
    cache.drop(old.offset, old.clusters * clusterSize);
    kinds.release(old.offset, old.clusters * clusterSize);
    this.#table = view;
    this.#tableOffset = tableOffset;
    this.#tableClusters = clusters;
    await this.change(old.offset / clusterSize, old.clusters, -1);
  }

  #overflow(): SpindleError {
    const bits = String(this.#host.geometry.refcountBits);
    return new SpindleError(
      'LIMIT',
      `a refcount of ${bits} bits cannot count another reference; the image needs wider refcounts`,
    );
  }

  #corrupt(cluster: number): SpindleError {
    return formatError(
      'CORRUPT',
      'refcount',
      'a cluster that is in use is counted as free; check the image',
      {
        offset: cluster * this.#host.geometry.clusterSize,
      },
    );
  }
}

/** See {@link Refcounts.scan}. */
export class RefcountScan {
  readonly #load: (index: number) => Page | Promise<Page> | null;
  readonly #geometry: Geometry;
  #index = -1;
  #view: DataView | null = null;

  constructor(load: (index: number) => Page | Promise<Page> | null, geometry: Geometry) {
    this.#load = load;
    this.#geometry = geometry;
  }

  /** The refcount of a cluster; synchronous where it stands in the same block as the one before. */
  get(cluster: number): number | Promise<number> {
    const { refcountsPerBlock, refcountOrder } = this.#geometry;
    const index = Math.floor(cluster / refcountsPerBlock);
    if (index !== this.#index) return this.#next(index, cluster);
    return this.#view === null
      ? 0
      : getRefcount(this.#view, refcountOrder, cluster - index * refcountsPerBlock);
  }

  async #next(index: number, cluster: number): Promise<number> {
    this.#view = (await this.#load(index))?.view ?? null;
    this.#index = index;
    return this.get(cluster);
  }
}
