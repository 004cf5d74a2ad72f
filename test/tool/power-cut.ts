import type { TraceRecord } from '../../src/layer/trace.ts';
import type { Random } from './random.ts';

const SECTOR = 512;

/** A file that a power cut left: what was durable, and some of what was not. */
export class HostFile {
  #bytes: Uint8Array;
  #size: number;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes.slice();
    this.#size = bytes.length;
  }

  /** A copy that can go its own way. */
  fork(): HostFile {
    return new HostFile(this.bytes);
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#size);
  }

  #grow(size: number): void {
    if (size > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(size, this.#bytes.length * 2));
      larger.set(this.#bytes.subarray(0, this.#size));
      this.#bytes = larger;
    }
    this.#size = Math.max(this.#size, size);
  }

  /** Applies one recorded call, as a whole. */
  apply(record: TraceRecord): void {
    const { operation, at, length } = record;
    if (operation === 'write' && record.bytes !== undefined) {
      this.#grow(at + length);
      this.#bytes.set(record.bytes, at);
    } else if (operation === 'zero' || operation === 'discard') {
      this.#bytes.fill(0, at, Math.min(at + length, this.#size));
    } else if (operation === 'resize') {
      if (length < this.#size) this.#bytes.fill(0, length, this.#size);
      if (length > this.#size) this.#grow(length);
      this.#size = length;
    }
  }

  /** Applies a write of which only some sectors arrived. */
  applyTorn(record: TraceRecord, random: Random): void {
    if (record.operation !== 'write' || record.bytes === undefined) return this.apply(record);
    this.#grow(record.at + record.length);
    for (let from = 0; from < record.length;) {
      const to = Math.min(record.length, SECTOR * (Math.floor((record.at + from) / SECTOR) + 1) - record.at);
      if (random.chance(0.5)) this.#bytes.set(record.bytes.subarray(from, to), record.at + from);
      from = to;
    }
  }
}

/** Whether a call changes the file. */
export function changes({ operation }: TraceRecord): boolean {
  return operation === 'write' || operation === 'zero' || operation === 'discard' || operation === 'resize';
}

/**
 * The files that a power cut after the first `count` calls may leave: all of them applied in order; only what was
 * flushed; and random subsets of what was not, with torn writes.
 */
export function* cutFiles(
  original: Uint8Array,
  records: readonly TraceRecord[],
  count: number,
  random: Random,
  samples: number,
): Generator<Uint8Array> {
  let durable = 0;
  for (let i = 0; i < count; i++) if (records[i]?.operation === 'flush') durable = i + 1;
  const base = new HostFile(original);
  for (const record of records.slice(0, durable)) if (changes(record)) base.apply(record);
  const loose = records.slice(durable, count).filter(changes);
  const all = base.fork();
  for (const record of loose) all.apply(record);
  yield all.bytes;
  if (loose.length === 0) return;
  yield base.fork().bytes;
  for (let i = 0; i < samples; i++) {
    const file = base.fork();
    const share = random.pick([0.2, 0.5, 0.8]);
    for (const record of loose) {
      if (!random.chance(share)) continue;
      if (random.chance(0.3)) file.applyTorn(record, random);
      else file.apply(record);
    }
    yield file.bytes;
  }
}
