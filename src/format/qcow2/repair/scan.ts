import { isAligned } from '../../../core/align.ts';
import type { Storage } from '../../../core/storage.ts';
import { CheckContext } from '../check/context.ts';
import { checkActiveL1, checkSnapshotL1s } from '../check/l1.ts';
import { L2Check } from '../check/l2.ts';
import { L2Tables, type L2Piece } from '../check/l2-tables.ts';
import { ProblemLog, type CheckProblem, type ProblemCode } from '../check/problem.ts';
import { readTables } from '../check/read-tables.ts';
import { ReferenceCounts } from '../check/references.ts';
import { checkBitmaps, countRegions, findRegions } from '../check/regions.ts';
import { StoredRefcounts } from '../check/stored.ts';
import { SnapshotExtra } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { mendL2, type MendRules } from './entry-rules.ts';
import { Spans } from './spans.ts';
import type { LeftAlone, RepairMode } from './step.ts';

const REFCOUNT_TABLE = 'refcount table';

/** Problems after which references may be missing: what they led to must not be given away. */
const LOSES_REFERENCES: ReadonlySet<ProblemCode> = new Set<ProblemCode>([
  'BEYOND_END',
  'L2_UNALIGNED',
  'DATA_UNALIGNED',
  'SUBCLUSTERS_WRONG',
  'COMPRESSED_SUBCLUSTERS',
  'COMPRESSED_DATA_FILE',
  'SNAPSHOT_TABLE',
  'SNAPSHOT_L1_UNALIGNED',
  'SNAPSHOT_L1_TOO_LARGE',
  'BITMAP_ENTRY',
  'READ_FAILED',
  'LIMIT',
]);

/** Problems that a repair looks for itself. */
const OWN_BUSINESS: ReadonlySet<ProblemCode> = new Set<ProblemCode>(['COPIED_WRONG', 'L1_RESERVED']);

/** What stays wrong is told up to this many times. */
const LEFT_LIMIT = 1000;

/** Bytes past the end of the file in which references are remembered, at least. */
const NEAR = 64 * 1024 ** 2;

/** A context that also remembers references past the end of the file: a file that grows must not grow into them. */
export class RepairContext extends CheckContext {
  /** Single clusters near the end of the file, and how often they are referred to. */
  readonly beyond = new ReferenceCounts();
  /** Longer ranges. */
  readonly beyondSpans: { at: number; end: number }[] = [];
  /** Where the last reference ends; 0: there is none past the end. */
  beyondEnds = 0;
  /** The first cluster that `beyond` does not remember any more. */
  readonly beyondLimit: number;

  constructor(storage: Storage, metadata: Metadata, log: ProblemLog, signal: AbortSignal | undefined) {
    super(storage, metadata, log, signal);
    const near = Math.max(NEAR, this.fileSize / 8);
    this.beyondLimit = this.fileClusters + Math.ceil(near / metadata.geometry.clusterSize);
  }

  override beyondEnd(structure: string, at: number, length: number, times: number, guest?: number): void {
    super.beyondEnd(structure, at, length, times, guest);
    const { clusterSize } = this.metadata.geometry;
    this.beyondEnds = Math.max(this.beyondEnds, at + length);
    if (length > 2 * clusterSize) {
      this.beyondSpans.push({ at, end: at + length });
      return;
    }
    const last = Math.floor((at + length - 1) / clusterSize);
    for (let cluster = Math.floor(at / clusterSize); cluster <= last; cluster++)
      if (cluster < this.beyondLimit) this.beyond.add(cluster, times);
  }
}

/** All references of an image as it will be once its entries are mended, and what is wrong besides refcounts. */
export interface Scan {
  readonly context: RepairContext;
  readonly stored: StoredRefcounts;
  readonly rules: MendRules;
  readonly tables: L2Tables;
  readonly offsets: Float64Array;
  /** References of the refcount structures themselves; `context.references` has all others. */
  readonly own: ReferenceCounts;
  /** Refcount table entries whose block must not be written to. */
  readonly untrusted: ReadonlySet<number>;
  /** Why the refcount structures cannot be used; null when they can. */
  readonly damage: string | null;
  /** Whether references may be missing. */
  readonly loses: boolean;
  readonly left: readonly LeftAlone[];
  /** Whether entries of an L2 table may be written: it is nothing else that matters. */
  readonly isSound: (piece: L2Piece) => boolean;
  /** Ranges of metadata other than L1 tables. */
  readonly foreign: Spans;
}

/** Reads everything that refers to clusters. @throws SpindleError ABORTED, LIMIT */
export async function scanImage(
  storage: Storage,
  metadata: Metadata,
  mode: RepairMode,
  signal: AbortSignal | undefined,
): Promise<Scan> {
  const left: LeftAlone[] = [];
  let loses = false;
  const note = (problem: CheckProblem): void => {
    if (LOSES_REFERENCES.has(problem.code)) loses = true;
    if (mode === 'all' && OWN_BUSINESS.has(problem.code)) return;
    if (left.length < LEFT_LIMIT) left.push({ message: problem.message, problem });
  };
  const context = new RepairContext(storage, metadata, new ProblemLog(0, note), signal);
  const { clusterSize } = metadata.geometry;
  reportSnapshots(context);
  findRegions(context);
  const [losesSoFar, complete] = [loses, context.complete];
  context.complete = true;
  const stored = await StoredRefcounts.read(context, () => undefined);
  const tableReadable = context.complete;
  // No reference is missing for want of the refcount table.
  loses = losesSoFar;
  context.complete = complete;
  const tables = new L2Tables();
  await checkActiveL1(context, stored, tables);
  await checkSnapshotL1s(context, tables);
  const spans = (without: (structure: string) => boolean): Spans =>
    new Spans(
      context.regions.filter(({ structure }) => !without(structure)),
      clusterSize,
    );
  const all = spans((structure) => structure === REFCOUNT_TABLE);
  // The refcount structures are counted apart: they may be replaced.
  const others = context.regions.filter(({ structure }) => structure !== REFCOUNT_TABLE);
  context.regions.splice(0, context.regions.length, ...others);
  countRegions(context);
  await checkBitmaps(context);
  const offsets = tables.offsets();
  const own = countOwn(context, stored);
  const isMisplaced = ({ table }: L2Piece): boolean =>
    !isAligned(table, clusterSize) || all.touching(table, table + clusterSize) >= 0;
  // What a refcount block lies on is left alone until the block is elsewhere.
  const isSound = (piece: L2Piece): boolean =>
    !isMisplaced(piece) && own.get(piece.table / clusterSize) === 0;
  const rules: MendRules = {
    mode,
    isV2: metadata.header.version === 2,
    extended: metadata.geometry.extendedL2,
    external: context.externalData,
    clusterBits: metadata.geometry.clusterBits,
    fileSize: context.fileSize,
  };
  const l2 = new L2Check(context, stored);
  for await (const parts of readTables(storage, tables.pieces(offsets, clusterSize), signal)) {
    for (const part of parts) {
      if (isMisplaced(part.piece)) loses = true;
      // The buffer is ours: what is counted is the table as it will be.
      if (part.view !== null && isSound(part.piece)) {
        for (let at = 0; at < part.length; at += metadata.geometry.l2EntrySize) mendL2(part.view, at, rules);
      }
      l2.check(part);
    }
  }
  return {
    ...{ context, stored, rules, tables, offsets, own, isSound, left },
    ...judgeOwn(context, stored, own, tableReadable),
    loses: loses || !context.complete,
    foreign: spans((structure) => structure.startsWith('L1 table')),
  };
}

function reportSnapshots(context: RepairContext): void {
  const { header, snapshots, snapshotProblem } = context.metadata;
  const hostOffset = header.snapshotsOffset;
  const at = { structure: 'snapshot table', hostOffset, repair: 'none' } as const;
  if (snapshotProblem !== null) {
    context.complete = false;
    const message = `the snapshot table cannot be read: ${snapshotProblem.message}`;
    context.log.error(1, () => ({ ...at, code: 'SNAPSHOT_TABLE', message }));
  }
  if (context.externalData && snapshots.length > 0) {
    const message = 'internal snapshots in an image with an external data file';
    context.log.corruption(1, () => ({ ...at, code: 'SNAPSHOTS_DATA_FILE', message }));
  }
  for (const { name, extra } of header.version === 2 ? [] : snapshots) {
    if (extra.length >= SnapshotExtra.icount) continue;
    const message = `snapshot '${name}' has ${String(extra.length)} bytes of extra data; version 3 requires ${String(SnapshotExtra.icount)}`;
    context.log.corruption(1, () => ({ ...at, code: 'SNAPSHOT_EXTRA_SHORT', message }));
  }
}

/** Counts the clusters of the refcount table and its blocks. */
function countOwn(context: RepairContext, stored: StoredRefcounts): ReferenceCounts {
  const { clusterSize } = context.metadata.geometry;
  const own = new ReferenceCounts();
  const { first, end } = tableClusters(context);
  for (let cluster = first; cluster < end; cluster++) own.add(cluster, 1);
  for (let index = 0; index < stored.entries; index++) {
    const at = stored.offset(index);
    if (at !== 0 && stored.isAligned(index) && at / clusterSize < context.clusters)
      own.add(at / clusterSize, 1);
  }
  return own;
}

/** The clusters of the refcount table, as far as they are in the file. */
function tableClusters(context: RepairContext): { first: number; end: number } {
  const { refcountTableOffset, refcountTableClusters } = context.metadata.header;
  const first = refcountTableOffset / context.metadata.geometry.clusterSize;
  return { first, end: Math.min(first + refcountTableClusters, context.clusters) };
}

/** Which of the refcount structures can be used. Must follow all counting. */
function judgeOwn(
  context: RepairContext,
  stored: StoredRefcounts,
  own: ReferenceCounts,
  tableReadable: boolean,
): Pick<Scan, 'untrusted' | 'damage'> {
  const { header, geometry } = context.metadata;
  const uses = (cluster: number): number => own.get(cluster) + context.references.get(cluster);
  const untrusted = new Set<number>();
  let damage: string | null = tableReadable ? null : 'the refcount table cannot be read';
  const { first, end } = tableClusters(context);
  if (header.refcountTableClusters === 0) damage ??= 'there is no refcount table';
  if (end < first + header.refcountTableClusters)
    damage ??= 'the refcount table lies past the end of the file';
  for (let cluster = first; cluster < end; cluster++)
    if (uses(cluster) !== 1) damage ??= 'the refcount table is used as something else, too';
  for (let index = 0; index < stored.entries; index++) {
    const at = stored.offset(index);
    if (at === 0) continue;
    const cluster = at / geometry.clusterSize;
    if (!stored.isAligned(index)) damage ??= 'a refcount block is not cluster aligned';
    else if (cluster >= context.clusters) damage ??= 'a refcount block lies past the end of the file';
    else if (uses(cluster) !== 1) damage ??= 'a refcount block is used as something else, too';
    else if (stored.isUnreadable(index)) damage ??= 'a refcount block cannot be read';
    else continue;
    untrusted.add(index);
  }
  return { untrusted, damage };
}
