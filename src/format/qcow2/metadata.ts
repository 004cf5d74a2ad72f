import { alignDown, isAligned } from '../../core/align.ts';
import { viewOf } from '../../core/bytes.ts';
import { formatError, isSpindleError, type SpindleError } from '../../core/errors.ts';
import { readAvailable, readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import { bitmapReserved, offsetOf } from './entry.ts';
import { decodeDirectory, type BitmapEntry } from './bitmap.ts';
import { decodeExtensions, interpretExtensions, type Extension, type KnownExtensions } from './extensions.ts';
import { geometryOf, type Geometry } from './geometry.ts';
import { checkFeatures, checkGeometry, decodeHeader, type Header, type Purpose } from './header.ts';
import { textOf } from '../../core/bytes.ts';
import { Autoclear, BitmapFlag, CryptMethod, Incompatible, Limit, SECTOR, TABLE_ENTRY } from './layout.ts';
import { decodeLuks, LUKS_HEADER_LENGTH, type LuksHeader } from '../crypto/luks-header.ts';
import { decodeSnapshot, snapshotStride, type Snapshot } from './snapshot.ts';

/** Everything about an image but its tables: read once, when it is opened. */
export interface Metadata {
  readonly header: Header;
  readonly geometry: Geometry;
  /** Virtual size in bytes: the header's, rounded down to whole sectors. */
  readonly size: number;
  readonly extensions: readonly Extension[];
  readonly known: KnownExtensions;
  readonly backingName: string | null;
  readonly luks: LuksHeader | null;
  readonly snapshots: readonly Snapshot[];
  /** Why the snapshot table could not be read; only where the image was opened for `check`. */
  readonly snapshotProblem: SpindleError | null;
  /** Bytes of the snapshot table. */
  readonly snapshotTableSize: number;
  readonly bitmaps: readonly BitmapEntry[];
  /** What a person should know about the image as it stands. */
  readonly warnings: readonly string[];
}

/** Reading starts with this much of the first cluster: enough for nearly every header. */
const FIRST_READ = 4096;

/**
 * Reads and validates the header, its extensions, and the snapshot, bitmap and encryption structures.
 * @throws SpindleError BAD_MAGIC, UNSUPPORTED_VERSION, UNKNOWN_FEATURE, BAD_HEADER, BAD_EXTENSION, BAD_TABLE,
 * BAD_SNAPSHOT, BAD_BITMAP, BAD_ENCRYPTION, LIMIT
 */
export async function readMetadata(storage: Storage, purpose: Purpose): Promise<Metadata> {
  const { bytes, header } = await readHeader(storage);
  const clusterSize = 2 ** header.clusterBits;
  const areaEnd = header.backingFileOffset === 0 ? clusterSize : header.backingFileOffset;
  let extensions = decodeExtensions(bytes, header.headerLength, areaEnd);
  if (extensions === null) {
    const whole = new Uint8Array(clusterSize);
    await readPadded(storage, whole, 0);
    extensions = decodeExtensions(whole, header.headerLength, areaEnd) ?? [];
  }
  checkFeatures(header, namesIn(extensions, header, clusterSize));
  checkGeometry(header, purpose);
  const known = interpretExtensions(extensions, header.cryptMethod, clusterSize);
  checkDataFile(header, known, purpose);
  const size = alignDown(header.size, SECTOR);
  const warnings: string[] = [];
  const luks = await readLuks(storage, header, known);
  const snapshots = await readSnapshots(storage, header, purpose);
  return {
    header,
    geometry: geometryOf(
      header.clusterBits,
      header.refcountOrder,
      (header.incompatible.lo & Incompatible.EXTENDED_L2) !== 0,
    ),
    size,
    extensions,
    known,
    backingName: await readBackingName(storage, header),
    luks,
    ...snapshots,
    bitmaps: await readBitmaps(storage, header, known, size, warnings),
    warnings,
  };
}

async function readHeader(storage: Storage): Promise<{ bytes: Uint8Array; header: Header }> {
  let bytes = new Uint8Array(FIRST_READ);
  await readPadded(storage, bytes, 0);
  let header = decodeHeader(bytes, storage.size);
  if (header.headerLength > bytes.length) {
    bytes = new Uint8Array(header.headerLength);
    await readPadded(storage, bytes, 0);
    header = decodeHeader(bytes, storage.size);
  }
  return { bytes, header };
}

/** The image's own names of features. Damaged extensions are reported later, by their own checks. */
function namesIn(
  extensions: readonly Extension[],
  header: Header,
  clusterSize: number,
): ReadonlyMap<string, string> {
  try {
    return interpretExtensions(extensions, header.cryptMethod, clusterSize).featureNames;
  } catch (error) {
    if (isSpindleError(error)) return new Map();
    throw error;
  }
}

function checkDataFile(header: Header, known: KnownExtensions, purpose: Purpose): void {
  const external = (header.incompatible.lo & Incompatible.DATA_FILE) !== 0;
  const raw = (header.autoclear.lo & Autoclear.DATA_FILE_RAW) !== 0;
  if (raw && !external && purpose !== 'info') {
    throw formatError('BAD_HEADER', 'header', 'marked as having a raw external data file, but it has none', {
      field: 'autoclearFeatures',
    });
  }
  if (header.cryptMethod === CryptMethod.LUKS && known.crypto === undefined) {
    throw formatError('BAD_ENCRYPTION', 'header', 'encrypted with LUKS, but without an encryption header', {
      field: 'cryptMethod',
    });
  }
}

async function readBackingName(storage: Storage, header: Header): Promise<string | null> {
  if (header.backingFileOffset === 0 || header.backingFileSize === 0) return null;
  const name = new Uint8Array(header.backingFileSize);
  await readPadded(storage, name, header.backingFileOffset);
  return textOf(name);
}

async function readLuks(
  storage: Storage,
  header: Header,
  known: KnownExtensions,
): Promise<LuksHeader | null> {
  if (header.cryptMethod !== CryptMethod.LUKS || known.crypto === undefined) return null;
  const { offset, length } = known.crypto;
  if (length < LUKS_HEADER_LENGTH) {
    throw formatError('BAD_ENCRYPTION', 'LUKS header', `cut short at ${String(length)} bytes`, { offset });
  }
  const bytes = new Uint8Array(LUKS_HEADER_LENGTH);
  await readPadded(storage, bytes, offset);
  return decodeLuks(bytes, offset);
}

/** Bytes of the snapshot table that are read at a time. */
const SNAPSHOT_READ = 256 * 1024;

async function readSnapshots(
  storage: Storage,
  header: Header,
  purpose: Purpose,
): Promise<Pick<Metadata, 'snapshots' | 'snapshotProblem' | 'snapshotTableSize'>> {
  const snapshots: Snapshot[] = [];
  let size = 0;
  try {
    if (purpose === 'check') checkSnapshotPlace(header);
    let window = new Uint8Array(0);
    let windowAt = header.snapshotsOffset;
    for (let at = header.snapshotsOffset, index = 0; index < header.nbSnapshots; index++) {
      if (at >= storage.size) throw badSnapshot(`entry ${String(index)} lies past the end of the file`, at);
      let entry = decodeSnapshot(window.subarray(at - windowAt), at);
      while (typeof entry === 'number') {
        window = new Uint8Array(Math.max(entry, Math.min(SNAPSHOT_READ, storage.size - at)));
        windowAt = at;
        await readPadded(storage, window, at);
        entry = decodeSnapshot(window, at);
      }
      if (at + entry.entryLength > storage.size)
        throw badSnapshot(`entry ${String(index)} is cut by the end of the file`, at);
      at += snapshotStride(entry);
      size = at - header.snapshotsOffset;
      if (size > Limit.SNAPSHOT_TABLE) throw badSnapshot('larger than 64 MiB', at);
      snapshots.push(entry);
    }
    return { snapshots, snapshotProblem: null, snapshotTableSize: size };
  } catch (error) {
    if (purpose !== 'check' || !isSpindleError(error)) throw error;
    return { snapshots: [], snapshotProblem: error, snapshotTableSize: size };
  }
}

function checkSnapshotPlace(header: Header): void {
  if (header.nbSnapshots > Limit.SNAPSHOTS)
    throw badSnapshot('more than 65536 snapshots', header.snapshotsOffset);
  if (header.snapshotsOffset === Infinity || !isAligned(header.snapshotsOffset, 2 ** header.clusterBits)) {
    throw badSnapshot('not cluster aligned', header.snapshotsOffset);
  }
}

function badSnapshot(message: string, offset: number): SpindleError {
  return formatError('BAD_SNAPSHOT', 'snapshot table', message, { offset });
}

async function readBitmaps(
  storage: Storage,
  header: Header,
  known: KnownExtensions,
  size: number,
  warnings: string[],
): Promise<BitmapEntry[]> {
  const place = known.bitmaps;
  if (place === undefined) return [];
  if ((header.autoclear.lo & Autoclear.BITMAPS) === 0) {
    warnings.push(
      'a program that does not know bitmaps has changed the image: its bitmaps are out of date and ignored',
    );
    return [];
  }
  const clusterSize = 2 ** header.clusterBits;
  const bad = (message: string, code: 'BAD_BITMAP' | 'LIMIT' = 'BAD_BITMAP'): SpindleError =>
    formatError(code, 'bitmap directory', message, { offset: place.directoryOffset });
  if (place.reserved !== 0) throw bad('the reserved field of its extension is not zero');
  if (place.count === 0) throw bad('an extension for no bitmaps');
  if (place.count > Limit.BITMAPS)
    throw bad(`${String(place.count)} bitmaps; at most 65535 are allowed`, 'LIMIT');
  if (!isAligned(place.directoryOffset, clusterSize) || place.directoryOffset === 0)
    throw bad('not cluster aligned');
  if (place.directorySize > Limit.BITMAP_DIRECTORY) {
    throw bad(`a directory of ${String(place.directorySize)} bytes is too large`, 'LIMIT');
  }
  if (place.directorySize < place.count * 24) {
    throw bad(`a directory of ${String(place.directorySize)} bytes for ${String(place.count)} bitmaps`);
  }
  if (place.directoryOffset + place.directorySize > storage.size) throw bad('runs past the end of the file');
  const bytes = await readAvailable(storage, place.directoryOffset, place.directorySize);
  const entries = decodeDirectory(bytes, place.directoryOffset, place.count, clusterSize, size);
  await checkBitmapTables(
    storage,
    entries.filter((entry) => (entry.flags & BitmapFlag.IN_USE) === 0),
    clusterSize,
  );
  return entries;
}

/** Bytes of a bitmap table that are read at a time. */
const BITMAP_TABLE_READ = 1024 * 1024;

/**
 * Checks the entries of all bitmap tables, each byte of the file once: thousands of bitmaps may claim the same table, and
 * opening an image must not read it thousands of times.
 */
async function checkBitmapTables(
  storage: Storage,
  bitmaps: readonly BitmapEntry[],
  clusterSize: number,
): Promise<void> {
  const tables = [...bitmaps].sort((a, b) => a.tableOffset - b.tableOffset);
  let done = 0;
  for (const { name, tableOffset, tableSize } of tables) {
    const end = Math.min(tableOffset + tableSize * TABLE_ENTRY, alignDown(storage.size, TABLE_ENTRY));
    // Past the end of the file everything is zero, so valid.
    for (done = Math.max(done, tableOffset); done < end; done += BITMAP_TABLE_READ) {
      const view = viewOf(await readAvailable(storage, done, Math.min(BITMAP_TABLE_READ, end - done)));
      for (let i = 0; i + TABLE_ENTRY <= view.byteLength; i += TABLE_ENTRY) {
        const hi = view.getUint32(i);
        const lo = view.getUint32(i + 4);
        if (bitmapReserved(hi, lo) || !isAligned(offsetOf(hi, lo), clusterSize)) {
          throw formatError('BAD_BITMAP', 'bitmap table', `bitmap '${name}' has a bad entry`, {
            offset: done + i,
          });
        }
      }
    }
    done = Math.max(tableOffset, Math.min(done, end));
  }
}
