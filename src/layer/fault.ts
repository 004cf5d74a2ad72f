import { SpindleError, type ErrorCode } from '../core/errors.ts';
import type { Extent } from '../core/extent.ts';
import type { Storage, ZeroOptions } from '../core/storage.ts';
import { Layer } from './layer.ts';

/** What a {@link Fault} can hit. */
export type FaultOperation = 'read' | 'write' | 'zero' | 'discard' | 'extent' | 'resize' | 'flush' | 'close';

/** One planned failure. A call must match all of `on`, `offset` and `length` to be hit. */
export interface Fault {
  /** Default: any operation but `close`. */
  readonly on?: FaultOperation | readonly FaultOperation[];
  /** Only calls that touch `length` bytes (default: up to the end) at `offset`. Calls without a range never match. */
  readonly offset?: number;
  readonly length?: number;
  /** Matching calls that pass first. Default 0. */
  readonly after?: number;
  /** Matching calls that fail then. Default: all. */
  readonly times?: number;
  /**
   * Writes only: this many bytes, over all matching calls, are written before the fault strikes. The write that passes
   * the limit is torn: its first bytes are written, then it fails. Counts instead of `after`.
   */
  readonly afterBytes?: number;
  /** Default IO. */
  readonly code?: ErrorCode;
  readonly message?: string;
}

/** What a {@link FaultLayer} does. */
export interface FaultOptions {
  readonly faults?: readonly Fault[];
  /** Milliseconds to wait before each operation. */
  readonly delay?: number;
}

interface Plan {
  readonly fault: Fault;
  calls: number;
  bytes: number;
}

/** A storage that fails, tears writes, or is slow, as planned. For tests. */
export function fault(next: Storage, options: FaultOptions = {}): FaultLayer {
  return new FaultLayer(next, options);
}

/** See {@link fault}. */
export class FaultLayer extends Layer {
  #plans: Plan[] = [];
  readonly #delay: number;

  constructor(next: Storage, options: FaultOptions = {}) {
    super(next);
    this.#delay = options.delay ?? 0;
    for (const planned of options.faults ?? []) this.inject(planned);
  }

  /** Plans one more failure; its count starts now. */
  inject(planned: Fault): void {
    this.#plans.push({ fault: planned, calls: 0, bytes: 0 });
  }

  /** Drops all plans: everything works from now on. */
  heal(): void {
    this.#plans = [];
  }

  override async read(into: Uint8Array, at: number): Promise<void> {
    await this.#strike('read', at, into.length);
    return this.next.read(into, at);
  }

  override async write(from: Uint8Array, at: number): Promise<void> {
    const torn = await this.#strike('write', at, from.length);
    if (torn === undefined) return this.next.write(from, at);
    if (torn.written > 0) await this.next.write(from.subarray(0, torn.written), at);
    throw torn.error;
  }

  override async zero(at: number, length: number, how?: ZeroOptions): Promise<void> {
    await this.#strike('zero', at, length);
    return this.next.zero(at, length, how);
  }

  override async discard(at: number, length: number): Promise<void> {
    await this.#strike('discard', at, length);
    return this.next.discard(at, length);
  }

  override async extent(at: number, length: number): Promise<Extent> {
    await this.#strike('extent', at, length);
    return this.next.extent(at, length);
  }

  override async resize(size: number): Promise<void> {
    await this.#strike('resize');
    return this.next.resize(size);
  }

  override async flush(): Promise<void> {
    await this.#strike('flush');
    return this.next.flush();
  }

  override async close(): Promise<void> {
    await this.#strike('close');
    return this.next.close();
  }

  /** Throws when a plan hits the call; answers how far a write gets when it is torn. */
  async #strike(
    operation: FaultOperation,
    at?: number,
    length = 0,
  ): Promise<{ written: number; error: SpindleError } | undefined> {
    let torn: { written: number; error: SpindleError } | undefined;
    for (const plan of this.#plans) {
      if (!matches(plan.fault, operation, at, length)) continue;
      const { after = 0, times = Infinity, afterBytes, code = 'IO', message } = plan.fault;
      const error = (): SpindleError => new SpindleError(code, message ?? `injected fault: ${operation}`);
      if (afterBytes === undefined) {
        plan.calls++;
        if (plan.calls > after && plan.calls <= after + times) {
          await this.#wait();
          throw error();
        }
      } else if (operation === 'write') {
        const left = Math.max(afterBytes - plan.bytes, 0);
        plan.bytes += length;
        if (length > left && plan.calls < times) {
          plan.calls++;
          if (torn === undefined || left < torn.written) torn = { written: left, error: error() };
        }
      }
    }
    await this.#wait();
    return torn;
  }

  async #wait(): Promise<void> {
    const delay = this.#delay;
    if (delay > 0) await new Promise((resolve) => setTimeout(resolve, delay));
  }
}

function matches(planned: Fault, operation: FaultOperation, at: number | undefined, length: number): boolean {
  const { on, offset } = planned;
  if (on === undefined ? operation === 'close' : ![on].flat().includes(operation)) return false;
  if (offset === undefined) return true;
  return at !== undefined && at < offset + (planned.length ?? Infinity) && offset < at + length;
}
