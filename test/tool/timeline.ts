import type { ZeroOptions } from '../../src/core/storage.ts';
import { TraceLayer } from '../../src/layer/trace.ts';
import type { MemoryStorage } from '../../src/storage/memory.ts';
import { cutFiles } from './power-cut.ts';
import type { Random } from './random.ts';

/** Several files on one clock: what a power cut at one moment leaves of each. */
export class Timeline {
  readonly #files: RecordedFile[] = [];
  /** The numbers of the files, in the order of their changes and flushes. */
  readonly #order: number[] = [];

  /** Records a file from now on. */
  record(memory: MemoryStorage): TraceLayer {
    const number = this.#files.length;
    const layer = new TimedTrace(memory, () => this.#order.push(number));
    this.#files.push({ original: memory.toBytes(), layer });
    return layer;
  }

  /** Moments at which the power may be cut: one more than there were changes and flushes. */
  get moments(): number {
    return this.#order.length + 1;
  }

  /** What may be left of all files when the power is cut at a moment. */
  *cut(moment: number, random: Random, samples: number): Generator<Uint8Array[]> {
    const order = this.#order.slice(0, moment);
    const choices = this.#files.map(({ original, layer }, number) => {
      const count = order.filter((one) => one === number).length;
      return [...cutFiles(original, layer.records.filter(counts), count, random, samples)].map((bytes) =>
        bytes.slice(),
      );
    });
    yield choices.map((one) => one[0] as Uint8Array);
    for (let i = 0; i < samples; i++) yield choices.map((one) => random.pick(one));
  }
}

interface RecordedFile {
  readonly original: Uint8Array;
  readonly layer: TraceLayer;
}

const COUNTED = ['write', 'zero', 'discard', 'resize', 'flush'];

function counts({ operation }: { readonly operation: string }): boolean {
  return COUNTED.includes(operation);
}

class TimedTrace extends TraceLayer {
  readonly #tick: () => void;

  constructor(memory: MemoryStorage, tick: () => void) {
    super(memory, { keepBytes: true });
    this.#tick = tick;
  }

  override write(from: Uint8Array, at: number): Promise<void> {
    this.#tick();
    return super.write(from, at);
  }

  override zero(at: number, length: number, how?: ZeroOptions): Promise<void> {
    this.#tick();
    return super.zero(at, length, how);
  }

  override discard(at: number, length: number): Promise<void> {
    this.#tick();
    return super.discard(at, length);
  }

  override resize(size: number): Promise<void> {
    this.#tick();
    return super.resize(size);
  }

  override flush(): Promise<void> {
    this.#tick();
    return super.flush();
  }
}
