import type { Packing } from '../../core/codec.ts';
import type { DiskImage } from '../../format/disk-image.ts';
import type { ClusterStream } from '../../format/driver.ts';
import { native } from '../../native/binding.ts';
import { LEVELS } from '../../native/codec.ts';
import type { PackedClusters } from '../../native/types.ts';
import { Batches, type Batch, type Carrier, type Delivery, type HostPiece, type Moved } from './carrier.ts';
import type { Chunk } from './chunks.ts';
import { Mover } from './mover.ts';
import type { Run } from './source.ts';

/** Bytes that are compressed in one call: some hundred milliseconds at the most, and as many calls as there are cores. */
const MOST_BYTES = 2 * 1024 * 1024;
/** Pieces of one call. */
const MOST_PIECES = 64;

/** Clusters of a batch that go the same way. */
type Part =
  | { readonly way: 'stream'; readonly streams: ClusterStream[]; bytes: number }
  | { readonly way: 'plain'; readonly pieces: HostPiece[] }
  | { readonly way: 'zero'; readonly at: number; readonly length: number };

/** Compresses plain data of files in the addon, many clusters in a call, and stores the streams in order. */
export class Packer implements Carrier {
  readonly #target: DiskImage;
  readonly #packing: Packing;
  readonly #blank: boolean;
  /** For clusters that do not become smaller. */
  readonly #mover: Mover;
  readonly #batches = new Batches({ bytes: MOST_BYTES, pieces: MOST_PIECES });

  private constructor(target: DiskImage, packing: Packing, blank: boolean, mover: Mover) {
    this.#target = target;
    this.#packing = packing;
    this.#blank = blank;
    this.#mover = mover;
  }

  /**
   * A packer into `target`, which reads as zeroes now if `blank`; null where it does not take streams, or its bytes are
   * not plainly those of a file.
   */
  static to(target: DiskImage, blank: boolean): Packer | null {
    const { packing } = target.driver;
    const mover = Mover.to(target, { blank, unit: 0 });
    return packing === undefined || mover === null ? null : new Packer(target, packing, blank, mover);
  }

  accepts(host: NonNullable<Run['host']>): boolean {
    return this.#mover.accepts(host);
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

  async prepare(batch: Batch): Promise<Delivery> {
    const fd = batch[0]?.host.storage.fd ?? -1;
    const ranges = Float64Array.from(batch.flatMap(({ length, host }) => [host.at, length]));
    const { type } = this.#packing;
    const packed = await native().packRanges(fd, ranges, this.#packing, LEVELS[type]);
    return () => this.#store(batch, packed);
  }

  async #store(batch: Batch, packed: PackedClusters): Promise<{ readonly done: Promise<Moved> }> {
    const moved = { written: 0, zero: 0, shared: 0 };
    const moving: Promise<unknown>[] = [];
    try {
      for (const part of partsOf(batch, packed, this.#packing.clusterSize))
        await this.#storePart(part, moved, moving);
    } catch (error) {
      await Promise.allSettled(moving);
      throw error;
    }
    const done = Promise.all(moving).then(() => moved);
    // Whoever waits for it hears of a failure.
    done.catch(() => undefined);
    return { done };
  }

  async #storePart(
    part: Part,
    moved: { written: number; zero: number },
    moving: Promise<unknown>[],
  ): Promise<void> {
    if (part.way === 'zero') {
      moved.zero += part.length;
      if (!this.#blank) await this.#target.zero(part.at, part.length);
    } else if (part.way === 'stream') {
      moved.written += part.bytes;
      await this.#target.writeStreams(part.streams);
    } else {
      const { done } = await this.#mover.begin(part.pieces, null);
      const end = done.then(({ written }) => (moved.written += written));
      end.catch(() => undefined);
      moving.push(end);
    }
  }
}

/** The clusters of a batch in order; neighbours in the batch that go the same way together, but for zeroes. */
function* partsOf(batch: Batch, { lengths, streams }: PackedClusters, clusterSize: number): Generator<Part> {
  let open = null as Exclude<Part, { way: 'zero' }> | null;
  let [index, from] = [0, 0];
  for (const { at: start, length: size, host } of batch) {
    for (let done = 0; done < size; done += clusterSize, index++) {
      const at = start + done;
      const length = Math.min(clusterSize, size - done);
      const packed = lengths[index] ?? 0;
      const way = packed === 0 ? 'zero' : packed === clusterSize ? 'plain' : 'stream';
      if (open !== null && open.way !== way) yield open;
      if (open?.way !== way) open = null;
      if (way === 'zero') {
        yield { way, at, length };
      } else if (way === 'plain') {
        const piece: HostPiece = { at, length, host: { storage: host.storage, at: host.at + done } };
        if (open?.way === 'plain') open.pieces.push(piece);
        else open = { way, pieces: [piece] };
      } else {
        const stream = { at, bytes: streams.subarray(from, (from += packed)) };
        open = open?.way === 'stream' ? open : { way, streams: [], bytes: 0 };
        open.streams.push(stream);
        open.bytes += length;
      }
    }
  }
  if (open !== null) yield open;
}
