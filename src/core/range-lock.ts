/** `shared` holders of overlapping ranges run together; an `exclusive` one runs alone on its range. */
export type LockMode = 'shared' | 'exclusive';

/** A range that is held, until it is released. */
export interface Held {
  readonly at: number;
  readonly end: number;
  readonly exclusive: boolean;
  /** Earlier holders that must leave first. */
  blockers: number;
  /** Later holders that wait for this one. */
  readonly waiters: Held[];
  start: (() => void) | undefined;
}

/**
 * Serialises work on overlapping ranges of bytes and lets work on disjoint ones run together.
 *
 * Fair: work waits for all conflicting work that came before it, running or waiting, and for nothing that came after,
 * so a stream of shared holders cannot starve an exclusive one. Not re-entrant: work that asks for a conflicting range
 * again waits for itself for ever.
 */
export class RangeLock {
  readonly #holders = new Set<Held>();

  /**
   * Runs `work` while holding `length` bytes at `at`, and gives its result. An empty range waits for nothing; for
   * "everything from here" pass a length of Infinity.
   */
  async run<T>(at: number, length: number, mode: LockMode, work: () => Promise<T>): Promise<T> {
    const holder = this.#enter(at, length, mode === 'exclusive');
    if (holder.blockers > 0) {
      await new Promise<void>((resolve) => {
        holder.start = resolve;
      });
    }
    try {
      return await work();
    } finally {
      this.#leave(holder);
    }
  }

  /** Whether work on a range could begin now. */
  isFree(at: number, length: number, mode: LockMode): boolean {
    if (this.#holders.size === 0) return true;
    const asked = { at, end: at + length, exclusive: mode === 'exclusive' };
    for (const holder of this.#holders) if (conflict(holder, asked)) return false;
    return true;
  }

  /** Holds a range if that can begin now; to be given to {@link release}. */
  tryHold(at: number, length: number, mode: LockMode): Held | undefined {
    if (!this.isFree(at, length, mode)) return undefined;
    const exclusive = mode === 'exclusive';
    const held: Held = { at, end: at + length, exclusive, blockers: 0, waiters: [], start: undefined };
    if (length > 0) this.#holders.add(held);
    return held;
  }

  /** Ends what {@link tryHold} began. */
  release(held: Held): void {
    this.#leave(held);
  }

  #enter(at: number, length: number, exclusive: boolean): Held {
    const holder: Held = { at, end: at + length, exclusive, blockers: 0, waiters: [], start: undefined };
    for (const earlier of this.#holders) {
      if (conflict(earlier, holder)) {
        earlier.waiters.push(holder);
        holder.blockers++;
      }
    }
    if (length > 0) this.#holders.add(holder);
    return holder;
  }

  #leave(holder: Held): void {
    this.#holders.delete(holder);
    for (const waiter of holder.waiters) {
      waiter.blockers--;
      if (waiter.blockers === 0) waiter.start?.();
    }
  }
}

/** What counts in a conflict. */
type Span = Pick<Held, 'at' | 'end' | 'exclusive'>;

function conflict(a: Span, b: Span): boolean {
  return (a.exclusive || b.exclusive) && a.at < b.end && b.at < a.end && b.at < b.end;
}
