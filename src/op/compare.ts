import { alignDown, isAligned } from '../core/align.ts';
import { isSpindleError, SpindleError } from '../core/errors.ts';
import { readPadded } from '../core/read.ts';
import { stopIfAborted, type Working } from '../core/working.ts';
import type { Image } from '../format/image.ts';
import { blockStatus, type BlockStatus } from '../format/status.ts';
import { firstDifference } from '../native/difference.ts';
import { CALL, cutPart, filePart, firstDifferenceIn, joinParts, type FileParts } from './compare/files.ts';
import { CHUNK } from './copy/chunks.ts';
import { openImageFile, type OpenFileOptions } from './open.ts';

/** One of two images that are compared. */
export interface CompareSide extends Pick<
  OpenFileOptions,
  'format' | 'share' | 'direct' | 'snapshot' | 'gate' | 'secret'
> {
  readonly path: string;
}

/** How two disks are compared. */
export interface CompareOptions extends Working {
  /**
   * The sizes must be equal too, and what each part of the disk is: data, zeroes, allocated, compressed, or at a known
   * place. Default: a longer disk only must read as zeroes where the other has ended.
   */
  readonly strict?: boolean | undefined;
}

/** How two disks differ first. */
export interface Difference {
  /** `size` and `status` count only where the comparison is strict. */
  readonly kind: 'content' | 'size' | 'status';
  /** The first byte of the disk that differs; null for `size`. */
  readonly offset: number | null;
}

/** The outcome of a comparison. */
export interface Compared {
  /** Null: the disks are the same. */
  readonly difference: Difference | null;
  /** Bytes of the two disks. */
  readonly sizes: readonly [number, number];
  /** Bytes of the disk that had to be read, on one side or both. */
  readonly read: number;
}

/** What was being done when a comparison failed: opening the images, asking what lies where, or reading data. */
export type CompareStage = 'open' | 'status' | 'read';

/** A comparison that could not be finished; otherwise the error that was met. */
export class CompareError extends SpindleError {
  readonly stage: CompareStage;

  constructor(stage: CompareStage, error: SpindleError) {
    super(error.code, error.message, { path: error.path, at: error.at, cause: error });
    this.stage = stage;
  }
}

/** Pieces that are read ahead of the one being compared. */
const AHEAD = 4;

const EXIT = { open: 2, status: 3, read: 4 } as const;

/** The exit code of `qemu-img compare` for a comparison that failed; 2 where it never began. */
export function compareExitCode(error: unknown): 2 | 3 | 4 {
  return error instanceof CompareError ? EXIT[error.stage] : 2;
}

/**
 * Compares the disks in two images. Zeroes are known from the tables and from holes of files and are not read; neither is
 * what both take from the same place. A difference that comes before a failure is the outcome.
 * @throws CompareError with its stage, and any code of {@link openImageFile}, reading and mapping; ABORTED
 */
export async function compare(
  first: CompareSide,
  second: CompareSide,
  options: CompareOptions = {},
): Promise<Compared> {
  const images: Image[] = [];
  try {
    for (const { path, ...rest } of [first, second])
      images.push(await during('open', path, () => openImageFile(path, rest)));
    const [a, b] = images as [Image, Image];
    const whole = first.snapshot === undefined && second.snapshot === undefined;
    return await new Comparison(a, b, options, whole).run();
  } finally {
    await Promise.all(images.map((image) => image.close()));
  }
}

/** Marks a failure of `work` with what was being done, and with the image that it met if it names none. */
async function during<T>(stage: CompareStage, path: string | undefined, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!isSpindleError(error) || error.code === 'ABORTED') throw error;
    error.path ??= path;
    // Without its secret an image is as good as not open.
    throw new CompareError(error.code === 'ENCRYPTED' ? 'open' : stage, error);
  }
}

/** A part of the disk. Bytes. */
interface Part {
  readonly at: number;
  readonly length: number;
}

/** What is to be done about a part, in the order of the disk. */
type Step =
  /** It must be read on the sides that do not read as zeroes. */
  | ({ readonly kind: 'read'; readonly sides: readonly [boolean, boolean] } & Part)
  /** It must be read, and the addon can do that; what lies between its parts is the same. */
  | ({ readonly kind: 'files'; readonly files: FileParts } & Part)
  | ({ readonly kind: 'same' } & Part)
  | ({ readonly kind: 'mismatch' } & Part);

/** A step whose reading is under way. */
interface Pending {
  readonly step: Step;
  readonly buffers: readonly [Uint8Array, Uint8Array];
  readonly reading: Promise<unknown>;
  /** Where on the disk the files differ first; -1: nowhere; null: they must be read here. */
  readonly found?: Promise<number | null>;
}

const NOTHING = new Uint8Array(0);

class Comparison {
  readonly #images: readonly [Image, Image];
  readonly #options: CompareOptions;
  /** The images are opened as they are, not as snapshots had them: parts of one file are the same on both sides. */
  readonly #whole: boolean;
  readonly #idle: Uint8Array[] = [];
  readonly #zeroes = new Uint8Array(CHUNK);
  #bytes = 0;

  constructor(a: Image, b: Image, options: CompareOptions, whole: boolean) {
    this.#images = [a, b];
    this.#options = options;
    this.#whole = whole;
  }

  async run(): Promise<Compared> {
    const [a, b] = this.#images;
    const sizes = [a.size, b.size] as const;
    const sizeDiffers = this.#options.strict === true && a.size !== b.size;
    const difference = sizeDiffers ? { kind: 'size' as const, offset: null } : await this.#find();
    return { difference, sizes, read: this.#bytes };
  }

  async #find(): Promise<Difference | null> {
    const { signal, onProgress } = this.#options;
    const [a, b] = this.#images;
    const total = Math.max(a.size, b.size);
    onProgress?.(0, total);
    const queue: Pending[] = [];
    const steps = this.#steps();
    const failures: unknown[] = [];
    let more = true;
    try {
      while (more || queue.length > 0) {
        stopIfAborted(signal);
        if (more && queue.length < AHEAD) {
          // What comes before a part that cannot be told is still compared.
          const next = await steps.next().catch((reason: unknown) => {
            failures.push(reason);
            return null;
          });
          if (next === null || next.done === true) more = false;
          else queue.push(this.#begin(next.value));
          continue;
        }
        const pending = queue.shift() as Pending;
        const difference = await this.#finish(pending);
        if (difference !== null) return difference;
        onProgress?.(pending.step.at + pending.step.length, total);
      }
    } finally {
      await Promise.allSettled(queue.map(({ reading }) => reading));
      await steps.return(undefined);
    }
    if (failures.length > 0) throw failures[0];
    onProgress?.(total, total);
    return null;
  }

  #begin(step: Step): Pending {
    const nothing = { step, buffers: [NOTHING, NOTHING] as const, reading: Promise.resolve() };
    if (step.kind === 'read') return this.#read(step);
    if (step.kind !== 'files') return nothing;
    this.#bytes += step.files.bytes;
    // What fails is read here, where it is known which image that was.
    const found = firstDifferenceIn(step.files).catch(() => null);
    return { ...nothing, reading: found, found };
  }

  #read(step: Extract<Step, { kind: 'read' }>): Pending {
    const side = (index: 0 | 1): Uint8Array =>
      step.sides[index]
        ? (this.#idle.pop() ?? new Uint8Array(CHUNK)).subarray(0, step.length)
        : this.#zeroes.subarray(0, step.length);
    const buffers = [side(0), side(1)] as const;
    this.#bytes += step.length;
    const reading = Promise.allSettled(
      this.#images.map((image, index) =>
        step.sides[index] === true
          ? during('read', image.name, () => readPadded(image, buffers[index] as Uint8Array, step.at))
          : Promise.resolve(),
      ),
    );
    return { step, buffers, reading };
  }

  async #finish({ step, buffers, reading, found: asked }: Pending): Promise<Difference | null> {
    if (step.kind === 'files') {
      const at = (await asked) ?? null;
      if (at === null) return this.#finishHere(step.files);
      return at < 0 ? null : { kind: 'content', offset: at };
    }
    if (step.kind === 'same') return null;
    if (step.kind === 'mismatch') return { kind: 'status', offset: step.at };
    const results = (await reading) as readonly PromiseSettledResult<void>[];
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    const found = firstDifference(buffers[0], buffers[1]);
    if (found >= 0) return { kind: 'content', offset: step.at + found };
    buffers.forEach((buffer, index) => {
      if (step.sides[index] === true) this.#idle.push(new Uint8Array(buffer.buffer));
    });
    return null;
  }

  /** Reads what the addon could not. */
  async #finishHere({ parts, bytes }: FileParts): Promise<Difference | null> {
    this.#bytes -= bytes;
    for (const { at, length, first, second } of parts)
      for (const piece of pieces({ kind: 'read', at, length, sides: [first !== null, second !== null] })) {
        const difference = await this.#finish(this.#begin(piece));
        if (difference !== null) return difference;
      }
    return null;
  }

  /** The parts of the disk in ascending order; those that are read here are within one {@link CHUNK} of it. */
  async *#steps(): AsyncGenerator<Step> {
    let open: Step | null = null;
    for await (const step of this.#parts()) {
      for (const piece of pieces(step)) {
        const joined: Step | null = open === null ? null : join(open, piece);
        if (joined === null && open !== null) yield open;
        open = joined ?? piece;
      }
    }
    if (open !== null) yield open;
  }

  /** The parts in which the status of neither disk changes. */
  async *#parts(): AsyncGenerator<Step> {
    const { signal, strict } = this.#options;
    const sides = this.#images.map((image) => new Cursor(image)) as [Cursor, Cursor];
    const total = Math.max(...this.#images.map(({ size }) => size));
    for (let offset = 0; offset < total;) {
      stopIfAborted(signal);
      const [a, b] = [await sides[0].at(offset), await sides[1].at(offset)];
      const end = Math.min(total, a.end, b.end);
      const part = { at: offset, length: end - offset };
      const [zeroA, zeroB] = [a.status?.zero ?? true, b.status?.zero ?? true];
      if (strict === true && statusWord(a.status) !== statusWord(b.status)) {
        yield { ...part, kind: 'mismatch' };
        return;
      }
      if ((zeroA && zeroB) || this.#samePlace(a, b, offset)) yield { ...part, kind: 'same' };
      else {
        const files = filePart(a, b, offset, part.length);
        yield files === null
          ? { ...part, kind: 'read', sides: [!zeroA, !zeroB] }
          : { ...part, kind: 'files', files };
      }
      offset = end;
    }
  }

  /** Whether both disks have the same bytes of one file there. */
  #samePlace(a: CursorRun, b: CursorRun, offset: number): boolean {
    if (a.status === null || b.status === null || a.status.zero || b.status.zero) return false;
    if (a.status.host !== null && b.status.host !== null) {
      const identity = identityOf(a.status.host.storage);
      return (
        identity !== null &&
        identity === identityOf(b.status.host.storage) &&
        a.status.host.at + offset - a.start === b.status.host.at + offset - b.start
      );
    }
    const [one, other] = [a.status.layer, b.status.layer];
    const identity = identityOf(one.storage);
    return (
      this.#whole &&
      identity !== null &&
      identity === identityOf(other.storage) &&
      one.format === other.format
    );
  }
}

/** A run of a disk; a null status where the disk has ended, which reads as zeroes. Bytes. */
interface CursorRun {
  readonly start: number;
  readonly end: number;
  readonly status: BlockStatus | null;
}

/** Goes over the runs of a disk, each asked for once. */
class Cursor {
  readonly #image: Image;
  #run: CursorRun = { start: 0, end: 0, status: null };

  constructor(image: Image) {
    this.#image = image;
  }

  /** The run that holds `offset`; offsets ascend. */
  async at(offset: number): Promise<CursorRun> {
    const { size, name } = this.#image;
    if (offset < this.#run.end) return this.#run;
    if (offset >= size) this.#run = { start: offset, end: Infinity, status: null };
    else {
      const status = await during('status', name, async () =>
        blockStatus(this.#image, offset, size - offset),
      );
      this.#run = { start: offset, end: offset + status.length, status };
    }
    return this.#run;
  }
}

/** What strict comparison compares. What lies past the end of a shorter backing file counts as allocated. */
function statusWord(status: BlockStatus | null): string {
  if (status === null) return '';
  const { data, zero, compressed, host, layer } = status;
  const allocated = status.allocated || (zero && layer.backing !== null);
  return JSON.stringify([data, zero, compressed, allocated, host !== null]);
}

function identityOf(storage: unknown): string | null {
  const { identity } = storage as { readonly identity?: unknown };
  return typeof identity === 'string' ? identity : null;
}

/** A step as steps that each lie within one unit of the disk, where they are read. */
function* pieces(step: Step): Generator<Step> {
  if (step.kind !== 'read' && step.kind !== 'files') {
    yield step;
    return;
  }
  const unit = step.kind === 'files' ? CALL : CHUNK;
  const end = step.at + step.length;
  for (let start = step.at; start < end;) {
    const stop = Math.min(end, alignDown(start, unit) + unit);
    const part = { at: start, length: stop - start };
    yield step.kind === 'read'
      ? { ...step, ...part }
      : { ...step, ...part, files: cutPart(step.files, start - step.at, part.length) };
    start = stop;
  }
}

/** Two neighbours as one step, where that can be. */
function join(a: Step, b: Step): Step | null {
  const joined = { ...a, length: a.length + b.length };
  if (a.kind === 'files' && b.kind === 'files') {
    const files = joinParts(a.files, b.files);
    return files === null ? null : { ...joined, kind: 'files', files };
  }
  if (a.kind === 'files' && b.kind === 'same') return joined;
  if (a.kind !== b.kind || a.kind === 'mismatch') return null;
  if (a.kind !== 'read' || b.kind !== 'read') return joined;
  if (isAligned(b.at, CHUNK)) return null;
  return { ...joined, kind: 'read', sides: [a.sides[0] || b.sides[0], a.sides[1] || b.sides[1]] };
}
