import { alignUp } from '../core/align.ts';
import { SpindleError } from '../core/errors.ts';
import { Qcow2Driver } from '../format/qcow2/driver.ts';
import { DiskImage } from '../format/disk-image.ts';
import type { Gate } from '../format/gate.ts';
import type { Format } from '../format/open.ts';
import { BitmapFlag, Autoclear, Compatible, CryptMethod, Incompatible } from '../format/qcow2/layout.ts';
import { lockedData } from '../format/crypto/encrypted-storage.ts';
import type { LuksHeader } from '../format/crypto/luks-header.ts';
import { readLuksPlace } from '../format/crypto/luks-slots.ts';
import { LuksDriver } from '../format/luks/driver.ts';
import { readMetadata, type Metadata } from '../format/qcow2/metadata.ts';
import type { Snapshot } from '../format/qcow2/snapshot.ts';
import { RawDriver } from '../format/raw/driver.ts';
import { nodeCodec } from '../native/codec.ts';
import type { FileStorage } from '../storage/file.ts';
import { fileGate } from './file-gate.ts';
import { hostUsage, type HostUsage } from './host-usage.ts';
import { besideName, fileOf, imageName, shownName } from './image-name.ts';
import { openLocked } from './open.ts';

/** A persistent bitmap, as info tells of it. */
export interface BitmapInfo {
  readonly name: string;
  /** Guest bytes of one bit. */
  readonly granularity: number;
  readonly flags: readonly ('in-use' | 'auto')[];
}

/** What only qcow2 images have. */
export interface Qcow2Info {
  readonly compat: '0.10' | '1.1';
  readonly compressionType: 'zlib' | 'zstd';
  readonly lazyRefcounts: boolean;
  readonly refcountBits: number;
  readonly corrupt: boolean;
  readonly extendedL2: boolean;
  readonly dataFile: string | null;
  readonly dataFileRaw: boolean;
  readonly encryption: 'aes' | LuksHeader | null;
  readonly bitmaps: readonly BitmapInfo[];
}

/** What is known of an image without opening what it refers to. Sizes in bytes. */
export interface ImageInfo {
  /** The name under which it is shown: its file, or `json:{...}` where only a part of a file is the image. */
  readonly path: string;
  /** The file or device that holds it. */
  readonly file: string;
  /** The name by which it was found. */
  readonly name: string;
  readonly format: Format;
  /** The size that the guest sees. */
  readonly virtualSize: number;
  /** What the host has allocated for the file; null where it cannot tell. */
  readonly actualSize: number | null;
  /** Length of the file. */
  readonly fileLength: number;
  readonly isDevice: boolean;
  /** Unit in bytes in which the file system gives space to the file, beyond its blocks (XFS); 0 for none. */
  readonly extentSizeHint: number;
  readonly clusterSize: number | null;
  readonly encrypted: boolean;
  readonly dirty: boolean;
  /** As recorded in the image. */
  readonly backingName: string | null;
  readonly backingFormat: string | null;
  /** The recorded name, seen from where the image is. */
  readonly backingPath: string | null;
  readonly snapshots: readonly Snapshot[];
  readonly qcow2: Qcow2Info | null;
  /** The header of a LUKS volume that is an image by itself. */
  readonly luks: LuksHeader | null;
  /** How the disk lies on the host; null where that was not asked for or cannot be told. */
  readonly allocation: HostUsage | null;
  /** What a person should know about the image as it stands. */
  readonly warnings: readonly string[];
}

/** What {@link info} looks at. */
export interface InfoOptions {
  readonly format?: string | undefined;
  /** Look at an image that another process is changing (-U). */
  readonly share?: boolean | undefined;
  /** Who decides about backing and data files. Default: local files are opened, everything else is refused. */
  readonly gate?: Gate | undefined;
  /** Also tell how the disk lies on the host: reads all L2 tables. `auto`: only where they are few. Default: no. */
  readonly allocation?: boolean | 'auto' | undefined;
}

/** Bytes of L2 tables up to which `auto` counts the allocation. */
const AUTO_TABLES = 16 * 1024 * 1024;

/**
 * Tells what an image is, from its header and the tables beside it. Opens neither backing nor data file, needs no
 * secret.
 * @throws SpindleError as {@link openLocked}, and the codes of the format's validation
 */
export async function info(path: string, options: InfoOptions = {}): Promise<ImageInfo> {
  if (typeof imageName(path).backing === 'string')
    throw new SpindleError('UNSUPPORTED', 'info tells what an image records: leave the backing file out', {
      path,
    });
  const { storage, format } = await openLocked(path, options);
  try {
    if (format === 'qcow2') return await qcow2Info(storage, path, options);
    return await flatInfo(storage, format, path, options);
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}

/**
 * {@link info} of an image and of all below it, from the top down.
 * @throws SpindleError BACKING_LOOP, BACKING_NOT_FOUND, and what info throws
 */
export async function infoChain(path: string, options: InfoOptions = {}): Promise<ImageInfo[]> {
  const chain: ImageInfo[] = [];
  const seen = new Set<string>();
  let next: string | null = path;
  let format = options.format;
  while (next !== null) {
    const { storage } = await openLocked(next, { format, share: true }).catch((error: unknown) => {
      throw chain.length === 0 ? error : missing(error, chain[chain.length - 1]?.path, next);
    });
    const id = storage.identity;
    await storage.close();
    if (seen.has(id)) {
      throw new SpindleError(
        'BACKING_LOOP',
        `the backing chain comes back to '${next}': the images back each other`,
        { path },
      );
    }
    seen.add(id);
    const one: ImageInfo = await info(next, { ...options, format });
    chain.push(one);
    next = one.backingPath === null || fileOf(one.backingPath) === null ? null : one.backingPath;
    if (next !== null) await ask(options.gate, one);
    format = one.backingFormat ?? undefined;
  }
  return chain;
}

/** Asks whether the backing file may be opened. */
async function ask(gate: Gate | undefined, image: ImageInfo): Promise<void> {
  const { backingName: name, backingFormat: format, file: from } = image;
  if (gate === undefined || name === null) return;
  const kind = 'backing file';
  const opened = await gate({ kind, name, format: format ?? undefined, write: false, from });
  await (opened.image ?? opened.storage).close();
}

function missing(error: unknown, from: string | undefined, name: string | null): unknown {
  if (!(error instanceof SpindleError) || error.code !== 'NOT_FOUND') return error;
  return new SpindleError(
    'BACKING_NOT_FOUND',
    `its backing file '${String(name)}' cannot be opened: there is no such file`,
    {
      path: from,
      cause: error,
    },
  );
}

async function common(
  storage: FileStorage,
  name: string,
): Promise<
  Pick<ImageInfo, 'path' | 'file' | 'name' | 'actualSize' | 'fileLength' | 'isDevice' | 'extentSizeHint'>
> {
  const says = imageName(name);
  return {
    path: shownName(says),
    file: says.path,
    name,
    actualSize: await storage.allocatedSize(),
    fileLength: storage.size,
    isDevice: storage.isDevice,
    extentSizeHint: await storage.extentSizeHint(),
  };
}

/** Of an image without tables: raw, or a LUKS volume. */
async function flatInfo(
  storage: FileStorage,
  format: 'raw' | 'luks',
  path: string,
  options: InfoOptions,
): Promise<ImageInfo> {
  const luks = format === 'luks' ? (await readLuksPlace(storage, 0)).header : null;
  const driver =
    luks === null
      ? new RawDriver(storage, imageName(path).window)
      : new LuksDriver(storage, luks, lockedData);
  const wanted = options.allocation === true || options.allocation === 'auto';
  return {
    format,
    virtualSize: driver.size,
    ...(await common(storage, path)),
    clusterSize: null,
    encrypted: luks !== null,
    dirty: false,
    backingName: null,
    backingFormat: null,
    backingPath: null,
    snapshots: [],
    qcow2: null,
    luks,
    allocation: wanted ? await hostUsage(new DiskImage(driver, storage, null, path)) : null,
    warnings: [],
  };
}

async function qcow2Info(storage: FileStorage, path: string, options: InfoOptions): Promise<ImageInfo> {
  const metadata = await readMetadata(storage, 'info');
  const { header, geometry, known, backingName } = metadata;
  const tables = header.l1Size * geometry.clusterSize;
  const wanted = options.allocation === true || (options.allocation === 'auto' && tables <= AUTO_TABLES);
  return {
    format: 'qcow2',
    virtualSize: metadata.size,
    ...(await common(storage, path)),
    clusterSize: geometry.clusterSize,
    encrypted: header.cryptMethod !== CryptMethod.NONE,
    dirty: (header.incompatible.lo & Incompatible.DIRTY) !== 0,
    backingName,
    backingFormat: known.backingFormat ?? null,
    backingPath: backingName === null ? null : besideName(backingName, path),
    snapshots: metadata.snapshots,
    qcow2: {
      compat: header.version === 2 ? '0.10' : '1.1',
      compressionType: header.compressionType === 0 ? 'zlib' : 'zstd',
      lazyRefcounts: (header.compatible.lo & Compatible.LAZY_REFCOUNTS) !== 0,
      refcountBits: geometry.refcountBits,
      corrupt: (header.incompatible.lo & Incompatible.CORRUPT) !== 0,
      extendedL2: geometry.extendedL2,
      dataFile: (header.incompatible.lo & Incompatible.DATA_FILE) === 0 ? null : (known.dataFile ?? null),
      dataFileRaw: (header.autoclear.lo & Autoclear.DATA_FILE_RAW) !== 0,
      encryption: header.cryptMethod === CryptMethod.AES ? 'aes' : metadata.luks,
      bitmaps: metadata.bitmaps.map((bitmap) => ({
        name: bitmap.name,
        granularity: 2 ** bitmap.granularityBits,
        flags: [
          ...((bitmap.flags & BitmapFlag.IN_USE) !== 0 ? (['in-use'] as const) : []),
          ...((bitmap.flags & BitmapFlag.AUTO) !== 0 ? (['auto'] as const) : []),
        ],
      })),
    },
    luks: null,
    allocation: wanted ? await qcow2Usage(storage, metadata, path, options) : null,
    warnings: metadata.warnings,
  };
}

/** The allocation of the top layer; null where its data file is not there. */
async function qcow2Usage(
  storage: FileStorage,
  metadata: Metadata,
  path: string,
  options: InfoOptions,
): Promise<HostUsage | null> {
  const external = (metadata.header.incompatible.lo & Incompatible.DATA_FILE) !== 0;
  if (!external) {
    const driver = await Qcow2Driver.open(storage, metadata, null, nodeCodec);
    return hostUsage(new DiskImage(driver, storage, null, path));
  }
  const name = metadata.known.dataFile;
  if (name === undefined) return null;
  try {
    const opened = await (options.gate ?? fileGate({ share: options.share }))({
      kind: 'data file',
      name,
      format: 'raw',
      write: false,
      from: path,
    });
    try {
      const driver = await Qcow2Driver.open(storage, metadata, opened.storage, nodeCodec);
      return await hostUsage(new DiskImage(driver, storage, null, path));
    } finally {
      await opened.storage.close();
    }
  } catch (error) {
    if (error instanceof SpindleError) return null;
    throw error;
  }
}

/** The protocol length as qemu-img tells it: in whole sectors. */
export function shownFileLength(image: ImageInfo): number {
  return alignUp(image.fileLength, 512);
}
