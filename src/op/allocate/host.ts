import { reservable } from '../../core/allocation.ts';
import { isSpindleError } from '../../core/errors.ts';
import { ExtentFlag } from '../../core/extent.ts';
import type { Storage } from '../../core/storage.ts';
import { stopIfAborted } from '../../core/working.ts';
import { native } from '../../native/binding.ts';
import { FileStorage } from '../../storage/file.ts';

/** Bytes read and written at once. */
const CHUNK = 2 * 1024 * 1024;

/** Bytes about which the host is asked at once, and between two looks at the signal. */
const WINDOW = 256 * 1024 * 1024;

/** Zeroes are looked for in units of this many bytes: the block of most file systems. */
export const UNIT = 4096;

/** Bytes that work moved, or would move. */
export interface Tally {
  /** Read, to look for zeroes or to write it elsewhere. */
  read: number;
  /** Written: zeroes, and data that gets another place. */
  written: number;
  /** Reserved for later writes. */
  reserved: number;
  /** Given back. */
  freed: number;
}

/** What the host has under a run of bytes. `unknown`: it does not tell. */
interface Piece {
  readonly at: number;
  readonly length: number;
  readonly kind: 'hole' | 'unwritten' | 'written' | 'unknown';
}

/**
 * Changes what the host holds under the bytes of a file or device, and never the bytes: they are what they were at every
 * moment. Nobody else may use the storage. Counts what is done; without `acts` it only counts.
 */
export class HostSpace {
  readonly storage: Storage;
  readonly tally: Tally;
  readonly #acts: boolean;
  readonly #signal: AbortSignal | undefined;

  constructor(storage: Storage, tally: Tally, acts: boolean, signal?: AbortSignal) {
    this.storage = storage;
    this.tally = tally;
    this.#acts = acts;
    this.#signal = signal;
  }

  /** Gives every byte of a range its space, by zeroes where nothing can be reserved. @throws SpindleError NO_SPACE, UNSUPPORTED, ABORTED */
  async reserve(at: number, length: number): Promise<void> {
    if (isDevice(this.storage)) return;
    for await (const piece of this.#pieces(at, length)) {
      if (piece.kind === 'hole' || piece.kind === 'unknown') {
        if (!this.#acts || (await this.#canReserve(piece))) this.tally.reserved += piece.length;
        else await this.writeOut(piece.at, piece.length);
      }
    }
  }

  /** Reserves it; false: the file system cannot. */
  async #canReserve({ at, length }: Piece): Promise<boolean> {
    try {
      await reservable(this.storage).reserve(at, length, true);
      return true;
    } catch (error) {
      if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
      return false;
    }
  }

  /**
   * Has every byte of a range on written blocks: zeroes are written where there are none. What the kernel still has in
   * memory for such blocks counts: it is written as it is.
   * @throws SpindleError NO_SPACE, UNSUPPORTED, ABORTED
   */
  async writeOut(at: number, length: number): Promise<void> {
    for await (const piece of this.#pieces(at, length)) {
      if (piece.kind === 'written') continue;
      for (let done = 0; done < piece.length;) {
        const run = await this.#extent(piece.at + done, piece.length - done);
        if (run.hole) await this.#writeZeroes(run.at, run.length);
        else if (piece.kind !== 'unknown') await this.#rewrite(run.at, run.length);
        else if (await this.#mayHideHoles()) {
          const zeroes = new JoinedRuns((from, to) => this.#writeZeroes(from, to - from));
          await this.#zeroRuns(run.at, run.length, UNIT, zeroes);
          await zeroes.end();
        }
        done += run.length;
      }
    }
  }

  /** Gives back the blocks of a range that hold nothing but zeroes, `unit` bytes at least. @throws SpindleError UNSUPPORTED, ABORTED */
  async punchZeroes(at: number, length: number, unit: number): Promise<void> {
    const joined = new JoinedRuns((from, to) => this.punch(from, to - from));
    for await (const piece of this.#pieces(at, length)) {
      for (let done = 0; done < piece.length;) {
        const run = await this.#extent(piece.at + done, piece.length - done);
        done += run.length;
        if (!run.hole) await this.#zeroRuns(run.at, run.length, unit, joined);
        else if (piece.kind !== 'hole') await joined.add(run.at, run.at + run.length);
      }
    }
    await joined.end();
  }

  /** Reads a range, and tells its runs of zeroes. */
  async #zeroRuns(at: number, length: number, unit: number, zero: JoinedRuns): Promise<void> {
    const end = at + length;
    for (let from = at; from < end;) {
      stopIfAborted(this.#signal);
      // Units count from the start of the file.
      const to = Math.min(end, Math.floor(from / CHUNK) * CHUNK + CHUNK);
      const bytes = new Uint8Array(to - from);
      await this.storage.read(bytes, from);
      this.tally.read += bytes.length;
      const units = native().zeroUnits(bytes, unit);
      for (let i = 0; i < units.length; i++)
        if (units[i] === 1) await zero.add(from + i * unit, Math.min(to, from + (i + 1) * unit));
      from = to;
    }
  }

  /**
   * Gives the blocks of a range back, which reads as zeroes, or which nobody reads.
   * @throws SpindleError UNSUPPORTED
   */
  async punch(at: number, length: number): Promise<void> {
    const { storage } = this;
    const there = Math.min(length, storage.size - at);
    if (there <= 0) return;
    if (!this.#acts) this.tally.freed += await this.held(at, there);
    else if (!(storage instanceof FileStorage)) await storage.discard(at, there);
    else if (isDevice(storage)) await storage.zero(at, there, { fastOnly: true });
    else await storage.punch(at, there);
  }

  /** Bytes of blocks under a range; all of it where the host does not tell. */
  async held(at: number, length: number): Promise<number> {
    let sum = 0;
    for await (const piece of this.#pieces(at, length)) if (piece.kind !== 'hole') sum += piece.length;
    return sum;
  }

  async *#pieces(at: number, length: number): AsyncGenerator<Piece> {
    const end = Math.min(at + length, this.storage.size);
    for (let from = at; from < end;) {
      stopIfAborted(this.#signal);
      const to = Math.min(end, from + WINDOW);
      if (this.storage.hostExtents === undefined) yield { at: from, length: to - from, kind: 'unknown' };
      else {
        let done = from;
        for (const extent of await this.storage.hostExtents(from, to - from)) {
          if (extent.offset > done) yield { at: done, length: extent.offset - done, kind: 'hole' };
          const kind = extent.kind === 'unwritten' ? 'unwritten' : 'written';
          yield { at: extent.offset, length: extent.length, kind };
          done = extent.offset + extent.length;
        }
        if (done < to) yield { at: done, length: to - done, kind: 'hole' };
      }
      from = to;
    }
  }

  /** The first run of holes (or of blocks that were never written), or of data. */
  async #extent(at: number, length: number): Promise<{ at: number; length: number; hole: boolean }> {
    if (!this.storage.can.extents) return { at, length, hole: false };
    const extent = await this.storage.extent(at, length);
    return { at, length: extent.length, hole: (extent.flags & ExtentFlag.ZERO) !== 0 };
  }

  /**
   * Whether what the host calls data may be holes: it tells of none at all, or has fewer blocks than the file is long.
   * NFS before 4.2 and FUSE file systems call all of a file data.
   */
  async #mayHideHoles(): Promise<boolean> {
    const { storage } = this;
    return !storage.can.extents || ((await storage.allocatedSize?.()) ?? 0) < storage.size;
  }

  async #writeZeroes(at: number, length: number): Promise<void> {
    this.tally.written += length;
    if (!this.#acts) return;
    const target = reservable(this.storage);
    for (let done = 0; done < length; done += WINDOW) {
      stopIfAborted(this.#signal);
      await target.writePhysicalZeroes(at + done, Math.min(WINDOW, length - done));
    }
  }

  /** Writes what is there where it is. */
  async #rewrite(at: number, length: number): Promise<void> {
    for (let done = 0; done < length; done += CHUNK) {
      stopIfAborted(this.#signal);
      const bytes = new Uint8Array(Math.min(CHUNK, length - done));
      this.tally.read += bytes.length;
      this.tally.written += bytes.length;
      if (!this.#acts) continue;
      await this.storage.read(bytes, at + done);
      await this.storage.write(bytes, at + done);
    }
  }
}

/** A device has its space. */
export function isDevice(storage: Storage): boolean {
  return storage instanceof FileStorage && storage.isDevice;
}

/** Hands on runs, neighbours as one. */
class JoinedRuns {
  readonly #work: (from: number, to: number) => Promise<void>;
  #from = 0;
  #to = 0;

  constructor(work: (from: number, to: number) => Promise<void>) {
    this.#work = work;
  }

  async add(from: number, to: number): Promise<void> {
    if (this.#to === from) this.#to = to;
    else {
      await this.end();
      this.#from = from;
      this.#to = to;
    }
  }

  async end(): Promise<void> {
    if (this.#from < this.#to) await this.#work(this.#from, this.#to);
    this.#from = this.#to;
  }
}
