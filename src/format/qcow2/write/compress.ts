import { isAligned, offsetIn } from '../../../core/align.ts';
import type { Codec } from '../../../core/codec.ts';
import { SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { encodeCompressed } from '../entry.ts';
import type { Geometry } from '../geometry.ts';
import { CompressionType, CryptMethod, Incompatible } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import type { Allocator, ClusterRun } from './allocator.ts';
import type { ClusterKinds } from './cluster-kinds.ts';
import { giveEntry, NOWHERE, type L2Editor, type L2Entry } from './l2-editor.ts';
import type { OrderedCache } from './ordered-cache.ts';
import type { Refcounts } from './refcounts.ts';

/** Clusters of one request that are compressed at the same time. */
const IN_FLIGHT = 8;

/** What the packer needs of the image around it. */
export interface PackerHost {
  readonly storage: Storage;
  readonly geometry: Geometry;
  readonly cache: OrderedCache;
  readonly kinds: ClusterKinds;
  readonly refcounts: Refcounts;
  /** Makes the file long enough for a write that ends at `end`. */
  readonly reach: (end: number) => Promise<void>;
}

/** The stream of a guest cluster. */
export interface NewStream {
  readonly cluster: number;
  readonly stream: Uint8Array;
}

/** A place for a stream: its host offset, and the clusters that got a reference for it. */
interface StreamPlace {
  readonly at: number;
  readonly run: ClusterRun;
}

/**
 * Packs compressed streams into host clusters, one right after the other; each stream is one reference to every cluster
 * that it touches. Runs under the mutex of the image.
 */
export class StreamPacker {
  readonly #host: PackerHost;
  readonly #allocator: Allocator;
  readonly #editor: L2Editor;
  /** Where the last stream ends, inside a cluster that only streams of this session share; null: nowhere. */
  #end: number | null = null;

  constructor(host: PackerHost, allocator: Allocator, editor: L2Editor) {
    this.#host = host;
    this.#allocator = allocator;
    this.#editor = editor;
  }

  /** Clusters are free: they may go to anybody, so no stream may be put after what lay in them. */
  forget({ start, count }: ClusterRun): void {
    if (this.#end === null) return;
    const cluster = Math.floor(this.#end / this.#host.geometry.clusterSize);
    if (cluster >= start && cluster < start + count) this.#end = null;
  }

  /**
   * Writes the streams of guest clusters and points their entries, which `entryOf` gives, to them. A failure leaves the old
   * entries of those that were not pointed to yet in place. The host offsets of the streams.
   */
  async write(
    streams: readonly NewStream[],
    entryOf: (cluster: number) => Promise<L2Entry>,
  ): Promise<number[]> {
    const { storage, geometry, cache } = this.#host;
    const [allocator, editor] = [this.#allocator, this.#editor];
    const places: StreamPlace[] = [];
    const old: L2Entry[] = [];
    for (const { cluster } of streams) old.push(await entryOf(cluster));
    let linked = 0;
    try {
      for (const { cluster, stream } of streams) {
        await editor.ensureTable(cluster);
        places.push(await this.#reserve(stream.length));
        await this.#reach(places.at(-1)?.at ?? 0, stream.length);
      }
      for (const { bytes, at } of inOneGo(streams, places)) await storage.write(bytes, at);
      cache.noteWritten();
      for (const [index, { cluster, stream }] of streams.entries()) {
        const [hi, lo] = encodeCompressed(places[index]?.at ?? 0, stream.length, geometry.clusterBits);
        await editor.set(cluster, { hi, lo, zeros: 0, data: 0 });
        linked++;
        giveEntry(old[index] ?? NOWHERE, geometry, allocator);
      }
    } catch (error) {
      this.#end = null;
      for (const { run } of places.slice(linked)) await allocator.takeBack(run);
      throw error;
    }
    return places.map(({ at }) => at);
  }

  async #reach(at: number, length: number): Promise<void> {
    const { kinds, reach, geometry } = this.#host;
    // An entry has fewer bits for the offset of a stream than for that of a cluster.
    if (at + length > 2 ** Math.min(53, 70 - geometry.clusterBits)) {
      throw new SpindleError('LIMIT', 'compressed clusters cannot lie this far into the file');
    }
    kinds.check(at, length);
    await reach(at + length);
  }

  /** Room after the last stream where it fits or the next cluster is free, else at the start of a free cluster. */
  async #reserve(length: number): Promise<StreamPlace> {
    const { clusterSize } = this.#host.geometry;
    const allocator = this.#allocator;
    const open = await this.#openCluster();
    const end = this.#end;
    if (open !== null && end !== null && offsetIn(end, clusterSize) + length <= clusterSize) {
      const run = { start: open, count: 1 };
      await allocator.share(run);
      this.#advance(end + length);
      return { at: end, run };
    }
    const taken = await allocator.take(1);
    const follows = open !== null && end !== null && taken.start === open + 1;
    const at = follows ? end : taken.start * clusterSize;
    if (follows) {
      try {
        await allocator.share({ start: open, count: 1 });
      } catch (error) {
        await allocator.takeBack(taken);
        throw error;
      }
    }
    this.#advance(at + length);
    return { at, run: follows ? { start: open, count: 2 } : taken };
  }

  /** The cluster in which the last stream ends, null when it is full or cannot count another reference. */
  async #openCluster(): Promise<number | null> {
    if (this.#end === null) return null;
    const { geometry, refcounts } = this.#host;
    const cluster = Math.floor(this.#end / geometry.clusterSize);
    const count = await refcounts.get(cluster);
    if (count === 0) this.#end = null;
    return count > 0 && count < refcounts.max ? cluster : null;
  }

  #advance(end: number): void {
    this.#end = isAligned(end, this.#host.geometry.clusterSize) ? null : end;
  }
}

/** Streams whose bytes and whose places follow one another, as one. */
function* inOneGo(
  streams: readonly NewStream[],
  places: readonly StreamPlace[],
): Generator<{ readonly bytes: Uint8Array; readonly at: number }> {
  let open = null as { readonly bytes: Uint8Array; readonly at: number } | null;
  for (const [index, { stream }] of streams.entries()) {
    const at = places[index]?.at ?? 0;
    if (open !== null && follows(open.bytes, stream) && at === open.at + open.bytes.length) {
      const length = open.bytes.length + stream.length;
      open = { bytes: new Uint8Array(open.bytes.buffer, open.bytes.byteOffset, length), at: open.at };
      continue;
    }
    if (open !== null) yield open;
    open = { bytes: stream, at };
  }
  if (open !== null) yield open;
}

/** Whether bytes lie right after others in one buffer. */
function follows(before: Uint8Array, after: Uint8Array): boolean {
  return after.buffer === before.buffer && after.byteOffset === before.byteOffset + before.length;
}

/** Why an image cannot hold compressed clusters; null when it can. */
export function whyIncompressible(header: Metadata['header']): string | null {
  // The format has no encrypted streams: the data would be there for all to read.
  if (header.cryptMethod !== CryptMethod.NONE) return 'an encrypted image cannot hold compressed clusters';
  if ((header.incompatible.lo & Incompatible.DATA_FILE) !== 0)
    return 'an image with an external data file cannot hold compressed clusters';
  return null;
}

/**
 * Refuses what cannot be written compressed.
 * @throws SpindleError UNSUPPORTED for an image that cannot hold compressed clusters, BAD_OPTION for a range that is not
 * made of whole clusters
 */
export function checkCompressible(metadata: Metadata, at: number, length: number): void {
  const { header, geometry, size } = metadata;
  const why = whyIncompressible(header);
  if (why !== null) throw new SpindleError('UNSUPPORTED', why);
  const { clusterSize } = geometry;
  const end = at + length;
  if (isAligned(at, clusterSize) && (isAligned(end, clusterSize) || end === size)) return;
  throw new SpindleError(
    'BAD_OPTION',
    `only whole clusters of ${String(clusterSize)} bytes can be written compressed: ` +
      `${String(length)} bytes at offset ${String(at)} are not`,
  );
}

/** The compressor of an image: gives null for a cluster that would not become smaller. */
export function compressorOf(
  metadata: Metadata,
  codec: Codec,
): (cluster: Uint8Array) => Promise<Uint8Array | null> {
  const { clusterSize } = metadata.geometry;
  return metadata.header.compressionType === CompressionType.ZSTD
    ? (cluster) => codec.zstdCompress(cluster, clusterSize)
    : (cluster) => codec.deflate(cluster, clusterSize);
}

/** How {@link compressInOrder} goes about it. */
export interface CompressSteps {
  readonly clusterSize: number;
  readonly compress: (cluster: Uint8Array) => Promise<Uint8Array | null>;
  /** Takes the stream of the guest cluster at `at`. */
  readonly link: (stream: Uint8Array, at: number) => Promise<void>;
  /** Takes a cluster that does not become smaller; its part of the disk only. */
  readonly plain: (part: Uint8Array, at: number) => Promise<void>;
}

/**
 * Compresses the clusters of `from`, several at a time, and stores them one by one in the order of their offsets, so
 * that the same input makes the same image. What is stored when one of them fails stays.
 */
export async function compressInOrder(from: Uint8Array, at: number, steps: CompressSteps): Promise<void> {
  const { clusterSize, compress, link, plain } = steps;
  const queue: Promise<Uint8Array | null>[] = [];
  let next = 0;
  try {
    for (let done = 0; done < from.length; done += clusterSize) {
      for (; queue.length < IN_FLIGHT && next < from.length; next += clusterSize) {
        const running = compress(padded(from.subarray(next, next + clusterSize), clusterSize));
        // Its turn comes later; until then a failure is nobody's.
        void running.catch(() => undefined);
        queue.push(running);
      }
      const stream = (await queue.shift()) ?? null;
      if (stream === null) await plain(from.subarray(done, done + clusterSize), at + done);
      else await link(stream, at + done);
    }
  } finally {
    // `from` is the caller's again after this.
    await Promise.allSettled(queue);
  }
}

/** A cluster that the end of the disk cuts has zeroes behind it. */
function padded(part: Uint8Array, clusterSize: number): Uint8Array {
  if (part.length === clusterSize) return part;
  const whole = new Uint8Array(clusterSize);
  whole.set(part);
  return whole;
}
