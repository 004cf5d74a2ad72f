import { alignDown, offsetIn } from '../../core/align.ts';
import type { Codec } from '../../core/codec.ts';
import { formatError, isSpindleError, SpindleError } from '../../core/errors.ts';
import type { Storage } from '../../core/storage.ts';
import { lockedData, type PlainData } from '../crypto/encrypted-storage.ts';
import { ReadOnlyDriver, type Mapping, type Streams } from '../driver.ts';
import { CompressedClusters, packingOf } from './compressed.ts';
import type { CompressedPlace } from './entry.ts';
import { l1SizeFor } from './geometry.ts';
import { compressedAt, mapRun, type ClusterRun, type MappingRules } from './mapping.ts';
import { CryptMethod, Incompatible, Limit, SECTOR, TABLE_ENTRY } from './layout.ts';
import type { Metadata } from './metadata.ts';
import { looksPreallocated } from './preallocated.ts';
import type { Snapshot } from './snapshot.ts';
import { L1Table, Tables, type L2Slice, type L2Source } from './tables.ts';

/** Driver of one qcow2 image, or of one internal snapshot in it. Reads only. */
export class Qcow2Driver extends ReadOnlyDriver {
  readonly format = 'qcow2';
  readonly size: number;
  readonly granularity: number;
  readonly data: Storage;
  readonly metadata: Metadata;
  readonly #storage: Storage;
  readonly #l1: L1Table;
  readonly #tables: L2Source;
  readonly #rules: MappingRules;
  readonly #compressed: CompressedClusters;
  /** Null where the image is not encrypted. */
  readonly #plain: PlainData | null;
  #sparse: boolean | Promise<boolean> | undefined;

  private constructor(
    storage: Storage,
    metadata: Metadata,
    data: Storage,
    size: number,
    l1: L1Table,
    shared: { tables: L2Source; compressed: CompressedClusters; plain: PlainData | null },
  ) {
    super();
    this.#storage = storage;
    this.metadata = metadata;
    this.data = data;
    this.size = size;
    this.granularity = metadata.geometry.clusterSize;
    this.#l1 = l1;
    this.#tables = shared.tables;
    this.#compressed = shared.compressed;
    this.#plain = shared.plain;
    this.#rules = {
      geometry: metadata.geometry,
      version: metadata.header.version,
      externalData: (metadata.header.incompatible.lo & Incompatible.DATA_FILE) !== 0,
    };
  }

  /**
   * The driver of an image whose metadata was read. `dataFile` is its external data file: needed to map guest data
   * where the image has one, null otherwise. `tables` are those of a writer, which change under the driver. `plain` gives the
   * data of an encrypted image in the clear; without it the image can be mapped, but its data cannot be read.
   */
  static async open(
    storage: Storage,
    metadata: Metadata,
    dataFile: Storage | null,
    codec: Codec,
    tables?: { readonly l1: L1Table; readonly l2: L2Source },
    plain: PlainData = lockedData,
  ): Promise<Qcow2Driver> {
    const { header, geometry, size } = metadata;
    const l1 =
      tables?.l1 ?? (await L1Table.read(storage, header.l1TableOffset, header.l1Size, geometry.clusterSize));
    return new Qcow2Driver(storage, metadata, dataFile ?? storage, size, l1, {
      tables: tables?.l2 ?? new Tables(storage, geometry),
      compressed: new CompressedClusters(storage, geometry.clusterSize, header.compressionType, codec),
      plain: header.cryptMethod === CryptMethod.NONE ? null : plain,
    });
  }

  /**
   * The driver of an internal snapshot, by id or else by name. Its size is the one that the disk had then.
   * @throws SpindleError SNAPSHOT_NOT_FOUND, BAD_SNAPSHOT, LIMIT
   */
  async openSnapshot(idOrName: string): Promise<Qcow2Driver> {
    const snapshot = findSnapshot(this.metadata.snapshots, idOrName);
    const { geometry } = this.metadata;
    const bad = (message: string, code: 'BAD_SNAPSHOT' | 'LIMIT' = 'BAD_SNAPSHOT'): SpindleError =>
      formatError(code, `snapshot '${snapshot.name}'`, message, { offset: snapshot.l1TableOffset });
    if (snapshot.l1Size * TABLE_ENTRY > Limit.L1_TABLE) {
      throw bad('its L1 table is larger than 32 MiB', 'LIMIT');
    }
    if (offsetIn(snapshot.l1TableOffset, geometry.clusterSize) !== 0)
      throw bad('its L1 table is not cluster aligned');
    const l1 = await L1Table.read(
      this.#storage,
      snapshot.l1TableOffset,
      snapshot.l1Size,
      geometry.clusterSize,
    );
    const size = snapshot.diskSize === null ? this.metadata.size : alignDown(snapshot.diskSize, SECTOR);
    if (snapshot.diskSize !== null && snapshot.l1Size < l1SizeFor(geometry, size)) {
      throw bad('its L1 table is too small for its disk size');
    }
    return new Qcow2Driver(this.#storage, this.metadata, this.data, size, l1, {
      tables: this.#tables,
      compressed: this.#compressed,
      plain: this.#plain,
    });
  }

  map(at: number, length: number): Mapping | Promise<Mapping> {
    const { l1Coverage, clusterSize } = this.metadata.geometry;
    const l1Index = Math.floor(at / l1Coverage);
    const table = this.#l1.l2Offset(l1Index);
    if (table === 0) {
      const end = this.#l1.nextUsed(l1Index + 1, Math.ceil((at + length) / l1Coverage)) * l1Coverage;
      return { kind: 'backing', length: Math.min(length, end - at) };
    }
    const inTable = at - l1Index * l1Coverage;
    const slice = this.#tables.slice(table, Math.floor(inTable / clusterSize));
    return slice instanceof Promise
      ? slice.then((loaded) => this.#mapping(this.#run(loaded, at, inTable, length), at))
      : this.#mapping(this.#run(slice, at, inTable, length), at);
  }

  #run(slice: L2Slice, at: number, inTable: number, length: number): ClusterRun {
    const { clusterSize } = this.metadata.geometry;
    const index = Math.floor(inTable / clusterSize);
    const within = offsetIn(at, clusterSize);
    const { view, first } = slice;
    const cluster = Math.floor(at / clusterSize);
    return mapRun(this.#rules, { view, first, index, cluster, within, length });
  }

  #mapping(run: ClusterRun, at: number): Mapping {
    const { length, host } = run;
    if (run.kind === 'data' && this.#plain === null)
      return { kind: 'data', length, storage: this.data, at: host };
    const encrypted = this.#plain === null ? {} : { encrypted: true as const };
    const reserved = host < 0 ? {} : { reserved: host, ...encrypted };
    switch (run.kind) {
      case 'data': {
        const storage = this.#plain?.view(at, host) ?? this.data;
        return { kind: 'data', length, storage, at: host, ...encrypted };
      }
      case 'zero':
        return { kind: 'zero', length, ...reserved };
      case 'unallocated':
        return { kind: 'backing', length, ...reserved };
      case 'compressed':
        return { kind: 'compressed', length };
    }
  }

  async readCompressed(into: Uint8Array, at: number): Promise<void> {
    const { clusterSize } = this.metadata.geometry;
    const parts: Promise<void>[] = [];
    for (let done = 0; done < into.length;) {
      const here = at + done;
      const within = offsetIn(here, clusterSize);
      const part = into.subarray(done, done + Math.min(into.length - done, clusterSize - within));
      parts.push(this.#readOne(part, here, within));
      done += part.length;
    }
    const failed = (await Promise.allSettled(parts)).find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }

  get streams(): Streams {
    const { header, geometry } = this.metadata;
    return {
      packing: packingOf(header.compressionType, geometry.clusterSize),
      storage: this.#storage,
      place: (at) => this.#streamAt(at),
    };
  }

  #streamAt(at: number): CompressedPlace | Promise<CompressedPlace> {
    const { clusterSize, l1Coverage } = this.metadata.geometry;
    const l1Index = Math.floor(at / l1Coverage);
    const index = Math.floor((at - l1Index * l1Coverage) / clusterSize);
    const slice = this.#tables.slice(this.#l1.l2Offset(l1Index), index);
    const cluster = Math.floor(at / clusterSize);
    return slice instanceof Promise
      ? slice.then((loaded) => compressedAt(this.#rules, { ...loaded, index, cluster }))
      : compressedAt(this.#rules, { ...slice, index, cluster });
  }

  async #readOne(into: Uint8Array, at: number, within: number): Promise<void> {
    const place = await this.#streamAt(at);
    try {
      const cluster = await this.#compressed.read(place);
      into.set(cluster.subarray(within, within + into.length));
    } catch (error) {
      if (!isSpindleError(error, 'BAD_COMPRESSED')) throw error;
      const guest = String(at - within);
      throw formatError('BAD_COMPRESSED', 'compressed cluster', `guest offset ${guest}: ${error.message}`, {
        offset: place.offset,
        cause: error,
      });
    }
  }

  /** A writer put another compressed stream at host offset `offset`. */
  forgetCompressed(offset: number): void {
    this.#compressed.forget(offset);
  }

  override sparseData(): boolean | Promise<boolean> {
    this.#sparse ??= looksPreallocated(this.#storage, this.metadata).then((found) => (this.#sparse = found));
    return this.#sparse;
  }

  async close(): Promise<void> {
    if (this.data !== this.#storage) await this.data.close();
  }
}

/** The snapshot with this id, or else the first with this name. @throws SpindleError SNAPSHOT_NOT_FOUND */
export function findSnapshot(snapshots: readonly Snapshot[], idOrName: string): Snapshot {
  const found =
    snapshots.find((one) => one.id === idOrName) ?? snapshots.find((one) => one.name === idOrName);
  if (found !== undefined) return found;
  const names = snapshots.map((one) => `${one.id} '${one.name}'`).join(', ');
  throw new SpindleError(
    'SNAPSHOT_NOT_FOUND',
    `no snapshot '${idOrName}'; ${names === '' ? 'the image has none' : `the image has ${names}`}`,
  );
}
