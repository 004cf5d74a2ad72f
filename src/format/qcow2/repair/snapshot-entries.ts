import { alignUp } from '../../../core/align.ts';
import { bytesOf, textOf, viewOf } from '../../../core/bytes.ts';
import { isSpindleError } from '../../../core/errors.ts';
import { Limit, SnapshotExtra, SnapshotOffset } from '../layout.ts';
import { decodeSnapshot, snapshotStride, type Snapshot } from '../snapshot.ts';

/** An entry of a damaged snapshot table, as far as it can be understood. */
export interface FoundEntry {
  /** Its number in the table, from 1. */
  readonly number: number;
  /** The entry, mended, without padding. */
  readonly bytes: Uint8Array;
  readonly snapshot: Snapshot;
  /** What was mended in it, in words. */
  readonly mended: readonly string[];
}

/** What a damaged snapshot table holds. */
export interface FoundEntries {
  readonly entries: readonly FoundEntry[];
  /** What was counted and cannot be found, in words. */
  readonly lost: readonly string[];
  /**
   * Whether the table broke off, so that what was found may be left over from older tables: then only an L1 table that
   * is nobody else's proves a snapshot.
   */
  readonly suspect: boolean;
}

/** Tells whether an entry may have its L1 table at `offset` bytes, with `entries` entries. */
export type L1Rule = (offset: number, entries: number) => boolean;

/** The longest name that an entry without a usable length is given, in bytes. */
const LONGEST_NAME = 1023;
/** Extra data as programs write it, the most common first. Bytes. */
const EXTRA_LENGTHS = [24, 16, 0, 8, 32, 40];

/**
 * Finds the entries of a snapshot table of which `count` are expected in `bytes`, which begin where the table does.
 * Entries that are whole are taken as they are. Where lengths in an entry cannot be true, its L1 table may still be:
 * then its id and name are looked for, and made up where they are lost. Where nothing of an entry can be true, the next
 * whole one is looked for.
 */
export function findEntries(bytes: Uint8Array, count: number, mayBeL1: L1Rule): FoundEntries {
  const entries: FoundEntry[] = [];
  const lost: string[] = [];
  let suspect = count > Limit.SNAPSHOTS;
  let at = 0;
  let number = 1;
  for (; number <= Math.min(count, Limit.SNAPSHOTS) && at + SnapshotOffset.extra <= bytes.length; number++) {
    const whole = wholeEntry(bytes, at);
    if (whole !== null) {
      entries.push({
        ...{ number, snapshot: whole, mended: [] },
        bytes: bytes.slice(at, at + whole.entryLength),
      });
      at += snapshotStride(whole);
      continue;
    }
    const next = nextWhole(bytes, at + 8, mayBeL1);
    const mended = mendEntry(bytes.subarray(at, next ?? bytes.length), number, mayBeL1, entries);
    if (mended !== null) entries.push(mended);
    else suspect = true;
    if (next === null) {
      if (mended !== null) number++;
      break;
    }
    if (mended === null) lost.push(`snapshot ${String(number)}: nothing of its entry can be read`);
    at = next;
  }
  const missing = count - number + 1;
  if (missing > 0) {
    suspect = true;
    lost.push(
      `${String(missing)} of the ${String(count)} snapshots that the header counts: the table has no entries for them`,
    );
  }
  return { entries, lost, suspect };
}

/** The entry at `at` when it is whole: its lengths fit, and id and name are texts. */
function wholeEntry(bytes: Uint8Array, at: number): Snapshot | null {
  try {
    const entry = decodeSnapshot(bytes.subarray(at), at);
    if (typeof entry === 'number' || !isText(entry.id) || entry.name.includes('\0')) return null;
    return entry;
  } catch (error) {
    if (isSpindleError(error)) return null;
    throw error;
  }
}

/** Where the next whole entry with an L1 table that may be one begins. Entries lie at multiples of eight bytes. */
function nextWhole(bytes: Uint8Array, from: number, mayBeL1: L1Rule): number | null {
  const view = viewOf(bytes);
  for (let at = alignUp(from, 8); at + SnapshotOffset.extra <= bytes.length; at += 8) {
    const place = l1Of(view, at);
    if (place.offset === 0 || place.entries === 0 || !mayBeL1(place.offset, place.entries)) continue;
    const entry = wholeEntry(bytes, at);
    if (entry !== null && /^\d+$/.test(entry.id)) return at;
  }
  return null;
}

/** The place of the L1 table as an entry says it; Infinity for an offset of 2^53 or more. */
function l1Of(view: DataView, at: number): { offset: number; entries: number } {
  const hi = view.getUint32(at + SnapshotOffset.l1TableOffset);
  const lo = view.getUint32(at + SnapshotOffset.l1TableOffset + 4);
  return {
    offset: hi > 0x1f_ffff ? Infinity : hi * 2 ** 32 + lo,
    entries: view.getUint32(at + SnapshotOffset.l1Size),
  };
}

/** An entry of which the lengths are wrong: `bytes` begin with it, and end where the next begins at the latest. */
function mendEntry(
  bytes: Uint8Array,
  number: number,
  mayBeL1: L1Rule,
  before: readonly FoundEntry[],
): FoundEntry | null {
  if (bytes.length < SnapshotOffset.extra) return null;
  const view = viewOf(bytes);
  const { offset, entries } = l1Of(view, 0);
  if (offset === 0 || entries === 0 || !mayBeL1(offset, entries)) return null;
  const declared = {
    extra: view.getUint32(SnapshotOffset.extraLength),
    id: view.getUint16(SnapshotOffset.idLength),
    name: view.getUint16(SnapshotOffset.nameLength),
  };
  const body = bytes.subarray(SnapshotOffset.extra);
  const extras = [
    ...(declared.extra <= Limit.SNAPSHOT_EXTRA ? [declared.extra] : []),
    ...EXTRA_LENGTHS,
  ].filter((length) => length <= body.length);
  for (const extra of extras) {
    const text = textIn(body.subarray(extra));
    const idLength = idLengthIn(text, declared.id, declared.name);
    if (idLength === 0) continue;
    const why = 'the lengths in its entry were wrong';
    const made = buildEntry(
      bytes,
      body.subarray(0, extra),
      text.subarray(0, idLength),
      text.subarray(idLength, idLength + LONGEST_NAME),
    );
    return made === null ? null : { number, ...made, mended: [why] };
  }
  const id = String(freeId(before));
  const name = `recovered-${String(number)}`;
  const made = buildEntry(bytes, new Uint8Array(0), bytesOf(id), bytesOf(name));
  const why = `its id and name are lost: they are now ${id} and '${name}'`;
  return made === null ? null : { number, ...made, mended: [why] };
}

/** The bytes up to the first that no text has. */
function textIn(bytes: Uint8Array): Uint8Array {
  const end = bytes.findIndex((byte) => byte < 0x20 || byte === 0x7f);
  const text = bytes.subarray(0, end < 0 ? bytes.length : end);
  return text.subarray(0, LONGEST_NAME + 20);
}

/** How many of the first bytes are the id, where one of the two lengths can be true; 0 where neither can. */
function idLengthIn(text: Uint8Array, id: number, name: number): number {
  const isId = (length: number): boolean =>
    length > 0 && length <= text.length && /^\d+$/.test(textOf(text.subarray(0, length)));
  if (id < 10 && isId(id)) return id;
  // Then the id is what the name leaves.
  const rest = text.length - name;
  return rest < 10 && isId(rest) ? rest : 0;
}

function buildEntry(
  head: Uint8Array,
  extra: Uint8Array,
  id: Uint8Array,
  name: Uint8Array,
): { bytes: Uint8Array; snapshot: Snapshot } | null {
  const build = (kept: Uint8Array): Uint8Array => {
    const idAt = SnapshotOffset.extra + kept.length;
    const bytes = new Uint8Array(idAt + id.length + name.length);
    bytes.set(head.subarray(0, SnapshotOffset.extra));
    bytes.set(kept, SnapshotOffset.extra);
    bytes.set(id, idAt);
    bytes.set(name, idAt + id.length);
    const view = viewOf(bytes);
    view.setUint16(SnapshotOffset.idLength, id.length);
    view.setUint16(SnapshotOffset.nameLength, name.length);
    view.setUint32(SnapshotOffset.extraLength, kept.length);
    return bytes;
  };
  for (const kept of [extra, new Uint8Array(0)]) {
    const bytes = build(kept);
    const snapshot = wholeEntry(bytes, 0);
    // An entry without a disk size takes that of the image.
    if (snapshot !== null && (kept.length < SnapshotExtra.icount || snapshot.diskSize !== 0))
      return { bytes, snapshot };
  }
  return null;
}

function freeId(entries: readonly FoundEntry[]): number {
  return (
    entries.reduce((most, { snapshot: { id } }) => Math.max(most, Number(/^\d{1,9}$/.exec(id) ?? 0)), 0) + 1
  );
}

function isText(id: string): boolean {
  return id !== '' && !id.includes('\0');
}
