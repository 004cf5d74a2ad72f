import { viewOf } from '../../../core/bytes.ts';
import { isSpindleError, SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';

/** A piece of a table, or all of it: host offsets in bytes. */
export interface Piece {
  readonly at: number;
  readonly end: number;
}

/** Bytes of a piece as they were read. */
export interface Part<P extends Piece> {
  readonly piece: P;
  /** Host offset of the first byte of `view`; a large piece comes in several parts. */
  readonly at: number;
  /** Valid until the next batch is asked for; null when it could not be read. */
  readonly view: DataView | null;
  /** Bytes: that of `view` where there is one. */
  readonly length: number;
  /** Why it could not be read. */
  readonly error?: SpindleError;
}

/** Bytes read at once at most. */
const WINDOW = 1024 * 1024;
/** Pieces no further apart than this are read together. */
const GAP = 16 * 1024;
/** Reads under way at a time. */
const DEPTH = 4;

interface Window<P extends Piece> {
  readonly at: number;
  end: number;
  readonly parts: { piece: P; at: number; end: number }[];
}

/**
 * Reads pieces in the order given: neighbours with one read, and some reads ahead. What lies past the end of the
 * storage reads as zeroes. The buffers are used again for later batches. A part that cannot be read is passed on
 * with its error.
 * @throws SpindleError ABORTED
 */
export async function* readTables<P extends Piece>(
  storage: Storage,
  pieces: Iterable<P>,
  signal?: AbortSignal,
): AsyncGenerator<Part<P>[]> {
  const source = windows(pieces);
  const free: Uint8Array[] = [];
  const running: { buffer: Uint8Array; parts: Promise<Part<P>[]> }[] = [];
  const start = (): void => {
    const next = source.next();
    if (next.done === true) return;
    const length = next.value.end - next.value.at;
    const kept = free.pop();
    const buffer = kept !== undefined && kept.length >= length ? kept : new Uint8Array(length);
    const parts = readWindow(storage, next.value, buffer);
    // Nobody waits for it when the caller stops early.
    parts.catch(() => undefined);
    running.push({ buffer, parts });
  };
  for (let i = 0; i < DEPTH; i++) start();
  for (let current = running.shift(); current !== undefined; current = running.shift()) {
    if (signal?.aborted === true)
      throw new SpindleError('ABORTED', 'the check was aborted', { cause: signal.reason });
    yield await current.parts;
    free.push(current.buffer);
    start();
  }
}

function* windows<P extends Piece>(pieces: Iterable<P>): Generator<Window<P>> {
  let open: Window<P> | null = null;
  for (const piece of pieces) {
    for (let at = piece.at; at < piece.end; at += WINDOW) {
      const part = { piece, at, end: Math.min(at + WINDOW, piece.end) };
      if (open !== null && at >= open.end && at - open.end <= GAP && part.end - open.at <= WINDOW) {
        open.parts.push(part);
        open.end = part.end;
        continue;
      }
      if (open !== null) yield open;
      open = { at, end: part.end, parts: [part] };
    }
  }
  if (open !== null) yield open;
}

async function readWindow<P extends Piece>(
  storage: Storage,
  window: Window<P>,
  buffer: Uint8Array,
): Promise<Part<P>[]> {
  const bytes = buffer.subarray(0, window.end - window.at);
  let failed = false;
  try {
    await readPadded(storage, bytes, window.at);
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    failed = true;
  }
  const parts: Part<P>[] = [];
  for (const { piece, at, end } of window.parts) {
    const own = bytes.subarray(at - window.at, end - window.at);
    // One bad block must not take its neighbours along: after a failure each part is tried alone.
    const error = failed ? await failure(storage, own, at) : null;
    if (error === null) parts.push({ piece, at, view: viewOf(own), length: own.length });
    else parts.push({ piece, at, view: null, length: own.length, error });
  }
  return parts;
}

async function failure(storage: Storage, into: Uint8Array, at: number): Promise<SpindleError | null> {
  try {
    await readPadded(storage, into, at);
    return null;
  } catch (error) {
    if (isSpindleError(error)) return error;
    throw error;
  }
}
