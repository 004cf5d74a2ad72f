import type { Storage } from '../core/storage.ts';
import { stopIfAborted } from '../core/working.ts';

/** A request to a storage: `bytes` are read into, or written. */
export interface QueuedRequest {
  readonly at: number;
  readonly bytes: Uint8Array;
  readonly write: boolean;
  /** What was sent so far is made durable when this one has been sent. */
  readonly flushAfter: boolean;
}

/** Who says what is sent next, and hears what is done. */
export interface RequestSource {
  /** The next request; undefined: there are no more. `slot` is from 0 to below the depth, and its own until it is done. */
  next(slot: number): QueuedRequest | undefined;
  /** A request is done; it was sent and ended at these milliseconds of `performance.now()`. */
  done(request: QueuedRequest, sent: number, ended: number): void;
}

/** How requests are sent. */
export interface QueueManner {
  /** In flight at most. */
  readonly depth: number;
  /** A flush begins when all requests before it are done, else at once. */
  readonly drain: boolean;
  /** Make each write durable by itself. */
  readonly through: boolean;
  /** Nothing needs to be durable: flush nothing. */
  readonly unsafe: boolean;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Sends requests to a storage until there are no more, a failure or an abort, and settles when none is in flight. The
 * flushes that there were.
 * @throws SpindleError ABORTED, and what reading, writing and flushing throw
 */
export async function runQueue(storage: Storage, source: RequestSource, how: QueueManner): Promise<number> {
  return new Queue(storage, source, how).whole();
}

class Queue {
  readonly #storage: Storage;
  readonly #source: RequestSource;
  readonly #how: QueueManner;
  readonly #free: number[] = [];
  /** Slots that were ever given out. */
  #slots = 0;
  #inFlight = 0;
  #flushing = 0;
  #flushes = 0;
  #over = false;
  /** No request is sent until those in flight are done, and a flush after them. */
  #draining = false;
  #failure: { readonly reason: unknown } | null = null;
  #settle: () => void = () => undefined;

  constructor(storage: Storage, source: RequestSource, how: QueueManner) {
    this.#storage = storage;
    this.#source = source;
    this.#how = how;
  }

  async whole(): Promise<number> {
    await new Promise<void>((resolve) => {
      this.#settle = resolve;
      this.#send();
    });
    if (this.#failure !== null) throw this.#failure.reason;
    return this.#flushes;
  }

  /** Sends what may be sent now; settles when nothing is left to wait for. */
  #send(): void {
    try {
      stopIfAborted(this.#how.signal);
      while (this.#failure === null && !this.#draining && !this.#over) {
        if (this.#inFlight >= this.#how.depth) break;
        const slot = this.#free.pop() ?? this.#slots++;
        const request = this.#source.next(slot);
        if (request === undefined) {
          this.#over = true;
          this.#free.push(slot);
        } else this.#begin(request, slot);
      }
    } catch (reason) {
      this.#failure ??= { reason };
    }
    const waits = this.#inFlight > 0 || this.#flushing > 0;
    if (!waits && (this.#failure !== null || (this.#over && !this.#draining))) this.#settle();
  }

  #begin(request: QueuedRequest, slot: number): void {
    this.#inFlight++;
    const sent = performance.now();
    void this.#one(request).then(
      () => {
        this.#ended(request, sent, slot);
      },
      (reason: unknown) => {
        this.#failure ??= { reason };
        this.#done(slot);
      },
    );
    if (!request.flushAfter) return;
    if (this.#how.drain) this.#draining = true;
    else this.#flush();
  }

  #one({ at, bytes, write }: QueuedRequest): Promise<void> {
    if (!write) return this.#storage.read(bytes, at);
    const written = this.#storage.write(bytes, at);
    return this.#how.through ? written.then(() => this.#storage.flush()) : written;
  }

  #ended(request: QueuedRequest, sent: number, slot: number): void {
    try {
      this.#source.done(request, sent, performance.now());
    } catch (reason) {
      this.#failure ??= { reason };
    }
    this.#done(slot);
  }

  #done(slot: number): void {
    this.#inFlight--;
    this.#free.push(slot);
    if (this.#draining && this.#inFlight === 0 && this.#failure === null) this.#flush();
    else this.#send();
  }

  #flush(): void {
    this.#flushing++;
    this.#flushes++;
    const flushed = this.#how.unsafe ? Promise.resolve() : this.#storage.flush();
    void flushed
      .catch((reason: unknown) => {
        this.#failure ??= { reason };
      })
      .then(() => {
        this.#flushing--;
        this.#draining = false;
        this.#send();
      });
  }
}
