import type { Packing } from '../core/codec.ts';
import { SpindleError } from '../core/errors.ts';
import type { Storage, StorageCan, ZeroOptions } from '../core/storage.ts';
import { READ_ONLY } from '../core/storage.ts';

/** Where the bytes of a guest range are, for its first `length` bytes. */
export type Mapping = { readonly length: number } & (
  | {
      readonly kind: 'data';
      readonly storage: Storage;
      /** Offset in `storage`. */
      readonly at: number;
      /**
       * The bytes are encrypted on the host: `storage` gives them in the clear, or fails with ENCRYPTED where no secret
       * was given, and `at` must not be used with any other storage.
       */
      readonly encrypted?: true;
    }
  | {
      readonly kind: 'zero';
      /** Space that is allocated for the range though it reads as zeroes: an offset in the driver's data storage. */
      readonly reserved?: number;
      /** That space is part of an encrypted disk. */
      readonly encrypted?: true;
    }
  | {
      /** Not in this layer: the backing file's bytes, zeroes where there is none. */
      readonly kind: 'backing';
      readonly reserved?: number;
      readonly encrypted?: true;
    }
  | { readonly kind: 'compressed' }
);

/** Compressed clusters in a storage. */
export interface Streams {
  readonly packing: Packing;
  readonly storage: Storage;
  /**
   * Where the stream of the cluster at guest offset `at`, a multiple of its size, lies: within the `length` bytes from
   * `offset` on, which may pass the end of the storage. Synchronous where the table is in memory. @throws SpindleError BAD_ENTRY, LIMIT
   */
  place(at: number): StreamSectors | Promise<StreamSectors>;
}

/** Where a stream lies. Bytes. */
export interface StreamSectors {
  readonly offset: number;
  readonly length: number;
}

/** The cluster at guest offset `at`, compressed. */
export interface ClusterStream {
  readonly at: number;
  readonly bytes: Uint8Array;
}

/** A writable place for a guest range: `length` bytes of it, at offset `at` of `storage`. */
export interface DataMapping {
  readonly storage: Storage;
  readonly at: number;
  readonly length: number;
  /** Present where the place is new, and what is around the range in its clusters has to be brought there. */
  readonly fresh?: FreshPlace;
}

/** Offset `at` of a storage. */
export interface Place {
  readonly storage: Storage;
  readonly at: number;
}

/** New clusters that nothing points to yet. */
export interface FreshPlace {
  /** The guest range of the clusters: it holds the range asked for, and ends with the disk at the latest. */
  readonly start: number;
  readonly end: number;
  /** Bytes of the place behind `end`, past the end of the disk: to be zero, should the disk grow over them. */
  readonly padding: number;
  /** The guest range reads as zeroes up to now. */
  readonly blank: boolean;
  /** The place itself reads as zeroes. */
  readonly clean: boolean;
  /** Makes the tables point to the place. Only when all of its bytes are written. */
  commit(): Promise<void>;
  /** As {@link commit}, within a turn of {@link FormatDriver.together}. */
  link?(): Promise<void>;
  /** Gives the place up. */
  abandon(): Promise<void>;
}

/**
 * A format driver says where bytes are and makes room for them; it never moves guest data (compressed clusters, which
 * only it can decode and encode, excepted). All offsets are guest offsets, ranges lie within `size`.
 */
export interface FormatDriver {
  readonly format: string;
  /** Virtual size in bytes. */
  readonly size: number;
  /** Bytes in which the format allocates. */
  readonly granularity: number;
  readonly can: StorageCan;
  /** Where the guest data of this layer is, as far as it is plain bytes. */
  readonly data: Storage;
  /**
   * Data that the format maps may still be holes of `data`, so that whoever wants to know what reads as zero must ask
   * `data` as well (an image preallocated with metadata only).
   */
  sparseData(): boolean | Promise<boolean>;
  /**
   * The first run of one kind at `at`, 1 to `length` bytes; synchronous where the tables are in memory. `precise` asks
   * for zeroes where finding them costs more (raw: the holes of the file).
   */
  map(at: number, length: number, precise?: boolean): Mapping | Promise<Mapping>;
  /** The compressed clusters of this layer as they lie in a storage, for whoever decodes them past the driver. */
  readonly streams?: Streams | undefined;
  /** Fills `into` from compressed clusters, all of it within one run that `map` called compressed. */
  readCompressed(into: Uint8Array, at: number): Promise<void>;
  /**
   * The guest has asked to change a range, though perhaps nothing will come of all of it. Optional: for drivers that keep a
   * record of such things. The other methods below record by themselves what they change.
   */
  record?(at: number, length: number): Promise<void>;
  /** Makes the start of the range writable in place. */
  ensureData(at: number, length: number): Promise<DataMapping>;
  /**
   * Where all of a range can be written over at once; undefined where anything has to be made, changed or waited for
   * first, which is for {@link ensureData}. Optional.
   */
  placeNow?(at: number, length: number): Place | undefined;
  /**
   * Runs many requests in one turn, which costs less than a turn for each. In it `ensureData` is that of the turn, and
   * places are committed with `link`; nothing else of the driver may be waited for, and {@link record} comes before.
   * Optional.
   */
  together?<T>(work: (ensureData: FormatDriver['ensureData']) => Promise<T>): Promise<T>;
  /**
   * Stores whole `granularity` units (the last one may end with the disk) compressed, where the format can. A unit that
   * compression does not make smaller is handed to `plain`.
   */
  writeCompressed?(
    from: Uint8Array,
    at: number,
    plain: (part: Uint8Array, at: number) => Promise<void>,
  ): Promise<void>;
  /** How {@link writeStreams} wants clusters compressed; undefined where the image cannot hold compressed ones. */
  readonly packing?: Packing | undefined;
  /**
   * Stores clusters that were compressed as {@link packing} says, in ascending order. Streams that lie one right after
   * the other in memory are written in one go.
   */
  writeStreams?(streams: readonly ClusterStream[]): Promise<void>;
  /**
   * Makes a range of whole `granularity` units (or up to the end of the disk) read as zeroes; false where the format has
   * no way to say so and zeroes have to be written.
   */
  zero(at: number, length: number, how?: ZeroOptions): Promise<boolean>;
  /** Gives back the space of a range of whole `granularity` units, or up to the end of the disk. */
  discard(at: number, length: number): Promise<void>;
  /** Changes the virtual size; a grown part reads as zeroes. Runs while nothing else uses the image. */
  resize(size: number, tools: ResizeTools): Promise<void>;
  flush(): Promise<void>;
  close(): Promise<void>;
}

/** How a grown part is allocated, where a format can do that; as at creation. */
export interface ResizeOptions {
  readonly preallocation?: 'off' | 'metadata' | 'falloc' | 'full' | undefined;
}

/** What the executor does for a driver that changes its size. */
export interface ResizeTools extends ResizeOptions {
  /** Bytes of the image below, 0 where there is none. */
  readonly backingSize: number;
  /** Makes a range read as zeroes by writing them where it does not yet; goes through the driver like any write. */
  zero(at: number, length: number): Promise<void>;
}

/** Base of a driver that cannot change its image: every change fails with READ_ONLY. */
export abstract class ReadOnlyDriver implements FormatDriver {
  abstract readonly format: string;
  abstract readonly size: number;
  abstract readonly granularity: number;
  abstract readonly data: Storage;
  readonly can: StorageCan = { ...READ_ONLY, extents: true };
  abstract map(at: number, length: number, precise?: boolean): Mapping | Promise<Mapping>;
  abstract readCompressed(into: Uint8Array, at: number): Promise<void>;
  abstract close(): Promise<void>;

  sparseData(): boolean | Promise<boolean> {
    return false;
  }

  ensureData(_at: number, _length: number): Promise<DataMapping> {
    return Promise.reject(this.#readOnly());
  }

  zero(_at: number, _length: number, _how?: ZeroOptions): Promise<boolean> {
    return Promise.reject(this.#readOnly());
  }

  discard(_at: number, _length: number): Promise<void> {
    return Promise.reject(this.#readOnly());
  }

  resize(_size: number): Promise<void> {
    return Promise.reject(this.#readOnly());
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }

  #readOnly(): SpindleError {
    return new SpindleError('READ_ONLY', `this ${this.format} image is open for reading only`);
  }
}
