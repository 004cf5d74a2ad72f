import { SpindleError } from '../../core/errors.ts';
import { native } from '../../native/binding.ts';
import { FileStorage } from '../../storage/file.ts';
import type { DiskImage, FilledPlace } from '../../format/disk-image.ts';
import type { Chunk } from './chunks.ts';
import type { Run } from './source.ts';

/** Bytes that are moved in one call, about. */
const MOST_BYTES = 8 * 1024 * 1024;
/** Pieces of one call. */
const MOST_PIECES = 1024;

/** A piece of the disk whose plain bytes lie in a file. Bytes. */
export interface HostPiece {
  readonly at: number;
  readonly length: number;
  readonly host: { readonly storage: FileStorage; readonly at: number };
}

/** Pieces of one file, in the order of the disk, that are moved together. */
export type Batch = readonly HostPiece[];

/** How data is moved. */
export interface MoverOptions {
  /** The target reads as zeroes now. */
  readonly blank: boolean;
  /** Bytes of zeroes that are left out, or made zeroes of; 0: all is written. */
  readonly unit: number;
}

/** What moving a batch has done, or is going to do. Bytes. */
export interface Moved {
  readonly written: number;
  readonly zero: number;
}

/**
 * Moves data from file to file in few large calls, without its passing through JavaScript. Pieces are collected first;
 * {@link look} finds the zeroes in a batch, ahead of its turn, and {@link begin} brings it to its place.
 */
export class Mover {
  readonly #target: DiskImage;
  readonly #file: FileStorage;
  readonly #options: MoverOptions;
  #works = true;
  #pieces: HostPiece[] = [];
  #bytes = 0;

  private constructor(target: DiskImage, file: FileStorage, options: MoverOptions) {
    this.#target = target;
    this.#file = file;
    this.#options = options;
  }

  /** A mover into `target`; null where its bytes are not plainly those of a file. */
  static to(target: DiskImage, options: MoverOptions): Mover | null {
    const { data } = target.driver;
    return data instanceof FileStorage && !data.can.direct ? new Mover(target, data, options) : null;
  }

  /** Whether data can be moved from there. */
  accepts({ storage }: NonNullable<Run['host']>): boolean {
    return this.#works && storage instanceof FileStorage && !storage.can.direct;
  }

  /** Takes a piece of data; yields the batches that are complete with it. */
  *add({ at, length, host }: Chunk): Generator<Batch> {
    if (host === null || !(host.storage instanceof FileStorage)) return;
    const { storage } = host;
    if (this.#pieces[0] !== undefined && this.#pieces[0].host.storage !== storage) yield* this.rest();
    for (let done = 0; done < length;) {
      const size = Math.min(length - done, MOST_BYTES - this.#bytes);
      this.#pieces.push({ at: at + done, length: size, host: { storage, at: host.at + done } });
      this.#bytes += size;
      done += size;
      if (this.#bytes >= MOST_BYTES || this.#pieces.length >= MOST_PIECES) yield* this.rest();
    }
  }

  /** What has been taken and not been given back in a batch. */
  *rest(): Generator<Batch> {
    if (this.#pieces.length > 0) yield this.#pieces;
    this.#pieces = [];
    this.#bytes = 0;
  }

  /** Whether zeroes can be left out on the way: the target has no units, and is a hole where nothing is written. */
  get #inPassing(): boolean {
    return this.#options.unit === 0 || (this.#options.blank && this.#target.driver.granularity === 1);
  }

  /** One byte a unit, 1 for zeroes; null where that need not be known. */
  async look(batch: Batch): Promise<Uint8Array | null> {
    const [first] = batch;
    if (this.#inPassing || first === undefined) return null;
    const ranges = Float64Array.from(batch.flatMap(({ length, host }) => [host.at, length]));
    return native().zeroRanges(first.host.storage.fd, ranges, this.#options.unit);
  }

  /** Begins to move a batch: all of it has its place when this resolves, and has been written when `done` has. */
  async begin(batch: Batch, zeroes: Uint8Array | null): Promise<{ readonly done: Promise<Moved> }> {
    const { data, zero } =
      zeroes === null ? { data: batch, zero: [] } : split(batch, zeroes, this.#options.unit);
    if (!this.#options.blank) for (const { at, length } of zero) await this.#target.zero(at, length);
    const moved = { written: 0, zero: sum(zero) };
    const { done } = await this.#target.beginFill(data, async (places) => {
      moved.written = await this.#copy(data, places);
      moved.zero += sum(data) - moved.written;
    });
    return { done: done.then(() => moved) };
  }

  async #copy(data: Batch, places: readonly FilledPlace[]): Promise<number> {
    const [first] = data;
    if (first === undefined) return 0;
    const runs: number[] = [];
    let end = 0;
    let piece = 0;
    for (const { guest, storage, at, length } of places) {
      if (storage !== this.#file) {
        // Encrypted: the bytes of the file are others.
        this.#works = false;
        throw new SpindleError('UNSUPPORTED', 'only plain data can be moved');
      }
      while (piece + 1 < data.length && (data[piece + 1]?.at ?? 0) <= guest) piece++;
      const from = data[piece] ?? first;
      runs.push(from.host.at + guest - from.at, at, length);
      end = Math.max(end, at + length);
    }
    const source = first.host.storage.fd;
    const skip = this.#inPassing ? this.#options.unit : 0;
    const written = await native().copyRuns(source, this.#file.fd, Float64Array.from(runs), skip);
    this.#file.changed(Math.min(end, this.#file.size));
    return written;
  }
}

/** The parts of a batch that are data, and those that are zeroes, neighbours joined. */
function split(
  batch: Batch,
  zeroes: Uint8Array,
  unit: number,
): { readonly data: readonly HostPiece[]; readonly zero: readonly HostPiece[] } {
  const data: HostPiece[] = [];
  const zero: HostPiece[] = [];
  let index = 0;
  for (const { at, length, host } of batch) {
    const units = Math.ceil(length / unit);
    for (let first = 0, next = 1; first < units; first = next, next++) {
      const kind = zeroes[index + first];
      while (next < units && zeroes[index + next] === kind) next++;
      const start = first * unit;
      const size = Math.min(length, next * unit) - start;
      const part = { at: at + start, length: size, host: { storage: host.storage, at: host.at + start } };
      (kind === 1 ? zero : data).push(part);
    }
    index += units;
  }
  return { data, zero };
}

function sum(pieces: readonly HostPiece[]): number {
  return pieces.reduce((bytes, { length }) => bytes + length, 0);
}
