import { alignDown, alignUp, isAligned } from '../../../core/align.ts';
import { hex, setU64, viewOf } from '../../../core/bytes.ts';
import { readAvailable, readPadded } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { l1Reserved, offsetOf } from '../entry.ts';
import { l1SizeFor } from '../geometry.ts';
import { HeaderOffset, Limit, SECTOR, SnapshotExtra, SnapshotOffset, TABLE_ENTRY } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { decodeSnapshot, encodeSnapshotTable, withWholeExtra, type Snapshot } from '../snapshot.ts';
import { findPlace } from './free-space.ts';
import { PlannedStorage } from './planned-storage.ts';
import { scanImage, type Scan } from './scan.ts';
import { findEntries, type FoundEntry } from './snapshot-entries.ts';
import type { Patch, PlanOptions, RepairStep, SnapshotChanges } from './step.ts';
import { Targets } from './targets.ts';

/** How a damaged snapshot table is replaced, and the image as it will be then. */
export interface SnapshotMending {
  /** The image with the new table in place, for planning the rest. */
  readonly storage: Storage;
  /** What a check would read of it. */
  readonly metadata: Metadata;
  readonly changes: SnapshotChanges;
  /** Writes the new table, and L1 tables that were cut, into free space; null when no snapshot is left. */
  readonly write: RepairStep | null;
  /** Lets the header point to it. */
  readonly show: RepairStep;
}

/**
 * Plans a new snapshot table when entries of the present one are damaged, with all snapshots that can be read; null
 * when there is nothing wrong, or nothing that can be done. The old table stays as it is, so that one write to the
 * header makes the change.
 * @throws SpindleError ABORTED, IO, LIMIT; NO_SPACE when there is no room for the new table
 */
export async function mendSnapshots(
  storage: Storage,
  metadata: Metadata,
  options: PlanOptions,
): Promise<SnapshotMending | null> {
  const problem = metadata.snapshotProblem;
  // What cannot be read now may be read another time.
  if (problem?.code === 'IO') return null;
  const fileSize = alignUp(storage.size, SECTOR);
  const isSound = (one: Snapshot): boolean => isSoundEntry(one, metadata, fileSize);
  if (problem === null && metadata.snapshots.every(isSound) && (await holdL1s(storage, metadata)))
    return null;
  const scan = await scanImage(storage, withSnapshots(metadata, [], 0, 0), 'all', options.signal);
  if (scan.context.externalData) return null;
  const found = await new Finder(storage, metadata, scan).find();
  const { kept, changes } = found;
  if (problem === null && changes.mended.length === 0 && changes.dropped.length === 0) return null;
  const bytes = newTable(kept, metadata);
  if (bytes.length === 0)
    return {
      ...{ storage, changes, write: null },
      metadata: withSnapshots(metadata, [], 0, 0),
      show: showStep(storage, 0, 0),
    };
  const { clusterSize } = metadata.geometry;
  const snapshots = kept.map(({ snapshot }) => snapshot);
  const whole = await scanImage(storage, withSnapshots(metadata, snapshots, 0, 0), 'all', options.signal);
  const targets = await Targets.of(whole, 'all', true);
  const grows = options.grows ?? storage.can.resize;
  const at = findPlace(storage, whole, targets, bytes.length / clusterSize, grows) * clusterSize;
  const placed = kept.map((one) => place(one, at));
  const table = encodeSnapshotTable(placed.map((one) => one.bytes));
  bytes.set(table);
  const write: RepairStep = {
    name: 'table',
    title: `write a new snapshot table to free clusters at ${hex(at)}, with ${count(kept.length)}`,
    ...(at + bytes.length > storage.size ? { size: at + bytes.length } : {}),
    patches: () => writePatch(storage, at, bytes, changes),
  };
  return {
    ...{ changes, write, show: showStep(storage, kept.length, at) },
    storage: new PlannedStorage(storage, at, bytes),
    metadata: withSnapshots(
      metadata,
      placed.map(({ snapshot }) => snapshot),
      at,
      alignUp(table.length, 8),
    ),
  };
}

/** Whether nothing is wrong with the entry that a repair of the table would mend. `fileSize` in whole sectors. */
function isSoundEntry(snapshot: Snapshot, { header, geometry }: Metadata, fileSize: number): boolean {
  const { l1TableOffset: at, l1Size, extra, id, name } = snapshot;
  if (id === '' || `${id}${name}`.includes('\0')) return false;
  if (header.version === 3 && extra.length < SnapshotExtra.icount) return false;
  if (!isAligned(at, geometry.clusterSize) || l1Size * TABLE_ENTRY > Limit.L1_TABLE) return false;
  if (l1Size === 0) return true;
  return at >= geometry.clusterSize && at + l1Size * TABLE_ENTRY - fileSize < geometry.clusterSize;
}

/** Bytes of L1 tables that are looked at to see whether they are such at most: snapshots may claim more than there is. */
const LOOKED_AT = 2 ** 30;

/** Whether L1 tables are where the entries say. */
async function holdL1s(storage: Storage, { snapshots, geometry }: Metadata): Promise<boolean> {
  const seen = new Set<string>();
  let budget = LOOKED_AT;
  for (const { l1TableOffset, l1Size } of snapshots) {
    const key = `${String(l1TableOffset)} ${String(l1Size)}`;
    if (seen.has(key) || budget < 0) continue;
    seen.add(key);
    const bytes = await readAvailable(storage, l1TableOffset, l1Size * TABLE_ENTRY);
    if (l1Kind(bytes, geometry.clusterSize, storage.size) === 'no') return false;
    budget -= bytes.length;
  }
  return true;
}

/**
 * What these bytes are as an L1 table: `yes` when all that they point to is aligned and in the file, `no` when most of it
 * is not, `damaged` in between.
 */
function l1Kind(bytes: Uint8Array, clusterSize: number, fileSize: number): 'yes' | 'damaged' | 'no' {
  const view = viewOf(bytes);
  let [bad, filled] = [0, 0];
  for (let at = 0; at + TABLE_ENTRY <= bytes.length; at += TABLE_ENTRY) {
    const [hi, lo] = [view.getUint32(at), view.getUint32(at + 4)];
    if (hi === 0 && lo === 0) continue;
    filled++;
    const isAside = (lo & (clusterSize - 1) & ~511) !== 0;
    if (l1Reserved(hi, lo) || isAside || offsetOf(hi, lo) >= fileSize) bad++;
  }
  return bad === 0 ? 'yes' : bad * 2 > filled ? 'no' : 'damaged';
}

/** The metadata with another snapshot table. */
function withSnapshots(
  metadata: Metadata,
  snapshots: readonly Snapshot[],
  snapshotsOffset: number,
  snapshotTableSize: number,
): Metadata {
  const header = { ...metadata.header, nbSnapshots: snapshots.length, snapshotsOffset };
  return { ...metadata, header, snapshots, snapshotTableSize, snapshotProblem: null };
}

/** A snapshot that stays. */
interface Kept extends Pick<FoundEntry, 'bytes' | 'snapshot'> {
  /** Its L1 table, where it has to be written anew; and where, behind the start of the new table. */
  readonly l1?: { readonly bytes: Uint8Array; readonly behind: number };
}

/** Room for the new table and the L1 tables behind it: whole clusters, the L1 tables filled in. */
function newTable(kept: Kept[], { geometry }: Metadata): Uint8Array {
  const { clusterSize } = geometry;
  let end = alignUp(encodeSnapshotTable(kept.map(({ bytes }) => bytes)).length, clusterSize);
  for (const [index, one] of kept.entries()) {
    if (one.l1 === undefined) continue;
    kept[index] = { ...one, l1: { bytes: one.l1.bytes, behind: end } };
    end += alignUp(one.l1.bytes.length, clusterSize);
  }
  const bytes = new Uint8Array(end);
  for (const { l1 } of kept) if (l1 !== undefined) bytes.set(l1.bytes, l1.behind);
  return bytes;
}

function place(one: Kept, at: number): Kept {
  return one.l1 === undefined ? one : edited(one, { offset: at + one.l1.behind });
}

async function* writePatch(
  storage: Storage,
  at: number,
  bytes: Uint8Array,
  { mended, dropped }: SnapshotChanges,
): AsyncGenerator<Patch> {
  const before = await readAvailable(storage, at, bytes.length);
  const why = ['the snapshots that can be read', ...mended, ...dropped.map((one) => `dropped: ${one}`)];
  yield { at, bytes, before, structure: 'new snapshot table', why: why.join('; ') };
}

function showStep(storage: Storage, entries: number, at: number): RepairStep {
  const title =
    entries === 0
      ? 'let the header say that there are no snapshots'
      : 'let the header point to the new snapshot table';
  return {
    name: 'snapshots',
    title,
    patches: async function* () {
      const bytes = new Uint8Array(HeaderOffset.incompatibleFeatures - HeaderOffset.nbSnapshots);
      viewOf(bytes).setUint32(0, entries);
      setU64(viewOf(bytes), 4, at);
      const before = await readAvailable(storage, HeaderOffset.nbSnapshots, bytes.length);
      const why = entries === 0 ? 'no snapshot can be read' : `${count(entries)}, at ${hex(at)}`;
      yield { at: HeaderOffset.nbSnapshots, bytes, before, structure: 'header', why };
    },
  };
}

function count(snapshots: number): string {
  return snapshots === 1 ? '1 snapshot' : `${String(snapshots)} snapshots`;
}

/** What an entry says of its L1 table, changed; and with all the extra data that its version wants. */
function edited<T extends Pick<FoundEntry, 'bytes' | 'snapshot'>>(
  entry: T,
  l1: { offset?: number; entries?: number },
): T {
  const bytes = entry.bytes.slice();
  const view = viewOf(bytes);
  setU64(view, SnapshotOffset.l1TableOffset, l1.offset ?? entry.snapshot.l1TableOffset);
  view.setUint32(SnapshotOffset.l1Size, l1.entries ?? entry.snapshot.l1Size);
  const snapshot = decodeSnapshot(bytes, 0);
  if (typeof snapshot === 'number') throw new RangeError('a snapshot entry that is cut');
  return { ...entry, bytes, snapshot };
}

/** Finds what can be kept of a damaged snapshot table. */
class Finder {
  readonly #storage: Storage;
  readonly #metadata: Metadata;
  /** Everything but the snapshots. */
  readonly #scan: Scan;
  readonly #mended: string[] = [];
  readonly #dropped: string[] = [];

  constructor(storage: Storage, metadata: Metadata, scan: Scan) {
    this.#storage = storage;
    this.#metadata = metadata;
    this.#scan = scan;
  }

  async find(): Promise<{ kept: Kept[]; changes: SnapshotChanges }> {
    const { nbSnapshots } = this.#metadata.header;
    const { entries, lost, suspect } = findEntries(await this.#table(), nbSnapshots, (offset, size) =>
      this.#mayBeL1(offset, size),
    );
    this.#dropped.push(...lost);
    const kept: Kept[] = [];
    for (const entry of entries) {
      const one = await this.#judge(entry, suspect);
      if (one !== null) kept.push(this.#withExtra(one, entry));
    }
    return { kept, changes: { mended: this.#mended, dropped: this.#dropped } };
  }

  /**
   * The bytes in which entries are looked for. A table that broke off is followed only through clusters that are no one
   * else's: what a guest has written is no snapshot table, though it may look like one.
   */
  async #table(): Promise<Uint8Array> {
    const { header, geometry, snapshotProblem, snapshotTableSize } = this.#metadata;
    if (snapshotProblem === null)
      return readAvailable(this.#storage, header.snapshotsOffset, snapshotTableSize);
    const { clusterSize } = geometry;
    const start = alignDown(header.snapshotsOffset, clusterSize);
    let end = start;
    while (end < this.#storage.size && end - start < Limit.SNAPSHOT_TABLE) {
      const cluster = end / clusterSize;
      if (start === 0 || this.#isTaken(cluster) || (end > start && !this.#looksExclusive(cluster))) break;
      end += clusterSize;
    }
    return readAvailable(this.#storage, start, end - start);
  }

  /** Whether something other than a snapshot refers to the cluster. */
  #isTaken(cluster: number): boolean {
    const { context, own } = this.#scan;
    return context.references.get(cluster) > 0 || own.get(cluster) > 0;
  }

  /** Whether the refcount of a cluster is one, as far as refcounts can be believed. */
  #looksExclusive(cluster: number): boolean {
    return this.#scan.damage !== null || this.#scan.stored.isOne(cluster) === 1;
  }

  /** Whether a place is one where an L1 table of a snapshot may be, mended or not. */
  #mayBeL1(offset: number, entries: number): boolean {
    return offset >= this.#metadata.geometry.clusterSize && offset < this.#storage.size && entries > 0;
  }

  #drop({ number, snapshot: { id, name } }: FoundEntry, why: string): null {
    this.#dropped.push(`snapshot ${String(number)} (id ${id}, '${name}'): ${why}`);
    return null;
  }

  #mend({ number, snapshot: { id, name } }: FoundEntry, what: readonly string[]): void {
    if (what.length > 0)
      this.#mended.push(`snapshot ${String(number)} (id ${id}, '${name}'): ${what.join('; ')}`);
  }

  /** The entry with an L1 table that can be used, or null for one that must be dropped. */
  async #judge(entry: FoundEntry, suspect: boolean): Promise<Kept | null> {
    const { snapshot } = entry;
    const { l1TableOffset: at, l1Size } = snapshot;
    const { clusterSize } = this.#metadata.geometry;
    const mended = [...entry.mended];
    if (l1Size === 0 && isAligned(at, clusterSize)) {
      if (suspect) return this.#drop(entry, 'it has no L1 table, and the snapshot table breaks off');
      this.#mend(entry, mended);
      return entry;
    }
    if (at < clusterSize) return this.#drop(entry, 'its L1 table would lie on the header');
    if (at >= this.#storage.size)
      return this.#drop(entry, `its L1 table at ${hex(at)} lies past the end of the file`);
    let result: FoundEntry = entry;
    if (!isAligned(at, clusterSize)) {
      result = edited(result, { offset: alignDown(at, clusterSize) });
      mended.push(`its L1 table is at ${hex(alignDown(at, clusterSize))}, not ${hex(at)}`);
    }
    if (l1Size * TABLE_ENTRY > Limit.L1_TABLE) {
      const entries = this.#neededEntries(snapshot);
      result = edited(result, { entries });
      mended.push(`its L1 table has ${String(entries)} entries, not ${String(l1Size)}`);
    }
    const belief = await this.#belief(result.snapshot);
    // A table at its place may be damaged; one that was only guessed must be one and belong to nobody else.
    const needsProof = suspect || result !== entry;
    if (needsProof ? belief.kind !== 'yes' || !belief.isOwn : belief.kind === 'no' && !belief.isOwn) {
      const why = `no L1 table of its own is at ${hex(result.snapshot.l1TableOffset)}`;
      return this.#drop(entry, why);
    }
    const whole = await this.#whole(result);
    if (whole.l1 !== undefined)
      mended.push('its L1 table is cut by the end of the file: what is lost of it reads as never written');
    this.#mend(result, mended);
    return whole;
  }

  /** L1 entries for the disk and the VM state of a snapshot. */
  #neededEntries({ diskSize, vmStateSize }: Snapshot): number {
    const { geometry, size } = this.#metadata;
    const most = Limit.L1_TABLE / TABLE_ENTRY;
    return Math.min(l1SizeFor(geometry, diskSize ?? size) + l1SizeFor(geometry, vmStateSize), most);
  }

  /** How sure it is that a snapshot's L1 table is where it says. */
  async #belief({
    l1TableOffset,
    l1Size,
  }: Snapshot): Promise<{ kind: ReturnType<typeof l1Kind>; isOwn: boolean }> {
    const { clusterSize } = this.#metadata.geometry;
    const bytes = await readAvailable(this.#storage, l1TableOffset, l1Size * TABLE_ENTRY);
    let isOwn = true;
    for (let at = 0; at < bytes.length; at += clusterSize) {
      const cluster = (l1TableOffset + at) / clusterSize;
      if (this.#isTaken(cluster) || !this.#looksExclusive(cluster)) isOwn = false;
    }
    return { isOwn, kind: l1Kind(bytes, clusterSize, this.#storage.size) };
  }

  /** The entry, with its L1 table where the file does not hold all of that. */
  async #whole(entry: FoundEntry): Promise<Kept> {
    const { l1TableOffset, l1Size } = entry.snapshot;
    const length = l1Size * TABLE_ENTRY;
    const { clusterSize } = this.#metadata.geometry;
    if (l1TableOffset + length - this.#scan.context.fileSize < clusterSize) return entry;
    const bytes = new Uint8Array(length);
    await readPadded(this.#storage, bytes, l1TableOffset);
    return { ...entry, l1: { bytes, behind: 0 } };
  }

  #withExtra(one: Kept, { number }: FoundEntry): Kept {
    const { header, geometry, size } = this.#metadata;
    const { snapshot } = one;
    if (header.version !== 3 || snapshot.extra.length >= SnapshotExtra.icount) return one;
    const most = snapshot.l1Size * geometry.l1Coverage;
    const bytes = withWholeExtra(one.bytes, snapshot, Math.min(size, most));
    const why = 'its entry says the size of its disk now, as version 3 wants it';
    this.#mend({ ...one, number, mended: [] }, [why]);
    return edited({ ...one, bytes }, {});
  }
}
