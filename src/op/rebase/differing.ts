import { CALL, cutPart, firstDifferenceIn, joinParts, type FileParts } from '../compare/files.ts';
import type { Range, Suspect } from './suspects.ts';

/** Calls that are under way ahead of the one whose outcome is waited for. */
const AHEAD = 4;
/** Bytes from a difference on that are not looked at again: who differs somewhere mostly differs for a while. */
const STRIDE = 1024 * 1024;

/** What is known of a part of the disk when its turn comes, and where it ends. */
interface Pending {
  readonly end: number;
  readonly found: Promise<readonly Range[]>;
}

/**
 * Of the suspects those that differ, about: where both sides lie in files, the addon has compared them. What it could not
 * read stays suspect, as does what it was not asked about. `passed` hears up to where all is known.
 */
export async function* differing(
  suspects: AsyncIterable<Suspect>,
  passed: (at: number) => void,
): AsyncGenerator<Range> {
  const queue: Pending[] = [];
  let open: FileParts | null = null;
  const send = (): void => {
    if (open === null) return;
    const { at, length } = open.parts.at(-1) ?? { at: 0, length: 0 };
    queue.push({ end: at + length, found: differencesIn(open) });
    open = null;
  };
  const next = async function* (): AsyncGenerator<Range> {
    const pending = queue.shift();
    if (pending === undefined) return;
    yield* await pending.found;
    passed(pending.end);
  };
  try {
    for await (const { at, length, files } of suspects) {
      for (let done = 0; done < length; done += files === null ? length : CALL) {
        const part = files === null ? null : cutPart(files, done, Math.min(CALL, length - done));
        const joined: FileParts | null = open === null || part === null ? null : joinParts(open, part);
        if (joined === null) send();
        open = joined ?? part;
        if (part === null) queue.push({ end: at + length, found: Promise.resolve([{ at, length }]) });
        while (queue.length > AHEAD) yield* next();
      }
    }
    send();
    while (queue.length > 0) yield* next();
  } finally {
    await Promise.allSettled(queue.map(({ found }) => found));
  }
}

/** Where files differ, from the first byte that does. Never fails: what cannot be read is said to differ. */
async function differencesIn(files: FileParts): Promise<Range[]> {
  const found: Range[] = [];
  for (let rest = files; rest.parts.length > 0;) {
    const at = await firstDifferenceIn(rest).catch(() => null);
    if (at === null) return [...found, ...rest.parts.map(({ at: from, length }) => ({ at: from, length }))];
    if (at < 0) break;
    const index = rest.parts.findIndex((part) => at < part.at + part.length);
    const part = rest.parts[index];
    if (part === undefined) break;
    const stop = Math.min(part.at + part.length, at + STRIDE);
    found.push({ at, length: stop - at });
    const left = part.at + part.length - stop;
    const same = { fds: rest.fds, parts: [part], bytes: part.length };
    const parts = [
      ...(left > 0 ? cutPart(same, stop - part.at, left).parts : []),
      ...rest.parts.slice(index + 1),
    ];
    rest = { fds: rest.fds, parts, bytes: parts.reduce((sum, { length }) => sum + length, 0) };
  }
  return found;
}
