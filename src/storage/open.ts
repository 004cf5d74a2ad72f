import { constants, unlinkSync, type BigIntStats } from 'node:fs';
import { SpindleError } from '../core/errors.ts';
import { native } from '../native/binding.ts';
import { closeDescriptor, openAtOnce, openDescriptor, statDescriptor, statPath } from './descriptor.ts';
import { errnoOf, hostError } from './errno.ts';

/** How {@link openFile} opens. */
export interface FileOptions {
  /** Open for changes too. Default: for reading only. */
  readonly write?: boolean;
  /** Bypass the page cache of the host (O_DIRECT). Needs the native addon. */
  readonly direct?: boolean;
  /**
   * `exclusive` makes a new, empty file, open for changes, and fails with EXISTS when the path exists. `temporary` does
   * too, and a flush does not make its name durable: it will have another.
   */
  readonly create?: 'exclusive' | 'temporary';
  /** Flushes do nothing: for a file that nobody relies on before it is complete. */
  readonly unsafe?: boolean;
  /** Fail with BAD_NAME when the path ends in a symbolic link, also one that is put there meanwhile. */
  readonly noFollow?: boolean;
}

/** Whether a file opened so can be changed. */
export function isWriting({ write, create }: FileOptions): boolean {
  return write === true || create !== undefined;
}

/** A descriptor of a regular file or block device, and what is known of it. */
export interface Opened {
  readonly fd: number;
  readonly stats: BigIntStats;
  readonly isDevice: boolean;
  readonly size: number;
  /** Bytes: the logical sector of a device, 4096 for files. */
  readonly alignment: number;
}

/** Alignment of direct I/O on files: no sector in use is larger. */
const FILE_ALIGNMENT = 4096;

/** Mode of new files before the umask, as qemu-img makes them. */
const NEW_FILE_MODE = 0o644;

/**
 * Opens a descriptor on a regular file or block device, and on nothing else: what the path names is looked at before
 * it is opened, as opening a FIFO or a character device acts on it, and again after, as it may have been replaced.
 */
export async function openHost(path: string, options: FileOptions): Promise<Opened> {
  if (path.includes('\0'))
    throw new SpindleError('NOT_FOUND', 'a path cannot hold a NUL character', { path });
  if (options.direct === true && native().kind !== 'addon') {
    throw new SpindleError('UNSUPPORTED', `${path}: direct I/O needs the native addon, which is not loaded`, {
      path,
    });
  }
  const create = options.create !== undefined;
  const write = isWriting(options);
  const doing = create ? 'create' : write ? 'open for writing' : 'open';
  const before = create ? undefined : await statPath(path, doing);
  if (before !== undefined) refuseOther(before, path);
  // A file that was looked at a moment ago opens from memory; a device may take its time, and so may a new name.
  const quick = !write && before?.isFile() === true;
  const fd = await openFlags(path, options, quick, doing);
  try {
    return await inspect(fd, path);
  } catch (error) {
    await closeDescriptor(fd, path);
    throw error;
  }
}

/** @throws NOT_A_FILE unless `stats` is of a regular file or a block device */
export function refuseOther(stats: BigIntStats, path: string): void {
  if (stats.isFile() || stats.isBlockDevice()) return;
  const kind = stats.isDirectory()
    ? 'a directory'
    : stats.isFIFO()
      ? 'a FIFO'
      : stats.isSocket()
        ? 'a socket'
        : stats.isCharacterDevice()
          ? 'a character device'
          : 'something else';
  const message = `${path}: this is ${kind}, which cannot hold an image; name a regular file or a block device`;
  throw new SpindleError('NOT_A_FILE', message, { path });
}

async function openFlags(path: string, options: FileOptions, quick: boolean, doing: string): Promise<number> {
  const { direct = false, noFollow = false } = options;
  const create = options.create !== undefined;
  // O_NONBLOCK: should the path have become a FIFO meanwhile, opening it does not hang. Files do not mind it.
  const flags =
    (isWriting(options) ? constants.O_RDWR : constants.O_RDONLY) |
    (create ? constants.O_CREAT | constants.O_EXCL : 0) |
    (direct ? constants.O_DIRECT : 0) |
    (noFollow ? constants.O_NOFOLLOW : 0) |
    constants.O_NONBLOCK;
  try {
    if (quick) return openAtOnce(path, flags, doing);
    return await openDescriptor(path, flags, NEW_FILE_MODE, doing);
  } catch (error) {
    const cause = error instanceof SpindleError ? error.cause : undefined;
    if (noFollow && errnoOf(cause) === 'ELOOP')
      throw new SpindleError('BAD_NAME', `${path}: a symbolic link, which is not followed`, { path, cause });
    if (!direct || errnoOf(cause) !== 'EINVAL') throw error;
    // The file was made before the flag was found wanting.
    if (create) unlinkSync(path);
    throw new SpindleError('UNSUPPORTED', `${path}: its file system has no direct I/O (O_DIRECT)`, {
      path,
      cause,
    });
  }
}

async function inspect(fd: number, path: string): Promise<Opened> {
  const stats = statDescriptor(fd, path);
  refuseOther(stats, path);
  const isDevice = stats.isBlockDevice();
  let size = Number(stats.size);
  let alignment = FILE_ALIGNMENT;
  if (isDevice) {
    try {
      const info = await native().deviceInfo(fd);
      size = info.size;
      alignment = info.logicalSector;
    } catch (error) {
      throw hostError(error, path, 'ask the size of the device');
    }
  }
  if (!Number.isSafeInteger(size)) {
    throw new SpindleError('LIMIT', `${path}: larger than 8 PiB less one byte (2^53 - 1)`, { path });
  }
  return { fd, stats, isDevice, size, alignment };
}
