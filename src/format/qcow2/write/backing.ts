import { alignDown, alignUp } from '../../../core/align.ts';
import { bytesOf, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { encodeExtensions, type Extension } from '../extensions.ts';
import { encodeHeader } from '../header.ts';
import { Autoclear, ExtensionMagic, HeaderOffset, Incompatible, Limit, SECTOR } from '../layout.ts';
import { readMetadata, type Metadata } from '../metadata.ts';

/** A backing file as an image records it. */
export interface RecordedBacking {
  /** The name, as it is to stand in the image. */
  readonly name: string;
  /** Name of its format; undefined: none is recorded, and readers look at the first bytes. */
  readonly format: string | undefined;
}

/** Where the parts of the first cluster lie. Bytes. */
interface FirstCluster {
  /** Header, extensions and name, as they follow one another. */
  readonly bytes: Uint8Array;
  /** The extensions, with the end marker, begin here. */
  readonly areaAt: number;
  readonly area: Uint8Array;
  readonly name: Uint8Array;
}

/**
 * Sees that an image can have this backing file, null for none: that the first cluster has room for its name.
 * @throws SpindleError CORRUPT (marked so), UNSUPPORTED (a raw external data file), BAD_OPTION
 */
export function checkBacking(metadata: Metadata, backing: RecordedBacking | null): void {
  layOut(metadata, backing);
}

/**
 * Makes an image refer to another backing file, or to none. Nothing else changes: what the image does not hold itself is
 * taken from there from now on. `storage` is the file of an image that nobody else uses, and in which nothing is left to
 * be written.
 *
 * A power cut leaves the old reference or the new one. The header is switched by writes that each lie within one sector:
 * first to a copy of extensions and name behind those in use, then back to their place in front. Only where the first
 * cluster has no room for two is it rewritten at once.
 * @throws SpindleError as {@link checkBacking}, before anything is changed; and what reading the header throws
 */
export async function switchBacking(storage: Storage, backing: RecordedBacking | null): Promise<void> {
  const metadata = await readMetadata(storage, 'info');
  const wanted = layOut(metadata, backing);
  const { clusterSize } = metadata.geometry;
  if (storage.size < clusterSize) await storage.resize(clusterSize);
  const old = new Uint8Array(clusterSize);
  await readPadded(storage, old, 0);
  await storage.flush();
  const difference = differing(old, wanted.bytes);
  if (difference === null) return;
  const { from, to } = difference;
  let leftover = Math.max(usedEnd(metadata), wanted.bytes.length);
  if (to <= alignDown(from, SECTOR) + SECTOR) await durably(storage, wanted.bytes.subarray(from, to), from);
  else {
    const copyEnd = await switchToCopy(storage, metadata, wanted, alignUp(leftover, 8));
    if (copyEnd === null) await durably(storage, wanted.bytes, 0);
    else {
      // What the header does not point to now first, then the header.
      await durably(storage, wanted.bytes.subarray(wanted.areaAt), wanted.areaAt);
      await durably(storage, wanted.bytes.subarray(0, wanted.areaAt), 0);
      leftover = copyEnd;
    }
  }
  if (leftover > wanted.bytes.length) {
    await durably(storage, new Uint8Array(leftover - wanted.bytes.length), wanted.bytes.length);
  }
}

/**
 * Writes a second copy of extensions and name at `at`, and makes the header point there. Where the copy ends; null where
 * that cannot be done, which changes nothing that counts.
 */
async function switchToCopy(
  storage: Storage,
  { header, geometry, extensions }: Metadata,
  wanted: FirstCluster,
  at: number,
): Promise<number | null> {
  const movable = header.version === 3;
  const extensionsEnd = Math.max(endOf(extensions, header.headerLength), wanted.areaAt + wanted.area.length);
  if (!movable && extensionsEnd > SECTOR) return null;
  const copy = movable ? joined(wanted.area, wanted.name) : wanted.name;
  const end = at + copy.length;
  if (end > geometry.clusterSize || (movable && at > geometry.clusterSize)) return null;
  await durably(storage, copy, at);
  const front = wanted.bytes.slice(0, movable ? wanted.areaAt : wanted.areaAt + wanted.area.length);
  const view = viewOf(front);
  if (wanted.name.length > 0) {
    view.setUint32(HeaderOffset.backingFileOffset + 4, end - wanted.name.length);
  }
  // Bytes up to header_length that nobody knows are nobody's business: extensions begin behind them.
  if (movable) view.setUint32(HeaderOffset.headerLength, at);
  await durably(storage, front.subarray(0, Math.min(front.length, SECTOR)), 0);
  return end;
}

/** The first cluster as it is to be. @throws SpindleError as {@link checkBacking} */
function layOut(metadata: Metadata, backing: RecordedBacking | null): FirstCluster {
  const { header, geometry } = metadata;
  refuse(metadata, backing);
  const area = encodeExtensions(extensionsWith(metadata.extensions, backing?.format));
  const name = bytesOf(backing?.name ?? '');
  const autoclear = { hi: 0, lo: (header.autoclear.lo & Autoclear.KNOWN) >>> 0 };
  const areaAt = encodeHeader(header).length;
  const nameAt = areaAt + area.length;
  if (name.length > Limit.BACKING_NAME || nameAt + name.length > geometry.clusterSize) {
    const room = Math.max(0, Math.min(Limit.BACKING_NAME, geometry.clusterSize - nameAt));
    throw new SpindleError(
      'BAD_OPTION',
      `the name of the backing file has ${String(name.length)} bytes, and the header has room for ${String(room)}: use a shorter one`,
    );
  }
  const fixed = encodeHeader({
    ...header,
    autoclear,
    backingFileOffset: name.length === 0 ? 0 : nameAt,
    backingFileSize: name.length,
  });
  return { bytes: joined(fixed, area, name), areaAt, area, name };
}

function refuse({ header }: Metadata, backing: RecordedBacking | null): void {
  if ((header.incompatible.lo & Incompatible.CORRUPT) !== 0) {
    throw new SpindleError(
      'CORRUPT',
      'the image is marked corrupt and must not be written to before it is repaired',
    );
  }
  if (backing === null) return;
  if (backing.name === '' || backing.name.includes('\0'))
    throw new SpindleError('BAD_OPTION', 'a backing file needs a name');
  if (bytesOf(backing.format ?? '').length > Limit.BACKING_FORMAT)
    throw new SpindleError('BAD_OPTION', `'${backing.format ?? ''}' is too long for the name of a format`);
  if ((header.autoclear.lo & Autoclear.DATA_FILE_RAW) !== 0) {
    throw new SpindleError(
      'UNSUPPORTED',
      'the data file of the image is a raw disk by itself, so that the image cannot have a backing file',
    );
  }
}

/** The extensions, with the name of the backing format where it stood, or else in front. */
function extensionsWith(
  extensions: readonly Extension[],
  format: string | undefined,
): Pick<Extension, 'magic' | 'data'>[] {
  const others = extensions.filter(({ magic }) => magic !== ExtensionMagic.BACKING_FORMAT);
  if (format === undefined) return others;
  const place = extensions.findIndex(({ magic }) => magic === ExtensionMagic.BACKING_FORMAT);
  return others.toSpliced(Math.max(0, place), 0, {
    magic: ExtensionMagic.BACKING_FORMAT,
    data: bytesOf(format),
    offset: 0,
  });
}

/** Where the extensions of an image and their end marker end. */
function endOf(extensions: readonly Extension[], start: number): number {
  const last = extensions[extensions.length - 1];
  return (last === undefined ? start : last.offset + 8 + alignUp(last.data.length, 8)) + 8;
}

/** Where the bytes that the header needs end. */
function usedEnd({ header, extensions }: Metadata): number {
  return Math.max(
    endOf(extensions, header.headerLength),
    header.backingFileOffset + header.backingFileSize,
    header.headerLength,
  );
}

/** The range in which `wanted` differs from what is there; null where it does not. */
function differing(
  old: Uint8Array,
  wanted: Uint8Array,
): { readonly from: number; readonly to: number } | null {
  const from = wanted.findIndex((byte, at) => byte !== old[at]);
  if (from < 0) return null;
  return { from, to: wanted.findLastIndex((byte, at) => byte !== old[at]) + 1 };
}

async function durably(storage: Storage, bytes: Uint8Array, at: number): Promise<void> {
  await storage.write(bytes, at);
  await storage.flush();
}

function joined(...parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
