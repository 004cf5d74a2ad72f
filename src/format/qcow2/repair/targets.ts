import { readTables, type Part } from '../check/read-tables.ts';
import { ReferenceCounts } from '../check/references.ts';
import type { RefcountBlock } from '../check/stored.ts';
import { getRefcount, maxRefcount } from '../refcount.ts';
import type { RepairMode } from './step.ts';
import type { Scan } from './scan.ts';

/** Where refcounts are written anew. */
export interface Place {
  readonly has: (cluster: number) => boolean;
}

/** What each refcount is to be, and each copied flag. */
export class Targets {
  readonly #scan: Scan;
  readonly #keeps: boolean;
  readonly #max: number;
  /** Refcounts that are not to be the number of references: that refcount and one. */
  readonly #other = new ReferenceCounts();
  #rebuilt: Place | null = null;

  private constructor(scan: Scan, keeps: boolean) {
    this.#scan = scan;
    this.#keeps = keeps;
    this.#max = maxRefcount(scan.context.metadata.geometry.refcountOrder);
  }

  /** Compares the refcounts of the image with the references. */
  static async of(scan: Scan, mode: RepairMode, keeps: boolean): Promise<Targets> {
    const targets = new Targets(scan, keeps);
    const { refcountOrder } = scan.context.metadata.geometry;
    // The references tell all that is needed.
    if (mode === 'all' && !keeps) return targets;
    const { context } = scan;
    for await (const parts of readTables(context.storage, trustedBlocks(scan), context.signal)) {
      for (const part of parts) {
        if (part.view === null) continue;
        const { first, count } = clustersOf(scan, part);
        for (let i = 0; i < count; i++) {
          const refcount = getRefcount(part.view, refcountOrder, i);
          const references = targets.references(first + i);
          const stays = refcount > references ? keeps : refcount < references && mode === 'leaks';
          if (stays) targets.#other.add(first + i, Math.min(refcount, targets.#max) + 1);
        }
      }
    }
    return targets;
  }

  /** From here on the refcount structures are those at a place. */
  rebuild(place: Place): void {
    this.#rebuilt = place;
  }

  /** References of a cluster once all is done. */
  references(cluster: number): number {
    const { context, own } = this.#scan;
    const references = context.references.get(cluster);
    if (this.#rebuilt === null) return references + own.get(cluster);
    const inside = this.#rebuilt.has(cluster) ? 1 : 0;
    // What lay past the end of the file may lie inside it once it has grown.
    return references + inside + context.beyond.get(cluster);
  }

  /** The refcount that a cluster shall have. */
  final(cluster: number): number {
    const other = this.#other.get(cluster);
    return other > 0 ? other - 1 : Math.min(this.references(cluster), this.#max);
  }

  /** What the copied flag of an active entry that points to a cluster shall be; null: it stays. */
  copied(cluster: number): boolean | null {
    const final = this.final(cluster);
    // Nobody looks at refcounts past the end of the file, so they stay.
    if (this.#rebuilt === null && cluster >= this.#scan.context.clusters)
      return this.#scan.stored.isOne(cluster) === 1 ? null : false;
    // Too many references for the refcount: neither value is right.
    if (this.references(cluster) > final) return null;
    if (final !== 1) return false;
    // An exclusive use must be certain: a missing flag costs a copy, a wrong one costs data.
    return !this.#keeps || this.#scan.stored.isOne(cluster) === 1 ? true : null;
  }

  /** The first cluster with more references than a refcount can hold. */
  overflow(): number | null {
    for (const cluster of this.used()) if (this.references(cluster) > this.#max) return cluster;
    return null;
  }

  /** Whether a cluster in use has no place for its refcount. */
  lacksBlocks(): boolean {
    const { stored, untrusted, context } = this.#scan;
    const perBlock = context.metadata.geometry.refcountsPerBlock;
    for (const cluster of this.used()) {
      const index = Math.floor(cluster / perBlock);
      if (index >= stored.entries || stored.offset(index) === 0 || untrusted.has(index)) return true;
    }
    return false;
  }

  /** All clusters that have references, or keep a refcount; some come twice. */
  *used(): Generator<number> {
    const { context, own } = this.#scan;
    for (const counts of [context.references, own, this.#other]) {
      for (const page of counts.pages()) {
        for (let cluster = page; cluster < page + counts.pageSize; cluster++)
          if (counts.get(cluster) > 0) yield cluster;
      }
    }
  }
}

/** The blocks that may be written to, by their place in the refcount table. */
export function* trustedBlocks(scan: Scan): Generator<RefcountBlock> {
  const { stored, untrusted, context } = scan;
  const { refcountsPerBlock, clusterSize } = context.metadata.geometry;
  const end = Math.min(stored.entries, Math.ceil(context.clusters / refcountsPerBlock));
  for (let index = 0; index < end; index++) {
    const at = stored.offset(index);
    if (at !== 0 && !untrusted.has(index)) yield { index, at, end: at + clusterSize };
  }
}

/** The clusters that a part of a block describes, as far as they are looked at. */
export function clustersOf(scan: Scan, part: Part<RefcountBlock>): { first: number; count: number } {
  const { refcountsPerBlock, clusterSize } = scan.context.metadata.geometry;
  const perByte = refcountsPerBlock / clusterSize;
  const first = part.piece.index * refcountsPerBlock + (part.at - part.piece.at) * perByte;
  return { first, count: Math.max(0, Math.min(part.length * perByte, scan.context.clusters - first)) };
}
