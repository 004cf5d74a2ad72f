import type { PackedRun, Run } from './source.ts';
import type { Chunk } from './chunks.ts';
import type { FilledPlace } from '../../format/fill.ts';
import { FileStorage } from '../../storage/file.ts';

/** A piece of the disk whose bytes, plain or compressed, lie in a file. Bytes. */
export interface HostPiece {
  readonly at: number;
  readonly length: number;
  /** For a compressed cluster, where its stream is. */
  readonly host: { readonly storage: FileStorage; readonly at: number };
  readonly packed?: PackedRun | undefined;
}

/** Pieces of one file, in the order of the disk, that are brought to the target together. */
export type Batch = readonly HostPiece[];

/** What becomes of a batch. Bytes of the disk. */
export interface Moved {
  readonly written: number;
  readonly zero: number;
  /** Blocks shared with the source. */
  readonly shared: number;
}

/** Brings a batch that was prepared to its places: all of it has them when this resolves, its bytes when `done` has. */
export type Delivery = () => Promise<{ readonly done: Promise<Moved> }>;

/** Brings data from files to a target in few large calls, past JavaScript. */
export interface Carrier {
  /** Whether plain bytes can be taken from there. */
  accepts(host: NonNullable<Run['host']>): boolean;
  /** Whether a compressed cluster can be. */
  unpacks(packed: PackedRun): boolean;
  /** Takes a piece; yields the batches that are complete with it. */
  add(chunk: Chunk): Generator<Batch>;
  /** What has been taken and not been given back in a batch. */
  rest(): Generator<Batch>;
  /** Does ahead of its turn what can be done for a batch then. */
  prepare(batch: Batch): Promise<Delivery>;
}

/** Whether the addon can read the bytes of a storage by itself. */
export function isPlainFile(storage: unknown): storage is FileStorage {
  return storage instanceof FileStorage && !storage.can.direct;
}

/** Collects pieces to batches. */
export class Batches {
  readonly #most: { readonly bytes: number; readonly pieces: number };
  #pieces: HostPiece[] = [];
  #bytes = 0;

  /** With the most that a batch may hold. */
  constructor(most: { readonly bytes: number; readonly pieces: number }) {
    this.#most = most;
  }

  /** See {@link Carrier.add}. Only the last piece of a batch is cut, at a multiple of the most from its start. */
  *add({ at, length, host, packed }: Chunk): Generator<Batch> {
    const from = packed ?? host;
    if (from === null || !isPlainFile(from.storage)) throw new TypeError('not the bytes of a file');
    const { storage } = from;
    if (this.#pieces[0] !== undefined && this.#pieces[0].host.storage !== storage) yield* this.rest();
    for (let done = 0; done < length;) {
      const size = packed === undefined ? Math.min(length - done, this.#most.bytes - this.#bytes) : length;
      const start = from.at + (packed === undefined ? done : 0);
      this.#pieces.push({ at: at + done, length: size, host: { storage, at: start }, packed });
      this.#bytes += size;
      done += size;
      if (this.#bytes >= this.#most.bytes || this.#pieces.length >= this.#most.pieces) yield* this.rest();
    }
  }

  /** See {@link Carrier.rest}. */
  *rest(): Generator<Batch> {
    const pieces = this.#pieces;
    this.#pieces = [];
    this.#bytes = 0;
    if (pieces.length > 0) yield pieces;
  }
}

/** A place, the piece of a batch that goes there, and the bytes of the piece before it. */
export interface Placed {
  readonly place: FilledPlace;
  readonly piece: HostPiece;
  readonly shift: number;
}

/** Which piece goes to each of the places that a batch was given. */
export function placesIn(batch: Batch, places: readonly FilledPlace[]): Placed[] {
  let next = 0;
  return places.map((place) => {
    while (next + 1 < batch.length && (batch[next + 1] as HostPiece).at <= place.guest) next++;
    const piece = batch[next] as HostPiece;
    return { place, piece, shift: place.guest - piece.at };
  });
}

/** The bytes of all pieces. */
export function sumOf(pieces: readonly { readonly length: number }[]): number {
  return pieces.reduce((bytes, { length }) => bytes + length, 0);
}
