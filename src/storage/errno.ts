import { SpindleError, type ErrorCode } from '../core/errors.ts';

/** What an errno means for somebody who works with images: its code, and one clause that says what to do. */
const MEANINGS: Readonly<Record<string, readonly [code: ErrorCode, clause: string]>> = {
  ENOENT: ['NOT_FOUND', 'no such file or directory; check the path'],
  ENOTDIR: ['NOT_FOUND', 'a part of the path is not a directory; check the path'],
  ELOOP: ['NOT_FOUND', 'the symbolic links of the path lead in a circle'],
  ENAMETOOLONG: ['NOT_FOUND', 'the name is too long for the file system'],
  EEXIST: ['EXISTS', 'the file exists already; choose another name or remove it first'],
  EACCES: ['PERMISSION', 'permission denied; check the owner and mode of the file and its directory'],
  EPERM: [
    'PERMISSION',
    'not permitted; check the attributes (lsattr) and mount of the file, or run with more rights',
  ],
  EROFS: ['READ_ONLY', 'the file system is mounted read-only'],
  EISDIR: ['NOT_A_FILE', 'this is a directory; name a file or a block device'],
  ENOSPC: ['NO_SPACE', 'no space is left on the file system; free some and try again'],
  EDQUOT: ['NO_SPACE', 'the disk quota is used up; free some space and try again'],
  EFBIG: ['LIMIT', 'larger than the file system or the file size limit (ulimit -f) allows'],
  ETXTBSY: ['IN_USE', 'the file is a running program or an active swap file'],
  EBUSY: ['IN_USE', 'the device is busy; unmount it or stop what uses it'],
  EAGAIN: ['IN_USE', 'another program holds a lock or a lease on the file; try again when it is done'],
  EMFILE: ['IO', 'too many files are open in this process; raise the limit (ulimit -n)'],
  ENFILE: ['IO', 'too many files are open on this host'],
  EIO: ['IO', 'the device or the network reports an error; see the kernel log (dmesg)'],
  ENXIO: ['IO', 'there is no device behind it'],
  ENODEV: ['IO', 'there is no device behind it'],
  ENOMEDIUM: ['IO', 'there is no medium in the drive'],
  ESTALE: ['IO', 'the file was removed or replaced on the server'],
  EOPNOTSUPP: ['UNSUPPORTED', 'the file system cannot do this'],
  ENOTSUP: ['UNSUPPORTED', 'the file system cannot do this'],
  ENOTTY: ['UNSUPPORTED', 'the file system or device cannot do this'],
  ENOSYS: ['UNSUPPORTED', 'the platform cannot do this'],
};

/**
 * What went wrong with `path`, as a SpindleError of one line: the path, what was being done (`open`, `write`...), why
 * it failed, and what helps. A SpindleError, as native code throws it, keeps its code and gains the path.
 */
export function hostError(error: unknown, path: string, doing: string): SpindleError {
  if (error instanceof SpindleError) {
    if (error.path !== undefined) return error;
    return new SpindleError(error.code, sentence(path, doing, error.message), {
      path,
      at: error.at,
      cause: error,
    });
  }
  const name = errnoOf(error);
  const known = name === undefined ? undefined : MEANINGS[name];
  if (known !== undefined)
    return new SpindleError(known[0], sentence(path, doing, known[1]), { path, cause: error });
  const clause = error instanceof Error ? error.message : String(error);
  return new SpindleError('IO', sentence(path, doing, clause), { path, cause: error });
}

/** The name of the errno that `error` carries, such as `ENOENT`. */
export function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

function sentence(path: string, doing: string, clause: string): string {
  return `${path}: cannot ${doing}: ${clause}`;
}

/** The error of a file that ends at `end` now and was opened with `size` bytes. */
export function cutOff(path: string, end: number, size: number): SpindleError {
  const message =
    `${path}: the file ends at ${String(end)} though it had ${String(size)} bytes when it was opened; ` +
    'something else truncated it';
  return new SpindleError('IO', message, { path });
}
