import type { BlockStatus } from '../../format/status.ts';
import { native } from '../../native/binding.ts';
import { isPlainFile } from '../copy/carrier.ts';

/*
 * Parts of two disks whose bytes lie in files as they are, compared by the addon many at a time: handing it work takes as
 * long as comparing hundreds of KiB.
 */

/** Bytes of either disk that are compared in a call. */
export const CALL = 16 * 1024 * 1024;
/** Parts in a call. */
const MOST = 1024;

/** A part of the disk, and where its bytes are in either file; null: that side reads as zeroes. Bytes. */
export interface FilePart {
  readonly at: number;
  readonly length: number;
  readonly first: number | null;
  readonly second: number | null;
}

/** Parts in ascending order, of one file a side; null: only zeroes there so far. */
export interface FileParts {
  readonly fds: readonly [number | null, number | null];
  readonly parts: readonly FilePart[];
  readonly bytes: number;
}

/** What a disk has from `start` on; a null status reads as zeroes. */
export interface Side {
  readonly start: number;
  readonly status: BlockStatus | null;
}

/** A part of two disks; null where its bytes are compressed, encrypted, or read past the page cache. */
export function filePart(one: Side, other: Side, at: number, length: number): FileParts | null {
  const [a, b] = [placeOf(one, at), placeOf(other, at)];
  if (a === null || b === null) return null;
  return { fds: [a.fd, b.fd], parts: [{ at, length, first: a.from, second: b.from }], bytes: length };
}

function placeOf({ start, status }: Side, at: number): { fd: number | null; from: number | null } | null {
  if (status?.zero ?? true) return { fd: null, from: null };
  const host = status?.host ?? null;
  if (host === null || !isPlainFile(host.storage)) return null;
  return { fd: host.storage.fd, from: host.at + at - start };
}

/** One part, cut: `length` bytes after the first `shift`. */
export function cutPart({ fds, parts }: FileParts, shift: number, length: number): FileParts {
  const moved = (from: number | null): number | null => (from === null ? null : from + shift);
  return {
    fds,
    parts: parts.map(({ at, first, second }) => ({
      ...{ at: at + shift, length, first: moved(first), second: moved(second) },
    })),
    bytes: length,
  };
}

/** Both as one call; null: they would be too many, or of more than two files. */
export function joinParts(a: FileParts, b: FileParts): FileParts | null {
  const bytes = a.bytes + b.bytes;
  const fds = [a.fds[0] ?? b.fds[0], a.fds[1] ?? b.fds[1]] as const;
  const agree = (b.fds[0] ?? fds[0]) === fds[0] && (b.fds[1] ?? fds[1]) === fds[1];
  if (bytes > CALL || a.parts.length >= MOST || !agree) return null;
  // The list belongs to what is being joined: copying it each time would take its square.
  const parts = a.parts as FilePart[];
  parts.push(...b.parts);
  return { fds, parts, bytes };
}

/** Where on the disk the sides differ first; -1: nowhere. @throws SpindleError as {@link Native.compareRuns} */
export async function firstDifferenceIn({ fds, parts }: FileParts): Promise<number> {
  const fd = fds[0] ?? fds[1] ?? -1;
  const pairs = parts.flatMap(({ first, second, length }) => [
    ...[first ?? 0, second ?? 0, length, (first === null ? 0 : 1) + (second === null ? 0 : 2)],
  ]);
  let found = await native().compareRuns(fd, fds[1] ?? fd, Float64Array.from(pairs));
  if (found < 0) return -1;
  for (const { at, length } of parts) {
    if (found < length) return at + found;
    found -= length;
  }
  return -1;
}
