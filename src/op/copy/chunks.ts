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
 * stretches of zeroes stay whole, and so do those of plain data that `whole` takes. Data is widened to whole `units`.
 */
export async function* chunksOf(
  runs: AsyncIterable<readonly Run[]>,
  units: WholeUnits,
  whole: WholeRuns | null,
  signal?: AbortSignal,
): AsyncGenerator<readonly Chunk[]> {
  let out: Chunk[] = [];
  const joiner = new Joiner(whole, (chunk) => out.push(chunk));
  const places = whole === null ? new Forgetter(joiner) : new HostJoiner(whole, joiner);
  const widener = new Widener(units, places);
  for await (const list of runs) {
    stopIfAborted(signal);
    for (const run of list) widener.add(run);
    if (out.length === 0) continue;
    yield out;
    out = [];
  }
  widener.end();
  yield out;
}

/** Takes the runs of a disk, one after the other. */
interface Sink {
  add(run: Run): void;
  end(): void;
}

/** Makes chunks of runs. */
class Joiner implements Sink {
  readonly #whole: WholeRuns | null;
  readonly #put: (chunk: Chunk) => void;
  #open: Run | null = null;

  constructor(whole: WholeRuns | null, put: (chunk: Chunk) => void) {
    this.#whole = whole;
    this.#put = put;
  }

  add(run: Run): void {
    if (this.#open !== null && joins(this.#open, run)) {
      this.#open = joined(this.#open, run);
      return;
    }
    this.end();
    this.#open = run;
  }

  end(): void {
    const run = this.#open;
    this.#open = null;
    if (run === null) return;
    if (run.kind !== 'data' || (this.#whole !== null && (run.host !== null || run.packed !== undefined))) {
      this.#put(run);
      return;
    }
    const end = run.at + run.length;
    for (let at = run.at; at < end;) {
      const stop = Math.min(end, alignDown(at, CHUNK) + CHUNK);
      this.#put({ at, length: stop - at, kind: 'data', host: null });
      at = stop;
    }
  }
}

/** Passes runs on without their places. */
class Forgetter implements Sink {
  readonly #next: Sink;

  constructor(next: Sink) {
    this.#next = next;
  }

  add({ at, length, kind }: Run): void {
    this.#next.add({ at, length, kind, host: null });
  }

  end(): void {
    this.#next.end();
  }
}

/** Joins runs that lie together on the host; of the others, only those that the host is to copy keep their place. */
class HostJoiner implements Sink {
  readonly #whole: WholeRuns;
  readonly #next: Sink;
  #open: Run | null = null;

  constructor(whole: WholeRuns, next: Sink) {
    this.#whole = whole;
    this.#next = next;
  }

  add(run: Run): void {
    const open = this.#open;
    if (open !== null && open.host !== null && run.host !== null && joins(open, run)) {
      this.#open = joined(open, run);
      return;
    }
    if (open !== null) this.#split(open);
    this.#open = run;
  }

  end(): void {
    if (this.#open !== null) this.#split(this.#open);
    this.#next.end();
  }

  #split(run: Run): void {
    const { least, unit, accepts, unpacks } = this.#whole;
    const { at, length, kind, host, packed } = run;
    if (packed !== undefined && isAligned(at, unit) && unpacks(packed)) {
      this.#next.add(run);
      return;
    }
    const end = at + length;
    const start = alignUp(at, unit);
    const stop = alignDown(end, unit);
    if (kind !== 'data' || host === null || stop - start < least() || !accepts(host)) {
      this.#next.add({ at, length, kind, host: null });
      return;
    }
    if (start > at) this.#next.add({ at, length: start - at, kind, host: null });
    this.#next.add(part(run, start, stop));
    if (end > stop) this.#next.add({ at: stop, length: end - stop, kind, host: null });
  }
}

/** Which neighbours data takes in to become whole units. */
export interface WholeUnits {
  /** Bytes. */
  readonly unit: number;
  /** Bytes of the disk: the last unit ends there. */
  readonly size: number;
  /** Data takes in what is absent, too. */
  readonly absent: boolean;
}

/** Widens data to whole units of the target, taking in the zeroes (and what is absent) beside it. */
class Widener implements Sink {
  readonly #units: WholeUnits;
  readonly #next: Sink;
  /** What the data before takes in ends here. */
  #until = 0;
  /** Pieces of the last unit so far that are data if the next run is. */
  #held: Run[] = [];

  constructor(units: WholeUnits, next: Sink) {
    this.#units = units;
    this.#next = next;
  }

  add(run: Run): void {
    const { unit, size, absent } = this.#units;
    const { at, length, kind } = run;
    const end = at + length;
    if (kind === 'data') {
      this.#release(true);
      this.#next.add(run);
      this.#until = Math.min(size, alignUp(end, unit));
      return;
    }
    if (kind === 'absent' && !absent) {
      this.#release(false);
      this.#next.add(run);
      return;
    }
    const start = Math.min(Math.max(at, this.#until), end);
    if (start > at) this.#next.add(asData(part(run, at, start)));
    if (start === end) return;
    const [first] = this.#held;
    if (first !== undefined && end < alignDown(first.at, unit) + unit) {
      this.#held.push(part(run, start, end));
      return;
    }
    this.#release(false);
    const tail = Math.max(start, alignDown(end, unit));
    if (tail > start) this.#next.add(part(run, start, tail));
    if (tail < end) this.#held.push(part(run, tail, end));
  }

  end(): void {
    this.#release(false);
    this.#next.end();
  }

  #release(data: boolean): void {
    if (this.#held.length === 0) return;
    for (const piece of this.#held) this.#next.add(data ? asData(piece) : piece);
    this.#held = [];
  }
}

/** A part of a run, which lies in its part of the host. */
function part(run: Run, start: number, end: number): Run {
  const { at, length, kind, packed } = run;
  if (start === at && end === at + length) return run;
  const shift = start - at;
  const host = run.host === null ? null : { storage: run.host.storage, at: run.host.at + shift };
  if (packed === undefined) return { at: start, length: end - start, kind, host };
  const rest = { ...packed, first: packed.first + shift };
  return { at: start, length: end - start, kind, host, packed: rest };
}

function asData({ at, length, host }: Run): Run {
  return { at, length, kind: 'data', host };
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
  return { at: a.at, length: b.at + b.length - a.at, kind: a.kind, host };
}
