import { alignDown } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import { ExtentFlag } from '../../core/extent.ts';
import { stopIfAborted } from '../../core/working.ts';
import type { DiskImage } from '../../format/disk-image.ts';
import type { Mapping } from '../../format/driver.ts';
import { Autoclear, CryptMethod, Incompatible } from '../../format/qcow2/layout.ts';
import type { Metadata } from '../../format/qcow2/metadata.ts';
import { spareSpace, tidy, vacate, type ByteRange } from '../../format/qcow2/write/vacate.ts';
import { Qcow2WriteDriver } from '../../format/qcow2/write/driver.ts';
import { native } from '../../native/binding.ts';
import type { Doing } from './flat.ts';
import { HostSpace, UNIT } from './host.ts';

/** Guest bytes looked at together: a multiple of every cluster size. */
const CHUNK = 2 * 1024 * 1024;

/** Runs of clusters after which tables are changed. */
const BATCH = 512;

/** A run of the disk that has a place on the host. */
interface Placed {
  readonly at: number;
  readonly length: number;
  readonly host: number;
  /** `below`: no data of this layer, and something lies below. */
  readonly kind: 'data' | 'zero' | 'below';
}

/** What a unit of the disk (a cluster or a part of one) is. */
const State = { DATA: 0, ZERO_DATA: 1, ZERO: 2, BELOW: 3 } as const;

/**
 * Gives back the space of a qcow2 image that holds nothing but zeroes: whole clusters lose their place, and what
 * keeps its place beside data, or for the format or an internal snapshot, becomes a hole of the file. Then free clusters become holes
 * and the file ends with what is in use. Compressed clusters stay. With `plan` the image may be open for reading only, and
 * nothing changes.
 * @throws SpindleError ENCRYPTED, UNSUPPORTED before anything is changed; ABORTED
 */
export async function thin(image: DiskImage, metadata: Metadata, doing: Doing): Promise<void> {
  await new Thinning(image, metadata, doing).run();
}

class Thinning {
  readonly #image: DiskImage;
  readonly #doing: Doing;
  readonly #metadata: Metadata;
  readonly #space: HostSpace;
  readonly #driver: Qcow2WriteDriver | null;
  readonly #encrypted: boolean;
  readonly #external: boolean;
  /** Places in the file may be taken away. */
  readonly #movable: boolean;
  /** Guest ranges of clusters that read as zeroes, or hold no data. */
  #empty: ByteRange[] = [];
  /** Guest ranges of clusters of which subclusters hold no data. */
  #partial: ByteRange[] = [];

  constructor(image: DiskImage, metadata: Metadata, doing: Doing) {
    this.#image = image;
    this.#doing = doing;
    this.#metadata = metadata;
    const { header } = metadata;
    this.#driver = image.driver instanceof Qcow2WriteDriver && !doing.plan ? image.driver : null;
    this.#space = new HostSpace(image.driver.data, doing.tally, this.#driver !== null, doing.signal);
    this.#encrypted = header.cryptMethod !== CryptMethod.NONE;
    this.#external = (header.incompatible.lo & Incompatible.DATA_FILE) !== 0;
    const raw = (header.autoclear.lo & Autoclear.DATA_FILE_RAW) !== 0;
    // In a data file a hole is enough, but for a cipher, under which holes are noise.
    this.#movable = !this.#external || (this.#encrypted && !raw);
  }

  async run(): Promise<void> {
    if (this.#driver?.locked === true)
      throw new SpindleError(
        'ENCRYPTED',
        'finding zeroes needs the data, which is encrypted, and no secret was given',
      );
    await (this.#driver === null ? this.#pass() : this.#driver.unseen(() => this.#pass()));
    await this.#apply();
    await this.#driver?.onTables(tidy);
    if (this.#driver !== null && this.#external) await this.#driver.data.flush();
  }

  async #pass(): Promise<void> {
    const { driver, size } = this.#image;
    for (let at = 0; at < size;) {
      stopIfAborted(this.#doing.signal);
      const limit = Math.min(size, alignDown(at, CHUNK) + CHUNK);
      const runs: Placed[] = [];
      let end = at;
      while (end < limit) {
        const mapping = await driver.map(end, (runs.length === 0 ? size : limit) - end);
        const placed = this.#placed(end, mapping, limit);
        if (placed === null) {
          if (runs.length === 0) end += mapping.length;
          break;
        }
        runs.push(placed);
        end += placed.length;
      }
      if (runs.length > 0) await this.#look(at, end, runs);
      at = end;
      this.#doing.onProgress?.(at, size);
      if (this.#empty.length + this.#partial.length >= BATCH) await this.#apply();
    }
  }

  #placed(at: number, mapping: Mapping, limit: number): Placed | null {
    const host = mapping.kind === 'data' ? mapping.at : 'reserved' in mapping ? mapping.reserved : undefined;
    if (host === undefined) return null;
    const below = mapping.kind === 'backing' && this.#image.backing !== null;
    const kind = mapping.kind === 'data' ? 'data' : below ? 'below' : 'zero';
    return { at, length: Math.min(mapping.length, limit - at), host, kind };
  }

  /** Looks at clusters that have a place: from guest offset `at` to `end`, which `runs` cover. */
  async #look(at: number, end: number, runs: readonly Placed[]): Promise<void> {
    const { clusterSize, subclusterSize, extendedL2 } = this.#metadata.geometry;
    // Parts of clusters become holes, but under a cipher, where holes are noise.
    const unit = this.#encrypted ? subclusterSize : Math.min(subclusterSize, UNIT);
    const states = new Uint8Array(Math.ceil((end - at) / unit));
    for (const run of runs) {
      const first = (run.at - at) / unit;
      if (run.kind === 'data') states.set(await this.#zeroUnits(run, unit), first);
      else
        states.fill(
          run.kind === 'zero' ? State.ZERO : State.BELOW,
          first,
          first + Math.ceil(run.length / unit),
        );
    }
    const perCluster = clusterSize / unit;
    for (let from = 0; from < states.length; from += perCluster) {
      const units = states.subarray(from, from + perCluster);
      const start = at + from * unit;
      const range = { at: start, length: Math.min(clusterSize, end - start) };
      const noData = units.every((state) => state >= State.ZERO);
      const empty = noData || units.every((state) => state === State.ZERO_DATA || state === State.ZERO);
      if (empty && this.#movable) {
        push(this.#empty, range);
        // The rest of the loop is about what keeps its place.
        states.fill(State.DATA, from, from + perCluster);
      } else if (extendedL2 && units.some((state) => state >= State.ZERO)) push(this.#partial, range);
    }
    if (!this.#encrypted) await this.#punchUnits(states, at, unit, runs);
  }

  /** Makes holes of units that hold zeroes as data; of a data file, of those too that are no data. */
  async #punchUnits(states: Uint8Array, start: number, unit: number, runs: readonly Placed[]): Promise<void> {
    for (const run of runs) {
      const end = run.at + run.length;
      const punched = (state: number | undefined): boolean =>
        state === State.ZERO_DATA || (this.#external && state !== State.DATA);
      for (let at = run.at; at < end;) {
        const first = (at - start) / unit;
        let last = first;
        while (start + last * unit < end && punched(states[last])) last++;
        const to = Math.min(end, start + Math.max(last, first + 1) * unit);
        if (last > first) await this.#space.punch(run.host + at - run.at, to - at);
        at = to;
      }
    }
  }

  /** One byte a unit of a run of data: 1 where it reads as zeroes. */
  async #zeroUnits(run: Placed, unit: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(run.length);
    const { data } = this.#image.driver;
    for (let done = 0; done < run.length;) {
      let length = run.length - done;
      let hole = false;
      // Under a cipher a hole is noise.
      if (!this.#encrypted && data.can.extents && run.host + done < data.size) {
        const host = run.host + done;
        const extent = await data.extent(host, Math.min(length, data.size - host));
        hole = (extent.flags & ExtentFlag.ZERO) !== 0;
        length = extent.length;
      }
      if (!hole) {
        await this.#image.read(bytes.subarray(done, done + length), run.at + done);
        this.#doing.tally.read += length;
      }
      done += length;
    }
    return native().zeroUnits(bytes, unit);
  }

  /** Changes the tables, and gives back what needs no change of them. */
  async #apply(): Promise<void> {
    const [empty, partial] = [this.#empty, this.#partial];
    this.#empty = [];
    this.#partial = [];
    if (this.#driver === null) await this.#count(empty);
    else if (empty.length > 0 || partial.length > 0) await this.#change(this.#driver, empty, partial);
  }

  async #change(
    driver: Qcow2WriteDriver,
    empty: readonly ByteRange[],
    partial: readonly ByteRange[],
  ): Promise<void> {
    const kept: ByteRange[] = [];
    // Under a cipher the data file keeps its bytes until the tables no longer point there.
    const spare: ByteRange[] = this.#external ? [...empty] : [];
    await driver.onTables(async (writer, whole) => {
      for (const range of await vacate(writer, whole, empty)) push(kept, range);
      if (partial.length > 0) spare.push(...(await spareSpace(writer, whole, partial)));
      await whole.flush();
    });
    for (const { at, length } of spare) await this.#space.punch(at, length);
    if (this.#encrypted) return;
    for (const range of kept)
      for await (const { host, length, kind } of this.#places(range))
        if (kind === 'data') await this.#space.punch(host, length);
  }

  /** The places of a guest range. */
  async *#places({ at, length }: ByteRange): AsyncGenerator<Placed> {
    const end = Math.min(at + length, this.#image.size);
    for (let here = at; here < end;) {
      const mapping = await this.#image.driver.map(here, end - here);
      const placed = this.#placed(here, mapping, end);
      if (placed !== null) yield placed;
      here += mapping.length;
    }
  }

  /** Counts what giving up clusters gives back. */
  async #count(empty: readonly ByteRange[]): Promise<void> {
    for (const range of empty)
      for await (const { host, length } of this.#places(range))
        this.#doing.tally.freed += await this.#space.held(host, length);
  }
}

function push(ranges: ByteRange[], range: ByteRange): void {
  const last = ranges[ranges.length - 1];
  if (last !== undefined && last.at + last.length === range.at)
    ranges[ranges.length - 1] = { at: last.at, length: last.length + range.length };
  else ranges.push(range);
}
