import { SpindleError } from '../../core/errors.ts';
import { native } from '../../native/binding.ts';
import type { FileStorage } from '../../storage/file.ts';
import type { DiskImage } from '../../format/disk-image.ts';
import type { FilledPlace } from '../../format/fill.ts';
import {
  Batches,
  isPlainFile,
  placesIn,
  sumOf,
  type Batch,
  type Carrier,
  type Delivery,
  type HostPiece,
  type Moved,
} from './carrier.ts';
import type { Chunk } from './chunks.ts';
import type { PackedRun, Run } from './source.ts';

/** Bytes that are moved in one call, about. */
const MOST_BYTES = 8 * 1024 * 1024;
/** Pieces of one call. */
const MOST_PIECES = 1024;
/** Bytes of zeroes that a file system can leave a hole of. */
const BLOCK = 4096;

/** How data is moved. */
export interface MoverOptions {
  /** The target reads as zeroes now. */
  readonly blank: boolean;
  /** Bytes of zeroes that are left out, or made zeroes of; 0: all is written. */
  readonly unit: number;
}

/** Moves plain data, or what compressed clusters hold, from file to file. Zeroes in plain data are looked for ahead. */
export class Mover implements Carrier {
  readonly #target: DiskImage;
  readonly #file: FileStorage;
  readonly #options: MoverOptions;
  readonly #batches = new Batches({ bytes: MOST_BYTES, pieces: MOST_PIECES });
  #works = true;

  private constructor(target: DiskImage, file: FileStorage, options: MoverOptions) {
    this.#target = target;
    this.#file = file;
    this.#options = options;
  }

  /** A mover into `target`; null where its bytes are not plainly those of a file. */
  static to(target: DiskImage, options: MoverOptions): Mover | null {
    const { data } = target.driver;
    return isPlainFile(data) ? new Mover(target, data, options) : null;
  }

  accepts({ storage }: NonNullable<Run['host']>): boolean {
    return this.#works && isPlainFile(storage);
  }

  unpacks({ storage }: PackedRun): boolean {
    // What a cluster holds is not known ahead, so that no zeroes can be made of it.
    return this.#works && this.#inPassing && isPlainFile(storage);
  }

  add(chunk: Chunk): Generator<Batch> {
    return this.#batches.add(chunk);
  }

  rest(): Generator<Batch> {
    return this.#batches.rest();
  }

  /** Whether zeroes can be left out on the way: the target has no units, and is a hole where nothing is written. */
  get #inPassing(): boolean {
    return this.#options.unit === 0 || (this.#options.blank && this.#target.driver.granularity === 1);
  }

  async prepare(batch: Batch): Promise<Delivery> {
    const zeroes = await this.#look(batch);
    return () => this.begin(batch, zeroes);
  }

  /** One byte a unit, 1 for zeroes; null where that need not be known. */
  async #look(batch: Batch): Promise<Uint8Array | null> {
    const [first] = batch;
    if (this.#inPassing || first === undefined) return null;
    const ranges = Float64Array.from(batch.flatMap(({ length, host }) => [host.at, length]));
    return native().zeroRanges(first.host.storage.fd, ranges, this.#options.unit);
  }

  /** Begins to move a batch; `zeroes`, one byte a unit, says which are zeroes, where that is known. */
  async begin(batch: Batch, zeroes: Uint8Array | null): Promise<{ readonly done: Promise<Moved> }> {
    const { data, zero } =
      zeroes === null ? { data: batch, zero: [] } : split(batch, zeroes, this.#options.unit);
    if (!this.#options.blank) for (const { at, length } of zero) await this.#target.zero(at, length);
    const moved = { written: 0, zero: sumOf(zero), shared: 0 };
    const { done } = await this.#target.beginFill(data, async (places) => {
      moved.written = await this.#copy(data, places);
      moved.zero += sumOf(data) - moved.written;
    });
    return { done: done.then(() => moved) };
  }

  async #copy(data: Batch, places: readonly FilledPlace[]): Promise<number> {
    if (data.length === 0) return 0;
    const runs = placesIn(data, places).map(({ place: { storage, at, length }, piece, shift }): MovedRun => {
      if (storage !== this.#file) {
        // Encrypted: the bytes of the file are others.
        this.#works = false;
        throw new SpindleError('UNSUPPORTED', 'only plain data can be moved');
      }
      const { packed, host } = piece;
      return packed === undefined
        ? { from: host.at + shift, to: at, length, packed: 0, first: 0 }
        : { from: packed.at, to: at, length, packed: packed.length, first: packed.first + shift };
    });
    const written = await move(data, this.#file, runs, this.#skip(places));
    const end = runs.reduce((most, { to, length }) => Math.max(most, to + length), 0);
    this.#file.changed(Math.min(end, this.#file.size));
    return written;
  }

  /** Bytes of zeroes that need not be written to these places; 0: all are. */
  #skip(places: readonly FilledPlace[]): number {
    const { unit } = this.#options;
    if (this.#inPassing || unit === 0) return unit;
    return places.every(({ fresh }) => fresh?.clean === true) ? Math.min(unit, BLOCK) : 0;
  }
}

/** Bytes to be moved, as `expandPieces` takes them. */
interface MovedRun {
  readonly from: number;
  readonly to: number;
  readonly length: number;
  readonly packed: number;
  readonly first: number;
}

/** Moves runs of the file that `data` lies in; the bytes that were written. */
function move(data: Batch, target: FileStorage, runs: readonly MovedRun[], skip: number): Promise<number> {
  const source = data[0]?.host.storage.fd ?? -1;
  const packing = data.find(({ packed }) => packed !== undefined)?.packed?.packing;
  if (packing === undefined) {
    const list = runs.flatMap(({ from, to, length }) => [from, to, length]);
    return native().copyRuns(source, target.fd, Float64Array.from(list), skip);
  }
  const list = runs.flatMap(({ from, to, length, packed, first }) => [from, to, length, packed, first]);
  return native().expandPieces(source, target.fd, Float64Array.from(list), packing, skip);
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
