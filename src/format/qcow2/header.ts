import { isAligned } from '../../core/align.ts';
import { getU64, setU64, viewOf } from '../../core/bytes.ts';
import { formatError, isSpindleError, SpindleError, type ErrorCode } from '../../core/errors.ts';
import {
  CompressionType,
  CryptMethod,
  HEADER_LENGTH,
  HEADER_LENGTH_V2,
  HEADER_LENGTH_V3_MIN,
  HeaderOffset,
  Incompatible,
  Limit,
  MAGIC,
  TABLE_ENTRY,
} from './layout.ts';

/** A 64-bit word of feature bits, in halves. */
export interface FeatureWord {
  readonly hi: number;
  readonly lo: number;
}

/** The decoded header. Offsets and sizes are bytes unless a comment says otherwise. */
export interface Header {
  readonly version: 2 | 3;
  /** 0: no backing file. */
  readonly backingFileOffset: number;
  readonly backingFileSize: number;
  readonly clusterBits: number;
  /** Virtual size, as stored: not rounded. */
  readonly size: number;
  readonly cryptMethod: number;
  /** Entries. */
  readonly l1Size: number;
  readonly l1TableOffset: number;
  readonly refcountTableOffset: number;
  /** Clusters. */
  readonly refcountTableClusters: number;
  readonly nbSnapshots: number;
  /** Infinity for 2^53 or more, which only a check opens. */
  readonly snapshotsOffset: number;
  readonly incompatible: FeatureWord;
  readonly compatible: FeatureWord;
  readonly autoclear: FeatureWord;
  readonly refcountOrder: number;
  readonly headerLength: number;
  readonly compressionType: number;
  /** The header's bytes past the fields that spindle knows (offset 112 to `headerLength`), kept as they are. */
  readonly tail: Uint8Array;
}

/**
 * What an image is opened for. `info` looks at the header and the tables beside it; `check` also opens what is damaged
 * so that it can say how; `data` is everything else.
 */
export type Purpose = 'data' | 'info' | 'check';

/** Whether `bytes` (at least 8) begin like a qcow2 image: the magic and a version of 2 or more. */
export function looksLikeQcow2(bytes: Uint8Array): boolean {
  if (bytes.length < 8) return false;
  const view = viewOf(bytes);
  return view.getUint32(HeaderOffset.magic) === MAGIC && view.getUint32(HeaderOffset.version) >= 2;
}

function bad(code: ErrorCode, field: keyof typeof HeaderOffset, message: string): SpindleError {
  return formatError(code, 'header', message, { field, offset: HeaderOffset[field] });
}

function u64(view: DataView, field: keyof typeof HeaderOffset, what: string): number {
  try {
    return getU64(view, HeaderOffset[field]);
  } catch (error) {
    if (!isSpindleError(error, 'LIMIT')) throw error;
    throw bad('LIMIT', field, `${what} is 2^53 bytes or more`);
  }
}

/** What a check can report on must not fail here: {@link checkGeometry} refuses Infinity otherwise. */
function u64OrInfinity(view: DataView, field: keyof typeof HeaderOffset): number {
  const at = HeaderOffset[field];
  return view.getUint32(at) > 0x1f_ffff ? Infinity : getU64(view, at);
}

function featureWord(view: DataView, at: number): FeatureWord {
  return { hi: view.getUint32(at), lo: view.getUint32(at + 4) };
}

/**
 * Decodes the fixed fields from the first bytes of a file: at least 112, zero-extended where the file is shorter, and
 * up to `header_length` where that is more. Checks what can be checked before anything else of the file is known;
 * unknown feature bits are left to {@link checkFeatures}, because their names stand in an extension.
 * `fileLength` is the length of the whole file.
 * @throws SpindleError BAD_MAGIC, UNSUPPORTED_VERSION, UNKNOWN_FEATURE, BAD_HEADER, LIMIT
 */
export function decodeHeader(bytes: Uint8Array, fileLength: number): Header {
  const view = viewOf(bytes);
  // 0 - magic
  if (view.getUint32(HeaderOffset.magic) !== MAGIC) {
    throw bad('BAD_MAGIC', 'magic', 'not a qcow2 image');
  }
  if (fileLength < HEADER_LENGTH_V2)
    throw bad('BAD_HEADER', 'magic', `cut short at ${String(fileLength)} bytes`);
  // 4 - version
  const version = view.getUint32(HeaderOffset.version);
  if (version !== 2 && version !== 3) {
    throw bad('UNSUPPORTED_VERSION', 'version', `version ${String(version)}; spindle reads versions 2 and 3`);
  }
  // 20 - cluster_bits
  const clusterBits = view.getUint32(HeaderOffset.clusterBits);
  if (clusterBits < Limit.MIN_CLUSTER_BITS || clusterBits > Limit.MAX_CLUSTER_BITS) {
    throw bad('BAD_HEADER', 'clusterBits', `cluster_bits is ${String(clusterBits)}, must be 9 to 21`);
  }
  const clusterSize = 2 ** clusterBits;
  // 100 - header_length
  const headerLength = version === 2 ? HEADER_LENGTH_V2 : view.getUint32(HeaderOffset.headerLength);
  if (version === 3 && (headerLength < HEADER_LENGTH_V3_MIN || headerLength > clusterSize)) {
    throw bad(
      'BAD_HEADER',
      'headerLength',
      `header_length is ${String(headerLength)}, must be 104 to ${String(clusterSize)} (one cluster)`,
    );
  }
  if (fileLength < headerLength)
    throw bad('BAD_HEADER', 'headerLength', `cut short at ${String(fileLength)} bytes`);
  // 8, 16 - backing file name
  const farAway = view.getUint32(HeaderOffset.backingFileOffset) !== 0;
  const backingFileOffset = farAway ? Infinity : view.getUint32(HeaderOffset.backingFileOffset + 4);
  const backingFileSize = view.getUint32(HeaderOffset.backingFileSize);
  if (backingFileOffset > clusterSize) {
    throw bad('BAD_HEADER', 'backingFileOffset', 'the backing file name does not lie in the first cluster');
  }
  if (
    backingFileOffset !== 0 &&
    backingFileSize > Math.min(Limit.BACKING_NAME, clusterSize - backingFileOffset)
  ) {
    throw bad(
      'BAD_HEADER',
      'backingFileSize',
      `a backing file name of ${String(backingFileSize)} bytes is too long`,
    );
  }
  // 72, 80, 88 - features; 96 - refcount_order; 104 - compression_type
  const isV3 = version === 3;
  const none: FeatureWord = { hi: 0, lo: 0 };
  const incompatible = isV3 ? featureWord(view, HeaderOffset.incompatibleFeatures) : none;
  const compressionType =
    isV3 && headerLength > HeaderOffset.compressionType ? view.getUint8(HeaderOffset.compressionType) : 0;
  if (compressionType !== CompressionType.ZLIB && compressionType !== CompressionType.ZSTD) {
    throw bad('UNKNOWN_FEATURE', 'compressionType', `compression type ${String(compressionType)} is unknown`);
  }
  const typeBit = (incompatible.lo & Incompatible.COMPRESSION_TYPE) !== 0;
  if (typeBit !== (compressionType !== CompressionType.ZLIB)) {
    throw bad(
      'BAD_HEADER',
      'compressionType',
      'the compression type and its feature bit contradict each other',
    );
  }
  return {
    version,
    backingFileOffset,
    backingFileSize,
    clusterBits,
    size: u64(view, 'size', 'the virtual size'),
    cryptMethod: view.getUint32(HeaderOffset.cryptMethod),
    l1Size: view.getUint32(HeaderOffset.l1Size),
    l1TableOffset: u64(view, 'l1TableOffset', 'the offset of the L1 table'),
    refcountTableOffset: u64(view, 'refcountTableOffset', 'the offset of the refcount table'),
    refcountTableClusters: view.getUint32(HeaderOffset.refcountTableClusters),
    nbSnapshots: view.getUint32(HeaderOffset.nbSnapshots),
    snapshotsOffset: u64OrInfinity(view, 'snapshotsOffset'),
    incompatible,
    compatible: isV3 ? featureWord(view, HeaderOffset.compatibleFeatures) : none,
    autoclear: isV3 ? featureWord(view, HeaderOffset.autoclearFeatures) : none,
    refcountOrder: isV3 ? view.getUint32(HeaderOffset.refcountOrder) : 4,
    headerLength,
    compressionType,
    tail: bytes.slice(HEADER_LENGTH, Math.max(HEADER_LENGTH, headerLength)),
  };
}

/**
 * Refuses incompatible features that spindle does not know. `names` are the image's own names of its features.
 * @throws SpindleError UNKNOWN_FEATURE
 */
export function checkFeatures(header: Header, names: ReadonlyMap<string, string>): void {
  const { hi, lo } = header.incompatible;
  const unknown: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    const set = bit < 32 ? (lo >>> bit) & 1 : (hi >>> (bit - 32)) & 1;
    if (set === 0 || (bit < 32 && (Incompatible.KNOWN >>> bit) & 1)) continue;
    unknown.push(names.get(featureKey(0, bit)) ?? `bit ${String(bit)}`);
  }
  if (unknown.length > 0) {
    throw bad(
      'UNKNOWN_FEATURE',
      'incompatibleFeatures',
      `the image needs features that spindle does not know: ${unknown.join(', ')}`,
    );
  }
}

/** The key under which a feature's name is kept. */
export function featureKey(set: number, bit: number): string {
  return `${String(set)}:${String(bit)}`;
}

/**
 * Checks the header fields that locate and bound the tables. `purpose` check lets through what it can report on.
 * @throws SpindleError BAD_HEADER, BAD_TABLE, BAD_SNAPSHOT, LIMIT
 */
export function checkGeometry(header: Header, purpose: Purpose): void {
  const clusterSize = 2 ** header.clusterBits;
  const extendedL2 = (header.incompatible.lo & Incompatible.EXTENDED_L2) !== 0;
  if (extendedL2 && header.clusterBits < Limit.MIN_CLUSTER_BITS_EXTENDED_L2) {
    throw bad('BAD_HEADER', 'clusterBits', 'extended L2 entries need clusters of 16 KiB or more');
  }
  if (header.refcountOrder > Limit.MAX_REFCOUNT_ORDER) {
    throw bad(
      'BAD_HEADER',
      'refcountOrder',
      `refcount_order is ${String(header.refcountOrder)}, must be 0 to 6`,
    );
  }
  if (header.cryptMethod > CryptMethod.LUKS) {
    throw bad('BAD_HEADER', 'cryptMethod', `crypt_method ${String(header.cryptMethod)} is unknown`);
  }
  checkRefcountTable(header, clusterSize, purpose);
  if (header.nbSnapshots > Limit.SNAPSHOTS && purpose !== 'check') {
    throw bad('LIMIT', 'nbSnapshots', `${String(header.nbSnapshots)} snapshots; the format allows 65536`);
  }
  if (header.snapshotsOffset === Infinity && purpose !== 'check')
    throw bad('LIMIT', 'snapshotsOffset', 'the offset of the snapshot table is 2^53 bytes or more');
  // The offset counts even where there is no snapshot.
  if (!isAligned(header.snapshotsOffset, clusterSize) && purpose !== 'check') {
    throw bad('BAD_SNAPSHOT', 'snapshotsOffset', 'the snapshot table is not cluster aligned');
  }
  checkL1Table(header, clusterSize, extendedL2);
}

function checkRefcountTable(header: Header, clusterSize: number, purpose: Purpose): void {
  if (header.refcountTableClusters === 0 && purpose !== 'check') {
    throw bad('BAD_TABLE', 'refcountTableClusters', 'the image has no refcount table');
  }
  if (header.refcountTableClusters * clusterSize > Limit.REFCOUNT_TABLE) {
    throw bad('LIMIT', 'refcountTableClusters', 'the refcount table is larger than 8 MiB');
  }
  if (!isAligned(header.refcountTableOffset, clusterSize)) {
    throw bad('BAD_TABLE', 'refcountTableOffset', 'the refcount table is not cluster aligned');
  }
  // Offset 0 is the header itself: no image can have its table there.
  if (header.refcountTableOffset === 0 && header.refcountTableClusters !== 0 && purpose !== 'check') {
    throw bad('BAD_TABLE', 'refcountTableOffset', 'the refcount table lies on the header');
  }
}

function checkL1Table(header: Header, clusterSize: number, extendedL2: boolean): void {
  if (header.l1Size * TABLE_ENTRY > Limit.L1_TABLE) {
    throw bad('LIMIT', 'l1Size', `an L1 table of ${String(header.l1Size)} entries is larger than 32 MiB`);
  }
  if (!isAligned(header.l1TableOffset, clusterSize)) {
    throw bad('BAD_TABLE', 'l1TableOffset', 'the L1 table is not cluster aligned');
  }
  if (header.l1TableOffset === 0 && header.l1Size !== 0) {
    throw bad('BAD_TABLE', 'l1TableOffset', 'the L1 table lies on the header');
  }
  const coverage = clusterSize * (clusterSize / (extendedL2 ? 16 : 8));
  const needed = Math.ceil(header.size / coverage);
  if (needed > 0x7fff_ffff) {
    throw bad('LIMIT', 'size', 'the virtual size is too large for the cluster size');
  }
  if (header.l1Size < needed) {
    throw bad(
      'BAD_TABLE',
      'l1Size',
      `an L1 table of ${String(header.l1Size)} entries is too small; the virtual size needs ${String(needed)}`,
    );
  }
}

/** The fixed fields as bytes: `headerLength` of them. Version 2 has no fields from 72 on. */
export function encodeHeader(header: Header): Uint8Array {
  const bytes = new Uint8Array(header.version === 2 ? HEADER_LENGTH_V2 : HEADER_LENGTH + header.tail.length);
  const view = viewOf(bytes);
  view.setUint32(HeaderOffset.magic, MAGIC);
  view.setUint32(HeaderOffset.version, header.version);
  setU64(view, HeaderOffset.backingFileOffset, header.backingFileOffset);
  view.setUint32(HeaderOffset.backingFileSize, header.backingFileSize);
  view.setUint32(HeaderOffset.clusterBits, header.clusterBits);
  setU64(view, HeaderOffset.size, header.size);
  view.setUint32(HeaderOffset.cryptMethod, header.cryptMethod);
  view.setUint32(HeaderOffset.l1Size, header.l1Size);
  setU64(view, HeaderOffset.l1TableOffset, header.l1TableOffset);
  setU64(view, HeaderOffset.refcountTableOffset, header.refcountTableOffset);
  view.setUint32(HeaderOffset.refcountTableClusters, header.refcountTableClusters);
  view.setUint32(HeaderOffset.nbSnapshots, header.nbSnapshots);
  setU64(view, HeaderOffset.snapshotsOffset, header.snapshotsOffset);
  if (header.version === 2) return bytes;
  setFeatures(view, HeaderOffset.incompatibleFeatures, header.incompatible);
  setFeatures(view, HeaderOffset.compatibleFeatures, header.compatible);
  setFeatures(view, HeaderOffset.autoclearFeatures, header.autoclear);
  view.setUint32(HeaderOffset.refcountOrder, header.refcountOrder);
  view.setUint32(HeaderOffset.headerLength, bytes.length);
  view.setUint8(HeaderOffset.compressionType, header.compressionType);
  bytes.set(header.tail, HEADER_LENGTH);
  return bytes;
}

function setFeatures(view: DataView, at: number, word: FeatureWord): void {
  view.setUint32(at, word.hi);
  view.setUint32(at + 4, word.lo);
}
