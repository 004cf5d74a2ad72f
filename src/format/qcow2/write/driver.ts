import type { Codec, Packing } from '../../../core/codec.ts';
import { isSpindleError, SpindleError } from '../../../core/errors.ts';
import type { Storage, StorageCan, ZeroOptions } from '../../../core/storage.ts';
import type { Working } from '../../../core/working.ts';
import type {
  ClusterStream,
  DataMapping,
  FormatDriver,
  FreshPlace,
  Mapping,
  Place,
  ResizeTools,
  Streams,
} from '../../driver.ts';
import { amendQcow2, checkAmend, type Amending, type FormatChange } from '../amend/amend.ts';
import { lockedData } from '../../crypto/encrypted-storage.ts';
import { packingOf } from '../compressed.ts';
import { Qcow2Driver } from '../driver.ts';
import { CryptMethod, Incompatible } from '../layout.ts';
import { readMetadata, type Metadata } from '../metadata.ts';
import { checkCompressible, compressInOrder, compressorOf, whyIncompressible } from './compress.ts';
import { setIncompatible } from './dirty-mark.ts';
import { emptyDisk } from './empty.ts';
import { inPlace } from './in-place.ts';
import { LiveBitmaps } from './live-bitmaps.ts';
import { announceChanges, refuseUnsound, soundMetadata } from './open-header.ts';
import { resizeQcow2 } from './resize.ts';
import type { Reloadable, WholeTables, WriterOptions } from './whole.ts';
import { Qcow2Writer } from './writer.ts';

/**
 * Driver of a qcow2 image that is open for writing, alone: where bytes are is the business of the reading driver inside,
 * where they go that of the writer; both look at the same tables.
 */
export class Qcow2WriteDriver implements FormatDriver {
  readonly format = 'qcow2';
  readonly granularity: number;
  readonly data: Storage;
  readonly can: StorageCan;
  readonly #storage: Storage;
  readonly #dataFile: Storage | null;
  readonly #codec: Codec;
  readonly #options: WriterOptions;
  #parts: Parts;
  #broken: SpindleError | undefined;
  /** What is done changes nothing that the guest sees. */
  #unseen = false;

  private constructor(
    storage: Storage,
    dataFile: Storage | null,
    codec: Codec,
    options: WriterOptions,
    parts: Parts,
  ) {
    this.#storage = storage;
    this.#dataFile = dataFile;
    this.#codec = codec;
    this.#options = options;
    this.#parts = parts;
    this.granularity = parts.reader.granularity;
    this.data = parts.reader.data;
    this.can = {
      write: true,
      resize: true,
      zero: true,
      discard: true,
      extents: true,
      direct: storage.can.direct,
    };
  }

  /**
   * Opens an image for writing. Nothing on disk changes but what the header says of features and would become untrue, and
   * the refcounts of an image that a program with lazy refcounts did not close: they are made anew from the tables.
   * @throws SpindleError CORRUPT, DIRTY, ENCRYPTED before anything is changed; BAD_ENTRY, BAD_BITMAP, LIMIT
   */
  static async open(
    storage: Storage,
    metadata: Metadata,
    dataFile: Storage | null,
    codec: Codec,
    options: WriterOptions,
  ): Promise<Qcow2WriteDriver> {
    refuse(metadata, options.plain);
    const sound = await soundMetadata(storage, metadata);
    const all = { ...options, bitmaps: LiveBitmaps.of(storage, sound) };
    const parts = await openParts(storage, sound, dataFile, codec, all);
    await announceChanges(storage, sound);
    return new Qcow2WriteDriver(storage, dataFile, codec, all, parts);
  }

  get size(): number {
    return this.#reader.size;
  }

  /** What the header and the tables beside it say now. */
  get metadata(): Metadata {
    return this.#parts.metadata;
  }

  /** The writer; another one after a change to the size or the snapshots. */
  get writer(): Qcow2Writer {
    return this.#parts.writer;
  }

  get #reader(): Qcow2Driver {
    return this.#parts.reader;
  }

  /** Reads everything anew from the disk; `size` is the virtual size to work with where it is not the header's. */
  async #reload(size?: number): Promise<void> {
    try {
      const { usedEnd, cache } = this.writer;
      cache.clear();
      const found = await readMetadata(this.#storage, 'data');
      const metadata = size === undefined ? found : { ...found, size };
      const options = { ...this.#options, usedEnd };
      this.#parts = await openParts(this.#storage, metadata, this.#dataFile, this.#codec, options);
      if (size === undefined) this.#options.bitmaps?.resize(metadata.size);
    } catch (error) {
      // What is in memory may be out of date: nothing may be written any more.
      this.#broken ??= new SpindleError('IO', 'the image could not be read again after a change', {
        cause: error,
      });
      throw error;
    }
  }

  sparseData(): boolean | Promise<boolean> {
    return this.#reader.sparseData();
  }

  map(at: number, length: number): Mapping | Promise<Mapping> {
    return this.#reader.map(at, length);
  }

  readCompressed(into: Uint8Array, at: number): Promise<void> {
    return this.#reader.readCompressed(into, at);
  }

  /** See {@link FormatDriver.record}: bitmaps have it in them when this has resolved. */
  record(at: number, length: number): Promise<void> {
    return this.#changing(at, length, () => Promise.resolve());
  }

  async ensureData(at: number, length: number): Promise<DataMapping> {
    const place = await this.#changing(at, length, () => this.writer.ensureData(at, length));
    return place.fresh === undefined ? place : { ...place, fresh: this.#guardedPlace(place.fresh) };
  }

  /** See {@link FormatDriver.placeNow}. @throws SpindleError as {@link inPlace} */
  placeNow(at: number, length: number): Place | undefined {
    if (this.#broken !== undefined) return undefined;
    const place = inPlace(this.writer, this.#reader, this.#storage, at, length);
    if (place === undefined) return undefined;
    const recorded = this.#unseen ? undefined : this.#options.bitmaps?.record(at, length);
    if (recorded === undefined) return place;
    // The write that waits for it is told.
    recorded.catch(() => undefined);
    return undefined;
  }

  /** See {@link FormatDriver.together}. */
  together<T>(work: (ensureData: FormatDriver['ensureData']) => Promise<T>): Promise<T> {
    return this.#guarded(() => this.writer.together(work));
  }

  /** See {@link FormatDriver.writeCompressed}. @throws SpindleError UNSUPPORTED, BAD_OPTION, and as other writes do */
  async writeCompressed(
    from: Uint8Array,
    at: number,
    plain: (part: Uint8Array, at: number) => Promise<void>,
  ): Promise<void> {
    checkCompressible(this.metadata, at, from.length);
    const { clusterSize } = this.metadata.geometry;
    const link = async (stream: Uint8Array, where: number): Promise<void> => {
      await this.writeStreams([{ at: where, bytes: stream }]);
    };
    const compress = compressorOf(this.metadata, this.#codec);
    await compressInOrder(from, at, { clusterSize, compress, link, plain });
  }

  get streams(): Streams {
    return this.#reader.streams;
  }

  get packing(): Packing | undefined {
    const { header, geometry } = this.metadata;
    return whyIncompressible(header) === null
      ? packingOf(header.compressionType, geometry.clusterSize)
      : undefined;
  }

  /** See {@link FormatDriver.writeStreams}. @throws SpindleError UNSUPPORTED, BAD_OPTION, and as other writes do */
  async writeStreams(streams: readonly ClusterStream[]): Promise<void> {
    const { clusterSize } = this.metadata.geometry;
    for (const { at } of streams) {
      const length = Math.min(clusterSize, this.size - at);
      checkCompressible(this.metadata, at, length);
      await this.record(at, length);
    }
    const list = streams.map(({ at, bytes }) => ({ cluster: at / clusterSize, stream: bytes }));
    const hosts = await this.#guarded(() => this.writer.compressedWrites(list));
    for (const host of hosts) this.#reader.forgetCompressed(host);
  }

  #guardedPlace(fresh: FreshPlace): FreshPlace {
    return { ...fresh, commit: () => this.#guarded(() => fresh.commit()) };
  }

  zero(at: number, length: number, how: ZeroOptions = {}): Promise<boolean> {
    return this.#changing(at, length, () => this.writer.zero(at, length, how));
  }

  discard(at: number, length: number): Promise<void> {
    return this.#changing(at, length, () => this.writer.discard(at, length));
  }

  /** See {@link FormatDriver.resize}. @throws SpindleError BAD_SIZE, BAD_OPTION, UNSUPPORTED, LIMIT, NO_SPACE */
  resize(size: number, tools: ResizeTools): Promise<void> {
    return this.#guarded(() => resizeQcow2(this.#reloadable(), size, tools));
  }

  /**
   * Changes the internal snapshots, or the disk to one of them. Nothing else may use the image meanwhile.
   * @throws SpindleError UNSUPPORTED, BAD_OPTION, LIMIT, BAD_SNAPSHOT before anything is changed
   */
  changeSnapshots<T>(work: (image: Reloadable) => Promise<T>): Promise<T> {
    return this.#guarded(async () => {
      // Reading anew forgets what is only in memory, so all of it goes to the disk first.
      await this.writer.flush();
      try {
        return await work(this.#reloadable());
      } finally {
        await this.#reload();
      }
    });
  }

  #reloadable(): Reloadable {
    const { punch = true, atOnce } = this.#options;
    return { writer: () => this.writer, reload: (size) => this.#reload(size), punch, atOnce };
  }

  /**
   * Changes the version, the width of refcounts, and what the header says of the image. Nothing else may use the image
   * meanwhile.
   * @throws SpindleError BAD_OPTION, UNSUPPORTED, LIMIT before anything is changed; NO_SPACE, ABORTED
   */
  amend(change: FormatChange, working: Working = {}): Promise<void> {
    return this.#guarded(async () => {
      try {
        await amendQcow2(this.#amending(), change, working);
      } finally {
        await this.#reload();
      }
    });
  }

  /** Sees whether {@link amend} can be done, together with a change of the size to `size`. Changes nothing. @throws as it */
  checkAmend(change: FormatChange, size?: number): Promise<void> {
    return this.#guarded(() => checkAmend(this.#amending(), change, size));
  }

  #amending(): Amending {
    const { backed, plain } = this.#options;
    return { ...this.#reloadable(), backed, plain };
  }

  /**
   * Runs work whose writes change nothing that the guest sees, only where it is: bitmaps do not record them. Nothing else
   * may change the image meanwhile.
   */
  async unseen<T>(work: () => Promise<T>): Promise<T> {
    this.#unseen = true;
    try {
      return await work();
    } finally {
      this.#unseen = false;
    }
  }

  /** Runs work on the tables, when all that was done is durable: see {@link Qcow2Writer.alone}. */
  onTables<T>(work: (writer: Qcow2Writer, whole: WholeTables) => Promise<T>): Promise<T> {
    return this.#guarded(() => this.writer.alone((whole) => work(this.writer, whole)));
  }

  /** The guest data cannot be read or written: it is encrypted, and no secret was given. */
  get locked(): boolean {
    return this.#options.plain === lockedData;
  }

  /** Takes everything out of the disk: see {@link emptyDisk}. Nothing else may use the image meanwhile. */
  empty(): Promise<void> {
    return this.changeSnapshots((image) => emptyDisk(image.writer()));
  }

  flush(): Promise<void> {
    return this.#guarded(() => this.writer.flush());
  }

  async close(): Promise<void> {
    try {
      if (this.#broken === undefined) await this.#closeWriter();
    } finally {
      await this.#reader.close();
    }
  }

  async #closeWriter(): Promise<void> {
    // Bitmaps that cannot be stored stay marked as in use on disk; that is no reason to lose anything else.
    try {
      await this.#guarded(async () => this.#options.bitmaps?.store(this.writer));
    } finally {
      await this.writer.close();
    }
  }

  /** Work that changes what the guest sees in a range. */
  #changing<T>(at: number, length: number, work: () => Promise<T>): Promise<T> {
    return this.#guarded(async () => {
      const recorded = this.#unseen ? undefined : this.#options.bitmaps?.record(at, length);
      if (recorded !== undefined) await recorded;
      return work();
    });
  }

  /** Damage that shows while writing marks the image corrupt and ends all writing: the next write could do harm. */
  async #guarded<T>(work: () => Promise<T>): Promise<T> {
    if (this.#broken !== undefined) throw this.#broken;
    try {
      return await work();
    } catch (error) {
      if (isSpindleError(error, 'CORRUPT') || isSpindleError(error, 'BAD_ENTRY')) {
        this.#broken = error;
        await markCorrupt(this.#storage, this.metadata).catch(() => undefined);
      }
      throw error;
    }
  }
}

/** What stands for the tables as they are at one time. */
interface Parts {
  readonly metadata: Metadata;
  readonly writer: Qcow2Writer;
  readonly reader: Qcow2Driver;
}

async function openParts(
  storage: Storage,
  metadata: Metadata,
  dataFile: Storage | null,
  codec: Codec,
  options: WriterOptions,
): Promise<Parts> {
  const writer = await Qcow2Writer.open(storage, metadata, dataFile, options);
  const tables = { l1: writer.editor.l1, l2: writer.editor };
  const reader = await Qcow2Driver.open(storage, metadata, dataFile, codec, tables, options.plain);
  return { metadata, writer, reader };
}

/** @throws SpindleError CORRUPT, DIRTY, ENCRYPTED for an image that must not be written to as it is */
function refuse(metadata: Metadata, plain: WriterOptions['plain']): void {
  refuseUnsound(metadata);
  if (metadata.header.cryptMethod !== CryptMethod.NONE && plain === undefined) {
    throw new SpindleError('ENCRYPTED', 'the image is encrypted and no secret was given');
  }
}

/** Sets the corrupt bit. Version 2 has no place for it. */
async function markCorrupt(storage: Storage, metadata: Metadata): Promise<void> {
  if (metadata.header.version === 3) await setIncompatible(storage, Incompatible.CORRUPT, 0);
}
