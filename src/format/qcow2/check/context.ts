import { divUp } from '../../../core/align.ts';
import { hex } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { Incompatible, SECTOR } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { maxRefcount } from '../refcount.ts';
import type { ProblemLog } from './problem.ts';
import { ReferenceCounts } from './references.ts';

/** Numbers about the guest's clusters, of the active L1 table only. */
export interface Statistics {
  allocated: number;
  fragmented: number;
  compressed: number;
}

/** A range of clusters that one structure takes up. Host offsets in bytes, `end` is exclusive. */
export interface Region {
  readonly structure: string;
  readonly at: number;
  readonly end: number;
}

/** What the parts of a check share: the image, what was counted, and what was found. */
export class CheckContext {
  readonly storage: Storage;
  readonly metadata: Metadata;
  readonly log: ProblemLog;
  readonly signal: AbortSignal | undefined;
  readonly references = new ReferenceCounts();
  readonly statistics: Statistics = { allocated: 0, fragmented: 0, compressed: 0 };
  /** Where the metadata lies, but for L2 tables and refcount blocks, which are too many. */
  readonly regions: Region[] = [];
  readonly externalData: boolean;
  /** Length of the file in bytes, rounded up to whole sectors: a file may end inside its last one. */
  readonly fileSize: number;
  /** Clusters that a reference may touch without being past the end of the file. */
  readonly fileClusters: number;
  /** Clusters that are compared: the file's, and one more where a reference runs into it. */
  clusters: number;
  /** False once something could not be read: then references are missing, and a leak cannot be told from them. */
  complete = true;
  readonly #maxRefcount: number;

  constructor(storage: Storage, metadata: Metadata, log: ProblemLog, signal: AbortSignal | undefined) {
    this.storage = storage;
    this.metadata = metadata;
    this.log = log;
    this.signal = signal;
    this.externalData = (metadata.header.incompatible.lo & Incompatible.DATA_FILE) !== 0;
    this.fileSize = divUp(storage.size, SECTOR) * SECTOR;
    this.fileClusters = divUp(this.fileSize, metadata.geometry.clusterSize);
    this.clusters = this.fileClusters;
    this.#maxRefcount = maxRefcount(metadata.geometry.refcountOrder);
  }

  /**
   * Counts `times` references to each cluster that `length` bytes at `at` touch. A range that ends a cluster or more
   * past the end of the file is a corruption, and not counted.
   */
  count(structure: string, at: number, length: number, times: number, guestOffset?: number): void {
    if (length <= 0 || times === 0) return;
    const { clusterSize } = this.metadata.geometry;
    if (this.isBeyondEnd(at, length)) {
      this.beyondEnd(structure, at, length, times, guestOffset);
      return;
    }
    const last = Math.floor((at + length - 1) / clusterSize);
    for (let cluster = Math.floor(at / clusterSize); cluster <= last; cluster++)
      this.references.add(cluster, times);
    if (last >= this.clusters) this.clusters = last + 1;
  }

  /** Whether a range ends a cluster or more past the end of the file. */
  isBeyondEnd(at: number, length: number): boolean {
    return at + length - this.fileSize >= this.metadata.geometry.clusterSize;
  }

  beyondEnd(structure: string, at: number, length: number, times: number, guestOffset?: number): void {
    this.log.corruption(times, () => ({
      code: 'BEYOND_END',
      structure,
      message: `${structure}: ${String(length)} bytes at ${hex(at)} lie past the end of the file at ${hex(this.storage.size)}`,
      hostOffset: at,
      ...(guestOffset === undefined ? {} : { guestOffset }),
      repair: 'none',
    }));
  }

  /** What a refcount that counts `references` reads, when it is kept as well as its width allows. */
  clip(references: number): number {
    return Math.min(references, this.#maxRefcount);
  }

  /** Reports a part of a table that cannot be read. */
  unreadable(structure: string, at: number, error: SpindleError | undefined): void {
    this.complete = false;
    this.log.error(1, () => ({
      code: 'READ_FAILED',
      structure,
      message: `${structure} at ${hex(at)} cannot be read: ${error?.message ?? 'unknown reason'}`,
      hostOffset: at,
      repair: 'none',
    }));
  }
}
