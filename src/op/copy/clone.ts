import { isAligned } from '../../core/align.ts';
import { isSpindleError, SpindleError } from '../../core/errors.ts';
import type { Storage } from '../../core/storage.ts';
import type { DiskImage } from '../../format/disk-image.ts';
import type { FilledPlace } from '../../format/fill.ts';
import { native } from '../../native/binding.ts';
import { FileStorage } from '../../storage/file.ts';
import { Batches, placesIn, sumOf, type Batch, type Carrier, type Delivery } from './carrier.ts';
import type { Chunk } from './chunks.ts';

/** Runs that are shared in one call. */
const MOST_PIECES = 256;

/**
 * Shares blocks of one file with another (reflink), for as long as the file system does it: run by run until the first has
 * shown that it does ({@link Cloner.clone}), then many at a time.
 */
export class Cloner implements Carrier {
  readonly #target: DiskImage;
  readonly #file: FileStorage;
  readonly #batches = new Batches({ bytes: Infinity, pieces: MOST_PIECES });
  #works = true;
  #proven = false;

  private constructor(target: DiskImage, file: FileStorage) {
    this.#target = target;
    this.#file = file;
  }

  /** A cloner into `target`; null where blocks cannot be shared with it. */
  static to(target: DiskImage): Cloner | null {
    const { data } = target.driver;
    return data instanceof FileStorage && !data.isDevice ? new Cloner(target, data) : null;
  }

  /** Whether nothing has been seen that the file system did not share. */
  get works(): boolean {
    return this.#works;
  }

  /** Whether the file system has shared something: then all that follows goes in batches. */
  get proven(): boolean {
    return this.#works && this.#proven;
  }

  /** Whether it may work from there: a file, at the boundary of a block. */
  accepts(host: { readonly storage: Storage; readonly at: number }): boolean {
    return (
      this.#works && host.storage instanceof FileStorage && !host.storage.isDevice && isAligned(host.at, 4096)
    );
  }

  unpacks(): boolean {
    return false;
  }

  add(chunk: Chunk): Generator<Batch> {
    return this.#batches.add(chunk);
  }

  rest(): Generator<Batch> {
    return this.#batches.rest();
  }

  prepare(batch: Batch): Promise<Delivery> {
    return Promise.resolve(async () => {
      if (!this.#works) throw notShared();
      const { done } = await this.#target.beginFill(batch, (places) => this.#share(batch, places));
      return { done: done.then(() => ({ written: 0, zero: 0, shared: sumOf(batch) })) };
    });
  }

  async #share(batch: Batch, places: readonly FilledPlace[]): Promise<void> {
    const runs = placesIn(batch, places).flatMap(({ place, piece, shift }) => {
      if (place.storage !== this.#file) throw notShared();
      return [piece.host.at + shift, place.at, place.length];
    });
    const [first] = batch;
    if (first === undefined || !(await this.#clone(first.host.storage, runs))) throw notShared();
  }

  /** Shares `length` bytes at `from`; false where the file system does not. */
  async clone(source: Storage, from: number, target: Storage, to: number, length: number): Promise<boolean> {
    if (!(source instanceof FileStorage) || target !== this.#file) return false;
    return this.#clone(source, [from, to, length]);
  }

  async #clone(source: FileStorage, runs: readonly number[]): Promise<boolean> {
    try {
      await native().cloneRuns(source.fd, this.#file.fd, Float64Array.from(runs));
      this.#proven = true;
    } catch (error) {
      if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
      this.#works = false;
      return false;
    }
    let end = 0;
    for (let run = 0; run < runs.length; run += 3)
      end = Math.max(end, (runs[run + 1] ?? 0) + (runs[run + 2] ?? 0));
    this.#file.changed(end);
    return true;
  }
}

function notShared(): SpindleError {
  return new SpindleError('UNSUPPORTED', 'the file system did not share these blocks');
}
