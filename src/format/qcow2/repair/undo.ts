import { hex, sameBytes } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readAvailable } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { fromHex, sha256, toHex } from './hash.ts';
import { headerHash, readJournal, undoChanges, type Journal, type JournalChange } from './journal.ts';
import { Covered } from './covered.ts';

/** What an undo did. */
export interface Undone {
  /** Changes taken back. */
  readonly changes: number;
  /** Bytes of the file, as before the repair. */
  readonly size: number;
}

/**
 * Takes a repair back: the image has the bytes and the length again that it had before. First everything is compared:
 * where the image no longer holds what the repair wrote, nothing is changed at all. An undo that was interrupted can be
 * done again, and a repair that was, can be undone.
 * @throws SpindleError BAD_OPTION when the journal is none, or not of this image as it is now
 */
export async function undoRepair(image: Storage, journal: Storage): Promise<Undone> {
  const read = await readJournal(journal);
  await compare(image, read);
  await undoChanges(image, read);
  if ((await headerHash(image)) !== read.head.header)
    throw new SpindleError(
      'BAD_OPTION',
      'all changes of the journal were taken back, but the header is not that of the journal',
    );
  return { changes: read.changes.length, size: read.head.size };
}

async function compare(image: Storage, { head, changes, certain, size }: Journal): Promise<void> {
  const isUndone = image.size === head.size;
  if (
    image.size < head.size ||
    (size !== null && certain === changes.length && image.size !== size && !isUndone)
  ) {
    const message = `the journal is not of this image as it is now: the file has ${String(image.size)} bytes, but ${String(size ?? head.size)} when the repair ended`;
    throw new SpindleError('BAD_OPTION', message);
  }
  // Newest first: what a later change wrote over is not looked at again.
  const covered = new Covered();
  for (let i = changes.length - 1; i >= 0; i--) {
    const change = changes[i];
    if (change === undefined) continue;
    const length = 'before' in change ? change.after.length / 2 : change.length;
    const isHeld = await holds(
      image,
      change,
      covered.gaps(change.at, change.at + length),
      i < certain,
      isUndone,
    );
    if (!isHeld) {
      throw new SpindleError(
        'BAD_OPTION',
        `the image was changed after the repair: the ${String(length)} bytes at ${hex(change.at)} are neither what the repair wrote nor what was there before; nothing was undone`,
        { at: { structure: 'image', offset: change.at } },
      );
    }
    covered.add(change.at, change.at + length);
  }
}

/** Writes may tear between sectors, where a repair or an undo was interrupted. */
const SECTOR = 512;

async function holds(
  image: Storage,
  change: JournalChange,
  gaps: readonly (readonly [from: number, to: number])[],
  isCertain: boolean,
  isUndone: boolean,
): Promise<boolean> {
  if (!('before' in change)) {
    if (!isCertain || isUndone) return true;
    const whole = gaps.length === 1 && gaps[0]?.[0] === change.at && gaps[0][1] === change.at + change.length;
    // Partly written over by a later step: that step's change is compared instead.
    if (!whole) return true;
    return toHex(await sha256(await readAvailable(image, change.at, change.length))) === change.sha256;
  }
  const before = fromHex(change.before);
  const after = fromHex(change.after);
  for (const [from, to] of gaps) {
    for (let at = from; at < to;) {
      const end = Math.min(to, (Math.floor(at / SECTOR) + 1) * SECTOR);
      const now = await readAvailable(image, at, end - at);
      const part = (bytes: Uint8Array): Uint8Array => bytes.subarray(at - change.at, end - change.at);
      if (!sameBytes(now, part(after)) && !sameBytes(now, part(before))) return false;
      at = end;
    }
  }
  return true;
}
