import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import { SpindleError, type ErrorCode } from '../core/errors.ts';

/**
 * What a system call was about, for the message of its failure. Offsets and lengths are bytes.
 */
export interface Subject {
  readonly fd?: number;
  /** What decompresses. */
  readonly codec?: string;
  /** Words after the call's name, such as `punch`. */
  readonly mode?: string;
  readonly offset?: number;
  readonly length?: number;
}

const CODES: Readonly<Record<string, ErrorCode>> = {
  ENOSPC: 'NO_SPACE',
  EDQUOT: 'NO_SPACE',
  EFBIG: 'LIMIT',
  EOVERFLOW: 'LIMIT',
  EOPNOTSUPP: 'UNSUPPORTED',
  ENOTSUP: 'UNSUPPORTED',
  ENOSYS: 'UNSUPPORTED',
  ENOTTY: 'UNSUPPORTED',
  ENODEV: 'UNSUPPORTED',
  ESPIPE: 'UNSUPPORTED',
  EACCES: 'PERMISSION',
  EPERM: 'PERMISSION',
  EROFS: 'READ_ONLY',
  EAGAIN: 'IN_USE',
};

/** Calls for which EINVAL says that the kernel or the file system does not know the request. */
const INVALID_IS_UNSUPPORTED = new Set([
  'fallocate',
  'ioctl FIEMAP',
  'fcntl F_OFD_SETLK',
  'fcntl F_OFD_GETLK',
]);

/** Calls for which EBADF on an open descriptor says that it cannot be written. */
const NEEDS_WRITING = new Set(['fallocate', 'pwrite', 'ioctl BLKDISCARD', 'ioctl BLKZEROOUT']);

/** Plain words where those of libuv are missing or mislead. */
const REASONS: Readonly<Record<string, string>> = {
  EDQUOT: 'disk quota exceeded',
  EFBIG: 'larger than the file system allows',
  EOPNOTSUPP: 'not supported by the file system or device',
  ENOTTY: 'not a device, or one without this function',
  ENODEV: 'neither a file nor a block device',
  EAGAIN: 'locked by another process',
};

/**
 * The SpindleError for a failed system call. `errno` is the system's number or its name (`ENOSPC`); `call` is the
 * call's name (`fallocate`, `ioctl FIEMAP`); a descriptor that is not open is told by EBADF from `fcntl`.
 */
export function systemError(
  errno: number | string,
  call: string,
  subject: Subject = {},
  cause?: unknown,
): SpindleError {
  const { name, number } = identify(errno);
  const range =
    subject.length === undefined
      ? ''
      : ` of ${String(subject.length)} bytes at ${String(subject.offset ?? 0)}`;
  const what = `${call}${subject.mode === undefined ? '' : ` (${subject.mode})`}${range}`;
  const where = subject.fd === undefined ? '' : ` on descriptor ${String(subject.fd)}`;
  const message = `${what}${where}: ${reasonOf(name, number, call)} (${name}, errno ${String(number)})`;
  return new SpindleError(codeOf(name, call), message, { cause });
}

/** {@link systemError} for an error thrown by a `node:` function, which carries the name of its number in `code`. */
export function nodeError(error: unknown, call: string, subject: Subject = {}): SpindleError {
  if (error instanceof SpindleError) return error;
  return systemError((error as NodeJS.ErrnoException).code ?? 'EIO', call, subject, error);
}

/** The name of an error number: `ENOSPC`. */
export function errorName(errno: number): string {
  return identify(errno).name;
}

function identify(errno: number | string): { name: string; number: number } {
  const numbers: Readonly<Record<string, number>> = constants.errno;
  if (typeof errno === 'string') return { name: errno, number: numbers[errno] ?? 0 };
  // Where two names share one number, the first in the table of codes is meant (EOPNOTSUPP, not ENOTSUP).
  const known = Object.keys(CODES).find((name) => numbers[name] === errno);
  const name = known ?? Object.keys(numbers).find((candidate) => numbers[candidate] === errno);
  return { name: name ?? 'EUNKNOWN', number: errno };
}

function codeOf(name: string, call: string): ErrorCode {
  if (name === 'EINVAL' && INVALID_IS_UNSUPPORTED.has(call)) return 'UNSUPPORTED';
  if (name === 'EBADF' && NEEDS_WRITING.has(call)) return 'READ_ONLY';
  return CODES[name] ?? 'IO';
}

function reasonOf(name: string, number: number, call: string): string {
  if (name === 'EBADF')
    return NEEDS_WRITING.has(call) ? 'opened for reading only' : 'the descriptor is not open';
  return REASONS[name] ?? getSystemErrorMap().get(-number)?.[1] ?? 'failed';
}
