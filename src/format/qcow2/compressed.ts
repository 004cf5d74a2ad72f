import type { Codec, Packing } from '../../core/codec.ts';
import { Lru } from '../../core/lru.ts';
import { readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import type { CompressedPlace } from './entry.ts';
import { CompressionType } from './layout.ts';

/** How an image of that compression type packs its clusters. */
export function packingOf(type: number, clusterSize: number): Packing {
  return { type: type === CompressionType.ZSTD ? 'zstd' : 'deflate', clusterSize };
}

/** Bytes of decompressed clusters kept, so that small sequential reads do not decompress a cluster again and again. */
const CACHE = 4 * 1024 * 1024;

/** Reads compressed clusters of one image. */
export class CompressedClusters {
  readonly #storage: Storage;
  readonly #clusterSize: number;
  readonly #type: number;
  readonly #codec: Codec;
  readonly #cache: Lru<Uint8Array>;

  constructor(storage: Storage, clusterSize: number, type: number, codec: Codec) {
    this.#storage = storage;
    this.#clusterSize = clusterSize;
    this.#type = type;
    this.#codec = codec;
    this.#cache = new Lru({ budget: CACHE, cost: (cluster) => cluster.length });
  }

  /**
   * The whole decompressed cluster that lies at `place`. The caller must not change it.
   * @throws SpindleError BAD_COMPRESSED
   */
  async read(place: CompressedPlace): Promise<Uint8Array> {
    return this.#cache.load(place.offset, () => this.#decompress(place));
  }

  /** Another stream lies at host offset `offset` from now on. Nobody may be reading the one before it. */
  forget(offset: number): void {
    this.#cache.delete(offset);
  }

  async #decompress(place: CompressedPlace): Promise<Uint8Array> {
    // The sectors may hold the start of a neighbour after the stream, and the file may end before they do.
    const source = new Uint8Array(place.length);
    await readPadded(this.#storage, source, place.offset);
    const cluster = new Uint8Array(this.#clusterSize);
    if (this.#type === CompressionType.ZSTD) await this.#codec.zstd(source, cluster);
    else await this.#codec.inflate(source, cluster);
    return cluster;
  }
}
