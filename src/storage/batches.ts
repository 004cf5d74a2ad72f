import { isAligned } from '../core/align.ts';
import { native } from '../native/binding.ts';

/** Bytes up to which a request is small: copying more takes as long as a turn of the thread pool of its own. */
const SMALL = 16 * 1024;
/** Bytes of one batch. */
const ROOM = 128 * 1024;

/** How many requests go to the kernel, and in which company. */
interface Lanes {
  /** Batches in flight at most. */
  readonly lanes: number;
  /** Requests of one batch at most. */
  readonly most: number;
  /** The device sees those of a batch at once. */
  readonly together: boolean;
}

/** Past the page cache the device is to have many at a time; what is left over of a queue goes to the free lanes. */
const WIDE: Lanes = { lanes: 4, most: 32, together: true };
/** Writes to the page cache of one file exclude each other: while one batch is written, the next is there already. */
const NARROW: Lanes = { lanes: 2, most: 32, together: false };

/** A request that waits for its turn. */
interface Waiting {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly settle: (whole: boolean) => void;
}

/**
 * Small reads and writes of a descriptor, handed over many in a call: a turn of the thread pool for each takes longer than
 * the work. Those that are asked for within one turn of the event loop go together.
 */
export class Batches {
  readonly #reads: Queue;
  readonly #writes: Queue;
  readonly #unit: number;

  /** `alignment`: that of a descriptor which bypasses the page cache; undefined for one that does not. */
  constructor(fd: number, alignment: number | undefined) {
    this.#unit = alignment ?? 1;
    const memory = (): Uint8Array =>
      alignment === undefined ? new Uint8Array(ROOM) : native().alignedBuffer(ROOM, alignment);
    this.#reads = new Queue(fd, false, WIDE, memory);
    this.#writes = new Queue(fd, true, alignment === undefined ? NARROW : WIDE, memory);
  }

  /** Whether a request is one for here: small, and in whole units. */
  takes(at: number, length: number): boolean {
    return length > 0 && length <= SMALL && isAligned(at, this.#unit) && isAligned(length, this.#unit);
  }

  /** Fills `into` from `at`; whether it did. One that is alone is left to the caller, as are those that failed. */
  read(into: Uint8Array, at: number): Promise<boolean> {
    return new Promise((settle) => {
      this.#reads.add(into, at, settle);
    });
  }

  /** Writes `from` at `at`; told whether all of it was. If not, some may be, and the caller writes as usual. */
  write(from: Uint8Array, at: number, settle: (whole: boolean) => void): void {
    this.#writes.add(from, at, settle);
  }
}

class Queue {
  readonly #fd: number;
  readonly #write: boolean;
  readonly #how: Lanes;
  readonly #memory: () => Uint8Array;
  readonly #idle: Uint8Array[] = [];
  #waiting: Waiting[] = [];
  #busy = 0;
  #called = false;

  constructor(fd: number, write: boolean, how: Lanes, memory: () => Uint8Array) {
    this.#fd = fd;
    this.#write = write;
    this.#how = how;
    this.#memory = memory;
  }

  add(bytes: Uint8Array, at: number, settle: (whole: boolean) => void): void {
    this.#waiting.push({ bytes, at, settle });
    if (this.#called || this.#busy >= this.#how.lanes) return;
    this.#called = true;
    process.nextTick(() => {
      this.#called = false;
      this.#send();
    });
  }

  /** Hands over what waits, evenly to the lanes that are free. */
  #send(): void {
    const { lanes, most } = this.#how;
    while (this.#busy < lanes && this.#waiting.length > 0) {
      const share = Math.ceil(this.#waiting.length / (lanes - this.#busy));
      void this.#run(this.#take(Math.min(share, most)));
    }
  }

  /** The first `count` of those that wait, or as many as there is room for. */
  #take(count: number): Waiting[] {
    let [taken, room] = [0, ROOM];
    while (taken < count) {
      room -= this.#waiting[taken]?.bytes.length ?? 0;
      if (room < 0) break;
      taken++;
    }
    const rest = this.#waiting.slice(taken);
    const batch = this.#waiting;
    batch.length = taken;
    this.#waiting = rest;
    return batch;
  }

  async #run(batch: readonly Waiting[]): Promise<void> {
    const [only] = batch;
    if (batch.length === 1) {
      // Copying would be all that it gets out of this.
      only?.settle(false);
      return;
    }
    this.#busy++;
    const memory = this.#idle.pop() ?? this.#memory();
    const ranges = new Float64Array(batch.length * 2);
    let length = 0;
    for (const [index, { bytes, at }] of batch.entries()) {
      if (this.#write) memory.set(bytes, length);
      ranges[index * 2] = at;
      ranges[index * 2 + 1] = bytes.length;
      length += bytes.length;
    }
    let left: readonly number[] | undefined;
    try {
      const part = memory.subarray(0, length);
      left = await native().runBatch(this.#fd, this.#write, ranges, part, this.#how.together);
      this.#idle.push(memory);
    } catch {
      // Each is done again alone, and tells. The memory is not used again.
    }
    this.#busy--;
    if (!this.#write && left !== undefined) {
      let from = 0;
      for (const { bytes } of batch) {
        bytes.set(memory.subarray(from, from + bytes.length));
        from += bytes.length;
      }
    }
    // The thread gets its next work before JavaScript hears of this.
    this.#send();
    for (const [index, { settle }] of batch.entries()) settle(left !== undefined && !left.includes(index));
  }
}
