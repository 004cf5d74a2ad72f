import { isAligned } from '../../../core/align.ts';
import { bytesOf, setU64, viewOf } from '../../../core/bytes.ts';
import { formatError, SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import { l1SizeFor } from '../geometry.ts';
import { HeaderOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import {
  encodeSnapshot,
  encodeSnapshotTable,
  snapshotStride,
  withWholeExtra,
  type Snapshot,
} from '../snapshot.ts';
import { L1Table } from '../tables.ts';
import { clearFrom } from './clear.ts';
import { giveTable, placeTable, switchHeader, switchL1 } from './place.ts';
import { recordSwitch } from './record-switch.ts';
import { Shadow, type SnapshotTablePlace } from './shadow.ts';
import { encodeL1, NOTHING, Tree, type Skip } from './tree.ts';
import type { Reloadable, WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** Bytes of a snapshot name that every program takes. */
const MOST_NAME = 255;

/** What a new snapshot is given. */
export interface NewSnapshot {
  readonly name: string;
  /** When it was made. */
  readonly date: Date;
  /** Default: one more than the largest number among the ids. */
  readonly id?: string | undefined;
}

/**
 * Makes an internal snapshot of the active disk; returns its id. Whoever calls it lets nobody else change the image, and
 * reads the metadata anew afterwards, also after a failure.
 *
 * A power cut leaves the image without the snapshot, or with it. Where the image is so large that this takes several
 * steps, it may also leave refcounts that are too high.
 * @throws SpindleError UNSUPPORTED, BAD_OPTION, LIMIT, CORRUPT before anything is changed; NO_SPACE, IO with the disk as
 * it was
 */
export async function createSnapshot(image: Reloadable, request: NewSnapshot): Promise<string> {
  const writer = image.writer();
  const { id, old } = await writer.alone(async (whole) => {
    const { snapshots, geometry, size } = whole.metadata;
    refuseExternal(whole);
    const wanted = request.id ?? nextId(snapshots);
    checkNew(snapshots, request.name, wanted);
    const entries = await entriesOf(whole);
    await new Tree(writer, whole).checkRoom(writer.editor.l1, NOTHING);
    // What lies past the disk is the state of a virtual machine that a snapshot before had.
    await clearFrom(writer, whole, Math.ceil(size / geometry.clusterSize), null);
    await whole.flush();
    return { id: wanted, old: entries };
  });
  const { entries } = writer.editor.l1;
  const share: Step = async ({ tree, shadow, l1 }, index) => {
    const table = l1.l2Offset(index);
    if (table === 0) return;
    await tree.countIn(shadow, table, 1);
    await shadow.reflag(index, 2);
  };
  const show = async ({ shadow, whole }: Scene): Promise<SnapshotTablePlace> => {
    const l1TableOffset = await shadow.write(await shadow.l1ForSnapshot(), 'L1 table of a snapshot');
    const { size: diskSize } = whole.metadata;
    const made = encodeSnapshot({ ...request, id, l1TableOffset, l1Size: entries, diskSize });
    return placeSnapshots(shadow, whole, [...old, made]);
  };
  const progress = { next: 0 };
  try {
    await inShadows(image, entries, share, { last: show }, progress);
  } catch (error) {
    await unshare(image, progress.next).catch(() => undefined);
    throw error;
  }
  return id;
}

/** Takes back the references that the first `end` L2 tables and all below got, for a snapshot that was not to be. */
async function unshare(image: Reloadable, end: number): Promise<void> {
  if (end === 0) return;
  await image.reload();
  await inShadows(image, end, async ({ tree, shadow, l1 }, index) => {
    const table = l1.l2Offset(index);
    if (table === 0) return;
    await tree.countIn(shadow, table, -1);
    await shadow.reflag(index, 1);
  });
}

/**
 * Deletes an internal snapshot. Terms as for {@link createSnapshot}; the table without it is on disk at once with, or
 * before, anything that it referred to is freed.
 * @throws SpindleError UNSUPPORTED, BAD_SNAPSHOT, BAD_ENTRY before anything is changed
 */
export async function deleteSnapshot(image: Reloadable, snapshot: Snapshot): Promise<void> {
  const writer = image.writer();
  const { gone, kept } = await writer.alone(async (whole) => {
    refuseExternal(whole);
    const index = whole.metadata.snapshots.indexOf(snapshot);
    const entries = await entriesOf(whole);
    return { gone: await readL1(whole, snapshot), kept: entries.filter((_, i) => i !== index) };
  });
  const hide = ({ shadow, whole }: Scene): Promise<SnapshotTablePlace> => {
    shadow.give(snapshot.l1TableOffset, snapshot.l1Size * TABLE_ENTRY);
    return placeSnapshots(shadow, whole, kept);
  };
  const release: Step = async ({ tree, shadow, l1 }, index) => {
    const table = index < gone.entries ? gone.l2Offset(index) : 0;
    if (table !== 0) await tree.countIn(shadow, table, -1);
    if (index < l1.entries && l1.l2Offset(index) !== 0) await shadow.reflag(index, 1);
  };
  await inShadows(image, Math.max(gone.entries, writer.editor.l1.entries), release, { first: hide });
}

/** What a step of {@link inShadows} works on. */
interface Scene {
  readonly whole: WholeTables;
  readonly tree: Tree;
  readonly shadow: Shadow;
  /** The active L1 table. */
  readonly l1: L1Table;
}

/** The work on L1 entry number `index`. */
type Step = (scene: Scene, index: number) => Promise<void>;

/**
 * Does `step` for each of `entries` L1 entries, in as few changes that are seen at once as memory allows: nearly always
 * one. `first` and `last` give the snapshot table that is shown with the first or last of them. `progress.next` is the
 * entry up to which all is done and seen.
 */
async function inShadows(
  image: Reloadable,
  entries: number,
  step: Step,
  tables: {
    readonly first?: (scene: Scene) => Promise<SnapshotTablePlace>;
    readonly last?: (scene: Scene) => Promise<SnapshotTablePlace>;
  } = {},
  progress = { next: 0 },
): Promise<void> {
  for (let begun = false; ; begun = true) {
    const writer = image.writer();
    const done = await writer.alone(async (whole) => {
      const shadow = new Shadow(writer, whole, image);
      const scene = { whole, shadow, tree: new Tree(writer, whole), l1: writer.editor.l1 };
      try {
        let place = begun ? undefined : await tables.first?.(scene);
        let index = progress.next;
        while (index < entries && !shadow.full) await step(scene, index++);
        const last = index >= entries;
        if (last) place = (await tables.last?.(scene)) ?? place;
        await shadow.commit(place);
        progress.next = index;
        return last;
      } catch (error) {
        // Nobody knows which of the two the disk holds: what was done before must stay.
        if (shadow.shown) progress.next = 0;
        await shadow.abandon();
        throw error;
      }
    });
    if (done) return;
    await image.reload();
  }
}

/** Writes a new snapshot table in the place of the old one. */
async function placeSnapshots(
  shadow: Shadow,
  whole: WholeTables,
  entries: readonly Uint8Array[],
): Promise<SnapshotTablePlace> {
  const { header, snapshotTableSize } = whole.metadata;
  const table = encodeSnapshotTable(entries);
  if (table.length > Limit.SNAPSHOT_TABLE) {
    throw new SpindleError('LIMIT', 'the snapshot table would be larger than 64 MiB');
  }
  const offset = await shadow.write(table, 'snapshot table');
  shadow.give(header.snapshotsOffset, snapshotTableSize);
  return { count: entries.length, offset };
}

/**
 * Makes the active disk what it was at a snapshot, its size too; what the disk held is lost. The old tree stays whole
 * until one write to the header has put the new one in its place. Enabled bitmaps record what differs. Terms as for
 * {@link createSnapshot}.
 * @throws SpindleError UNSUPPORTED, BAD_SNAPSHOT, LIMIT, CORRUPT, BAD_ENTRY before anything is changed
 */
export function applySnapshot(image: Reloadable, snapshot: Snapshot): Promise<void> {
  const writer = image.writer();
  return writer.alone(async (whole) => {
    const { header, geometry } = whole.metadata;
    refuseExternal(whole);
    const target = await readL1(whole, snapshot);
    const size = snapshot.diskSize ?? header.size;
    const active = writer.editor.l1;
    // A table that both have in the same place keeps its references.
    const both: Skip = (index) =>
      index < active.entries && index < target.entries && active.l2Offset(index) === target.l2Offset(index);
    const tree = new Tree(writer, whole);
    await tree.checkRoom(target, both);
    await recordSwitch(writer, whole, target, size);
    await tree.share(target, both);
    await whole.flush();
    const entries = Math.max(target.entries, l1SizeFor(geometry, size));
    const offset = await placeTable(
      writer,
      whole,
      encodeL1(target, entries, () => false),
      'L1 table',
    );
    await switchL1(whole, size, entries, offset);
    await tree.release(active, both);
    giveTable(writer, whole, header.l1TableOffset, header.l1Size * TABLE_ENTRY);
    await whole.flush();
  });
}

/**
 * Writes a new snapshot table, shows it in the header, and frees the old one.
 * @throws SpindleError LIMIT before anything is changed; NO_SPACE
 */
export async function switchTable(
  writer: Qcow2Writer,
  whole: WholeTables,
  entries: readonly Uint8Array[],
): Promise<void> {
  const { header, snapshotTableSize } = whole.metadata;
  const table = encodeSnapshotTable(entries);
  if (table.length > Limit.SNAPSHOT_TABLE) {
    throw new SpindleError('LIMIT', 'the snapshot table would be larger than 64 MiB');
  }
  const offset = await placeTable(writer, whole, table, 'snapshot table');
  const bytes = new Uint8Array(12);
  viewOf(bytes).setUint32(0, entries.length);
  setU64(viewOf(bytes), 4, offset);
  await switchHeader(whole, bytes, HeaderOffset.nbSnapshots);
  giveTable(writer, whole, header.snapshotsOffset, snapshotTableSize);
  await whole.flush();
}

/** The entries of the table as they are on disk, each with the extra data that version 3 wants. */
export async function entriesOf(whole: WholeTables): Promise<Uint8Array[]> {
  const { header, snapshots, snapshotTableSize, size } = whole.metadata;
  const bytes = new Uint8Array(snapshotTableSize);
  await readPadded(whole.storage, bytes, header.snapshotsOffset);
  let at = 0;
  return snapshots.map((snapshot) => {
    const entry = bytes.slice(at, at + snapshot.entryLength);
    at += snapshotStride(snapshot);
    return withWholeExtra(entry, snapshot, size);
  });
}

/** The L1 table of a snapshot. @throws SpindleError BAD_SNAPSHOT */
export async function readL1(whole: WholeTables, snapshot: Snapshot): Promise<L1Table> {
  const { geometry, size } = whole.metadata;
  const { l1TableOffset, l1Size, name, diskSize } = snapshot;
  const bad = (message: string): SpindleError =>
    formatError('BAD_SNAPSHOT', `snapshot '${name}'`, message, { offset: l1TableOffset });
  if (l1Size * TABLE_ENTRY > Limit.L1_TABLE) throw bad('its L1 table is larger than 32 MiB');
  if (!isAligned(l1TableOffset, geometry.clusterSize)) throw bad('its L1 table is not cluster aligned');
  if (l1Size < l1SizeFor(geometry, diskSize ?? size))
    throw bad('its L1 table is too small for its disk size');
  return L1Table.readWhole(whole.storage, l1TableOffset, l1Size, geometry.clusterSize);
}

function refuseExternal(whole: WholeTables): void {
  if (!whole.external) return;
  throw new SpindleError(
    'UNSUPPORTED',
    'an image with an external data file has no internal snapshots: its data cannot be in two states',
  );
}

function checkNew(snapshots: readonly Snapshot[], name: string, id: string): void {
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (name === '' || name.includes('\0')) throw bad('a snapshot needs a name');
  if (bytesOf(name).length > MOST_NAME) throw bad(`a snapshot name has at most ${String(MOST_NAME)} bytes`);
  if (id === '' || id.includes('\0') || bytesOf(id).length > MOST_NAME)
    throw bad(`'${id}' is no snapshot id`);
  if (snapshots.some((one) => one.id === id)) throw bad(`there is a snapshot with the id ${id} already`);
  if (snapshots.length >= Limit.SNAPSHOTS) {
    throw new SpindleError('LIMIT', 'the image has 65536 snapshots; the format allows no more');
  }
}

function nextId(snapshots: readonly Snapshot[]): string {
  const numbers = snapshots.map(({ id }) => (/^\d{1,9}$/.test(id) ? Number(id) : 0));
  return String(numbers.reduce((largest, number) => Math.max(largest, number), 0) + 1);
}
