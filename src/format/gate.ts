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
