/** Runs pieces of work one after the other, in the order in which they were asked for. Not re-entrant. */
export class Mutex {
  #tail: Promise<unknown> = Promise.resolve();
  #pending = 0;

  /** No work runs or waits. */
  get isIdle(): boolean {
    return this.#pending === 0;
  }

  /** Runs `work` when all earlier work has ended, whether well or not, and gives its result. */
  run<T>(work: () => Promise<T>): Promise<T> {
    this.#pending++;
    const mine = this.#tail.then(work, work);
    const end = (): void => {
      this.#pending--;
    };
    this.#tail = mine.then(end, end);
    return mine;
  }
}
