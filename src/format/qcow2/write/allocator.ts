import { SpindleError } from '../../../core/errors.ts';
import type { Refcounts } from './refcounts.ts';

/** A run of host clusters. */
export interface ClusterRun {
  readonly start: number;
  readonly count: number;
}

/**
 * Takes and gives clusters. What is given back is not free at once: its refcount is lowered only when the tables that
 * dropped it are durable, so that a power cut can leak clusters but never leave a table pointing at one that was given
 * to somebody else. Runs under the mutex of the image.
 */
export class Allocator {
  readonly #refcounts: Refcounts;
  /** No cluster below is free. */
  #cursor = 0;
  #given: ClusterRun[] = [];

  constructor(refcounts: Refcounts) {
    this.#refcounts = refcounts;
  }

  /** Clusters given back that still count as used. */
  get pending(): number {
    return this.#given.length;
  }

  /** Takes a run of 1 to `most` clusters, the first there is, with refcounts of one. */
  async take(most: number): Promise<ClusterRun> {
    for (;;) {
      const run = await this.#refcounts.findFree(this.#cursor, most);
      if (await this.#refcounts.describe(run.start, run.count)) continue;
      await this.#refcounts.change(run.start, run.count, 1);
      this.#cursor = run.start + run.count;
      return run;
    }
  }

  /** Takes `count` clusters in one run, for a table. Smaller gaps stay free. */
  async takeTogether(count: number): Promise<ClusterRun> {
    if (count >= this.#refcounts.perBlock) return { start: await this.#refcounts.takeBehind(count), count };
    let from = this.#cursor;
    let start = from;
    let length = 0;
    for (;;) {
      const found = await this.#refcounts.findFree(from, count);
      if (length > 0 && found.start === start + length) length = Math.min(count, length + found.count);
      else {
        start = found.start;
        length = found.count;
      }
      from = found.start + found.count;
      if (length < count) continue;
      if (await this.#refcounts.describe(start, count)) {
        from = this.#cursor;
        length = 0;
        continue;
      }
      await this.#refcounts.change(start, count, 1);
      if (start === this.#cursor) this.#cursor = start + count;
      return { start, count };
    }
  }

  /** Adds a reference to clusters in use. @throws SpindleError LIMIT before anything is changed */
  async share(run: ClusterRun): Promise<void> {
    for (let cluster = run.start; cluster < run.start + run.count; cluster++) {
      if (await this.#refcounts.room(cluster)) continue;
      throw new SpindleError('LIMIT', 'the refcounts of the image are too narrow for another reference');
    }
    await this.#refcounts.change(run.start, run.count, 1);
  }

  /** Gives a reference back, when the tables that no longer have it are durable. */
  give(start: number, count: number): void {
    const last = this.#given[this.#given.length - 1];
    if (last !== undefined && last.start + last.count === start) {
      this.#given[this.#given.length - 1] = { start: last.start, count: last.count + count };
    } else this.#given.push({ start, count });
  }

  /** Takes back what was taken and never pointed to: nothing has to become durable before. */
  async takeBack(run: ClusterRun): Promise<void> {
    await this.#refcounts.change(run.start, run.count, -1);
    this.#cursor = Math.min(this.#cursor, run.start);
  }

  /**
   * Lowers the refcounts of all that was given back. Call it when all tables are durable. `freed` hears of each run of
   * clusters that is free then, before anybody can take it.
   */
  async settle(freed: (run: ClusterRun) => Promise<void>): Promise<void> {
    const given = this.#given;
    this.#given = [];
    for (const { start, count } of given) {
      for (let cluster = start; cluster < start + count;) {
        if ((await this.#refcounts.get(cluster)) !== 1) {
          await this.#refcounts.change(cluster, 1, -1);
          cluster++;
          continue;
        }
        let end = cluster + 1;
        while (end < start + count && (await this.#refcounts.get(end)) === 1) end++;
        const run = { start: cluster, count: end - cluster };
        await freed(run);
        await this.#refcounts.change(run.start, run.count, -1);
        this.#cursor = Math.min(this.#cursor, run.start);
        cluster = end;
      }
    }
  }
}
