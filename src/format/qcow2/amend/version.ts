import { isAligned } from '../../../core/align.ts';
import { SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { stopIfAborted, type Working } from '../../../core/working.ts';
import type { PlainData } from '../../crypto/encrypted-storage.ts';
import { COPIED, offsetHi, offsetLo, offsetOf, ZERO } from '../entry.ts';
import type { Header } from '../header.ts';
import {
  CompressionType,
  ExtensionMagic,
  HEADER_LENGTH,
  HEADER_LENGTH_V2,
  SnapshotExtra,
} from '../layout.ts';
import { readMetadata, type Metadata } from '../metadata.ts';
import { sliceSizeOf } from '../tables.ts';
import { hasZeroFlag, isCompressed, NOWHERE, type L2Entry } from '../write/l2-editor.ts';
import { Rank } from '../write/ordered-cache.ts';
import { entriesOf, switchTable } from '../write/snapshots.ts';
import type { WholeTables } from '../write/whole.ts';
import type { Qcow2Writer } from '../write/writer.ts';
import { allTables, anyEntry, entriesAt, type AnyTable } from './all-tables.ts';
import { keptExtensions, planHeader, switchToHeader, type HeaderChange } from './header-switch.ts';

/** Clusters given back after which they are freed, so that the list stays short. */
const MOST_GIVEN = 50_000;

const NO_FEATURES = { hi: 0, lo: 0 };

/** What the header of a version 3 image says that was of version 2. */
export function newerHeader(metadata: Metadata): HeaderChange {
  const fields: Partial<Header> = {
    ...{ version: 3, headerLength: HEADER_LENGTH, refcountOrder: 4, tail: new Uint8Array(0) },
    ...{ incompatible: NO_FEATURES, compatible: NO_FEATURES, autoclear: NO_FEATURES },
    compressionType: CompressionType.ZLIB,
  };
  return { header: fields, extensions: keptExtensions(metadata) };
}

/** What the header of a version 2 image says that was of version 3. */
export function olderHeader(metadata: Metadata): HeaderChange {
  const fields: Partial<Header> = { version: 2, headerLength: HEADER_LENGTH_V2 };
  return { header: fields, extensions: keptExtensions(metadata, ExtensionMagic.BITMAPS) };
}

/** Makes a version 2 image one of version 3. Its snapshots get the extra data that version 3 asks for first. */
export async function upgrade(writer: Qcow2Writer, whole: WholeTables): Promise<void> {
  if (whole.metadata.snapshots.some(({ extra }) => extra.length < SnapshotExtra.icount))
    await switchTable(writer, whole, await entriesOf(whole));
  await whole.flush();
  // Anew: the tables may have moved.
  const now = await readMetadata(whole.storage, 'data');
  await switchToHeader(whole, await planHeader(whole.storage, now, newerHeader(now)));
}

/**
 * Makes a version 3 image one of version 2: first no table says zero any more, then the header changes. What that needs
 * was seen before: {@link refuseOlder}.
 */
export async function downgrade(
  writer: Qcow2Writer,
  whole: WholeTables,
  below: Below,
  working: Working,
): Promise<void> {
  const tables = await allTables(writer, whole);
  for (const [done, table] of tables.entries()) {
    await expandTable(writer, whole, table, below, working);
    working.onProgress?.(done + 1, tables.length);
  }
  await whole.flush();
  const now = await readMetadata(whole.storage, 'data');
  await switchToHeader(whole, await planHeader(whole.storage, now, olderHeader(now)));
}

/** What guest data is made of. */
export interface Below {
  /** Something is below the image, so that what it does not hold is not zero. */
  readonly backed: boolean;
  /** The way to guest data in the clear, of an encrypted image. */
  readonly plain?: PlainData | undefined;
}

/** Sees whether an image can be of version 2. Changes nothing. @throws SpindleError BAD_OPTION */
export async function refuseOlder(
  writer: Qcow2Writer,
  whole: WholeTables,
  size: number,
  working: Working,
): Promise<void> {
  const { header, geometry, snapshots, bitmaps } = whole.metadata;
  const cannot = (why: string): SpindleError =>
    new SpindleError('BAD_OPTION', `the image cannot have compat=0.10 (version 2): ${why}`);
  if (whole.external) throw cannot('it has an external data file');
  if (geometry.extendedL2) throw cannot('it has extended L2 entries');
  if (bitmaps.length > 0) throw cannot('it has persistent bitmaps; remove them first');
  for (const { name, diskSize, vmStateSize } of snapshots) {
    if ((diskSize ?? size) !== size) throw cannot(`snapshot '${name}' has another size than the disk`);
    if (vmStateSize >= 2 ** 32) throw cannot(`the machine state of snapshot '${name}' is 4 GiB or larger`);
  }
  if (
    header.compressionType !== CompressionType.ZLIB &&
    (await anyEntry(writer, whole, working, isCompressed))
  )
    throw cannot('it has clusters that are compressed with zstd');
}

/** What becomes of one zero cluster. */
interface Expanded {
  /** Number of its entry in the slice. */
  readonly index: number;
  readonly entry: L2Entry;
  /** Where zeroes are written for it; null for nowhere. */
  readonly host: number | null;
  readonly guest: number;
}

/**
 * Takes the zero flags from a table. Space that is there already is filled with zeroes and becomes data; a zero cluster
 * without space becomes unallocated, or over a backing file data.
 */
async function expandTable(
  writer: Qcow2Writer,
  whole: WholeTables,
  table: AnyTable,
  below: Below,
  working: Working,
): Promise<void> {
  const { clusterSize, l2EntrySize } = whole.metadata.geometry;
  const { cache, refcounts, allocator } = writer;
  const size = sliceSizeOf(whole.metadata.geometry);
  const references = await refcounts.get(table.at / clusterSize);
  for (let at = table.at; at < table.at + clusterSize; at += size) {
    stopIfAborted(working.signal);
    const changes: Expanded[] = [];
    for (const [index, entry] of (await entriesAt(writer, whole, at)).entries()) {
      if (isCompressed(entry) || !hasZeroFlag(entry)) continue;
      const guest = table.guest + ((at - table.at) / l2EntrySize + index) * clusterSize;
      changes.push({
        index,
        guest,
        ...(await expanded(writer, whole, { entry, guest, table, references }, below)),
      });
    }
    if (changes.length === 0) continue;
    await writeZeroes(whole, changes, below.plain);
    cache.noteWritten();
    const page = await cache.page(at, size, Rank.L2);
    for (const { index, entry } of changes) {
      page.view.setUint32(index * l2EntrySize, entry.hi);
      page.view.setUint32(index * l2EntrySize + 4, entry.lo);
      cache.mark(page, index * l2EntrySize, (index + 1) * l2EntrySize);
    }
    if (cache.full || allocator.pending > MOST_GIVEN) await whole.flush();
  }
}

interface ZeroCluster {
  readonly entry: L2Entry;
  readonly guest: number;
  readonly table: AnyTable;
  /** How many L1 tables refer to the table, and so count for all that it refers to. */
  readonly references: number;
}

async function expanded(
  writer: Qcow2Writer,
  whole: WholeTables,
  { entry, guest, table, references }: ZeroCluster,
  { backed }: Below,
): Promise<{ entry: L2Entry; host: number | null }> {
  const { geometry, size } = whole.metadata;
  const { clusterSize } = geometry;
  const { refcounts, allocator } = writer;
  const old = offsetOf(entry.hi, entry.lo);
  // Another table may hold data there that must not be written over.
  if (old !== 0 && isAligned(old, clusterSize) && (await refcounts.get(old / clusterSize)) === references) {
    writer.kinds.check(old, clusterSize);
    return { entry: { ...entry, lo: (entry.lo & ~ZERO) >>> 0 }, host: old };
  }
  if (old !== 0) for (let i = 0; i < references; i++) allocator.give(Math.floor(old / clusterSize), 1);
  // Past the end of the disk there is no backing file.
  if (!backed || guest >= size) return { entry: NOWHERE, host: null };
  const { start } = await allocator.take(1);
  const host = start * clusterSize;
  writer.kinds.check(host, clusterSize);
  await whole.reach(host + clusterSize);
  for (let i = 1; i < references; i++) await refcounts.change(start, 1, 1);
  const copied = table.own && references === 1 ? COPIED : 0;
  return {
    entry: { hi: (offsetHi(host) | copied) >>> 0, lo: offsetLo(host), zeros: 0, data: 0 },
    host,
  };
}

/** Writes zeroes to the places of clusters, to those that lie together at once. */
async function writeZeroes(
  whole: WholeTables,
  changes: readonly Expanded[],
  plain: PlainData | undefined,
): Promise<void> {
  const { clusterSize } = whole.metadata.geometry;
  const view = (guest: number, host: number): Storage => plain?.view(guest, host) ?? whole.data;
  for (let first = 0; first < changes.length;) {
    const { guest, host } = changes[first] as Expanded;
    let count = 1;
    if (host !== null) {
      const follows = (i: number): boolean =>
        changes[first + i]?.host === host + i * clusterSize &&
        changes[first + i]?.guest === guest + i * clusterSize;
      while (follows(count)) count++;
      // A file may end before the last cluster that it holds.
      await whole.reach(host + count * clusterSize);
      await view(guest, host).zero(host, count * clusterSize, { keepAllocated: true });
    }
    first += count;
  }
}
