import { alignUp, isAligned } from '../../core/align.ts';
import { bytesOf, getU64, hex, setU64, textOf, viewOf } from '../../core/bytes.ts';
import { formatError, type SpindleError } from '../../core/errors.ts';
import { featureKey } from './header.ts';
import { CryptMethod, ExtensionMagic, FEATURE_NAME_LENGTH, FEATURE_NAMES, Limit } from './layout.ts';

/** One header extension as it stands in the file. */
export interface Extension {
  readonly magic: number;
  readonly data: Uint8Array;
  /** Host offset of the extension, in bytes. */
  readonly offset: number;
}

/** The largest high half of a 64-bit value below 2^53. */
const MAX_HI = 0x1f_ffff;

/** Bytes of an extension's magic and length. */
const EXTENSION_HEADER = 8;

/**
 * Decodes the extension area: from `start` up to the end marker or `end`. `bytes` holds the file from offset 0 on.
 * Returns null when `bytes` is too short to tell, so that the caller reads more.
 * @throws SpindleError BAD_EXTENSION
 */
export function decodeExtensions(bytes: Uint8Array, start: number, end: number): Extension[] | null {
  const view = viewOf(bytes);
  const found: Extension[] = [];
  let at = start;
  while (at < end) {
    if (at + EXTENSION_HEADER > end) {
      throw formatError('BAD_EXTENSION', 'header extension', 'cut short by the end of its area', {
        offset: at,
      });
    }
    if (at + EXTENSION_HEADER > bytes.length) return null;
    const magic = view.getUint32(at);
    const length = view.getUint32(at + 4);
    if (magic === ExtensionMagic.END) break;
    const body = at + EXTENSION_HEADER;
    if (length > end - body) {
      throw formatError(
        'BAD_EXTENSION',
        'header extension',
        `${hex(magic)} claims ${String(length)} bytes, more than its area holds`,
        { offset: at },
      );
    }
    if (body + length > bytes.length) return null;
    found.push({ magic, data: bytes.slice(body, body + length), offset: at });
    at = body + alignUp(length, 8);
  }
  return found;
}

/** The bytes of extensions, in order, with the end marker. */
export function encodeExtensions(extensions: readonly Pick<Extension, 'magic' | 'data'>[]): Uint8Array {
  const length = extensions.reduce((sum, one) => sum + EXTENSION_HEADER + alignUp(one.data.length, 8), 0);
  const bytes = new Uint8Array(length + EXTENSION_HEADER);
  const view = viewOf(bytes);
  let at = 0;
  for (const { magic, data } of extensions) {
    view.setUint32(at, magic);
    view.setUint32(at + 4, data.length);
    bytes.set(data, at + EXTENSION_HEADER);
    at += EXTENSION_HEADER + alignUp(data.length, 8);
  }
  return bytes;
}

/** Where the bitmap directory lies. */
export interface BitmapsExtension {
  readonly count: number;
  readonly reserved: number;
  /** Bytes. */
  readonly directorySize: number;
  readonly directoryOffset: number;
}

/** Where the encryption header lies. Bytes. */
export interface CryptoExtension {
  readonly offset: number;
  readonly length: number;
}

/** The extensions that spindle understands, decoded, and all others as they are. */
export interface KnownExtensions {
  readonly backingFormat?: string;
  readonly dataFile?: string;
  readonly featureNames: ReadonlyMap<string, string>;
  readonly bitmaps?: BitmapsExtension;
  readonly crypto?: CryptoExtension;
  readonly unknown: readonly Extension[];
}

/**
 * Reads the meaning of the extensions.
 * @throws SpindleError BAD_EXTENSION, LIMIT
 */
export function interpretExtensions(
  extensions: readonly Extension[],
  cryptMethod: number,
  clusterSize: number,
): KnownExtensions {
  let backingFormat: string | undefined;
  let dataFile: string | undefined;
  let bitmaps: BitmapsExtension | undefined;
  let crypto: CryptoExtension | undefined;
  const featureNames = new Map<string, string>();
  const unknown: Extension[] = [];
  for (const extension of extensions) {
    switch (extension.magic) {
      case ExtensionMagic.BACKING_FORMAT:
        if (extension.data.length > Limit.BACKING_FORMAT) {
          throw badExtension(
            extension,
            `a backing format name of ${String(extension.data.length)} bytes is too long`,
          );
        }
        backingFormat = textOf(extension.data);
        break;
      case ExtensionMagic.DATA_FILE:
        dataFile = textOf(extension.data);
        break;
      case ExtensionMagic.FEATURE_NAMES:
        readFeatureNames(extension.data, featureNames);
        break;
      case ExtensionMagic.BITMAPS:
        bitmaps = decodeBitmapsExtension(extension);
        break;
      case ExtensionMagic.CRYPTO:
        crypto = decodeCryptoExtension(extension, cryptMethod, clusterSize);
        break;
      default:
        unknown.push(extension);
    }
  }
  return {
    featureNames,
    unknown,
    ...(backingFormat === undefined ? {} : { backingFormat }),
    ...(dataFile === undefined ? {} : { dataFile }),
    ...(bitmaps === undefined ? {} : { bitmaps }),
    ...(crypto === undefined ? {} : { crypto }),
  };
}

function readFeatureNames(data: Uint8Array, into: Map<string, string>): void {
  for (let at = 0; at + FEATURE_NAME_LENGTH <= data.length; at += FEATURE_NAME_LENGTH) {
    const name = data.subarray(at + 2, at + FEATURE_NAME_LENGTH);
    const end = name.indexOf(0);
    into.set(featureKey(data[at] ?? 0, data[at + 1] ?? 0), textOf(end < 0 ? name : name.subarray(0, end)));
  }
}

function decodeBitmapsExtension(extension: Extension): BitmapsExtension {
  if (extension.data.length !== 24) throw badExtension(extension, 'the bitmaps extension must have 24 bytes');
  const view = viewOf(extension.data);
  return {
    count: view.getUint32(0),
    reserved: view.getUint32(4),
    directorySize: getU64(view, 8),
    directoryOffset: getU64(view, 16),
  };
}

function decodeCryptoExtension(
  extension: Extension,
  cryptMethod: number,
  clusterSize: number,
): CryptoExtension {
  const bad = (message: string): SpindleError =>
    formatError('BAD_ENCRYPTION', 'header extension', message, { offset: extension.offset });
  if (extension.data.length !== 16) {
    throw badExtension(extension, 'the encryption header extension must have 16 bytes');
  }
  if (cryptMethod !== CryptMethod.LUKS)
    throw bad('an encryption header in an image that is not LUKS encrypted');
  const view = viewOf(extension.data);
  if (view.getUint32(0) > MAX_HI || view.getUint32(8) > MAX_HI)
    throw bad('an encryption header at 2^53 or more');
  const offset = getU64(view, 0);
  if (!isAligned(offset, clusterSize)) throw bad('the encryption header is not cluster aligned');
  return { offset, length: getU64(view, 8) };
}

function badExtension(extension: Extension, message: string): SpindleError {
  return formatError('BAD_EXTENSION', 'header extension', message, {
    field: hex(extension.magic),
    offset: extension.offset,
  });
}

/** The feature name table that spindle writes. */
export function encodeFeatureNames(): Uint8Array {
  const data = new Uint8Array(FEATURE_NAMES.length * FEATURE_NAME_LENGTH);
  FEATURE_NAMES.forEach(([set, bit, name], index) => {
    const at = index * FEATURE_NAME_LENGTH;
    data[at] = set;
    data[at + 1] = bit;
    data.set(bytesOf(name), at + 2);
  });
  return data;
}

/** The payload of the bitmaps extension. */
export function encodeBitmapsExtension(bitmaps: BitmapsExtension): Uint8Array {
  const data = new Uint8Array(24);
  const view = viewOf(data);
  view.setUint32(0, bitmaps.count);
  view.setUint32(4, bitmaps.reserved);
  setU64(view, 8, bitmaps.directorySize);
  setU64(view, 16, bitmaps.directoryOffset);
  return data;
}

/** The payload of the encryption header extension. */
export function encodeCryptoExtension(place: CryptoExtension): Uint8Array {
  const data = new Uint8Array(16);
  const view = viewOf(data);
  setU64(view, 0, place.offset);
  setU64(view, 8, place.length);
  return data;
}
