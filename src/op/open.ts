import { bytesOf } from '../core/bytes.ts';
import { SpindleError } from '../core/errors.ts';
import type { Described, Gate } from '../format/gate.ts';
import type { Image } from '../format/image.ts';
import { knownFormat, openImage, probeFormat, type Format } from '../format/open.ts';
import type { OverlapCheck } from '../format/qcow2/write/cluster-kinds.ts';
import type { SecretSource } from '../core/crypto.ts';
import { nodeCodec } from '../native/codec.ts';
import { nodeCrypto } from '../native/crypto.ts';
import { openFile, type FileStorage } from '../storage/file.ts';
import { lockImage, type LockUse } from '../storage/lock.ts';
import { fileGate } from './file-gate.ts';
import { imageName, isDescription, plainName, type ImageName } from './image-name.ts';

/** How an image file is opened. */
export interface OpenFileOptions {
  /** `raw`, `qcow2` or `luks`. Default: told from the first bytes, which the guest of a raw image controls. */
  readonly format?: string | undefined;
  /** Open for writing too. Needs the image for itself: no other writer, and readers only with -U. */
  readonly write?: boolean | undefined;
  /**
   * What no write may hit, whatever the refcounts of the image say; the levels of qemu's `overlap-check`. `none`; `constant`:
   * the header and the tables that stay in their place; `cached` (default): all metadata of the active disk; `all`: the
   * L2 tables of internal snapshots too. A write that would hit it fails with CORRUPT, and marks the image corrupt.
   */
  readonly overlapCheck?: OverlapCheck | undefined;
  /** Name of the external data file, instead of the one that the image records. */
  readonly dataFile?: string | undefined;
  /** Do not keep others from using the image, and do not mind that they do (-U). Reading only. */
  readonly share?: boolean | undefined;
  /** Bypass the page cache of the host. */
  readonly direct?: boolean | undefined;
  /** Nobody may change the image while it is open, not even where users of its format usually share it (raw). */
  readonly steady?: boolean | undefined;
  /** Fail with BAD_NAME when the path ends in a symbolic link. */
  readonly noFollow?: boolean | undefined;
  /** Open the backing chain (default), or see unallocated ranges as zeroes. */
  readonly backing?: boolean | undefined;
  /** Id or name of an internal snapshot to open instead of the active disk. */
  readonly snapshot?: string | undefined;
  /** Who decides about backing and data files. Default: local files are opened, everything else is refused. */
  readonly gate?: Gate | undefined;
  /**
   * Gives the secrets of encrypted images, those of backing files too; see {@link secretOf} for one that is known.
   * Without it they open, and can be mapped, but not read.
   */
  readonly secret?: SecretSource | undefined;
}

/** A source that gives this secret to each image that asks: a text as UTF-8, or the very bytes. */
export function secretOf(secret: string | Uint8Array): SecretSource {
  return () => Promise.resolve(typeof secret === 'string' ? bytesOf(secret) : secret.slice());
}

/**
 * Opens the image in a file or block device: its format, its data file and its backing chain. The image is a
 * {@link Storage} of the guest's disk. The file stays locked, as qemu locks it, until the image is closed. A path may
 * also be `file:PATH`, or a description `json:{...}` in qemu's words: its driver, file, backing, data-file...
 * @throws SpindleError NOT_FOUND, PERMISSION, NOT_A_FILE, IN_USE, UNKNOWN_FORMAT, UNSUPPORTED, BACKING_NOT_FOUND,
 * BACKING_LOOP, DATA_FILE_NOT_FOUND, BAD_SECRET, and the codes of the format's validation
 */
export async function openImageFile(path: string, options: OpenFileOptions = {}): Promise<Image> {
  const says = imageName(path);
  const { storage, format } = await openLocked(path, options);
  const share = options.share === true || says.share === true;
  return openImage(storage, {
    format,
    codec: nodeCodec,
    crypto: nodeCrypto,
    secret: options.secret,
    gate: options.gate ?? fileGate({ share }),
    backing: options.backing,
    snapshot: options.snapshot,
    write: options.write,
    overlapCheck: options.overlapCheck ?? says.overlapCheck,
    dataFile: options.dataFile,
    name: isDescription(path) ? plainName(says.path) : path,
    id: storage.identity,
    described: describedBy(says),
  });
}

/** What of a name is for opening the image in its file. */
export function describedBy({ window, backing, dataFile, secret, encryption }: ImageName): Described {
  return { given: true, window, backing, dataFile, secret, encryption };
}

/**
 * Opens the file of an image, tells its format, and locks it as users of that format do. What the file refers to is
 * not opened.
 */
export async function openLocked(
  path: string,
  options: Pick<OpenFileOptions, 'format' | 'write' | 'share' | 'direct' | 'steady' | 'noFollow'> = {},
): Promise<{ storage: FileStorage; format: Format }> {
  const says = imageName(path);
  const wanted = knownFormat(options.format ?? says.format);
  const write = options.write === true;
  const share = options.share === true || says.share === true;
  if (write) refuseToWrite(says, path);
  const storage = await openFile(says.path, {
    write,
    direct: options.direct === true || says.direct === true,
    noFollow: options.noFollow === true,
  });
  try {
    refuseKind(says, storage, path);
    const format = wanted ?? (await probeFormat(storage));
    if (says.unlocked !== true) await lockImage(storage, lockUse(format, { ...options, share }));
    return { storage, format };
  } catch (error) {
    await storage.close();
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  }
}

/** @throws SpindleError READ_ONLY, BAD_OPTION where a name says that nothing is to be written */
export function refuseToWrite({ readOnly, share }: ImageName, path: string): void {
  if (readOnly === true) throw new SpindleError('READ_ONLY', 'it is named with read-only=on', { path });
  if (share === true)
    throw new SpindleError('BAD_OPTION', 'force-share=on is for looking; an image is changed alone', {
      path,
    });
}

/** @throws SpindleError BAD_OPTION for a file where a name says device, or the other way round */
export function refuseKind({ kind }: ImageName, storage: FileStorage, path: string): void {
  if (kind === undefined || (kind === 'host_device') === storage.isDevice) return;
  const why =
    kind === 'file'
      ? 'the driver file is for regular files; this is a device, for which there is host_device'
      : 'the driver host_device is for devices; this is a regular file';
  throw new SpindleError('BAD_OPTION', why, { path });
}

function lockUse(format: Format, options: Pick<OpenFileOptions, 'write' | 'share' | 'steady'>): LockUse {
  if (options.share) return 'snoop';
  if (format === 'raw' && options.steady !== true) return options.write ? 'write-raw' : 'read-raw';
  return options.write ? 'write' : 'read';
}
