import { sweep } from './sweep.ts';

/** A part of one or several L2 tables that the same L1 entries lead to. Host offsets in bytes. */
export interface L2Piece {
  readonly at: number;
  readonly end: number;
  /** L1 entries, of the active table and of snapshots, whose table covers the piece. */
  readonly all: number;
  /** Those of the active L1 table. */
  readonly active: number;
  /** Those of the active L1 table whose copied flags count: a table at offset 0 is none. */
  readonly flagged: number;
  /** Those of the active L1 table whose table starts with the piece. */
  readonly fresh: number;
  /** Where the table starts; of several, the last. */
  readonly table: number;
  /** Number of the first active L1 entry that points to it; -1: only snapshots do. */
  readonly l1Index: number;
}

/** Slots at the beginning. */
const INITIAL = 1024;

/**
 * The L2 tables of an image: each host offset once, with the number of L1 entries that point to it. A hash table on typed
 * arrays, because an image may have millions.
 */
export class L2Tables {
  #keys = new Float64Array(INITIAL).fill(-1);
  #active = new Uint32Array(INITIAL);
  #shared = new Float64Array(INITIAL);
  #first = new Int32Array(INITIAL).fill(-1);
  #size = 0;

  /** Different tables. */
  get size(): number {
    return this.#size;
  }

  /** Entry `index` of the active L1 table points to `offset`. */
  addActive(offset: number, index: number): void {
    const slot = this.#slot(offset);
    this.#active[slot] = (this.#active[slot] ?? 0) + 1;
    if (this.#first[slot] === -1) this.#first[slot] = index;
  }

  /** `times` entries of snapshots' L1 tables point to `offset`. */
  addShared(offset: number, times: number): void {
    const slot = this.#slot(offset);
    this.#shared[slot] = (this.#shared[slot] ?? 0) + times;
  }

  /** L1 entries that point to exactly this offset. */
  references(offset: number): number {
    const slot = this.#find(offset);
    return this.#keys[slot] === offset ? (this.#active[slot] ?? 0) + (this.#shared[slot] ?? 0) : 0;
  }

  /** The offsets of all tables, ascending. */
  offsets(): Float64Array {
    const sorted = new Float64Array(this.#size);
    let count = 0;
    for (const key of this.#keys) if (key >= 0) sorted[count++] = key;
    return sorted.sort();
  }

  /** The tables as pieces, ascending; tables that overlap (those not aligned can) are cut so that no byte comes twice. */
  *pieces(starts: Float64Array, clusterSize: number): Generator<L2Piece> {
    const ends = starts.map((start) => start + clusterSize);
    let active = 0;
    let all = 0;
    let flagged = 0;
    let opened = 0;
    let closed = 0;
    for (const segment of sweep(starts, ends)) {
      let fresh = 0;
      for (; opened < segment.opened; opened++) {
        const slot = this.#find(starts[opened] ?? 0);
        const own = this.#active[slot] ?? 0;
        fresh += own;
        all += own + (this.#shared[slot] ?? 0);
        if (starts[opened] !== 0) flagged += own;
      }
      active += fresh;
      for (; closed < segment.closed; closed++) {
        const slot = this.#find(starts[closed] ?? 0);
        const own = this.#active[slot] ?? 0;
        active -= own;
        all -= own + (this.#shared[slot] ?? 0);
        if (starts[closed] !== 0) flagged -= own;
      }
      const table = starts[opened - 1] ?? 0;
      const l1Index = this.#first[this.#find(table)] ?? -1;
      yield { at: segment.at, end: segment.end, all, active, flagged, fresh, table, l1Index };
    }
  }

  #slot(offset: number): number {
    let slot = this.#find(offset);
    if (this.#keys[slot] === offset) return slot;
    if (this.#size * 4 >= this.#keys.length * 3) {
      this.#grow();
      slot = this.#find(offset);
    }
    this.#keys[slot] = offset;
    this.#size++;
    return slot;
  }

  /** The slot that holds `offset`, or the free one where it belongs. */
  #find(offset: number): number {
    const mask = this.#keys.length - 1;
    const unit = offset / 512;
    const high = Math.floor(unit / 0x1_0000_0000);
    let hash = Math.imul((unit ^ high) | 0, 0x9e37_79b1);
    hash ^= hash >>> 15;
    let slot = hash & mask;
    while (this.#keys[slot] !== offset && this.#keys[slot] !== -1) slot = (slot + 1) & mask;
    return slot;
  }

  #grow(): void {
    const keys = this.#keys;
    const active = this.#active;
    const shared = this.#shared;
    const first = this.#first;
    const length = keys.length * 2;
    this.#keys = new Float64Array(length).fill(-1);
    this.#active = new Uint32Array(length);
    this.#shared = new Float64Array(length);
    this.#first = new Int32Array(length).fill(-1);
    keys.forEach((key, from) => {
      if (key < 0) return;
      const slot = this.#find(key);
      this.#keys[slot] = key;
      this.#active[slot] = active[from] ?? 0;
      this.#shared[slot] = shared[from] ?? 0;
      this.#first[slot] = first[from] ?? -1;
    });
  }
}
