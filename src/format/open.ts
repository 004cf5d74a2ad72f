import { Incompatible } from './qcow2/layout.ts';
import type { Codec } from '../core/codec.ts';
import type { Crypto, SecretSource } from '../core/crypto.ts';
import { SpindleError } from '../core/errors.ts';
import { readPadded } from '../core/read.ts';
import type { Storage } from '../core/storage.ts';
import type { PlainData } from './crypto/encrypted-storage.ts';
import { looksLikeLuks } from './crypto/luks-header.ts';
import type { Unlocking } from './crypto/unlock.ts';
import type { FormatDriver } from './driver.ts';
import { denyAll, type Described, type Gate, type Opened } from './gate.ts';
import { DiskImage } from './disk-image.ts';
import type { Image } from './image.ts';
import { openLuks } from './luks/open.ts';
import { Qcow2Driver } from './qcow2/driver.ts';
import { looksLikeQcow2 } from './qcow2/header.ts';
import { readMetadata, type Metadata } from './qcow2/metadata.ts';
import { unlockQcow2 } from './qcow2/unlock.ts';
import type { OverlapCheck } from './qcow2/write/cluster-kinds.ts';
import { Qcow2WriteDriver } from './qcow2/write/driver.ts';
import { RawDriver } from './raw/driver.ts';

/** The formats that spindle has. */
export type Format = 'raw' | 'qcow2' | 'luks';

/** Layers that a backing chain may have. */
const MAX_DEPTH = 200;

/** How an image is opened. */
export interface OpenOptions {
  /** Default: told from the first bytes. A guest controls those of a raw image, so name the format where you know it. */
  readonly format?: string | undefined;
  readonly codec: Codec;
  /** Loads what decrypts; needed together with `secret`. */
  readonly crypto?: (() => Promise<Crypto>) | undefined;
  /**
   * Gives the secrets of encrypted images, backing files too. Without it they open, and can be mapped, but not read.
   */
  readonly secret?: SecretSource | undefined;
  /** Opens backing and data files. Default: {@link denyAll}. */
  readonly gate?: Gate | undefined;
  /** Open for writing too. The backing chain is only ever read. */
  readonly write?: boolean | undefined;
  /** What no write may hit, whatever the refcounts of the image say. Default: cached. */
  readonly overlapCheck?: OverlapCheck | undefined;
  /** Name of the data file instead of the one that the image records. */
  readonly dataFile?: string | undefined;
  /** Open the backing chain (default), or see unallocated ranges as zeroes. */
  readonly backing?: boolean | undefined;
  /**
   * Something will lie below an image that has no backing file now: zeroes that are written to it are written down, though
   * it reads as zeroes anyway.
   */
  readonly covering?: boolean | undefined;
  /** Id or name of an internal snapshot to open instead of the active disk. */
  readonly snapshot?: string | undefined;
  /** Name for messages, and for resolving relative references. */
  readonly name?: string | undefined;
  /** Identity of the storage, as the gate gives it; tells loops. */
  readonly id?: string | undefined;
  /** What the name by which the image was found says of how it is opened. */
  readonly described?: Described | undefined;
}

/**
 * Opens the image in `storage` and, through the gate, all that it refers to. Closing the image closes `storage`; so does
 * a failure of this function.
 * @throws SpindleError UNKNOWN_FORMAT, BACKING_LOOP, BACKING_TOO_DEEP, SNAPSHOT_NOT_FOUND, BAD_SECRET, what the gate
 * throws, and what the format's own validation throws
 */
export async function openImage(storage: Storage, options: OpenOptions): Promise<Image> {
  return openLayer(storage, options, options.id === undefined ? [] : [options.id]);
}

async function openLayer(storage: Storage, options: OpenOptions, chain: readonly string[]): Promise<Image> {
  try {
    const format = knownFormat(options.format) ?? (await probeFormat(storage));
    const { window } = options.described ?? {};
    if (window !== undefined && format !== 'raw')
      throw new SpindleError('BAD_OPTION', `offset and size are for raw images, not for ${format}`);
    if (format !== 'qcow2') {
      if (options.snapshot !== undefined)
        throw new SpindleError('SNAPSHOT_NOT_FOUND', `${format} images have no snapshots`);
      const driver =
        format === 'raw' ? new RawDriver(storage, window) : await openLuks(storage, unlocking(options));
      return new DiskImage(driver, storage, null, options.name);
    }
    return await openQcow2(storage, options, chain);
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= options.name;
    await storage.close().catch(() => undefined);
    throw error;
  }
}

async function openQcow2(storage: Storage, options: OpenOptions, chain: readonly string[]): Promise<Image> {
  const metadata = await readMetadata(storage, 'data');
  const { described = {} } = options;
  const method = [undefined, 'aes', 'luks'][metadata.header.cryptMethod];
  if (described.encryption !== undefined && described.encryption !== method)
    throw new SpindleError(
      'BAD_OPTION',
      `the image is ${method === undefined ? 'not encrypted' : `encrypted as ${method}`}, not as ${described.encryption}`,
    );
  const gate = options.gate ?? denyAll;
  let dataFile: Storage | null = null;
  let backing: Image | null = null;
  try {
    if ((metadata.header.incompatible.lo & Incompatible.DATA_FILE) !== 0) {
      const name = options.dataFile ?? described.dataFile ?? metadata.known.dataFile;
      if (name === undefined)
        throw new SpindleError('DATA_FILE_NOT_FOUND', 'the image does not name its data file');
      dataFile = (
        await gate({
          kind: 'data file',
          name,
          format: 'raw',
          write: options.write === true,
          // What the caller's name of the image says starts in the current directory.
          from: options.dataFile === undefined && described.dataFile !== undefined ? undefined : options.name,
          given:
            options.dataFile !== undefined || (described.dataFile !== undefined && described.given === true),
        })
      ).storage;
    }
    const below = referenceBelow(metadata, described);
    if (below !== null && options.backing !== false) {
      backing = await openBacking(below, options, gate, chain);
    }
    const plain = await unlockQcow2(storage, metadata, dataFile ?? storage, unlocking(options));
    const driver = await qcow2Driver(storage, metadata, dataFile, backing !== null, plain, options);
    return new DiskImage(driver, storage, backing, options.name);
  } catch (error) {
    await dataFile?.close().catch(() => undefined);
    await backing?.close().catch(() => undefined);
    throw error;
  }
}

async function qcow2Driver(
  storage: Storage,
  metadata: Metadata,
  dataFile: Storage | null,
  backed: boolean,
  plain: PlainData | undefined,
  options: OpenOptions,
): Promise<FormatDriver> {
  if (options.write !== true) {
    const driver = await Qcow2Driver.open(storage, metadata, dataFile, options.codec, undefined, plain);
    return options.snapshot === undefined ? driver : driver.openSnapshot(options.snapshot);
  }
  if (options.snapshot !== undefined)
    throw new SpindleError('READ_ONLY', 'internal snapshots can only be read');
  if (metadata.backingName !== null && !backed) {
    throw new SpindleError('BAD_OPTION', 'an overlay cannot be written to without its backing file');
  }
  return Qcow2WriteDriver.open(storage, metadata, dataFile, options.codec, {
    backed: backed || options.covering === true,
    plain,
    overlapCheck: options.overlapCheck,
  });
}

function unlocking({ name, secret, crypto, described }: OpenOptions): Unlocking {
  const id = described?.secret;
  const chosen = secret === undefined || id === undefined ? secret : wanting(secret, id);
  return { name, secret: chosen, crypto };
}

function wanting(secret: SecretSource, id: string): SecretSource {
  return (request) => secret({ ...request, id });
}

/** What is below an image: what it was opened with, or what it records. */
interface Below {
  readonly name: string;
  readonly format: string | undefined;
  readonly given: boolean;
}

function referenceBelow({ backingName, known }: Metadata, { backing, given }: Described): Below | null {
  if (backing === null) return null;
  if (backing !== undefined) return { name: backing, format: undefined, given: given === true };
  return backingName === null ? null : { name: backingName, format: known.backingFormat, given: false };
}

async function openBacking(
  below: Below,
  options: OpenOptions,
  gate: Gate,
  chain: readonly string[],
): Promise<Image> {
  if (chain.length >= MAX_DEPTH) {
    throw new SpindleError('BACKING_TOO_DEEP', `the backing chain has more than ${String(MAX_DEPTH)} layers`);
  }
  const opened = await gate({ kind: 'backing file', ...below, write: false, from: options.name });
  if (chain.includes(opened.id)) {
    await opened.storage.close();
    throw loopError(opened);
  }
  if (opened.image !== undefined) return opened.image;
  const { codec, crypto, secret } = options;
  return openLayer(
    opened.storage,
    {
      ...{ codec, crypto, secret, gate, name: opened.name, id: opened.id },
      ...{ format: below.format ?? opened.format, described: opened.described },
    },
    [...chain, opened.id],
  );
}

/** The error of a backing chain that comes back to a file it has passed already. */
export function loopError(opened: Opened): SpindleError {
  return new SpindleError(
    'BACKING_LOOP',
    `the backing chain comes back to '${opened.name}': the images back each other`,
  );
}

/** A format name from a user or an image, checked. @throws SpindleError UNKNOWN_FORMAT */
export function knownFormat(name: string | undefined): Format | undefined {
  if (name === undefined || name === 'raw' || name === 'qcow2' || name === 'luks') return name;
  throw new SpindleError('UNKNOWN_FORMAT', `unknown format '${name}'; spindle has raw, qcow2 and luks`);
}

/** The format that the first bytes look like. Raw is what nothing else is. */
export async function probeFormat(storage: Storage): Promise<Format> {
  const start = new Uint8Array(PROBED);
  await readPadded(storage, start, 0);
  return formatOf(start);
}

/** Bytes that tell the format. */
const PROBED = 8;

/** The format that the first 8 bytes of an image look like. */
export function formatOf(first: Uint8Array): Format {
  const start = new Uint8Array(PROBED);
  start.set(first.subarray(0, PROBED));
  return looksLikeQcow2(start) ? 'qcow2' : looksLikeLuks(start) ? 'luks' : 'raw';
}
