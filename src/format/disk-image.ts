import { alignDown, alignUp } from '../core/align.ts';
import { SpindleError } from '../core/errors.ts';
import { ExtentFlag, type Extent } from '../core/extent.ts';
import { RangeLock } from '../core/range-lock.ts';
import { readPadded } from '../core/read.ts';
import { checkRange, isWithin, type Storage, type StorageCan, type ZeroOptions } from '../core/storage.ts';
import type {
  ClusterStream,
  DataMapping,
  FormatDriver,
  FreshPlace,
  Mapping,
  Place,
  ResizeOptions,
} from './driver.ts';
import { checkWhole, together, type FilledPlace } from './fill.ts';
import type { Image } from './image.ts';
import { atOnce, readNow } from './at-once.ts';
import { blockStatus, type BlockStatus } from './status.ts';

/** Bytes of zeroes that are written at once. */
const ZEROES = 1024 * 1024;

/**
 * The executor: walks the backing chain and moves the bytes that the drivers locate. Closing it closes the storages
 * that it was given, and the images below.
 */
export class DiskImage implements Image {
  readonly driver: FormatDriver;
  readonly storage: Storage;
  readonly backing: Image | null;
  readonly name: string | undefined;
  readonly #lock = new RangeLock();
  /**
   * Whether guest data may move to another place while the image is open: then reading and changing the same range
   * must exclude each other, or a reader could look where somebody else's data is by now.
   */
  readonly #moves: boolean;
  #closed = false;

  /** An error of this layer with the name of its image. */
  readonly #named = (error: unknown): unknown => {
    if (error instanceof SpindleError) error.path ??= this.name;
    return error;
  };

  constructor(driver: FormatDriver, storage: Storage, backing: Image | null, name?: string) {
    this.driver = driver;
    this.storage = storage;
    this.backing = backing;
    this.name = name;
    this.#moves = driver.can.write && driver.granularity > 1;
  }

  get format(): string {
    return this.driver.format;
  }

  get size(): number {
    return this.driver.size;
  }

  get can(): StorageCan {
    return this.driver.can;
  }

  read(into: Uint8Array, at: number): Promise<void> {
    if (this.readNow(into, at)) return Promise.resolve();
    return (
      this.#atOnce(at, into.length, 'read', (place) => place.storage.read(into, place.at)) ??
      this.#readLater(into, at)
    );
  }

  /** Begins a request that needs nothing but one place; undefined where it is not as simple, or not its turn. */
  #atOnce(
    at: number,
    length: number,
    way: 'read' | 'write',
    work: (place: Place) => Promise<void>,
  ): Promise<void> | undefined {
    if (this.#closed || length === 0 || !isWithin(this.size, at, length)) return undefined;
    const { driver } = this;
    return atOnce({ driver, lock: this.#moves ? this.#lock : null }, { at, length, way }, work, this.#named);
  }

  readNow(into: Uint8Array, at: number): boolean {
    if (this.#closed || !isWithin(this.size, at, into.length)) return false;
    if (this.#moves && !this.#lock.isFree(at, into.length, 'shared')) return false;
    return readNow(this.driver, this.backing, into, at);
  }

  async #readLater(into: Uint8Array, at: number): Promise<void> {
    this.#check(at, into.length);
    if (!this.#moves) await this.#read(into, at);
    else await this.#lock.run(at, into.length, 'shared', () => this.#read(into, at));
  }

  async #read(into: Uint8Array, at: number): Promise<void> {
    // Every part is awaited, also after a failure: none may still write to `into` once this has settled.
    const parts: Promise<void>[] = [];
    let failure: { readonly reason: unknown } | undefined;
    try {
      for (let done = 0; done < into.length;) {
        const answer = this.driver.map(at + done, into.length - done);
        const mapping = answer instanceof Promise ? await answer : answer;
        const part = into.subarray(done, done + mapping.length);
        const fetching = this.#fetch(mapping, part, at + done);
        if (fetching !== null) parts.push(fetching);
        done += mapping.length;
      }
    } catch (error) {
      failure = { reason: error };
    }
    for (const result of await Promise.allSettled(parts)) {
      if (result.status === 'rejected') failure ??= { reason: result.reason };
    }
    if (failure !== undefined) throw this.#named(failure.reason);
  }

  /** Fills `part` from where its mapping says; null when that is done already. */
  #fetch(mapping: Mapping, part: Uint8Array, at: number): Promise<void> | null {
    switch (mapping.kind) {
      case 'data':
        return readPadded(mapping.storage, part, mapping.at);
      case 'backing':
        if (this.backing !== null) return readPadded(this.backing, part, at);
        part.fill(0);
        return null;
      case 'zero':
        part.fill(0);
        return null;
      case 'compressed':
        return this.driver.readCompressed(part, at);
    }
  }

  write(from: Uint8Array, at: number): Promise<void> {
    const begun =
      this.can.write &&
      this.#atOnce(at, from.length, 'write', (place) => place.storage.write(from, place.at));
    return begun || this.#writeLater(from, at);
  }

  async #writeLater(from: Uint8Array, at: number): Promise<void> {
    this.#checkChange(at, from.length);
    await this.#exclusive(at, from.length, () => this.#write(from, at));
  }

  /**
   * Begins a write: resolves when all of its bytes have their places, so that writes begun one after the other make the
   * same image however long each takes. `done` is that of {@link write}; `from` must not change until it settles.
   * @throws SpindleError as write; then `done` need not be waited for
   */
  async beginWrite(from: Uint8Array, at: number): Promise<{ readonly done: Promise<void> }> {
    this.#checkChange(at, from.length);
    let placed: () => void = () => undefined;
    const settled = new Promise<void>((resolve) => {
      placed = resolve;
    });
    const done = this.#exclusive(at, from.length, async () => {
      const fills: Promise<void>[] = [];
      try {
        for (let part = 0; part < from.length;) {
          const place = await this.driver.ensureData(at + part, from.length - part);
          fills.push(this.#fillPlace(place, from.subarray(part, part + place.length), at + part));
          part += place.length;
        }
        placed();
      } finally {
        // None may go on with `from` after this.
        await Promise.allSettled(fills);
      }
      await Promise.all(fills);
    });
    done.catch(() => undefined);
    await Promise.race([settled, done]);
    return { done };
  }

  /**
   * Begins to fill whole units of the format, in ascending order, that `fill` brings to their places: resolves when all
   * have them, as for {@link beginWrite}. The last unit may end with the disk.
   * @throws SpindleError as write, and as `fill`; then `done` need not be waited for
   */
  async beginFill(
    ranges: readonly { readonly at: number; readonly length: number }[],
    fill: (places: readonly FilledPlace[]) => Promise<void>,
  ): Promise<{ readonly done: Promise<void> }> {
    const [first, last] = [ranges[0], ranges.at(-1)];
    if (first === undefined || last === undefined) return { done: Promise.resolve() };
    const span = last.at + last.length - first.at;
    this.#checkChange(first.at, span);
    let placed: () => void = () => undefined;
    const settled = new Promise<void>((resolve) => {
      placed = resolve;
    });
    const done = this.#exclusive(first.at, span, async () => {
      const places: FilledPlace[] = [];
      let linked = 0;
      try {
        for (const { at, length } of ranges) await this.driver.record?.(at, length);
        await together(this.driver, async (ensureData) => {
          for (const { at, length } of ranges) {
            for (let part = 0; part < length;) {
              const { storage, at: to, length: size, fresh } = await ensureData(at + part, length - part);
              places.push({ storage, at: to, length: size, guest: at + part, ...(fresh && { fresh }) });
              part += size;
            }
          }
        });
        placed();
        places.forEach(checkWhole);
        await fill(places);
        for (const { storage, at, length, fresh } of places)
          if (fresh !== undefined && fresh.padding > 0 && !fresh.clean)
            await storage.write(new Uint8Array(fresh.padding), at + length);
        await together(this.driver, async (_ensureData, commit) => {
          for (const { fresh } of places) {
            if (fresh !== undefined) await commit(fresh);
            linked++;
          }
        });
      } catch (error) {
        for (const { fresh } of places.slice(linked)) await fresh?.abandon();
        throw error;
      }
    });
    done.catch(() => undefined);
    await Promise.race([settled, done]);
    return { done };
  }

  async #write(from: Uint8Array, at: number): Promise<void> {
    for (let done = 0; done < from.length;) done += await this.#writeSome(from.subarray(done), at + done);
  }

  async writeCompressed(from: Uint8Array, at: number): Promise<void> {
    this.#check(at, from.length);
    const { driver, name } = this;
    if (!driver.can.write) throw new SpindleError('READ_ONLY', 'opened for reading only', { path: name });
    if (driver.writeCompressed === undefined) {
      throw new SpindleError('UNSUPPORTED', `${driver.format} has no compressed data`, { path: name });
    }
    await this.#exclusive(at, from.length, async () => {
      await driver.writeCompressed?.(from, at, (part, where) => this.#write(part, where));
    });
  }

  /**
   * Stores clusters that were compressed as the driver's `packing` says, in ascending order.
   * @throws SpindleError UNSUPPORTED, BAD_OPTION, and as write
   */
  async writeStreams(streams: readonly ClusterStream[]): Promise<void> {
    const { driver } = this;
    const [first, last] = [streams[0], streams.at(-1)];
    if (first === undefined || last === undefined) return;
    const length = Math.min(this.size, last.at + driver.granularity) - first.at;
    this.#checkChange(first.at, length);
    if (driver.writeStreams === undefined)
      throw new SpindleError('UNSUPPORTED', `${driver.format} has no compressed data`, { path: this.name });
    await this.#exclusive(first.at, length, async () => driver.writeStreams?.(streams));
  }

  /**
   * Makes room for whole units of the format at `at`, and has `fill` bring the start of the range to a place in a
   * storage. How many bytes that was; 0 where `fill` gave up, or units would have been cut, which changes nothing.
   */
  async fillFrom(
    at: number,
    length: number,
    fill: (storage: Storage, at: number, length: number) => Promise<boolean>,
  ): Promise<number> {
    this.#checkChange(at, length);
    let filled = 0;
    await this.#exclusive(at, length, async () => {
      const place = await this.driver.ensureData(at, length);
      const { fresh } = place;
      const alone =
        fresh === undefined || (fresh.start === at && fresh.end === at + place.length && fresh.padding === 0);
      let done = false;
      try {
        done = alone && (await fill(place.storage, place.at, place.length));
      } finally {
        if (!done) await fresh?.abandon();
      }
      if (!done) return;
      await fresh?.commit();
      filled = place.length;
    });
    return filled;
  }

  async zero(at: number, length: number, how: ZeroOptions = {}): Promise<void> {
    this.#checkChange(at, length);
    await this.#exclusive(at, length, async () => {
      const { start, end } = this.#whole(at, length);
      if (how.fastOnly === true) {
        await this.#refuseSlow(at, start - at, how);
        await this.#refuseSlow(end, at + length - end, how);
      }
      await this.driver.record?.(at, length);
      if (start < end && (await this.driver.zero(start, end - start, how))) {
        await this.#writeZeroes(at, start - at, how);
        await this.#writeZeroes(end, at + length - end, how);
      } else await this.#writeZeroes(at, length, how);
    });
  }

  /**
   * Makes whole units of the format read as zeroes whatever comes to lie below, though they may read so already. False
   * where the format has no way to say so: then zeroes have to be written.
   */
  async cover(at: number, length: number): Promise<boolean> {
    this.#checkChange(at, length);
    let covered = true;
    await this.#exclusive(at, length, async () => {
      covered = await this.driver.zero(at, length, { keepAllocated: true });
    });
    return covered;
  }

  async discard(at: number, length: number): Promise<void> {
    this.#checkChange(at, length);
    await this.#exclusive(at, length, async () => {
      const { start, end } = this.#whole(at, length);
      await this.driver.record?.(at, length);
      if (start < end) await this.driver.discard(start, end - start);
    });
  }

  /** The part of a range that is made of whole units of the format, the last of which may end with the disk. */
  #whole(at: number, length: number): { readonly start: number; readonly end: number } {
    const unit = this.driver.granularity;
    const start = alignUp(at, unit);
    const end = at + length === this.size ? this.size : alignDown(at + length, unit);
    return { start: Math.min(start, at + length), end: Math.max(end, Math.min(start, at + length)) };
  }

  /** Runs `work` while nobody else reads or changes the units of the format that a range touches. */
  async #exclusive(at: number, length: number, work: () => Promise<void>): Promise<void> {
    if (length === 0) return;
    const unit = this.driver.granularity;
    const start = alignDown(at, unit);
    const run = (): Promise<void> =>
      work().catch((error: unknown) => {
        throw this.#named(error);
      });
    if (!this.#moves) await run();
    else await this.#lock.run(start, alignUp(at + length, unit) - start, 'exclusive', run);
  }

  /** Writes the start of `from`; returns how much. */
  async #writeSome(from: Uint8Array, at: number): Promise<number> {
    const place = await this.driver.ensureData(at, from.length);
    await this.#fillPlace(place, from.subarray(0, place.length), at);
    return place.length;
  }

  async #fillPlace(place: DataMapping, data: Uint8Array, at: number): Promise<void> {
    if (place.fresh === undefined) return place.storage.write(data, place.at);
    try {
      await this.#fill(place, place.fresh, data, at);
    } catch (error) {
      await place.fresh.abandon();
      throw error;
    }
    await place.fresh.commit();
  }

  /** Writes new clusters: the data, and around it what the guest range held up to now. */
  async #fill(place: DataMapping, fresh: FreshPlace, data: Uint8Array, at: number): Promise<void> {
    const head = at - fresh.start;
    const tail = fresh.end - at - data.length;
    const alone = head === 0 && tail === 0 && fresh.padding === 0;
    if (alone || (fresh.blank && fresh.clean)) {
      await place.storage.write(data, place.at);
      return;
    }
    const whole = new Uint8Array(fresh.end - fresh.start + fresh.padding);
    if (!fresh.blank) {
      if (head > 0) await this.#read(whole.subarray(0, head), fresh.start);
      if (tail > 0)
        await this.#read(whole.subarray(head + data.length, head + data.length + tail), at + data.length);
    }
    whole.set(data, head);
    await place.storage.write(whole, place.at - head);
  }

  /** Whether a run has to be written to for it to be what {@link zero} promises. */
  #needsZeroes(status: BlockStatus, how: ZeroOptions): boolean {
    return !status.zero || (how.keepAllocated === true && !status.allocated);
  }

  /** @throws SpindleError UNSUPPORTED when a part of a unit could only be zeroed by writing */
  async #refuseSlow(at: number, length: number, how: ZeroOptions): Promise<void> {
    for (let done = 0; done < length;) {
      const status = await blockStatus(this, at + done, length - done);
      if (this.#needsZeroes(status, how)) throw slowZero();
      done += status.length;
    }
  }

  /** Writes zeroes one by one where the range does not read as zeroes anyway. */
  async #writeZeroes(at: number, length: number, how: ZeroOptions): Promise<void> {
    for (let done = 0; done < length;) {
      const status = await blockStatus(this, at + done, length - done);
      if (this.#needsZeroes(status, how)) {
        if (how.fastOnly === true) {
          throw slowZero();
        }
        const zeroes = new Uint8Array(Math.min(status.length, ZEROES));
        for (let part = 0; part < status.length;) {
          const rest = zeroes.subarray(0, Math.min(zeroes.length, status.length - part));
          part += await this.#writeSome(rest, at + done + part);
        }
      }
      done += status.length;
    }
  }

  async extent(at: number, length: number): Promise<Extent> {
    this.#check(at, length);
    if (length === 0) return { offset: at, length: 0, flags: 0 };
    const status = await blockStatus(this, at, length);
    const flags =
      (status.allocated ? 0 : ExtentFlag.HOLE) |
      (status.zero ? ExtentFlag.ZERO : 0) |
      (status.compressed ? ExtentFlag.COMPRESSED : 0);
    return { offset: at, length: status.length, flags };
  }

  async resize(size: number, options: ResizeOptions = {}): Promise<void> {
    await this.alone(() =>
      this.driver.resize(size, {
        ...options,
        backingSize: this.backing?.size ?? 0,
        zero: (at, length) => this.#writeZeroes(at, length, {}),
      }),
    );
  }

  /** Runs `work` on the driver while nobody reads or changes any part of the disk. */
  async alone<T>(work: () => Promise<T>): Promise<T> {
    this.#check(0, 0);
    const run = (): Promise<T> =>
      work().catch((error: unknown) => {
        throw this.#named(error);
      });
    return this.#moves ? this.#lock.run(0, Infinity, 'exclusive', run) : run();
  }

  async flush(): Promise<void> {
    this.#check(0, 0);
    await this.driver.flush();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    // What runs still uses the storages.
    if (this.#moves) await this.#lock.run(0, Infinity, 'exclusive', () => Promise.resolve());
    const results = await Promise.allSettled([
      // Also where the driver could not write all: the file must not stay locked.
      this.driver.close().finally(() => this.storage.close()),
      this.backing?.close(),
    ]);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  #checkChange(at: number, length: number): void {
    this.#check(at, length);
    if (!this.can.write) {
      throw new SpindleError('READ_ONLY', 'the image is open for reading only', { path: this.name });
    }
  }

  #check(at: number, length: number): void {
    if (this.#closed) throw new SpindleError('CLOSED', 'the image is closed', { path: this.name });
    checkRange(this.size, at, length);
  }
}

function slowZero(): SpindleError {
  return new SpindleError('UNSUPPORTED', 'this range can only be zeroed by writing zeroes');
}
