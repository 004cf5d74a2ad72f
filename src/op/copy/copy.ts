import { alignDown, offsetIn } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import { stopIfAborted, type Working } from '../../core/working.ts';
import type { DiskImage } from '../../format/disk-image.ts';
import { native } from '../../native/binding.ts';
import { CHUNK, chunksOf, type Chunk } from './chunks.ts';
import { Cloner } from './clone.ts';
import { isPlainFile, type Batch, type Carrier, type Delivery } from './carrier.ts';
import { Mover } from './mover.ts';
import { Packer } from './packer.ts';
import type { Run, SourceDisk } from './source.ts';

/** How a disk is copied into an image. */
export interface CopyOptions extends Working {
  /** The target reads as zeroes now, so that zeroes need not be written. */
  readonly blank: boolean;
  /**
   * Bytes of zeroes in data that are worth a hole; 0: write everything, also what is known to be zero. Whole units of
   * the target's format at least.
   */
  readonly sparse: number;
  /** Data is stored as it is, though it be zeroes; only what is known to be zero becomes zeroes. */
  readonly verbatim?: boolean | undefined;
  /** What becomes zeroes in the target keeps the space that it has there. */
  readonly keepSpace?: boolean | undefined;
  /** Store data compressed. */
  readonly compress?: boolean | undefined;
  /** Share blocks with the source where the file system can (reflink). */
  readonly share?: boolean | undefined;
  /** Bytes a second at most. */
  readonly rate?: number | undefined;
  /** Fill with zeroes what cannot be read, and tell of each piece. */
  readonly onUnreadable?: ((at: number, length: number, error: unknown) => void) | undefined;
}

/** What was copied, in bytes of the disk. */
export interface Copied {
  /** Written as data. */
  readonly written: number;
  /** Blocks shared with the source. */
  readonly shared: number;
  /** Zeroes, written or left out. */
  readonly zero: number;
}

const EMPTY: SourceDisk = {
  size: 0,
  read: () => Promise.resolve(),
  async *runs() {
    // Nothing.
  },
};

/** Pieces that are read ahead of the one being written. */
const AHEAD = 4;

/** Pieces whose writing has begun and not ended. */
const BEHIND = 2;

/** Bytes from which sharing blocks is worth a call. */
const LEAST_SHARED = 64 * 1024;

/** Blocks of file systems that share them, at the most. */
const BLOCK = 4096;

/** Smallest piece that is tried where a read failed. */
const SECTOR = 512;

/**
 * Copies all of `source` into `target`, whose disk is as large or larger. Reads run ahead; writes begin in the order of
 * the disk, so that one source always makes the same image. Runs of kind `absent` are left alone.
 * @throws SpindleError ABORTED, and what reading and writing throw
 */
export async function copyDisk(source: SourceDisk, target: DiskImage, options: CopyOptions): Promise<Copied> {
  const job = new CopyJob(source, target, options);
  await job.run();
  return job.copied;
}

/** One copy under way. */
export class CopyJob {
  readonly #source: SourceDisk;
  readonly #target: DiskImage;
  readonly #options: CopyOptions;
  readonly #cloner: Cloner | null;
  readonly #carrier: Carrier | null;
  readonly #idle: Uint8Array[] = [];
  /** Pieces that are being written. */
  readonly #writing = new Set<Promise<void>>();
  readonly #start = performance.now();
  readonly copied = { written: 0, shared: 0, zero: 0 };
  #moved = 0;

  /** Without a source only {@link writeData} can be used. */
  constructor(source: SourceDisk | null, target: DiskImage, options: CopyOptions) {
    this.#source = source ?? EMPTY;
    this.#target = target;
    this.#options = options;
    const plain = options.compress !== true;
    this.#cloner = options.share === true && plain ? Cloner.to(target) : null;
    this.#carrier = this.#newCarrier();
  }

  /** What brings data to the target past JavaScript; null where it has to look at the bytes itself, or keep a rate. */
  #newCarrier(): Carrier | null {
    const { rate, blank, compress } = this.#options;
    if (rate !== undefined) return null;
    if (compress !== true) return Mover.to(this.#target, { blank, unit: this.#unit });
    return this.#unit === this.#target.driver.granularity ? Packer.to(this.#target, blank) : null;
  }

  /** Bytes of zeroes in data that are looked for; 0: none. */
  get #unit(): number {
    const { sparse, verbatim } = this.#options;
    return sparse === 0 || verbatim === true ? 0 : Math.max(this.#target.driver.granularity, sparse);
  }

  /** Copies everything. */
  async run(): Promise<void> {
    const queue: Step[] = [];
    const next = async (): Promise<void> => {
      stopIfAborted(this.#options.signal);
      const step = queue.shift();
      if (step === undefined) return;
      await step.take();
      this.#options.onProgress?.(Math.min(step.end, this.#source.size), this.#source.size);
    };
    try {
      for await (const step of this.#steps()) {
        queue.push(step);
        if (queue.length > AHEAD) await next();
      }
      while (queue.length > 0) await next();
      await Promise.all(this.#writing);
    } finally {
      await Promise.allSettled([...queue.map(({ ready }) => ready), ...this.#writing]);
    }
    this.#options.onProgress?.(this.#source.size, this.#source.size);
  }

  /** What is to be done, in the order of the disk; reading has begun. */
  async *#steps(): AsyncGenerator<Step> {
    let carrier: Carrier | null = null;
    for await (const chunks of this.#chunks()) {
      stopIfAborted(this.#options.signal);
      for (const chunk of chunks) {
        // Zeroes that need not be written do not end a batch, nor do they take a step.
        if (this.#isNothing(chunk)) {
          if (chunk.kind === 'zero') this.copied.zero += chunk.length;
          continue;
        }
        const next = this.#carrierOf(chunk);
        if (carrier !== null && next !== carrier) yield* this.#batchSteps(carrier, carrier.rest());
        carrier = next;
        if (carrier === null) yield this.#chunkStep(chunk);
        else yield* this.#batchSteps(carrier, carrier.add(chunk));
      }
    }
    if (carrier !== null) yield* this.#batchSteps(carrier, carrier.rest());
  }

  *#batchSteps(carrier: Carrier, batches: Iterable<Batch>): Generator<Step> {
    for (const batch of batches) yield this.#batchStep(carrier, batch);
  }

  #chunkStep(chunk: Chunk): Step {
    const { at, length, kind, host } = chunk;
    const clones = kind === 'data' && host !== null && this.#clones(host);
    const bytes = kind === 'data' && !clones ? this.#read(chunk) : null;
    // Its turn comes later; until then a failure is nobody's.
    bytes?.catch(() => undefined);
    return { end: at + length, ready: bytes, take: async () => this.#write(chunk, await bytes) };
  }

  /** What brings a piece to the target together with others; null for what goes by itself. */
  #carrierOf({ kind, host, packed }: Chunk): Carrier | null {
    if (kind !== 'data') return null;
    if (packed !== undefined) return this.#carrier;
    if (host === null) return null;
    if (!this.#clones(host)) return this.#carrier;
    return this.#cloner?.proven === true && isPlainFile(host.storage) ? this.#cloner : null;
  }

  #isNothing({ kind }: Chunk): boolean {
    return kind === 'absent' || (kind === 'zero' && this.#options.blank && this.#options.sparse !== 0);
  }

  #clones(host: NonNullable<Chunk['host']>): boolean {
    return this.#cloner?.accepts(host) === true;
  }

  #batchStep(carrier: Carrier, batch: Batch): Step {
    const ready = carrier.prepare(batch);
    ready.catch(() => undefined);
    const last = batch.at(-1);
    const end = last === undefined ? 0 : last.at + last.length;
    return { end, ready, take: () => this.#deliver(batch, ready) };
  }

  async #deliver(batch: Batch, ready: Promise<Delivery>): Promise<void> {
    let moving: Awaited<ReturnType<Delivery>>;
    try {
      const deliver = await ready;
      moving = await deliver();
    } catch {
      return this.#moveSlowly(batch);
    }
    await this.#follow([
      moving.done.then(
        ({ written, zero, shared }) => {
          this.copied.written += written;
          this.copied.zero += zero;
          this.copied.shared += shared;
        },
        () => this.#moveSlowly(batch),
      ),
    ]);
  }

  /** Reads and writes what could not be moved: that finds out why, says it of the right file, and salvages. */
  async #moveSlowly(batch: Batch): Promise<void> {
    for (const { at, length } of batch) {
      for (let done = 0; done < length; done += CHUNK) {
        stopIfAborted(this.#options.signal);
        const part = {
          at: at + done,
          length: Math.min(CHUNK, length - done),
          kind: 'data' as const,
          host: null,
        };
        await this.writeData(await this.#read(part), part.at);
      }
    }
  }

  #chunks(): AsyncGenerator<readonly Chunk[]> {
    const [cloner, carrier] = [this.#cloner, this.#carrier];
    const { granularity } = this.#target.driver;
    const shared = Math.max(granularity, BLOCK);
    const unit = cloner === null ? Math.max(granularity, this.#unit) : Math.max(shared, this.#unit);
    const whole = {
      least: () => (cloner?.works === true ? Math.max(LEAST_SHARED, shared) : unit),
      unit,
      accepts: (host: NonNullable<Run['host']>) =>
        cloner?.accepts(host) === true || (carrier?.accepts(host) ?? false),
      unpacks: (packed: NonNullable<Run['packed']>) => carrier?.unpacks(packed) ?? false,
    };
    const units = { unit: granularity, size: this.#source.size, absent: this.#options.compress === true };
    const places = cloner === null && carrier === null ? null : whole;
    return chunksOf(this.#source.runs(), units, places, this.#options.signal);
  }

  async #read({ at, length }: Chunk): Promise<Uint8Array> {
    const bytes = (this.#idle.pop() ?? new Uint8Array(CHUNK)).subarray(0, length);
    try {
      await this.#source.read(bytes, at);
    } catch (error) {
      if (this.#options.onUnreadable === undefined) throw error;
      await this.#salvage(bytes, at, error);
    }
    return bytes;
  }

  /** Reads what can be read, in ever smaller parts. */
  async #salvage(bytes: Uint8Array, at: number, error: unknown): Promise<void> {
    if (bytes.length <= SECTOR) {
      bytes.fill(0);
      this.#options.onUnreadable?.(at, bytes.length, error);
      return;
    }
    const half = Math.max(SECTOR, alignDown(bytes.length / 2, SECTOR));
    for (const [part, where] of [
      [bytes.subarray(0, half), at],
      [bytes.subarray(half), at + half],
    ] as const) {
      try {
        await this.#source.read(part, where);
      } catch (reason) {
        await this.#salvage(part, where, reason);
      }
    }
  }

  async #write(chunk: Chunk, bytes: Uint8Array | null): Promise<void> {
    await this.#slow(chunk.kind === 'data' ? chunk.length : 0);
    if (chunk.kind === 'zero') await this.#zero(chunk.at, chunk.length);
    else if (bytes !== null) {
      await this.#follow(await this.#begin(bytes, chunk.at), bytes);
    } else if (chunk.host !== null) await this.#clone(chunk, chunk.host);
  }

  async #clone(chunk: Chunk, host: NonNullable<Chunk['host']>): Promise<void> {
    const cloner = this.#cloner;
    for (let done = 0; done < chunk.length;) {
      const at = chunk.at + done;
      const place = cloner?.works === true ? host.at + done : null;
      const shared =
        place === null
          ? 0
          : await this.#target.fillFrom(at, chunk.length - done, (storage, to, length) =>
              (cloner as Cloner).clone(host.storage, place, storage, to, length),
            );
      this.copied.shared += shared;
      done += shared;
      if (shared > 0) continue;
      // The file system did not share these after all.
      const rest = { ...chunk, at, length: chunk.length - done };
      if (await this.#moveAtOnce({ ...rest, host: { ...host, at: host.at + done } })) return;
      const piece = { at, length: Math.min(CHUNK, chunk.length - done), kind: 'data' as const, host: null };
      const bytes = await this.#read(piece);
      await this.#follow(await this.#begin(bytes, at), bytes);
      done += piece.length;
    }
  }

  /** Moves a piece of any length, looking ahead; false where data cannot be moved. */
  async #moveAtOnce(chunk: Chunk): Promise<boolean> {
    const carrier = this.#newCarrier();
    if (carrier === null || chunk.host === null || !carrier.accepts(chunk.host)) return false;
    let next: Step | undefined;
    try {
      for (const batch of batchesOf(carrier, chunk)) {
        stopIfAborted(this.#options.signal);
        const now = next;
        next = this.#batchStep(carrier, batch);
        await now?.take();
      }
      await next?.take();
    } finally {
      await Promise.allSettled([next?.ready]);
    }
    return true;
  }

  async #zero(at: number, length: number): Promise<void> {
    this.copied.zero += length;
    const { sparse, blank, keepSpace } = this.#options;
    if (sparse === 0) return this.#writeZeroes(at, length);
    if (!blank) await this.#target.zero(at, length, { keepAllocated: keepSpace === true });
  }

  async #writeZeroes(at: number, length: number): Promise<void> {
    const zeroes = new Uint8Array(Math.min(CHUNK, length));
    for (let done = 0; done < length;) {
      stopIfAborted(this.#options.signal);
      const size = Math.min(length - done, CHUNK - offsetIn(at + done, CHUNK));
      await this.#target.write(zeroes.subarray(0, size), at + done);
      done += size;
    }
  }

  /** Has `bytes` used again when they are written; waits while too much is under way. */
  async #follow([done]: readonly [Promise<void>], bytes?: Uint8Array): Promise<void> {
    const written = done.then(() => {
      if (bytes !== undefined) this.#idle.push(new Uint8Array(bytes.buffer));
      this.#writing.delete(written);
    });
    // A failure stays in the set, for whoever waits for it.
    written.catch(() => undefined);
    this.#writing.add(written);
    if (this.#writing.size >= BEHIND) await Promise.race(this.#writing);
  }

  /** Stores a piece of the disk, but for the zeroes in it. */
  async writeData(bytes: Uint8Array, at: number): Promise<void> {
    const [done] = await this.#begin(bytes, at);
    await done;
  }

  /** Begins to store a piece: all of it has its place when this resolves, to an array with the end of the writing. */
  async #begin(bytes: Uint8Array, at: number): Promise<[Promise<void>]> {
    const writes: Promise<void>[] = [];
    try {
      for (const part of this.#parts(bytes, at)) await this.#part(part, writes);
    } catch (error) {
      await Promise.allSettled(writes);
      throw error;
    }
    return [settled(writes)];
  }

  /** The data and the zeroes in a piece. */
  *#parts(bytes: Uint8Array, at: number): Generator<Part> {
    const unit = this.#unit;
    if (unit === 0) {
      yield { bytes, at, zero: false };
      return;
    }
    // Units lie at multiples of their size on the disk.
    const head = Math.min(bytes.length, unit - offsetIn(at, unit));
    const units = [
      native().zeroUnits(bytes.subarray(0, head), unit)[0] ?? 0,
      ...native().zeroUnits(bytes.subarray(head), unit),
    ];
    for (let first = 0, next = 1; first < units.length; first = next, next++) {
      while (next < units.length && units[next] === units[first]) next++;
      const start = first === 0 ? 0 : head + (first - 1) * unit;
      const end = Math.min(bytes.length, head + (next - 1) * unit);
      if (end > start) yield { bytes: bytes.subarray(start, end), at: at + start, zero: units[first] === 1 };
    }
  }

  async #part({ bytes, at, zero }: Part, writes: Promise<void>[]): Promise<void> {
    if (zero) {
      this.copied.zero += bytes.length;
      if (!this.#options.blank) await this.#target.zero(at, bytes.length);
      return;
    }
    this.copied.written += bytes.length;
    if (this.#options.compress === true) await this.#target.writeCompressed(bytes, at);
    else writes.push((await this.#target.beginWrite(bytes, at)).done);
  }

  /** Waits until `bytes` more do not pass the rate. */
  async #slow(bytes: number): Promise<void> {
    const { rate, signal } = this.#options;
    this.#moved += bytes;
    if (rate === undefined || rate <= 0) return;
    const due = this.#start + (this.#moved / rate) * 1000;
    for (let left = due - performance.now(); left > 0; left = due - performance.now()) {
      await new Promise((resolve) => setTimeout(resolve, Math.min(left, 200)));
      stopIfAborted(signal);
    }
  }
}

/** Something to be done in its turn. */
interface Step {
  /** Where on the disk it ends. */
  readonly end: number;
  /** What was begun ahead. */
  readonly ready: Promise<unknown> | null;
  readonly take: () => Promise<void>;
}

/** A part of a piece that is all zeroes, or that is not. */
interface Part {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly zero: boolean;
}

/** All batches of one piece. */
function* batchesOf(carrier: Carrier, chunk: Chunk): Generator<Batch> {
  yield* carrier.add(chunk);
  yield* carrier.rest();
}

/** Resolves when all have ended; fails as the first of them. */
async function settled(writes: readonly Promise<void>[]): Promise<void> {
  await Promise.allSettled(writes);
  await Promise.all(writes);
}

/** The error of a target that is too small. */
export function tooSmall(size: number, target: number): SpindleError {
  return new SpindleError(
    'BAD_SIZE',
    `the source has ${String(size)} bytes, the target only ${String(target)}`,
  );
}
