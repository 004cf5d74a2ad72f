import { divUp } from '../../../core/align.ts';
import { isSpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { SnapshotExtra } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { checkRefcountBlocks, compareRefcounts } from './compare.ts';
import { CheckContext } from './context.ts';
import { checkActiveL1, checkSnapshotL1s } from './l1.ts';
import { L2Check } from './l2.ts';
import { L2Tables } from './l2-tables.ts';
import { explainOverlaps } from './overlap.ts';
import { ProblemLog, type CheckProblem } from './problem.ts';
import { readTables } from './read-tables.ts';
import { checkBitmaps, countRegions, findRegions } from './regions.ts';
import { StoredRefcounts } from './stored.ts';

/** How a check is done. */
export interface CheckOptions {
  /** Aborts the check: it fails with ABORTED. */
  readonly signal?: AbortSignal;
  /** Told each problem as it is found, also those that the result leaves out. */
  readonly onProblem?: (problem: CheckProblem) => void;
  /** Told how many bytes of L2 tables and refcount blocks are done, and how many there are as far as is known. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Problems that the result keeps. Default: 1000. */
  readonly problemLimit?: number;
}

/** What a check found. The counts and statistics mean what they mean in the JSON of `qemu-img check`. */
export interface CheckResult {
  /** Inconsistencies that can lose data. */
  readonly corruptions: number;
  /** Clusters whose refcount is higher than their use: lost space. */
  readonly leaks: number;
  /** Things that could not be checked. */
  readonly checkErrors: number;
  /** The first problems found. */
  readonly problems: readonly CheckProblem[];
  /** How many more there were. */
  readonly problemsOmitted: number;
  /**
   * Whether all of the image could be read. If not, leaks are not told: the missing references may be in what could not
   * be read.
   */
  readonly complete: boolean;
  /** Host offset in bytes of the end of the last cluster in use. May lie past the end of the file. */
  readonly imageEndOffset: number;
  /** Guest clusters. */
  readonly totalClusters: number;
  /** Guest clusters with a place on the host: data, preallocated zeroes, compressed. Of the active layer. */
  readonly allocatedClusters: number;
  /** Those that do not follow their predecessor on the host, and all compressed ones. */
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
}

/**
 * Checks all metadata of a qcow2 image without changing anything: every reference is counted and compared with the
 * refcounts. `metadata` was read with the purpose `check`. Each table is read a bounded number of times however many
 * others point to it; memory is about 1.1 bytes for each host cluster in use.
 *
 * A part of the image that cannot be read, and an image with too many clusters, make check errors, not an exception.
 * @throws SpindleError ABORTED
 */
export async function checkImage(
  storage: Storage,
  metadata: Metadata,
  options: CheckOptions = {},
): Promise<CheckResult> {
  const log = new ProblemLog(options.problemLimit, options.onProblem);
  const context = new CheckContext(storage, metadata, log, options.signal);
  let highest = 0;
  try {
    highest = await checkAll(context, options);
  } catch (error) {
    if (!isSpindleError(error) || error.code === 'ABORTED') throw error;
    context.complete = false;
    log.error(1, () => ({
      code: error.code === 'LIMIT' ? 'LIMIT' : 'READ_FAILED',
      structure: 'image',
      message: `the check could not be finished: ${error.message}`,
      repair: 'none',
    }));
  }
  const { clusterSize } = metadata.geometry;
  return {
    corruptions: log.corruptions,
    leaks: log.leaks,
    checkErrors: log.checkErrors,
    problems: log.problems,
    problemsOmitted: log.omitted,
    complete: context.complete && log.checkErrors === 0,
    imageEndOffset: (highest + 1) * clusterSize,
    totalClusters: divUp(metadata.size, clusterSize),
    allocatedClusters: context.statistics.allocated,
    fragmentedClusters: context.statistics.fragmented,
    compressedClusters: context.statistics.compressed,
  };
}

/** Returns the number of the last host cluster in use. */
async function checkAll(context: CheckContext, options: CheckOptions): Promise<number> {
  const { clusterSize } = context.metadata.geometry;
  const progress = new Progress(options.onProgress);
  const tables = new L2Tables();
  checkSnapshotTable(context);
  findRegions(context);
  // Which refcounts are one must be known before copied flags are looked at.
  const stored = await StoredRefcounts.read(context, (bytes) => progress.step(bytes));
  await checkActiveL1(context, stored, tables);
  await checkSnapshotL1s(context, tables);
  countRegions(context);
  await checkBitmaps(context);
  const offsets = tables.offsets();
  progress.total = 2 * stored.bytes + offsets.length * clusterSize;
  const l2 = new L2Check(context, stored);
  for await (const parts of readTables(
    context.storage,
    tables.pieces(offsets, clusterSize),
    context.signal,
  )) {
    for (const part of parts) {
      l2.check(part);
      progress.step(part.length);
    }
  }
  checkRefcountBlocks(context, stored);
  const highest = await compareRefcounts(context, stored, (bytes) => progress.step(bytes));
  explainOverlaps(context, tables, offsets);
  progress.finish();
  return highest;
}

function checkSnapshotTable(context: CheckContext): void {
  const { header, snapshots, snapshotProblem } = context.metadata;
  const { log } = context;
  if (snapshotProblem !== null) {
    context.complete = false;
    log.error(1, () => ({
      code: 'SNAPSHOT_TABLE',
      structure: 'snapshot table',
      message: `the snapshot table cannot be read, so leaks cannot be told: ${snapshotProblem.message}`,
      hostOffset: header.snapshotsOffset,
      repair: 'none',
    }));
  }
  if (context.externalData && snapshots.length > 0) {
    log.corruption(1, () => ({
      code: 'SNAPSHOTS_DATA_FILE',
      structure: 'snapshot table',
      message: `${String(snapshots.length)} internal snapshots in an image with an external data file`,
      hostOffset: header.snapshotsOffset,
      repair: 'none',
    }));
  }
  if (header.version === 2) return;
  // Version 3 wants the VM state size and the disk size.
  const required = SnapshotExtra.icount;
  for (const [index, snapshot] of snapshots.entries()) {
    if (snapshot.extra.length >= required) continue;
    log.corruption(1, () => ({
      code: 'SNAPSHOT_EXTRA_SHORT',
      structure: 'snapshot table',
      message: `snapshot ${String(index + 1)} ('${snapshot.name}') has ${String(snapshot.extra.length)} bytes of extra data; version 3 requires ${String(required)}`,
      hostOffset: header.snapshotsOffset,
      repair: 'entry',
    }));
  }
}

class Progress {
  total = 0;
  #done = 0;
  readonly #tell: ((done: number, total: number) => void) | undefined;

  constructor(tell: ((done: number, total: number) => void) | undefined) {
    this.#tell = tell;
  }

  step(bytes: number): void {
    this.#done += bytes;
    this.#tell?.(this.#done, Math.max(this.#done, this.total));
  }

  finish(): void {
    this.#tell?.(this.#done, this.#done);
  }
}
