import type { Extent } from '../core/extent.ts';
import type { Storage, ZeroOptions } from '../core/storage.ts';
import { Layer } from './layer.ts';

/** What a {@link TraceLayer} records. */
export type TraceOperation = 'read' | 'write' | 'zero' | 'discard' | 'extent' | 'resize' | 'flush' | 'close';

/**
 * One call. `started` and `ended` count on one clock: a call with `ended` below the `started` of another was over
 * before that began; two calls that overlap on it ran together, and a power cut may keep either without the other.
 */
export interface TraceRecord {
  readonly operation: TraceOperation;
  /** Of a range, in bytes; 0 and 0 for flush and close. For resize `length` is the new size. */
  readonly at: number;
  readonly length: number;
  readonly how?: ZeroOptions;
  /** A copy of what was written, when {@link TraceOptions.keepBytes} is on. */
  readonly bytes?: Uint8Array;
  readonly started: number;
  /** Absent while the call runs. */
  ended?: number;
  /** Why the call failed. */
  error?: unknown;
}

/** What a trace keeps. */
export interface TraceOptions {
  /** Keep a copy of written bytes, so that a power cut can be replayed from the records. */
  readonly keepBytes?: boolean;
}

/** A storage that records every call in the order in which they were made. For tests and for counting requests. */
export function trace(next: Storage, options: TraceOptions = {}): TraceLayer {
  return new TraceLayer(next, options);
}

/** See {@link trace}. */
export class TraceLayer extends Layer {
  readonly #keepBytes: boolean;
  #records: TraceRecord[] = [];
  #clock = 0;

  constructor(next: Storage, options: TraceOptions = {}) {
    super(next);
    this.#keepBytes = options.keepBytes ?? false;
  }

  /** All calls since the start or the last {@link TraceLayer.take}. */
  get records(): readonly TraceRecord[] {
    return this.#records;
  }

  /** The records so far; recording starts again with none. */
  take(): TraceRecord[] {
    const records = this.#records;
    this.#records = [];
    return records;
  }

  /**
   * The records so far as text, such as `read 0+512`, `zero 512+512 keepAllocated`, `resize 4096` and `flush`, of the
   * named operations or of all: for exact comparison in tests.
   */
  requests(...operations: TraceOperation[]): string[] {
    return this.#records
      .filter(({ operation }) => operations.length === 0 || operations.includes(operation))
      .map(requestText);
  }

  override read(into: Uint8Array, at: number): Promise<void> {
    return this.#record({ operation: 'read', at, length: into.length }, () => this.next.read(into, at));
  }

  override write(from: Uint8Array, at: number): Promise<void> {
    const bytes = this.#keepBytes ? { bytes: from.slice() } : {};
    return this.#record({ operation: 'write', at, length: from.length, ...bytes }, () =>
      this.next.write(from, at),
    );
  }

  override zero(at: number, length: number, how?: ZeroOptions): Promise<void> {
    const options = how === undefined ? {} : { how };
    return this.#record({ operation: 'zero', at, length, ...options }, () => this.next.zero(at, length, how));
  }

  override discard(at: number, length: number): Promise<void> {
    return this.#record({ operation: 'discard', at, length }, () => this.next.discard(at, length));
  }

  override extent(at: number, length: number): Promise<Extent> {
    return this.#record({ operation: 'extent', at, length }, () => this.next.extent(at, length));
  }

  override resize(size: number): Promise<void> {
    return this.#record({ operation: 'resize', at: 0, length: size }, () => this.next.resize(size));
  }

  override flush(): Promise<void> {
    return this.#record({ operation: 'flush', at: 0, length: 0 }, () => this.next.flush());
  }

  override close(): Promise<void> {
    return this.#record({ operation: 'close', at: 0, length: 0 }, () => this.next.close());
  }

  async #record<T>(call: Omit<TraceRecord, 'started'>, work: () => Promise<T>): Promise<T> {
    const record: TraceRecord = { ...call, started: this.#clock++ };
    this.#records.push(record);
    try {
      return await work();
    } catch (error) {
      record.error = error;
      throw error;
    } finally {
      record.ended = this.#clock++;
    }
  }
}

function requestText({ operation, at, length, how }: TraceRecord): string {
  if (operation === 'flush' || operation === 'close') return operation;
  if (operation === 'resize') return `resize ${String(length)}`;
  const options = (['keepAllocated', 'fastOnly'] as const).filter((name) => how?.[name] === true);
  return [operation, `${String(at)}+${String(length)}`, ...options].join(' ');
}
