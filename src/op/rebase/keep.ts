import { alignDown, alignUp } from '../../core/align.ts';
import { isZero, sameBytes } from '../../core/bytes.ts';
import { readPadded } from '../../core/read.ts';
import { stopIfAborted, type Working } from '../../core/working.ts';
import type { DiskImage } from '../../format/disk-image.ts';
import type { Image } from '../../format/image.ts';
import type { Geometry } from '../../format/qcow2/geometry.ts';
import { layerStatus } from '../../format/status.ts';
import { CHUNK } from '../copy/chunks.ts';
import { differing } from './differing.ts';
import { piecesOf, suspects, type Range, type Suspect } from './suspects.ts';

/** What was taken into an image so that its disk stays as it is. Bytes. */
export interface Kept {
  readonly copied: number;
  readonly zeroed: number;
}

/** How it is taken in. */
export interface KeepOptions extends Working {
  readonly compress?: boolean | undefined;
}

/** Pieces that are read ahead of the one being compared. */
const AHEAD = 3;

/**
 * Takes into the top layer of `image` what would read otherwise when `next` (null: nothing) takes the place of its
 * backing file. Compares whole clusters, or subclusters, and writes no smaller parts; so at any moment the disk reads as
 * it did over the old backing file. A fixed number of pieces is in memory.
 * @throws SpindleError ABORTED, and what reading and writing throw
 */
export async function keepDifferences(
  image: DiskImage,
  next: Image | null,
  { clusterSize, subclusterSize }: Geometry,
  options: KeepOptions,
): Promise<Kept> {
  const unit = options.compress === true ? clusterSize : subclusterSize;
  const job = new KeepJob(image, next, unit, options);
  await job.run();
  return job.kept;
}

class KeepJob {
  readonly #image: DiskImage;
  readonly #next: Image | null;
  readonly #unit: number;
  readonly #options: KeepOptions;
  readonly #idle: Uint8Array[] = [];
  #passed = 0;
  readonly kept = { copied: 0, zeroed: 0 };

  constructor(image: DiskImage, next: Image | null, unit: number, options: KeepOptions) {
    this.#image = image;
    this.#next = next;
    this.#unit = unit;
    this.#options = options;
  }

  async run(): Promise<void> {
    const { size } = this.#image;
    const queue: { readonly at: number; readonly read: Promise<readonly [Uint8Array, Uint8Array]> }[] = [];
    const step = async (): Promise<void> => {
      const first = queue.shift();
      if (first === undefined) return;
      const [old, other] = await first.read;
      await this.#compare(first.at, old, other);
      for (const bytes of [old, other]) this.#idle.push(new Uint8Array(bytes.buffer));
      this.#progress(first.at + old.length);
    };
    try {
      const ranges = differing(this.#suspects(), (at) => {
        this.#progress(at);
      });
      for await (const piece of piecesOf(ranges, this.#unit, size)) {
        const read = this.#read(piece);
        // Its turn comes later; until then a failure is nobody's.
        read.catch(() => undefined);
        queue.push({ at: piece.at, read });
        if (queue.length > AHEAD) await step();
      }
      while (queue.length > 0) await step();
    } finally {
      await Promise.allSettled(queue.map(({ read }) => read));
    }
    stopIfAborted(this.#options.signal);
    this.#progress(size);
  }

  /** What is known to be the same runs ahead of what is read and written. */
  #progress(at: number): void {
    this.#passed = Math.max(this.#passed, at);
    this.#options.onProgress?.(this.#passed, this.#image.size);
  }

  async *#suspects(): AsyncGenerator<Suspect> {
    for await (const range of suspects(this.#image, this.#next)) {
      stopIfAborted(this.#options.signal);
      yield range;
    }
  }

  /** What the disk reads now, and what `next` reads. */
  async #read({ at, length }: Range): Promise<readonly [Uint8Array, Uint8Array]> {
    const [old, other] = [this.#buffer(length), this.#buffer(length)] as const;
    const next = this.#next;
    const reads = [
      this.#image.read(old, at),
      next === null ? Promise.resolve(void other.fill(0)) : readPadded(next, other, at),
    ];
    const failed = (await Promise.allSettled(reads)).find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
    return [old, other];
  }

  #buffer(length: number): Uint8Array {
    return (this.#idle.pop() ?? new Uint8Array(CHUNK)).subarray(0, length);
  }

  async #compare(at: number, old: Uint8Array, other: Uint8Array): Promise<void> {
    const unit = this.#unit;
    const what = (from: number): 'same' | 'zero' | 'data' => {
      const part = old.subarray(from, from + unit);
      return sameBytes(part, other.subarray(from, from + unit)) ? 'same' : isZero(part) ? 'zero' : 'data';
    };
    for (let from = 0; from < old.length;) {
      const kind = what(from);
      let to = from + unit;
      while (to < old.length && what(to) === kind) to += unit;
      to = Math.min(to, old.length);
      if (kind !== 'same') await this.#keep(at + from, old.subarray(from, to), kind === 'zero');
      from = to;
    }
  }

  async #keep(at: number, bytes: Uint8Array, zero: boolean): Promise<void> {
    stopIfAborted(this.#options.signal);
    if (zero) this.kept.zeroed += bytes.length;
    else this.kept.copied += bytes.length;
    if (this.#options.compress === true) await this.#keepWhole(at, bytes, zero);
    else if (zero) await this.#zero(at, bytes);
    else await this.#image.write(bytes, at);
  }

  /** Whole clusters, of which the top layer may hold some subclusters already. */
  async #keepWhole(at: number, bytes: Uint8Array, zero: boolean): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      const here = at + done;
      const { length, allocated } = await layerStatus(this.#image, here, bytes.length - done);
      const last = here + length === at + bytes.length;
      const end = last ? here + length : alignDown(here + length, this.#unit);
      const whole = !allocated && here === alignDown(here, this.#unit) && end > here;
      const part = bytes.subarray(done, done + (whole ? end - here : Math.min(length, this.#unit)));
      done += part.length;
      if (allocated) continue;
      if (zero) await this.#zero(here, part);
      else if (whole) await this.#image.writeCompressed(part, here);
      else await this.#image.write(part, here);
    }
  }

  /** Zeroes that are written down, though the disk may read so already. */
  async #zero(at: number, zeroes: Uint8Array): Promise<void> {
    const { granularity } = this.#image.driver;
    const end = at + zeroes.length;
    const from = Math.min(end, alignUp(at, granularity));
    const to = end === this.#image.size ? end : Math.max(from, alignDown(end, granularity));
    if (from === to || !(await this.#image.cover(from, to - from))) {
      await this.#image.write(zeroes, at);
      return;
    }
    if (from > at) await this.#image.write(zeroes.subarray(0, from - at), at);
    if (end > to) await this.#image.write(zeroes.subarray(to - at), to);
  }
}
