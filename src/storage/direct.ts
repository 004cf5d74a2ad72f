import { alignDown, alignUp, isAligned } from '../core/align.ts';
import { native } from '../native/binding.ts';
import { readOnce, writeAll } from './descriptor.ts';

/** The most bytes that pass through one bounce buffer. */
const LARGE = 1024 ** 2;
const SMALL = 65536;

/** Idle bounce buffers kept of each size. */
const KEPT = 16;

/** Where in an ArrayBuffer aligned memory starts, for buffers that {@link DirectIo.buffer} made. */
const alignedStarts = new WeakMap<ArrayBufferLike, number>();

/**
 * Reads and writes on a descriptor opened with O_DIRECT: offset, length and memory must be aligned there. What is not
 * goes through aligned bounce buffers, and partial blocks are read, changed and written back: the caller must hold the
 * whole blocks of a write alone meanwhile.
 */
export class DirectIo {
  /** Bytes: offsets, lengths and memory addresses are multiples of it. */
  readonly alignment: number;
  readonly #fd: number;
  readonly #path: string;
  readonly #idle = new Map<number, Uint8Array[]>([
    [SMALL, []],
    [LARGE, []],
  ]);

  constructor(fd: number, alignment: number, path: string) {
    this.#fd = fd;
    this.alignment = alignment;
    this.#path = path;
  }

  /** Zeroed memory for I/O without a bounce, as are its aligned subarrays. @throws UNSUPPORTED without the addon */
  buffer(size: number): Uint8Array {
    const bytes = native().alignedBuffer(size, this.alignment);
    alignedStarts.set(bytes.buffer, bytes.byteOffset);
    return bytes;
  }

  /** Reads into `into` from `at` until it is full or the file ends; the bytes read. */
  async readUpTo(into: Uint8Array, at: number): Promise<number> {
    if (this.#fits(into, at)) return this.#readBlocks(into, at);
    const end = at + into.length;
    let done = 0;
    while (done < into.length) {
      const start = alignDown(at + done, this.alignment);
      const stop = Math.min(alignUp(end, this.alignment), start + LARGE);
      const skip = at + done - start;
      const count = await this.#withBounce(stop - start, async (bounce) => {
        const got = await this.#readBlocks(bounce, start);
        const useful = Math.max(Math.min(got - skip, into.length - done), 0);
        into.set(bounce.subarray(skip, skip + useful), done);
        return useful;
      });
      done += count;
      if (at + done < Math.min(stop, end)) break;
    }
    return done;
  }

  /**
   * Writes `from` at `at`. Whole blocks are written, so that the file may end past the end of the range afterwards:
   * the caller cuts it back.
   */
  async write(from: Uint8Array, at: number): Promise<void> {
    if (this.#fits(from, at)) return writeAll(this.#fd, from, at, this.#path);
    const end = at + from.length;
    let done = 0;
    while (done < from.length) {
      const start = alignDown(at + done, this.alignment);
      const stop = Math.min(alignUp(end, this.alignment), start + LARGE);
      const skip = at + done - start;
      const count = Math.min(stop - at - done, from.length - done);
      await this.#withBounce(stop - start, async (bounce) => {
        if (skip > 0) await this.#readBlock(bounce, 0, start);
        const lastBlock = stop - this.alignment;
        if (at + done + count < stop && !(skip > 0 && lastBlock === start)) {
          await this.#readBlock(bounce, lastBlock - start, lastBlock);
        }
        bounce.set(from.subarray(done, done + count), skip);
        await writeAll(this.#fd, bounce, start, this.#path);
      });
      done += count;
    }
  }

  /** Whether the kernel takes `bytes` at `at` as they are. */
  #fits(bytes: Uint8Array, at: number): boolean {
    const start = alignedStarts.get(bytes.buffer);
    return (
      start !== undefined &&
      isAligned(bytes.byteOffset - start, this.alignment) &&
      isAligned(bytes.length, this.alignment) &&
      isAligned(at, this.alignment)
    );
  }

  /** Aligned reads until `into` is full or the file ends, which a read that stops within a block shows. */
  async #readBlocks(into: Uint8Array, at: number): Promise<number> {
    let done = 0;
    while (done < into.length) {
      const count = await readOnce(this.#fd, into, done, at + done, this.#path);
      done += count;
      if (count === 0 || !isAligned(count, this.alignment)) break;
    }
    return done;
  }

  /** One block of the file to `bounce` at `place`; zeroes past the end of the file. */
  async #readBlock(bounce: Uint8Array, place: number, at: number): Promise<void> {
    const block = bounce.subarray(place, place + this.alignment);
    block.fill(0, await this.#readBlocks(block, at));
  }

  /** Lends `length` bytes of aligned memory, which hold old bytes. */
  async #withBounce<T>(length: number, work: (bounce: Uint8Array) => Promise<T>): Promise<T> {
    const size = length <= SMALL ? SMALL : LARGE;
    const idle = this.#idle.get(size) ?? [];
    const bounce = idle.pop() ?? native().alignedBuffer(size, this.alignment);
    try {
      return await work(bounce.subarray(0, length));
    } finally {
      if (idle.length < KEPT) idle.push(bounce);
    }
  }
}
