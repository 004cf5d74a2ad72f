import { SpindleError } from '../core/errors.ts';
import type { Storage } from '../core/storage.ts';
import type { Image } from './image.ts';

/** What an image asks to have opened: words from inside a file that may be hostile. */
export interface Reference {
  readonly kind: 'backing file' | 'data file';
  /** The name as it stands in the image. */
  readonly name: string;
  /** Format that the image records for it, if any. */
  readonly format: string | undefined;
  /** The file is to be written to: only ever asked for a data file. */
  readonly write: boolean;
  /** Name under which the image that asks was opened. */
  readonly from: string | undefined;
  /** The caller gave this name instead of the one in the image. */
  readonly given?: boolean;
}

/** What the name of an image may say of how it is opened. */
export interface Described {
  /** These are the caller's words, not those of an image. */
  readonly given?: boolean | undefined;
  /** The part of its storage that a raw image is in, in bytes. */
  readonly window?: { readonly offset: number; readonly size: number | undefined } | undefined;
  /** Name of the backing file instead of the one that the image records; null for none. */
  readonly backing?: string | null | undefined;
  /** Name of the data file instead of the one that the image records. */
  readonly dataFile?: string | undefined;
  /** Which of several secrets opens it. */
  readonly secret?: string | undefined;
  /** How it must be encrypted. */
  readonly encryption?: string | undefined;
}

/** A reference that a gate let through. */
export interface Opened {
  readonly storage: Storage;
  /** The name for messages, and for references inside it. */
  readonly name: string;
  /** The same for the same file however it is named; tells loops. */
  readonly id: string;
  /** An image that was opened in `storage` before, to be what is below; closed with the image above it. */
  readonly image?: Image;
  /** The format, where the name says it and the image that asks does not. */
  readonly format?: string | undefined;
  /** What else the name says. */
  readonly described?: Described;
}

/**
 * Decides whether a reference is opened, and opens it. The only way from words in an image to a file.
 * @throws SpindleError BACKING_DENIED, DATA_FILE_DENIED, BACKING_NOT_FOUND, DATA_FILE_NOT_FOUND, or what opening throws
 */
export type Gate = (reference: Reference) => Promise<Opened>;

/** The gate that lets nothing through. */
export const denyAll: Gate = (reference) =>
  Promise.reject(denied(reference, 'opening other files is not allowed'));

/** The error of a gate that refuses. */
export function denied(reference: Reference, why: string): SpindleError {
  return new SpindleError(
    reference.kind === 'backing file' ? 'BACKING_DENIED' : 'DATA_FILE_DENIED',
    `its ${reference.kind} '${reference.name}' is not opened: ${why}`,
    { path: reference.from },
  );
}
