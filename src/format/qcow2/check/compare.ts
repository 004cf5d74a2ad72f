import { hex } from '../../../core/bytes.ts';
import { getRefcount } from '../refcount.ts';
import type { CheckContext } from './context.ts';
import { readTables, type Part } from './read-tables.ts';
import type { RefcountBlock, StoredRefcounts } from './stored.ts';

/** Checks the refcount table and counts its blocks. Must follow all other counting. */
export function checkRefcountBlocks(context: CheckContext, stored: StoredRefcounts): void {
  const { clusterSize } = context.metadata.geometry;
  const { log } = context;
  for (let index = 0; index < stored.entries; index++) {
    const at = stored.offset(index);
    const entry = `refcount table entry ${String(index)}`;
    if (stored.isReserved(index)) {
      log.corruption(1, () => ({
        code: 'REFTABLE_RESERVED',
        structure: 'refcount table',
        message: `${entry}: reserved bits are set in ${stored.text(index)}`,
        hostOffset: at,
        repair: 'rebuild',
      }));
    } else if (!stored.isAligned(index)) {
      log.corruption(1, () => ({
        code: 'REFBLOCK_UNALIGNED',
        structure: 'refcount table',
        message: `${entry}: the refcount block at ${hex(at)} is not cluster aligned`,
        hostOffset: at,
        repair: 'rebuild',
      }));
    } else if (at / clusterSize >= context.clusters) {
      log.corruption(1, () => ({
        code: 'REFBLOCK_BEYOND_END',
        structure: 'refcount table',
        message: `${entry}: the refcount block at ${hex(at)} lies past the end of the file`,
        hostOffset: at,
        repair: 'rebuild',
      }));
    } else if (at !== 0) {
      context.count('refcount block', at, clusterSize, 1);
      const references = context.references.get(at / clusterSize);
      if (context.clip(references) === 1) continue;
      log.corruption(1, () => ({
        code: 'REFBLOCK_SHARED',
        structure: 'refcount block',
        message: `${entry}: the refcount block at ${hex(at)} has ${String(references)} references; it must have 1`,
        hostOffset: at,
        repair: 'rebuild',
      }));
    }
  }
}

/**
 * Compares the refcounts of the image with the references counted. Returns the number of the last cluster in use, 0 when
 * there is none.
 */
export async function compareRefcounts(
  context: CheckContext,
  stored: StoredRefcounts,
  onRead: (bytes: number) => void,
): Promise<number> {
  const comparison = new Comparison(context);
  const blocks = stored.filled(context.clusters);
  for await (const parts of readTables(context.storage, blocks, context.signal)) {
    for (const part of parts) {
      if (part.view === null) stored.setUnreadable(part.piece.index);
      else comparison.block(part, part.view);
      onRead(part.length);
    }
  }
  comparison.withoutBlock(stored);
  comparison.unreadable(stored);
  comparison.overflows();
  return comparison.highest;
}

/** Clusters that are looked at together where there is no refcount block: the fewest that one block describes. */
const RUN = 64;

class Comparison {
  highest = 0;
  readonly #context: CheckContext;
  readonly #perBlock: number;

  constructor(context: CheckContext) {
    this.#context = context;
    this.#perBlock = context.metadata.geometry.refcountsPerBlock;
  }

  /** Clusters whose refcounts stand in (a part of) a block. */
  block(part: Part<RefcountBlock>, view: DataView): void {
    const { references, clusters } = this.#context;
    const { refcountOrder, clusterSize } = this.#context.metadata.geometry;
    const perByte = this.#perBlock / clusterSize;
    const first = part.piece.index * this.#perBlock + (part.at - part.piece.at) * perByte;
    const count = Math.min(part.length * perByte, clusters - first);
    for (let i = 0; i < count; i++) {
      const refcount = getRefcount(view, refcountOrder, i);
      const counted = references.get(first + i);
      if (refcount === 0 && counted === 0) continue;
      if (first + i > this.highest) this.highest = first + i;
      if (refcount !== counted) this.#differ(first + i, refcount, counted);
    }
  }

  /** Clusters without a block, or with one that is all zeroes: their refcounts are 0. */
  withoutBlock(stored: StoredRefcounts): void {
    const { references } = this.#context;
    for (const page of references.pages()) {
      for (let first = page; first < page + references.pageSize; first += RUN) {
        const index = Math.floor(first / this.#perBlock);
        if (stored.isFilled(index) || stored.isUnreadable(index)) continue;
        for (let cluster = first; cluster < first + RUN; cluster++) {
          const counted = references.get(cluster);
          if (counted === 0) continue;
          if (cluster > this.highest) this.highest = cluster;
          this.#differ(cluster, 0, counted);
        }
      }
    }
  }

  /** Clusters whose refcounts cannot be read; each counts as an error of the check. */
  unreadable(stored: StoredRefcounts): void {
    const { clusters, log } = this.#context;
    const { clusterSize } = this.#context.metadata.geometry;
    const end = Math.min(stored.entries, Math.ceil(clusters / this.#perBlock));
    for (let index = 0; index < end; index++) {
      if (!stored.isUnreadable(index)) continue;
      const first = index * this.#perBlock;
      const count = Math.min(this.#perBlock, clusters - first);
      log.error(count, () => ({
        code: 'REFCOUNT_UNREADABLE',
        structure: 'refcount block',
        message: `refcount table entry ${String(index)}: the refcounts of ${String(count)} clusters from host offset ${hex(first * clusterSize)} on cannot be read`,
        hostOffset: first * clusterSize,
        repair: 'rebuild',
      }));
    }
  }

  /** References beyond what a refcount can hold; each one too many counts. */
  overflows(): void {
    const { references, log } = this.#context;
    const { clusterSize, refcountBits } = this.#context.metadata.geometry;
    const max = this.#context.clip(Infinity);
    if (refcountBits > 32) return;
    for (const page of references.pages()) {
      for (let cluster = page; cluster < page + references.pageSize; cluster++) {
        const counted = references.get(cluster);
        if (counted <= max) continue;
        log.corruption(counted - max, () => ({
          code: 'REFERENCE_OVERFLOW',
          structure: 'cluster',
          message: `cluster at ${hex(cluster * clusterSize)}: ${String(counted)} references, but a refcount of ${String(refcountBits)} bits counts to ${String(max)}`,
          hostOffset: cluster * clusterSize,
          repair: 'none',
        }));
      }
    }
  }

  #differ(cluster: number, refcount: number, counted: number): void {
    const { log, complete } = this.#context;
    const references = this.#context.clip(counted);
    if (refcount === references) return;
    const hostOffset = cluster * this.#context.metadata.geometry.clusterSize;
    const message = (): string =>
      `cluster at ${hex(hostOffset)}: refcount ${String(refcount)}, but ${String(counted)} references`;
    if (refcount < references) {
      log.corruption(1, () => ({
        code: 'REFCOUNT_TOO_LOW',
        structure: 'cluster',
        message: message(),
        hostOffset,
        repair: refcount === 0 ? 'rebuild' : 'refcount',
      }));
      return;
    }
    // What could not be read may hold the missing references: freeing the cluster would lose data.
    if (!complete) return;
    log.leak(1, () => ({
      code: 'REFCOUNT_TOO_HIGH',
      structure: 'cluster',
      message: message(),
      hostOffset,
      repair: 'refcount',
    }));
  }
}
