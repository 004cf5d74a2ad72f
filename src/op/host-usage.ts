import type { AllocationPolicy } from '../core/allocation.ts';
import type { HostExtent } from '../core/extent.ts';
import type { Storage } from '../core/storage.ts';
import { stopIfAborted } from '../core/working.ts';
import type { Image } from '../format/image.ts';

/** How the bytes of a disk lie on the host. All figures in bytes of the guest's disk, so they add up to `size`. */
export interface HostUsage {
  /** Virtual size. */
  readonly size: number;
  /** Not mapped by the format: no place on the host (qcow2), or none in this layer. */
  readonly unmapped: number;
  /** On written blocks. */
  readonly written: number;
  /** On blocks that are reserved and not written yet. */
  readonly unwritten: number;
  /** Written, but without blocks until the host writes them back. */
  readonly delayed: number;
  /** Mapped by the format, but a hole of the file. */
  readonly hole: number;
  /** Stored compressed; how many blocks that takes is not counted here. */
  readonly compressed: number;
  /** Of `written` and `unwritten`: on blocks shared with other files. */
  readonly shared: number;
  /** The policy that this looks like; `mixed` when it is none of the three, null for a disk of size 0. */
  readonly policy: AllocationPolicy | 'mixed' | null;
}

/** One run of guest bytes of one kind on the host. */
export interface HostRun {
  readonly length: number;
  readonly kind: 'unmapped' | 'hole' | 'compressed' | HostExtent['kind'];
  readonly shared: boolean;
}

/**
 * How the disk of `image` (this layer alone) lies on the host, by joining the format's tables with the file system's
 * extents. Null where the host cannot tell.
 * @throws SpindleError as reading the tables does
 */
export async function hostUsage(image: Image, signal?: AbortSignal): Promise<HostUsage | null> {
  const sum = { unmapped: 0, written: 0, unwritten: 0, delayed: 0, hole: 0, compressed: 0 };
  let shared = 0;
  const reserved = new ReservedSpace(await firstWriteUnit(image));
  const runs = hostRuns(image, 0, image.size);
  if (runs === null) return null;
  for await (const run of runs) {
    stopIfAborted(signal);
    sum[run.kind] += run.length;
    if (run.shared) shared += run.length;
    reserved.add(run);
  }
  const policy = policyOf({ size: image.size, ...sum }, reserved.total);
  return { size: image.size, ...sum, shared, policy };
}

/** Bytes that a first write may allocate though it writes only a part of them: the rest is unwritten. */
async function firstWriteUnit(image: Image): Promise<number> {
  const { data, granularity } = image.driver;
  return Math.max(granularity, (await data.extentSizeHint?.()) ?? 0);
}

/** Sums up the unwritten space that no first write leaves behind: runs of at least two units. */
class ReservedSpace {
  total = 0;
  readonly #unit: number;
  #run = 0;

  constructor(unit: number) {
    this.#unit = unit;
  }

  add({ kind, length }: HostRun): void {
    if (kind !== 'unwritten') {
      this.#run = 0;
      return;
    }
    const before = this.#run;
    this.#run += length;
    if (this.#run >= 2 * this.#unit) this.total += before >= 2 * this.#unit ? length : this.#run;
  }
}

type Sums = Omit<HostUsage, 'shared' | 'policy'>;

/**
 * The policy that the figures show. Thin: space is missing, and none is reserved but what first writes left unwritten
 * beside them (`reserved` counts the rest). Thick-lazy: all has its space, some of it unwritten. Thick-eager: all is
 * written, which a thin disk that was filled cannot be told from.
 */
export function policyOf(sums: Sums, reserved = sums.unwritten): HostUsage['policy'] {
  const missing = sums.unmapped + sums.hole + sums.compressed;
  if (sums.size === 0) return null;
  // A raw file of odd length lacks the rest of its last sector, whatever its policy.
  if (missing < 512) return sums.unwritten > 0 ? 'thick-lazy' : 'thick-eager';
  return reserved > 0 ? 'mixed' : 'thin';
}

/** Guest bytes mapped by one question to the host. */
const WINDOW = 1024 ** 3;

/** The runs of the range in order, or null where the host cannot tell. */
export function hostRuns(image: Image, at: number, length: number): AsyncGenerator<HostRun> | null {
  return image.driver.data.hostExtents === undefined ? null : walk(image, at, length);
}

async function* walk(image: Image, at: number, length: number): AsyncGenerator<HostRun> {
  const end = at + length;
  const answers = new ExtentWindow(image.driver.data);
  while (at < end) {
    const answer = image.driver.map(at, end - at);
    const mapping = answer instanceof Promise ? await answer : answer;
    at += mapping.length;
    const host = mapping.kind === 'data' ? mapping.at : 'reserved' in mapping ? mapping.reserved : undefined;
    if (mapping.kind === 'compressed') yield { length: mapping.length, kind: 'compressed', shared: false };
    else if (host === undefined) yield { length: mapping.length, kind: 'unmapped', shared: false };
    else yield* answers.runs(host, mapping.length);
  }
}

/** Asks the host for its extents a window at a time: a fragmented image must not cost a question for each cluster. */
class ExtentWindow {
  readonly #storage: Storage;
  #at = 0;
  #end = 0;
  #extents: HostExtent[] = [];

  constructor(storage: Storage) {
    this.#storage = storage;
  }

  async *runs(at: number, length: number): AsyncGenerator<HostRun> {
    const end = at + length;
    while (at < end) {
      if (at >= this.#storage.size) {
        yield { length: end - at, kind: 'hole', shared: false };
        return;
      }
      if (at < this.#at || at >= this.#end) await this.#load(at);
      const stop = Math.min(end, this.#end);
      for (const run of this.#within(at, stop)) yield run;
      at = stop;
    }
  }

  async #load(at: number): Promise<void> {
    this.#at = at;
    this.#end = Math.min(this.#storage.size, at + WINDOW);
    this.#extents = (await this.#storage.hostExtents?.(at, this.#end - at)) ?? [];
  }

  *#within(at: number, end: number): Generator<HostRun> {
    for (let next = this.#firstAfter(at); at < end; next++) {
      const extent = this.#extents[next];
      if (extent === undefined || extent.offset >= end) {
        yield { length: end - at, kind: 'hole', shared: false };
        return;
      }
      if (extent.offset > at) {
        yield { length: extent.offset - at, kind: 'hole', shared: false };
        at = extent.offset;
      }
      const stop = Math.min(end, extent.offset + extent.length);
      yield { length: stop - at, kind: extent.kind, shared: extent.shared };
      at = stop;
    }
  }

  /** Index of the first extent that ends after an offset. The places that a format maps lie in any order. */
  #firstAfter(at: number): number {
    let [low, high] = [0, this.#extents.length];
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      const { offset, length } = this.#extents[middle] as HostExtent;
      if (offset + length <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
