/** Clusters that share one array. */
const PAGE = 1024;
/** Clusters that change at once when nobody says otherwise: 8 MiB of memory, and tens of MiB of new tables at most. */
const MOST = 2 * 1024 * 1024;

/** Changes to refcounts that are yet to be made: 4 bytes a cluster, in pages that exist where something changes. */
export class Deltas {
  readonly #perBlock: number;
  readonly #pages = new Map<number, Int32Array>();
  readonly #blocks = new Set<number>();
  /** Numbers of the refcount blocks in which something changes, in the order in which that began; only ever grows. */
  readonly blocks: number[] = [];

  readonly #most: number;

  /** `perBlock` is how many refcounts a refcount block holds, `most` how many clusters there is room for. */
  constructor(perBlock: number, most = MOST) {
    this.#perBlock = perBlock;
    this.#most = most;
  }

  /** Whether the changes should be applied before there are more. */
  get full(): boolean {
    return this.#pages.size * PAGE > this.#most;
  }

  /** Adds `delta` to the change of a cluster. */
  add(cluster: number, delta: number): void {
    const number = Math.floor(cluster / PAGE);
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = new Int32Array(PAGE);
      this.#pages.set(number, page);
    }
    const within = cluster - number * PAGE;
    page[within] = (page[within] ?? 0) + delta;
    const block = Math.floor(cluster / this.#perBlock);
    if (this.#blocks.has(block)) return;
    this.#blocks.add(block);
    this.blocks.push(block);
  }

  /** The change of a cluster. */
  get(cluster: number): number {
    const number = Math.floor(cluster / PAGE);
    return this.#pages.get(number)?.[cluster - number * PAGE] ?? 0;
  }

  /** The changes in refcount block number `index`: the number of the cluster within the block, and what is added. */
  *inBlock(index: number): Generator<readonly [number, number]> {
    const first = index * this.#perBlock;
    const end = first + this.#perBlock;
    for (let start = first; start < end;) {
      const number = Math.floor(start / PAGE);
      const pageEnd = Math.min(end, (number + 1) * PAGE);
      const page = this.#pages.get(number);
      for (let cluster = start; page !== undefined && cluster < pageEnd; cluster++) {
        const delta = page[cluster - number * PAGE] ?? 0;
        if (delta !== 0) yield [cluster - first, delta];
      }
      start = pageEnd;
    }
  }
}
