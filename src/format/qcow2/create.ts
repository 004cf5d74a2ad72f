import { isPowerOfTwo } from '../../core/align.ts';
import { fillWithZeroes, reserveNew } from '../../core/allocation.ts';
import { bytesOf, setU64, viewOf } from '../../core/bytes.ts';
import type { Crypto } from '../../core/crypto.ts';
import { SpindleError } from '../../core/errors.ts';
import type { Storage } from '../../core/storage.ts';
import { stopIfAborted, type Working } from '../../core/working.ts';
import { resolveLuksOptions, type LuksOptions } from '../crypto/cipher-spec.ts';
import { plainData, type PlainData } from '../crypto/encrypted-storage.ts';
import { luksLength, makeLuks } from '../crypto/luks-create.ts';
import { legacyCipher } from '../crypto/sector-cipher.ts';
import { COPIED, offsetHi, offsetLo, ZERO } from './entry.ts';
import { encodeCryptoExtension, encodeExtensions, encodeFeatureNames, type Extension } from './extensions.ts';
import { encodeHeader, type Header } from './header.ts';
import {
  Autoclear,
  Compatible,
  CompressionType,
  CryptMethod,
  ExtensionMagic,
  HEADER_LENGTH,
  HEADER_LENGTH_V2,
  Incompatible,
  Limit,
  TABLE_ENTRY,
} from './layout.ts';
import { planImage, type Plan, type Qcow2Preallocation } from './plan.ts';
import { setRefcount } from './refcount.ts';

/** Everything that decides a new image. Sizes in bytes. */
export interface Qcow2CreateOptions {
  /** Virtual size: a multiple of 512. */
  readonly size: number;
  readonly version: 2 | 3;
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
  readonly lazyRefcounts: boolean;
  readonly compressionType: 'zlib' | 'zstd';
  readonly preallocation: Qcow2Preallocation;
  readonly backing: { readonly name: string; readonly format: string | undefined } | null;
  /** Name of the external data file as it is to be recorded, or null. */
  readonly dataFile: string | null;
  readonly dataFileRaw: boolean;
  readonly encryption: Qcow2Encryption | null;
}

/** How a new image is encrypted. `aes` is the first, weak kind, which virtual machines no longer open. */
export type Qcow2Encryption =
  { readonly format: 'luks'; readonly luks: LuksOptions } | { readonly format: 'aes' };

/** What creating an encrypted image needs besides its options. The caller wipes the secret. */
export interface Encrypting {
  readonly crypto: Crypto;
  readonly secret: Uint8Array;
}

/** The options of an image about which nothing was said. */
export const QCOW2_DEFAULTS: Omit<Qcow2CreateOptions, 'size'> = {
  version: 3,
  clusterSize: 65536,
  refcountBits: 16,
  extendedL2: false,
  lazyRefcounts: false,
  compressionType: 'zlib',
  preallocation: 'off',
  backing: null,
  dataFile: null,
  dataFileRaw: false,
  encryption: null,
};

/**
 * Refuses options that contradict each other or the format, before anything is touched.
 * @throws SpindleError BAD_OPTION, BAD_SIZE, LIMIT
 */
export function checkCreateOptions(options: Qcow2CreateOptions): void {
  const { clusterSize, refcountBits, version } = options;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (!Number.isSafeInteger(options.size) || options.size < 0 || options.size % 512 !== 0) {
    throw new SpindleError('BAD_SIZE', `a size of ${String(options.size)} bytes is not a multiple of 512`);
  }
  if (!isPowerIn(clusterSize, 2 ** Limit.MIN_CLUSTER_BITS, 2 ** Limit.MAX_CLUSTER_BITS)) {
    throw bad(`cluster_size must be a power of two from 512 to 2M, not ${String(clusterSize)}`);
  }
  if (!isPowerIn(refcountBits, 1, 2 ** Limit.MAX_REFCOUNT_ORDER)) {
    throw bad(`refcount_bits must be 1, 2, 4, 8, 16, 32 or 64, not ${String(refcountBits)}`);
  }
  if (version === 2) {
    const needs = (what: string): SpindleError => bad(`${what} needs compat=1.1 (version 3)`);
    if (refcountBits !== 16) throw needs('a refcount width other than 16 bits');
    if (options.extendedL2) throw needs('extended_l2');
    if (options.lazyRefcounts) throw needs('lazy_refcounts');
    if (options.compressionType !== 'zlib') throw needs('compression_type=zstd');
    if (options.dataFile !== null) throw needs('data_file');
  }
  if (options.extendedL2 && clusterSize < 2 ** Limit.MIN_CLUSTER_BITS_EXTENDED_L2) {
    throw bad('extended_l2 needs clusters of 16k or more');
  }
  if (options.dataFileRaw && options.dataFile === null) throw bad('data_file_raw needs data_file');
  if (options.backing !== null) {
    if (options.dataFileRaw) throw bad('a backing file and data_file_raw exclude each other');
    if (options.preallocation !== 'off' && !options.extendedL2) {
      throw bad('a backing file and preallocation exclude each other, unless with extended_l2=on');
    }
    if (bytesOf(options.backing.format ?? '').length > Limit.BACKING_FORMAT)
      throw bad('the backing format name is too long');
  }
  if (options.dataFile === '') throw bad('data_file needs a name');
  if (options.encryption !== null) checkEncryption(options, options.encryption);
  encodeFirstCluster(options, planImage(planned(options)));
}

function isPowerIn(value: number, from: number, to: number): boolean {
  return value >= from && value <= to && isPowerOfTwo(value);
}

/**
 * Space that is mapped but not written reads as noise once it is decrypted: version 3 can call it zero all the same.
 */
function checkEncryption(options: Qcow2CreateOptions, encryption: Qcow2Encryption): void {
  if (encryption.format === 'luks') resolveLuksOptions(encryption.luks);
  if (options.dataFileRaw) {
    throw new SpindleError(
      'BAD_OPTION',
      'data_file_raw=on promises a data file that is readable as a raw image; encryption makes that impossible',
    );
  }
  if (options.version === 2 && ['metadata', 'falloc'].includes(options.preallocation)) {
    throw new SpindleError(
      'BAD_OPTION',
      `preallocation=${options.preallocation} of an encrypted image needs compat=1.1, which can mark space as zero ` +
        'before it is written; use compat=1.1 or preallocation=full',
    );
  }
}

/** data_file_raw promises that the data file is the disk, so everything is mapped from the start. */
function planned(options: Qcow2CreateOptions): Parameters<typeof planImage>[0] {
  const externalData = options.dataFile !== null;
  const mapAll = options.dataFileRaw && options.preallocation === 'off';
  const { encryption } = options;
  const encryptionHeader = encryption?.format === 'luks' ? luksLength(encryption.luks) : 0;
  return {
    ...options,
    externalData,
    encryptionHeader,
    preallocation: mapAll ? 'metadata' : options.preallocation,
  };
}

/**
 * Writes a new image into the empty `storage`, and prepares the empty `dataFile` where the image has one. The image
 * reads as zeroes, or as its backing file. `encrypting` is needed where the options ask for encryption.
 * @throws SpindleError BAD_OPTION, BAD_SIZE, LIMIT, NO_SPACE, UNSUPPORTED, ABORTED
 */
export async function createQcow2(
  storage: Storage,
  options: Qcow2CreateOptions,
  dataFile: Storage | null = null,
  working: Working = {},
  encrypting: Encrypting | null = null,
): Promise<void> {
  checkCreateOptions(options);
  const plan = planImage(planned(options));
  const first = encodeFirstCluster(options, plan);
  const { clusterSize } = plan.geometry;
  if (storage.can.resize) await storage.resize(plan.length);
  else if (storage.size < plan.used * clusterSize) {
    throw new SpindleError(
      'NO_SPACE',
      `the device has ${String(storage.size)} bytes; the image needs ${String(plan.length)}`,
    );
  } else await storage.zero(0, plan.data.at * clusterSize || plan.used * clusterSize);
  const encryption = await makeEncryption(options, dataFile ?? storage, encrypting);
  await allocateData(storage, plan, options, dataFile, working, encryption?.plain ?? null);
  if (encryption !== null && plan.encryption.clusters > 0)
    await storage.write(encryption.header, plan.encryption.at * clusterSize);
  await Promise.all([writeRefcountBlocks, writeRefcountTable, writeL1].map((write) => write(storage, plan)));
  await writeL2Tables(storage, plan, options, working);
  await storage.write(first, 0);
}

/** The bytes of the encryption header, if any, and what encrypts guest data; null where nothing does. */
async function makeEncryption(
  { encryption }: Qcow2CreateOptions,
  data: Storage,
  encrypting: Encrypting | null,
): Promise<{ header: Uint8Array; plain: PlainData } | null> {
  if (encryption === null) return null;
  if (encrypting === null) throw new TypeError('an encrypted image needs a secret');
  const { crypto, secret } = encrypting;
  if (encryption.format === 'aes') {
    const plain = plainData(data, legacyCipher(crypto, secret), { from: 'guest' });
    return { header: new Uint8Array(0), plain };
  }
  const luks = await makeLuks(crypto, encryption.luks, secret);
  return { header: luks.bytes, plain: plainData(data, luks.cipher, { from: 'host', origin: 0 }) };
}

/** Reserves or writes the space of the data clusters, as the preallocation mode asks. */
async function allocateData(
  storage: Storage,
  plan: Plan,
  options: Qcow2CreateOptions,
  dataFile: Storage | null,
  working: Working,
  plain: PlainData | null,
): Promise<void> {
  const { clusterSize } = plan.geometry;
  const target = dataFile ?? storage;
  const at = dataFile === null ? plan.data.at * clusterSize : 0;
  const length = dataFile === null ? plan.data.clusters * clusterSize : options.size;
  if (dataFile !== null) await prepareDataFile(dataFile, options.size);
  if (length === 0) return;
  switch (options.preallocation) {
    case 'falloc':
      // Metadata too, so that the whole image has its space.
      if (dataFile === null) await reserveNew(storage, 0, plan.length, working);
      else await reserveNew(dataFile, 0, length, working);
      break;
    case 'full':
      // Metadata too: its clusters are not filled, and no hole or merely reserved block is to be left in the file.
      if (plain !== null) {
        if (target === storage && storage.can.resize) await fillWithZeroes(storage, 0, at);
        await fillEncrypted(plain.view(0, at), at, length, working);
      } else if (target === storage && storage.can.resize) {
        await fillWithZeroes(storage, 0, plan.length, working);
      } else await fillWithZeroes(target, at, length, working);
      break;
    default:
  }
  // What a device held before would show through mapped clusters.
  if (!target.can.resize && plan.data.clusters > 0 && options.preallocation !== 'full')
    await target.zero(at, length);
}

/** Writes zeroes through what encrypts them, in steps between which the work can be stopped. */
async function fillEncrypted(view: Storage, at: number, length: number, working: Working): Promise<void> {
  for (let done = 0; done < length;) {
    stopIfAborted(working.signal);
    const step = Math.min(CHUNK, length - done);
    await view.zero(at + done, step);
    done += step;
    working.onProgress?.(done, length);
  }
}

/** @throws SpindleError NO_SPACE when a device is too small */
async function prepareDataFile(dataFile: Storage, size: number): Promise<void> {
  if (dataFile.can.resize) await dataFile.resize(size);
  else if (dataFile.size < size) {
    throw new SpindleError(
      'NO_SPACE',
      `the data file has ${String(dataFile.size)} bytes; the image needs ${String(size)}`,
    );
  }
}

/** Bytes that are prepared before they are written. */
const CHUNK = 4 * 1024 * 1024;

/** Chunks of tables after which those written begin to be flushed. */
const FLUSH_EVERY = 6;

async function writeRefcountBlocks(storage: Storage, plan: Plan): Promise<void> {
  const { geometry } = plan;
  let full: Uint8Array | undefined;
  const perChunk = Math.max(1, Math.floor(CHUNK / geometry.clusterSize));
  for (let index = 0; index < plan.refcountBlocks.length;) {
    const start = plan.refcountBlocks[index] ?? 0;
    let count = 1;
    while (count < perChunk && plan.refcountBlocks[index + count] === start + count) count++;
    const chunk = new Uint8Array(count * geometry.clusterSize);
    for (let i = 0; i < count; i++) {
      const left = plan.used - (index + i) * geometry.refcountsPerBlock;
      const block =
        left < geometry.refcountsPerBlock
          ? refcountBlock(plan, Math.max(0, left))
          : (full ??= refcountBlock(plan, geometry.refcountsPerBlock));
      chunk.set(block, i * geometry.clusterSize);
    }
    await storage.write(chunk, start * geometry.clusterSize);
    index += count;
  }
}

async function writeRefcountTable(
  storage: Storage,
  { geometry, refcountBlocks, refcountTable }: Plan,
): Promise<void> {
  const table = new Uint8Array(Math.ceil(refcountBlocks.length * TABLE_ENTRY));
  const view = viewOf(table);
  refcountBlocks.forEach((block, index) => {
    setU64(view, index * TABLE_ENTRY, block * geometry.clusterSize);
  });
  await storage.write(table, refcountTable.at * geometry.clusterSize);
}

/** A refcount block whose first `count` refcounts are one. */
function refcountBlock(plan: Plan, count: number): Uint8Array {
  const block = new Uint8Array(plan.geometry.clusterSize);
  const view = viewOf(block);
  for (let i = 0; i < count; i++) setRefcount(view, plan.geometry.refcountOrder, i, 1);
  return block;
}

async function writeL1(storage: Storage, plan: Plan): Promise<void> {
  const { clusterSize } = plan.geometry;
  const bytes = new Uint8Array(plan.l1.entries * TABLE_ENTRY);
  const view = viewOf(bytes);
  for (let i = 0; i < plan.l2.tables; i++) {
    const offset = (plan.l2.at + i) * clusterSize;
    view.setUint32(i * TABLE_ENTRY, (offsetHi(offset) | COPIED) >>> 0);
    view.setUint32(i * TABLE_ENTRY + 4, offsetLo(offset));
  }
  if (bytes.length > 0) await storage.write(bytes, plan.l1.at * clusterSize);
}

async function writeL2Tables(
  storage: Storage,
  plan: Plan,
  options: Qcow2CreateOptions,
  working: Working,
): Promise<void> {
  const { clusterSize, l2EntrySize } = plan.geometry;
  if (plan.l2.tables === 0) return;
  const start = plan.l2.at * clusterSize;
  const end = start + plan.l2.tables * clusterSize;
  // Written zeroes without a backing file are data: then a first write is a rewrite, and changes no bitmap.
  const allData = plan.geometry.extendedL2 && options.preallocation === 'full' && options.backing === null;
  // Unwritten space of an encrypted image would read as noise. Extended entries leave its subclusters unallocated.
  const isNoise =
    options.encryption !== null && options.preallocation !== 'full' && !plan.geometry.extendedL2;
  const flags = isNoise ? ZERO : 0;
  const size = Math.min(CHUNK, Math.max(clusterSize, end - start));
  // One is filled while the other is written.
  const chunks = [new Uint8Array(size), new Uint8Array(size)] as const;
  let writing: Promise<void> = Promise.resolve();
  let flushing: Promise<void> = Promise.resolve();
  for (let at = start, turn = 0; at < end; at += size, turn++) {
    stopIfAborted(working.signal);
    const chunk = chunks[turn % 2 === 0 ? 0 : 1].subarray(0, Math.min(size, end - at));
    const first = (at - start) / l2EntrySize;
    const mapped = Math.min(Math.max(0, plan.data.clusters - first), chunk.length / l2EntrySize);
    if (mapped * l2EntrySize < chunk.length) chunk.fill(0);
    const offset = (plan.data.at + first) * clusterSize;
    fillTables(viewOf(chunk), mapped, offset, { clusterSize, l2EntrySize, flags, allData });
    await writing;
    writing = later(storage.write(chunk, at));
    // So that the device has something to do from the start: the flush that ends it all has less to wait for.
    if (turn % FLUSH_EVERY !== FLUSH_EVERY - 1) continue;
    await flushing;
    flushing = later(storage.flush());
  }
  await Promise.all([writing, flushing]);
}

/** Something that is awaited in a later turn, if there is one. */
function later(work: Promise<void>): Promise<void> {
  work.catch(() => undefined);
  return work;
}

/** The entries of `count` clusters in a row, the first at `offset`. Takes no time to speak of for each: there may be 2^24. */
function fillTables(
  view: DataView,
  count: number,
  offset: number,
  entry: { clusterSize: number; l2EntrySize: number; flags: number; allData: boolean },
): void {
  const { clusterSize, l2EntrySize, flags, allData } = entry;
  const end = count * l2EntrySize;
  let hi = offsetHi(offset) | COPIED;
  let lo = offsetLo(offset) | 0;
  for (let at = 0; at < end; at += l2EntrySize) {
    view.setInt32(at, hi);
    view.setInt32(at + 4, lo | flags);
    lo = (lo + clusterSize) | 0;
    // 2^32 is a multiple of the size of a cluster, and so passed with a low half of 0.
    if (lo === 0) hi++;
  }
  for (let at = 8; l2EntrySize === 16 && at < end; at += 16) {
    view.setInt32(at, 0);
    view.setInt32(at + 4, allData ? -1 : 0);
  }
}

/**
 * The header, its extensions and the backing file name: what stands at the start of the first cluster.
 * @throws SpindleError BAD_OPTION when the names do not fit
 */
function encodeFirstCluster(options: Qcow2CreateOptions, plan: Plan): Uint8Array {
  const { clusterSize, clusterBits, refcountOrder } = plan.geometry;
  const extensions: Pick<Extension, 'magic' | 'data'>[] = [];
  if (options.backing?.format !== undefined) {
    extensions.push({ magic: ExtensionMagic.BACKING_FORMAT, data: bytesOf(options.backing.format) });
  }
  if (options.dataFile !== null)
    extensions.push({ magic: ExtensionMagic.DATA_FILE, data: bytesOf(options.dataFile) });
  if (plan.encryption.clusters > 0 && options.encryption?.format === 'luks') {
    const place = { offset: plan.encryption.at * clusterSize, length: luksLength(options.encryption.luks) };
    extensions.push({ magic: ExtensionMagic.CRYPTO, data: encodeCryptoExtension(place) });
  }
  // Small clusters have no room to spare for names.
  if (options.version === 3 && clusterSize > 4096) {
    extensions.push({ magic: ExtensionMagic.FEATURE_NAMES, data: encodeFeatureNames() });
  }
  const area = encodeExtensions(extensions);
  const headerLength = options.version === 2 ? HEADER_LENGTH_V2 : HEADER_LENGTH;
  const name = bytesOf(options.backing?.name ?? '');
  const nameAt = headerLength + area.length;
  if (name.length > Limit.BACKING_NAME || nameAt + name.length > clusterSize) {
    const room = Math.min(Limit.BACKING_NAME, clusterSize - nameAt);
    throw new SpindleError(
      'BAD_OPTION',
      `the file names recorded in the header are too long for it: at most ${String(Math.max(0, room))} bytes of ` +
        'backing file name fit',
    );
  }
  const header: Header = {
    version: options.version,
    backingFileOffset: options.backing === null ? 0 : nameAt,
    backingFileSize: name.length,
    clusterBits,
    size: options.size,
    cryptMethod: cryptMethodOf(options.encryption),
    l1Size: plan.l1.entries,
    l1TableOffset: plan.l1.entries === 0 ? 0 : plan.l1.at * clusterSize,
    refcountTableOffset: plan.refcountTable.at * clusterSize,
    refcountTableClusters: plan.refcountTable.clusters,
    nbSnapshots: 0,
    snapshotsOffset: 0,
    incompatible: { hi: 0, lo: incompatibleBits(options) },
    compatible: { hi: 0, lo: options.lazyRefcounts ? Compatible.LAZY_REFCOUNTS : 0 },
    autoclear: { hi: 0, lo: options.dataFileRaw ? Autoclear.DATA_FILE_RAW : 0 },
    refcountOrder,
    headerLength,
    compressionType: options.compressionType === 'zstd' ? CompressionType.ZSTD : CompressionType.ZLIB,
    tail: new Uint8Array(0),
  };
  const bytes = new Uint8Array(nameAt + name.length);
  bytes.set(encodeHeader(header), 0);
  bytes.set(area, headerLength);
  bytes.set(name, nameAt);
  return bytes;
}

function cryptMethodOf(encryption: Qcow2Encryption | null): number {
  if (encryption === null) return CryptMethod.NONE;
  return encryption.format === 'luks' ? CryptMethod.LUKS : CryptMethod.AES;
}

function incompatibleBits(options: Qcow2CreateOptions): number {
  return (
    (options.dataFile === null ? 0 : Incompatible.DATA_FILE) |
    (options.compressionType === 'zstd' ? Incompatible.COMPRESSION_TYPE : 0) |
    (options.extendedL2 ? Incompatible.EXTENDED_L2 : 0)
  );
}
