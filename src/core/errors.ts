/**
 * Stable codes of every {@link SpindleError}. A code names what is wrong; the message says where and what to do.
 * Codes never change meaning within a major version; messages may.
 */
export type ErrorCode =
  // the image
  | 'BAD_MAGIC' // not an image of the format that was asked for
  | 'UNSUPPORTED_VERSION' // a version of the format that spindle does not know
  | 'UNKNOWN_FEATURE' // an incompatible feature bit that spindle does not know
  | 'BAD_HEADER' // a header field that breaks the format
  | 'BAD_EXTENSION' // a header extension that breaks the format
  | 'BAD_TABLE' // L1 or refcount table misplaced or impossible
  | 'BAD_ENTRY' // an L1, L2 or refcount table entry that breaks the format
  | 'BAD_SNAPSHOT' // the snapshot table, or a snapshot in it
  | 'BAD_BITMAP' // the bitmap directory, or a bitmap in it
  | 'BAD_ENCRYPTION' // the encryption header
  | 'BAD_COMPRESSED' // a compressed cluster that does not decompress
  | 'CORRUPT' // the image is marked corrupt, or damage showed while it was written to
  | 'DIRTY' // not closed by the program that wrote it last; to be repaired before it is written to
  | 'LIMIT' // larger than the format, or spindle, allows
  | 'ENCRYPTED' // data cannot be read without a secret
  | 'BAD_SECRET' // the secret opens none of the image's key slots
  // references
  | 'BACKING_NOT_FOUND'
  | 'BACKING_DENIED' // the caller's gate refused to open the reference
  | 'BACKING_LOOP'
  | 'BACKING_TOO_DEEP'
  | 'DATA_FILE_NOT_FOUND'
  | 'DATA_FILE_DENIED'
  // the host
  | 'NOT_FOUND'
  | 'EXISTS'
  | 'PERMISSION'
  | 'NOT_A_FILE' // a directory, socket or other thing that cannot hold an image
  | 'IN_USE' // locked by another process
  | 'NO_SPACE'
  | 'IO'
  | 'READ_ONLY'
  | 'OUT_OF_RANGE' // beyond the end of a storage
  | 'UNSUPPORTED' // neither the platform nor the storage can do it
  | 'CLOSED'
  | 'ABORTED'
  // pools
  | 'BAD_XML' // a description of a pool or volume that is no XML, or breaks its schema
  | 'BAD_NAME' // a name or path that cannot be one, or that would lead out of its place
  | 'POOL_NOT_FOUND'
  | 'POOL_ACTIVE' // the pool must be stopped for this
  | 'POOL_INACTIVE' // the pool must be started for this
  | 'POOL_GONE' // what the pool is made of is not there any more, or does not answer
  | 'VOLUME_NOT_FOUND'
  | 'OVERCOMMIT' // the pool would promise more than the caller allows
  | 'TOOL_MISSING' // a program of the administrator that is not installed
  | 'TOOL_FAILED'
  | 'TOOL_TIMEOUT'
  // the request
  | 'BAD_OPTION' // an option or a combination of options that makes no sense
  | 'BAD_SIZE'
  | 'UNKNOWN_FORMAT'
  | 'SNAPSHOT_NOT_FOUND'
  | 'BITMAP_NOT_FOUND';

/** Where in an image something is wrong: the structure, its field, and the host offset in bytes. */
export interface ErrorPlace {
  readonly structure: string;
  readonly field?: string;
  readonly offset?: number;
}

/** What a {@link SpindleError} may carry besides its code and message. */
export interface ErrorDetails {
  readonly path?: string | undefined;
  readonly at?: ErrorPlace | undefined;
  readonly cause?: unknown;
}

/**
 * The one error that spindle throws for anything but programmer mistakes (those are TypeError and RangeError).
 * `code` is stable API; `message` is prose for people.
 */
export class SpindleError extends Error {
  readonly code: ErrorCode;
  readonly at: ErrorPlace | undefined;
  path: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(printable(message), details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'SpindleError';
    this.code = code;
    this.at = details.at;
    this.path = details.path;
  }
}

/**
 * Text as it may be shown on one line: control characters, which a name inside a hostile image may hold to fool a
 * terminal, are written as escapes.
 */
export function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (char) => {
    return `\\x${(char.codePointAt(0) ?? 0).toString(16).padStart(2, '0')}`;
  });
}

/** Whether `error` is a {@link SpindleError}, of the given code when one is named. */
export function isSpindleError(error: unknown, code?: ErrorCode): error is SpindleError {
  return error instanceof SpindleError && (code === undefined || error.code === code);
}

/** A {@link SpindleError} about a structure of an image. `offset` is the host offset in bytes. */
export function formatError(
  code: ErrorCode,
  structure: string,
  message: string,
  where: { field?: string; offset?: number; cause?: unknown } = {},
): SpindleError {
  const at: ErrorPlace = {
    structure,
    ...(where.field === undefined ? {} : { field: where.field }),
    ...(where.offset === undefined ? {} : { offset: where.offset }),
  };
  const place = where.offset === undefined ? '' : ` (at offset ${String(where.offset)})`;
  return new SpindleError(code, `${structure}: ${message}${place}`, { at, cause: where.cause });
}
