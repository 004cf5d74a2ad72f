import { SpindleError } from '../core/errors.ts';
import { stopIfAborted } from '../core/working.ts';
import type { Image } from '../format/image.ts';
import { blockStatus } from '../format/status.ts';
import { hostRuns, type HostRun } from './host-usage.ts';

/** A run of guest bytes of one kind: the entries of `qemu-img map`. Bytes. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  /** 0: the image itself, 1: its backing file, and so on. */
  readonly depth: number;
  /** Allocated in the chain. */
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly compressed: boolean;
  /** Where plain bytes or reserved space are in `file`. */
  readonly offset?: number;
  /** Name of the file that `offset` is in. */
  readonly file?: string;
  /** What the host has there; only where it was asked for and can be told. */
  readonly host?: HostRun['kind'];
  /** The blocks are shared with other files; goes with `host`. */
  readonly shared?: boolean;
}

/** Which part of the disk to map, and how. */
export interface MapOptions {
  /** Bytes. Default: 0. */
  readonly start?: number | undefined;
  /** Bytes. Default: up to the end. */
  readonly length?: number | undefined;
  /** Also tell what the host has under each run of the image itself (not of its backing files). */
  readonly host?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * The map of a disk: runs of equal status in ascending order, neighbours of equal status joined. An empty range has
 * one run of length 0.
 * @throws SpindleError BAD_SIZE when the range starts past the end, and what reading the tables throws
 */
export async function* map(image: Image, options: MapOptions = {}): AsyncGenerator<MapEntry> {
  const start = options.start ?? 0;
  const end = Math.min(image.size, start + (options.length ?? Infinity));
  if (start < 0) throw new SpindleError('BAD_SIZE', `a disk has no offset ${String(start)}`);
  let pending: MapEntry | undefined;
  for (let at = start; at < end;) {
    stopIfAborted(options.signal);
    const entry = await entryAt(image, at, end - at);
    for await (const part of options.host === true && entry.depth === 0 ? withHost(image, entry) : [entry]) {
      if (pending !== undefined && joins(pending, part))
        pending = { ...pending, length: pending.length + part.length };
      else {
        if (pending !== undefined) yield pending;
        pending = part;
      }
    }
    at += entry.length;
  }
  yield (
    pending ?? { start, length: 0, depth: 0, present: false, zero: false, data: false, compressed: false }
  );
}

async function entryAt(image: Image, at: number, length: number): Promise<MapEntry> {
  const status = await blockStatus(image, at, length);
  return {
    start: at,
    length: status.length,
    depth: status.depth,
    present: status.allocated,
    zero: status.zero,
    data: status.data,
    compressed: status.compressed,
    ...(status.host === null ? {} : { offset: status.host.at, ...fileOf(status.layer, status.host.storage) }),
  };
}

function fileOf(layer: Image, storage: Image['storage']): { file?: string } {
  const named = storage as { path?: unknown };
  const name =
    typeof named.path === 'string' ? named.path : storage === layer.storage ? layer.name : undefined;
  return name === undefined ? {} : { file: name };
}

async function* withHost(image: Image, entry: MapEntry): AsyncGenerator<MapEntry> {
  const runs = hostRuns(image, entry.start, entry.length);
  if (runs === null) {
    yield entry;
    return;
  }
  let done = 0;
  for await (const run of runs) {
    yield {
      ...entry,
      start: entry.start + done,
      length: run.length,
      ...(entry.offset === undefined ? {} : { offset: entry.offset + done }),
      host: run.kind,
      shared: run.shared,
    };
    done += run.length;
  }
}

function joins(a: MapEntry, b: MapEntry): boolean {
  return (
    a.depth === b.depth &&
    a.present === b.present &&
    a.zero === b.zero &&
    a.data === b.data &&
    a.compressed === b.compressed &&
    a.file === b.file &&
    a.host === b.host &&
    a.shared === b.shared &&
    (a.offset === undefined ? b.offset === undefined : a.offset + a.length === b.offset)
  );
}
