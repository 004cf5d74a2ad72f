import { alignDown, alignUp, isAligned } from '../../core/align.ts';
import { stopIfAborted } from '../../core/working.ts';
import type { Run } from './source.ts';

/** Bytes that are read and written at once. A multiple of every cluster size. */
export const CHUNK = 2 * 1024 * 1024;

/** A piece of the disk that is copied in one way. Bytes. */
export interface Chunk {
  readonly at: number;
  readonly length: number;
  /** `data` lies within one {@link CHUNK}, or, with a `host`, is plain bytes of any length there. */
  readonly kind: Run['kind'];
  readonly host: Run['host'];
  readonly packed?: Run['packed'];
}

/** Which data comes as one piece for the host to copy by itself. */
export interface WholeRuns {
  /** Bytes from which it is worth it; may change on the way. */
  readonly least: () => number;
  /** Pieces begin and end at multiples of this many bytes of the disk. */
  readonly unit: number;
  /** Whether the host can copy from there. */
  readonly accepts: (host: NonNullable<Run['host']>) => boolean;
  /** Whether the host can bring a compressed cluster to its place by itself. */
  readonly unpacks: (packed: NonNullable<Run['packed']>) => boolean;
}

/**
 * Joins runs to pieces of a good size: data that lies close together is read in one go with the zeroes between, long
 * stretches of zeroes stay whole, and so do those of plain data that `whole` takes.
 */
export async function* chunksOf(
  runs: AsyncIterable<Run>,
  whole: WholeRuns | null,
  signal?: AbortSignal,
): AsyncGenerator<Chunk> {
  let open = null as Run | null;
  for await (const run of whole === null ? runs : byHost(runs, whole)) {
    stopIfAborted(signal);
    const next = whole === null ? { ...run, host: null, packed: undefined } : run;
    if (open !== null && joins(open, next)) open = joined(open, next);
    else {
      if (open !== null) yield* pieces(open, whole);
      open = next;
    }
  }
  if (open !== null) yield* pieces(open, whole);
}

/** The same runs, those that lie together on the host joined; only those that the host is to copy keep their place. */
async function* byHost(runs: AsyncIterable<Run>, whole: WholeRuns): AsyncGenerator<Run> {
  let open = null as Run | null;
  for await (const run of runs) {
    if (open !== null && open.host !== null && run.host !== null && joins(open, run))
      open = joined(open, run);
    else {
      if (open !== null) yield* split(open, whole);
      open = run;
    }
  }
  if (open !== null) yield* split(open, whole);
}

/** Which neighbours data may take in to become whole units. */
export interface WholeUnits {
  /** Bytes. */
  readonly unit: number;
  /** Bytes of the disk: the last unit ends there. */
  readonly size: number;
  /** Data takes in what is absent, too. */
  readonly absent: boolean;
}

/** Widens data to whole units of the target, taking in the zeroes (and what is absent) beside it. */
export async function* widened(
  runs: AsyncIterable<Run>,
  { unit, size, absent }: WholeUnits,
): AsyncGenerator<Run> {
  /** What the data before takes in ends here. */
  let until = 0;
  /** Pieces of the last unit so far that are data if the next run is. */
  let held: Run[] = [];
  for await (const run of runs) {
    const end = run.at + run.length;
    if (run.kind === 'data') {
      for (const piece of held) yield asData(piece);
      held = [];
      yield run;
      until = Math.min(size, alignUp(end, unit));
      continue;
    }
    if (run.kind === 'absent' && !absent) {
      yield* held;
      held = [];
      yield run;
      continue;
    }
    const start = Math.min(Math.max(run.at, until), end);
    if (start > run.at) yield asData(part(run, run.at, start));
    if (start === end) continue;
    const rest = part(run, start, end);
    const [first] = held;
    if (first !== undefined && end < alignDown(first.at, unit) + unit) {
      held.push(rest);
      continue;
    }
    yield* held;
    const tail = Math.max(start, alignDown(end, unit));
    if (tail > start) yield part(rest, start, tail);
    held = tail < end ? [part(rest, tail, end)] : [];
  }
  yield* held;
}

/** A part of a run, which lies in its part of the host. */
function part(run: Run, start: number, end: number): Run {
  const shift = start - run.at;
  const host = run.host === null ? null : { storage: run.host.storage, at: run.host.at + shift };
  const { packed } = run;
  if (packed === undefined) return { ...run, at: start, length: end - start, host };
  return {
    ...run,
    ...{ at: start, length: end - start, host },
    packed: { ...packed, first: packed.first + shift },
  };
}

function asData(run: Run): Run {
  return { ...run, kind: 'data' };
}

/** The parts of a run, of which only those that the host is to copy keep their place. */
function split(run: Run, { least, unit, accepts, unpacks }: WholeRuns): Run[] {
  if (run.packed !== undefined && isAligned(run.at, unit) && unpacks(run.packed)) return [run];
  const plain = { ...run, host: null, packed: undefined };
  if (run.kind !== 'data' || run.host === null || run.length < least() || !accepts(run.host)) return [plain];
  const start = alignUp(run.at, unit);
  const end = alignDown(run.at + run.length, unit);
  if (end - start < least()) return [plain];
  return [
    { ...plain, length: start - run.at },
    part(run, start, end),
    { ...plain, at: end, length: run.at + run.length - end },
  ].filter(({ length }) => length > 0);
}

function joins(a: Run, b: Run): boolean {
  if (a.kind !== b.kind) return false;
  if (a.kind !== 'data') return true;
  if (a.packed !== undefined || b.packed !== undefined) return false;
  if (a.host === null || b.host === null) return a.host === b.host;
  return a.host.storage === b.host.storage && a.host.at + a.length === b.host.at;
}

function joined(a: Run, b: Run): Run {
  const host = a.host === null || b.host === null ? null : a.host;
  return { ...a, length: b.at + b.length - a.at, host };
}

function* pieces(run: Run, whole: WholeRuns | null): Generator<Chunk> {
  if (run.kind !== 'data' || (whole !== null && (run.host !== null || run.packed !== undefined))) {
    yield run;
    return;
  }
  const end = run.at + run.length;
  for (let at = run.at; at < end;) {
    const stop = Math.min(end, alignDown(at, CHUNK) + CHUNK);
    yield { at, length: stop - at, kind: 'data', host: null };
    at = stop;
  }
}
