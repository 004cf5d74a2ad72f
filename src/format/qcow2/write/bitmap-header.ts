import { alignUp } from '../../../core/align.ts';
import { isZero, setU64, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { encodeBitmapsExtension, encodeExtensions, type Extension } from '../extensions.ts';
import { Autoclear, ExtensionMagic, HeaderOffset, SECTOR } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { switchHeader } from './place.ts';
import type { WholeTables } from './whole.ts';

/** Bytes of an extension's magic and length. */
const EXTENSION_HEADER = 8;
/** Bytes of the body of the bitmaps extension. */
const BODY = 24;
/** Bytes of the end marker. */
const END = 8;

/** Where a bitmap directory lies. */
export interface DirectoryPlace {
  readonly count: number;
  /** Host offset in bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
}

/**
 * Shows a bitmap directory in the header: everything that it refers to is made durable before. A power cut leaves the
 * header with the old directory or with the new one. Where the extension spans two sectors, which no program that is
 * known to us brings about in an image of its own, it may also leave the image without bitmaps, but never with false ones.
 * @throws SpindleError LIMIT, UNSUPPORTED where the first cluster has no room; see {@link checkHeaderRoom}
 */
export async function showDirectory(whole: WholeTables, place: DirectoryPlace): Promise<void> {
  const { header, extensions } = whole.metadata;
  const body = encodeBitmapsExtension({
    count: place.count,
    reserved: 0,
    directorySize: place.size,
    directoryOffset: place.offset,
  });
  const existing = extensions.findLast(({ magic }) => magic === ExtensionMagic.BITMAPS);
  const trusted = (header.autoclear.lo & Autoclear.BITMAPS) !== 0;
  if (existing !== undefined && trusted) {
    const at = existing.offset + EXTENSION_HEADER;
    if (oneSector(at, BODY)) return switchHeader(whole, body, at);
    await switchTrust(whole, false);
    await switchHeader(whole, body, at);
    return switchTrust(whole, true);
  }
  // Nobody looks at the body before the extension is there, nor at the extension before the image says it is true.
  // Encoded alone an extension is followed by an end marker; one that was there has whatever follows it.
  const at = existing?.offset ?? (await makeRoom(whole));
  const extension = encodeExtensions([{ magic: ExtensionMagic.BITMAPS, data: body }]);
  const rest = existing === undefined ? extension.length : EXTENSION_HEADER + BODY;
  await switchHeader(whole, extension.slice(EXTENSION_HEADER, rest), at + EXTENSION_HEADER);
  await switchHeader(whole, extension.slice(0, EXTENSION_HEADER), at);
  await switchTrust(whole, true);
}

/** Takes the bitmap directory out of the header, which stays true at every instant. */
export async function hideDirectory(whole: WholeTables): Promise<void> {
  if ((whole.metadata.header.autoclear.lo & Autoclear.BITMAPS) !== 0) await switchTrust(whole, false);
  const last = removable(whole.metadata);
  if (last !== undefined) await switchHeader(whole, new Uint8Array(EXTENSION_HEADER), last.offset);
}

/**
 * Drops a bitmaps extension that a program has made untrue which does not know bitmaps. One that others follow stays: the
 * cleared bit keeps everybody from believing it.
 */
export async function dropStaleDirectory(storage: Storage, metadata: Metadata): Promise<void> {
  const { header } = metadata;
  if (header.version === 2 || (header.autoclear.lo & Autoclear.BITMAPS) !== 0) return;
  const last = removable(metadata);
  if (last === undefined) return;
  await storage.write(new Uint8Array(EXTENSION_HEADER), last.offset);
  await storage.flush();
}

/** The bitmaps extension where an end marker can take its place. */
function removable({ extensions }: Metadata): Extension | undefined {
  const last = extensions.at(-1);
  if (last?.magic !== ExtensionMagic.BITMAPS || !oneSector(last.offset, EXTENSION_HEADER)) return undefined;
  return last;
}

/** Says whether the bitmaps are true. */
async function switchTrust(whole: WholeTables, trusted: boolean): Promise<void> {
  const { lo } = whole.metadata.header.autoclear;
  const known = (lo & Autoclear.KNOWN & ~Autoclear.BITMAPS) >>> 0;
  const bytes = new Uint8Array(8);
  viewOf(bytes).setUint32(4, trusted ? known | Autoclear.BITMAPS : known);
  await switchHeader(whole, bytes, HeaderOffset.autoclearFeatures);
}

/** Where a new extension goes, and what has to be out of its way. */
interface Room {
  /** Offset of the end marker that it replaces. */
  readonly at: number;
  /** The new place of the backing file name; null when it can stay. */
  readonly name: number | null;
}

/**
 * Sees that the first cluster has room for a bitmaps extension. Changes nothing.
 * @throws SpindleError LIMIT, UNSUPPORTED
 */
export async function checkHeaderRoom(whole: WholeTables): Promise<void> {
  if (whole.metadata.extensions.every(({ magic }) => magic !== ExtensionMagic.BITMAPS)) {
    await findRoom(whole);
  }
}

async function findRoom({ storage, metadata }: WholeTables): Promise<Room> {
  const { header, extensions, geometry } = metadata;
  const last = extensions.at(-1);
  const at =
    last === undefined ? header.headerLength : last.offset + EXTENSION_HEADER + alignUp(last.data.length, 8);
  const full = new SpindleError(
    'LIMIT',
    'the first cluster of the image has no room for a bitmap directory: the name of the backing file is too long for clusters of this size',
  );
  if (at % 8 !== 0) {
    throw new SpindleError(
      'UNSUPPORTED',
      `bitmaps need a header whose length is a multiple of 8, not ${String(header.headerLength)}`,
    );
  }
  const end = at + EXTENSION_HEADER + BODY + END;
  const { backingFileOffset: name, backingFileSize: length } = header;
  if (end + (name === 0 ? 0 : length) > geometry.clusterSize) throw full;
  if (name === 0 || name >= end) return { at, name: null };
  // A copy beside the old name can be completed before it counts; over it, only what fits into one sector.
  const marker = new Uint8Array(END);
  await readPadded(storage, marker, at);
  const beside = alignUp(Math.max(end, name + length), 8);
  if (beside + length <= geometry.clusterSize && name >= at + END && isZero(marker))
    return { at, name: beside };
  if (end + length <= SECTOR) return { at, name: end };
  throw full;
}

/** Makes room for a new extension; gives the offset of the end marker that it replaces. */
async function makeRoom(whole: WholeTables): Promise<number> {
  const { header } = whole.metadata;
  const { at, name } = await findRoom(whole);
  if (name === null) return at;
  const { backingFileOffset: old, backingFileSize: length } = header;
  const bytes = new Uint8Array(length);
  await readPadded(whole.storage, bytes, old);
  if (name >= old + length) {
    await switchHeader(whole, bytes, name);
    const offset = new Uint8Array(8);
    setU64(viewOf(offset), 0, name);
    await switchHeader(whole, offset, HeaderOffset.backingFileOffset);
    return at;
  }
  const sector = new Uint8Array(SECTOR);
  await readPadded(whole.storage, sector, 0);
  sector.fill(0, at);
  sector.set(bytes, name);
  setU64(viewOf(sector), HeaderOffset.backingFileOffset, name);
  await switchHeader(whole, sector, 0);
  return at;
}

function oneSector(at: number, length: number): boolean {
  return Math.floor(at / SECTOR) === Math.floor((at + length - 1) / SECTOR);
}
