import { SpindleError } from '../core/errors.ts';
import { ExtentFlag, type Extent, type HostExtent } from '../core/extent.ts';
import { checkRange, type Storage, type StorageCan, type ZeroOptions } from '../core/storage.ts';
import { Layer } from './layer.ts';

/**
 * Guards the contract of {@link Storage} from both sides, as nbdkit's `backend.c` does between its filters. On in every
 * test; cheap enough to be on elsewhere.
 *
 * Calls: arguments of the wrong type throw TypeError, offsets and lengths that are no whole numbers from 0 to 2^53 - 1
 * throw RangeError, ranges past the end OUT_OF_RANGE, changes that `can` denies READ_ONLY or UNSUPPORTED, and any use
 * after `close` CLOSED; none of these reaches `next`. Answers: TypeError when `next` breaks the contract with an extent
 * that does not start where it was asked or has a wrong length, a size or capabilities that changed by themselves.
 */
export function checked(next: Storage): Storage {
  return new Checked(next);
}

const KNOWN_FLAGS = ExtentFlag.HOLE | ExtentFlag.ZERO | ExtentFlag.COMPRESSED;

class Checked extends Layer {
  #size: number;
  #resizing = 0;
  #closing: Promise<void> | undefined;

  constructor(next: Storage) {
    super(next, Object.freeze({ ...next.can }));
    this.#size = wholeNumber(next.size, 'the size of the storage');
    const below = next.hostExtents?.bind(next);
    if (below !== undefined) {
      this.hostExtents = async (at, length) => {
        this.#checkRange(at, length);
        return checkRuns(await below(at, length), at, length);
      };
    }
  }

  override get size(): number {
    const size = this.next.size;
    if (this.#resizing === 0 && this.#closing === undefined && size !== this.#size) {
      throw new TypeError(`the size went from ${String(this.#size)} to ${String(size)} without a resize`);
    }
    return size;
  }

  override async read(into: Uint8Array, at: number): Promise<void> {
    checkBytes(into);
    this.#checkRange(at, into.length);
    await this.next.read(into, at);
    this.#checkSame();
  }

  override async write(from: Uint8Array, at: number): Promise<void> {
    checkBytes(from);
    this.#checkRange(at, from.length);
    this.#checkWrite();
    await this.next.write(from, at);
    this.#checkSame();
  }

  override async zero(at: number, length: number, how?: ZeroOptions): Promise<void> {
    this.#checkRange(at, length);
    this.#checkWrite();
    checkHow(how);
    await this.next.zero(at, length, how);
    this.#checkSame();
  }

  override async discard(at: number, length: number): Promise<void> {
    this.#checkRange(at, length);
    this.#checkWrite();
    await this.next.discard(at, length);
    this.#checkSame();
  }

  override async extent(at: number, length: number): Promise<Extent> {
    this.#checkRange(at, length);
    if (length === 0) throw new RangeError('an extent is asked of at least one byte');
    const extent = await this.next.extent(at, length);
    checkExtent(extent, at, length, this.can);
    this.#checkSame();
    return extent;
  }

  override async resize(size: number): Promise<void> {
    this.#checkOpen();
    wholeNumber(size, 'a size');
    this.#checkWrite();
    if (!this.can.resize) throw new SpindleError('UNSUPPORTED', 'this storage cannot be resized');
    this.#resizing++;
    try {
      await this.next.resize(size);
      if (this.#resizing === 1 && this.next.size !== size) {
        throw new TypeError(`a resize to ${String(size)} gave ${String(this.next.size)} bytes`);
      }
    } finally {
      this.#resizing--;
      this.#size = this.next.size;
    }
  }

  override async flush(): Promise<void> {
    this.#checkOpen();
    await this.next.flush();
    this.#checkSame();
  }

  override close(): Promise<void> {
    this.#closing ??= this.next.close();
    return this.#closing;
  }

  #checkOpen(): void {
    if (this.#closing !== undefined) throw new SpindleError('CLOSED', 'the storage is closed');
  }

  #checkRange(at: number, length: number): void {
    this.#checkOpen();
    wholeNumber(at, 'an offset');
    wholeNumber(length, 'a length');
    checkRange(this.size, at, length);
  }

  #checkWrite(): void {
    if (!this.can.write) throw new SpindleError('READ_ONLY', 'opened for reading only');
  }

  /** What may not change by itself has not changed. */
  #checkSame(): void {
    if (this.#closing !== undefined) return;
    if (!(this.size >= 0)) throw new TypeError('the size is no size');
    for (const [name, value] of Object.entries(this.can) as [keyof StorageCan, boolean][]) {
      if (this.next.can[name] !== value) throw new TypeError(`the capability '${name}' changed after open`);
    }
  }
}

function wholeNumber(value: unknown, what: string): number {
  if (typeof value !== 'number') throw new TypeError(`${what} must be a number, not ${typeof value}`);
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new RangeError(`${what} must be a whole number from 0 to 2^53 - 1, not ${String(value)}`);
  }
  return value;
}

function checkBytes(value: unknown): void {
  if (!(value instanceof Uint8Array)) throw new TypeError('a buffer must be a Uint8Array');
}

function checkHow(how: unknown): void {
  if (how === undefined) return;
  if (typeof how !== 'object' || how === null) throw new TypeError('the options of zero must be an object');
  for (const [name, value] of Object.entries(how)) {
    if (name !== 'keepAllocated' && name !== 'fastOnly') throw new TypeError(`zero has no option '${name}'`);
    if (value !== undefined && typeof value !== 'boolean') throw new TypeError(`'${name}' must be a boolean`);
  }
}

function checkExtent(extent: Extent, at: number, length: number, can: StorageCan): void {
  const told = `the extent of ${String(length)} bytes at ${String(at)}`;
  if (extent.offset !== at) throw new TypeError(`${told} starts at ${String(extent.offset)}`);
  if (!Number.isSafeInteger(extent.length) || extent.length < 1 || extent.length > length) {
    throw new TypeError(`${told} is ${String(extent.length)} bytes long`);
  }
  if ((extent.flags & ~KNOWN_FLAGS) !== 0)
    throw new TypeError(`${told} has unknown flags ${String(extent.flags)}`);
  if (extent.flags !== 0 && !can.extents)
    throw new TypeError(`${told} is not data though 'extents' is false`);
}

function checkRuns(runs: HostExtent[], at: number, length: number): HostExtent[] {
  let end = at;
  for (const run of runs) {
    if (run.offset < end || !(run.length >= 1) || run.offset + run.length > at + length) {
      throw new TypeError(
        `host extent ${String(run.offset)}+${String(run.length)} is out of order or out of ${String(at)}+${String(length)}`,
      );
    }
    end = run.offset + run.length;
  }
  return runs;
}
