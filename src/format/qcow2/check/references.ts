import { SpindleError } from '../../../core/errors.ts';

/** Clusters of a page. */
const PAGE = 256;
/** Pages of a slab, which is allocated as one. */
const SLAB = 4096;
/** In a page: the count stands in the wide page. */
const WIDE = 255;
/** Bytes of counts at most, so clusters at most: the number that other implementations stop at, too. */
const BUDGET = 2 ** 31;

/**
 * How many references each host cluster has. Counts live in small pages that exist only where something was counted:
 * one byte a cluster, eight where a count reaches 255. Memory follows what is counted, not the offsets.
 */
export class ReferenceCounts {
  /** Page number to its place among all pages. */
  readonly #places = new Map<number, number>();
  readonly #slabs: Uint8Array[] = [];
  readonly #wide = new Map<number, Float64Array>();
  #used = 0;
  // The page used last, its slab, and where it starts there.
  #page = -1;
  #slab: Uint8Array = new Uint8Array(0);
  #base = 0;

  /** Adds `times` references to a cluster. @throws SpindleError LIMIT when the counts take too much memory */
  add(cluster: number, times: number): void {
    const page = Math.floor(cluster / PAGE);
    if (page !== this.#page && !this.#seek(page)) this.#create(page);
    const at = this.#base + (cluster - page * PAGE);
    const count = (this.#slab[at] ?? 0) + times;
    if (count < WIDE) this.#slab[at] = count;
    else this.#addWide(page, cluster - page * PAGE, at, times);
  }

  /** The references of a cluster. */
  get(cluster: number): number {
    const page = Math.floor(cluster / PAGE);
    if (page !== this.#page && !this.#seek(page)) return 0;
    const within = cluster - page * PAGE;
    const count = this.#slab[this.#base + within] ?? 0;
    return count === WIDE ? (this.#wide.get(page)?.[within] ?? 0) : count;
  }

  /** The first cluster of each page with counts; pages hold {@link pageSize} clusters. */
  *pages(): Generator<number> {
    for (const page of this.#places.keys()) yield page * PAGE;
  }

  /** Clusters of a page. */
  readonly pageSize = PAGE;

  #seek(page: number): boolean {
    const place = this.#places.get(page);
    if (place === undefined) return false;
    this.#page = page;
    this.#slab = this.#slabs[Math.floor(place / SLAB)] ?? new Uint8Array(0);
    this.#base = (place % SLAB) * PAGE;
    return true;
  }

  #create(page: number): void {
    this.#spend(PAGE);
    const place = this.#places.size;
    if (place % SLAB === 0) this.#slabs.push(new Uint8Array(SLAB * PAGE));
    this.#places.set(page, place);
    this.#seek(page);
  }

  #addWide(page: number, within: number, at: number, times: number): void {
    let counts = this.#wide.get(page);
    if (counts === undefined) {
      this.#spend(PAGE * 8);
      counts = new Float64Array(PAGE);
      this.#wide.set(page, counts);
    }
    const before = this.#slab[at] ?? 0;
    if (before !== WIDE) counts[within] = before;
    counts[within] = (counts[within] ?? 0) + times;
    this.#slab[at] = WIDE;
  }

  #spend(bytes: number): void {
    this.#used += bytes;
    if (this.#used > BUDGET)
      throw new SpindleError('LIMIT', 'more host clusters in use than a check can count (2^31)');
  }
}
