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
import { encodeL1, NOTHING, Tree, type Skip } from './tree.ts';
import type { WholeTables } from './whole.ts';
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
 * A power cut leaves the image without the snapshot, or with it: everything that it refers to is counted, and no longer
 * written in place, before the header shows it.
 * @throws SpindleError UNSUPPORTED, BAD_OPTION, LIMIT, CORRUPT before anything is changed
 */
export function createSnapshot(writer: Qcow2Writer, request: NewSnapshot): Promise<string> {
  return writer.alone(async (whole) => {
    const { metadata } = whole;
    const { snapshots, geometry, size } = metadata;
    refuseExternal(whole);
    const id = request.id ?? nextId(snapshots);
    checkNew(snapshots, request.name, id);
    const old = await entriesOf(whole);
    const tree = new Tree(writer, whole);
    await tree.checkRoom(writer.editor.l1, NOTHING);
    // What lies past the disk is the state of a virtual machine that a snapshot before had.
    await clearFrom(writer, whole, Math.ceil(size / geometry.clusterSize), null);
    await whole.flush();
    const { l1 } = writer.editor;
    await tree.share(l1, NOTHING);
    await tree.flagL1(l1, () => Promise.resolve(false));
    await whole.flush();
    const copy = encodeL1(l1, l1.entries, () => false);
    const l1TableOffset = await placeTable(writer, whole, copy, 'L1 table of a snapshot');
    const made = encodeSnapshot({ ...request, id, l1TableOffset, l1Size: l1.entries, diskSize: size });
    await switchTable(writer, whole, [...old, made]);
    return id;
  });
}

/**
 * Deletes an internal snapshot. The table without it is on disk before anything that it referred to is freed. Terms as
 * for {@link createSnapshot}.
 * @throws SpindleError UNSUPPORTED, BAD_SNAPSHOT, BAD_ENTRY before anything is changed
 */
export function deleteSnapshot(writer: Qcow2Writer, snapshot: Snapshot): Promise<void> {
  return writer.alone(async (whole) => {
    refuseExternal(whole);
    const index = whole.metadata.snapshots.indexOf(snapshot);
    const l1 = await readL1(whole, snapshot);
    const entries = await entriesOf(whole);
    await switchTable(
      writer,
      whole,
      entries.filter((_, i) => i !== index),
    );
    const tree = new Tree(writer, whole);
    await tree.release(l1, NOTHING);
    giveTable(writer, whole, snapshot.l1TableOffset, snapshot.l1Size * TABLE_ENTRY);
    await whole.flush();
    await tree.recomputeFlags(writer.editor.l1);
    await whole.flush();
  });
}

/**
 * Makes the active disk what it was at a snapshot, its size too; what the disk held is lost. The old tree stays whole
 * until one write to the header has put the new one in its place. Terms as for {@link createSnapshot}.
 * @throws SpindleError UNSUPPORTED, BAD_SNAPSHOT, LIMIT, CORRUPT, BAD_ENTRY before anything is changed
 */
export function applySnapshot(writer: Qcow2Writer, snapshot: Snapshot): Promise<void> {
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

/** Writes a new snapshot table, shows it in the header, and frees the old one. */
async function switchTable(
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
async function entriesOf(whole: WholeTables): Promise<Uint8Array[]> {
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

async function readL1(whole: WholeTables, snapshot: Snapshot): Promise<L1Table> {
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
