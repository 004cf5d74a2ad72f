/** How much an {@link Lru} keeps. */
export interface LruOptions<V> {
  /** The sum of costs to stay within: entries, or bytes when `cost` gives bytes. */
  readonly budget: number;
  /** What a value costs. Default: 1, so that `budget` counts entries. Asked once, when the value is kept. */
  readonly cost?: (value: V) => number;
}

interface Entry<V> {
  readonly value: V;
  readonly cost: number;
}

/**
 * A map from numbers to values that forgets the least recently used when its budget is spent. Values come through
 * {@link Lru.load}, which reads each missing key once however many ask for it at the same time.
 *
 * The newest value is kept even when it alone costs more than the budget, so that what was just loaded can be peeked.
 */
export class Lru<V> {
  /** In order of use: the first is the next to go. */
  readonly #entries = new Map<number, Entry<V>>();
  readonly #loading = new Map<number, Promise<V>>();
  readonly #budget: number;
  readonly #costOf: (value: V) => number;
  #cost = 0;
  #newest: number | undefined;

  constructor(options: LruOptions<V>) {
    this.#budget = options.budget;
    this.#costOf = options.cost ?? (() => 1);
  }

  /** How many values are kept. */
  get size(): number {
    return this.#entries.size;
  }

  /** What the kept values cost together. */
  get cost(): number {
    return this.#cost;
  }

  /** The value of `key` when it is kept; that counts as a use. */
  peek(key: number): V | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    if (key !== this.#newest) {
      this.#entries.delete(key);
      this.#entries.set(key, entry);
      this.#newest = key;
    }
    return entry.value;
  }

  /**
   * The value of `key`, from `loader` when it is not kept. Concurrent loads of one key share one call. A load that
   * fails is not kept, nor is one whose key was set or deleted meanwhile: those who asked before still get it.
   */
  async load(key: number, loader: (key: number) => Promise<V>): Promise<V> {
    const entry = this.#entries.get(key);
    if (entry !== undefined) {
      this.peek(key);
      return entry.value;
    }
    const running = this.#loading.get(key);
    if (running !== undefined) return running;
    const promise = loader(key).then(
      (value) => {
        if (this.#finish(key, promise)) this.#keep(key, value);
        return value;
      },
      (error: unknown) => {
        this.#finish(key, promise);
        throw error;
      },
    );
    this.#loading.set(key, promise);
    return promise;
  }

  /** Ends a load; whether its value is still wanted. */
  #finish(key: number, promise: Promise<V>): boolean {
    return this.#loading.get(key) === promise && this.#loading.delete(key);
  }

  /** Keeps `value` for `key`, in place of what was kept or is being loaded. */
  set(key: number, value: V): void {
    this.delete(key);
    this.#keep(key, value);
  }

  /** Forgets `key`, also when it is being loaded just now. */
  delete(key: number): void {
    this.#loading.delete(key);
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    this.#entries.delete(key);
    this.#cost -= entry.cost;
  }

  /** Forgets everything. */
  clear(): void {
    this.#loading.clear();
    this.#entries.clear();
    this.#cost = 0;
  }

  #keep(key: number, value: V): void {
    const cost = this.#costOf(value);
    this.#entries.set(key, { value, cost });
    this.#cost += cost;
    this.#newest = key;
    for (const [oldest, entry] of this.#entries) {
      if (this.#cost <= this.#budget || oldest === key) break;
      this.#entries.delete(oldest);
      this.#cost -= entry.cost;
    }
  }
}
