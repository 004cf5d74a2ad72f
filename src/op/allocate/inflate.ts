import { alignUp } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import { stopIfAborted } from '../../core/working.ts';
import type { DiskImage } from '../../format/disk-image.ts';
import type { Mapping } from '../../format/driver.ts';
import { CryptMethod } from '../../format/qcow2/layout.ts';
import type { Metadata } from '../../format/qcow2/metadata.ts';
import { cutFile } from '../../format/qcow2/write/resize.ts';
import { preallocate, type PreallocatedRange } from '../../format/qcow2/write/preallocate.ts';
import { Qcow2WriteDriver } from '../../format/qcow2/write/driver.ts';
import { HostSpace } from './host.ts';
import type { Doing } from './flat.ts';

/** Guest bytes that are moved at once. */
const CHUNK = 2 * 1024 * 1024;

/** What a run of the disk needs. */
interface Need {
  readonly at: number;
  readonly length: number;
  /**
   * A place, which holds zeroes (`zero-place`) or leaves subclusters as they are (`bare-place`); zeroes, or the data it has
   * now, written to a place (`zeroes`, `data`); what the backing file holds (`below`); space on the host, at `host`.
   */
  readonly kind: 'zero-place' | 'bare-place' | 'zeroes' | 'data' | 'below' | 'space';
  /** Offset of the run's place, for `space`. */
  readonly host: number;
}

/** How a qcow2 image is inflated. */
export interface Inflating extends Doing {
  readonly policy: 'thick-lazy' | 'thick-eager';
  /** Take in what the backing file shows. */
  readonly copyBacking: boolean;
}

/**
 * Gives all of the disk in a qcow2 image its space. What has a place keeps it, what internal snapshots share stays shared,
 * compressed clusters become plain ones. With `plan` the image may be open for reading only, and nothing changes.
 * @throws SpindleError UNSUPPORTED, ENCRYPTED before anything is changed; NO_SPACE, ABORTED
 */
export async function inflate(image: DiskImage, metadata: Metadata, doing: Inflating): Promise<void> {
  await new Inflation(image, metadata, doing).run();
}

class Inflation {
  readonly #image: DiskImage;
  readonly #doing: Inflating;
  readonly #metadata: Metadata;
  readonly #eager: boolean;
  readonly #encrypted: boolean;

  constructor(image: DiskImage, metadata: Metadata, doing: Inflating) {
    this.#image = image;
    this.#doing = doing;
    this.#metadata = metadata;
    this.#eager = doing.policy === 'thick-eager';
    this.#encrypted = metadata.header.cryptMethod !== CryptMethod.NONE;
  }

  async run(): Promise<void> {
    await this.#look();
    const { driver } = this.#image;
    if (this.#doing.plan || !(driver instanceof Qcow2WriteDriver)) return;
    await driver.unseen(async () => {
      await this.#makePlaces(driver);
      await this.#moveData();
      await this.#image.flush();
      await this.#fillPlaces(driver);
    });
  }

  /** Counts what there is to do, and refuses what cannot be done. */
  async #look(): Promise<void> {
    const { tally, plan } = this.#doing;
    const counted = plan ? tally : { read: 0, written: 0, reserved: 0, freed: 0 };
    const space = new HostSpace(this.#image.driver.data, counted, false, this.#doing.signal);
    let moves = false;
    for await (const need of this.#needs()) {
      if (need.kind === 'below') this.#refuseOverlay();
      if (
        need.kind === 'zero-place' &&
        !this.#eager &&
        this.#encrypted &&
        this.#metadata.header.version === 2
      )
        throw new SpindleError(
          'UNSUPPORTED',
          'version 2 cannot mark the space of an encrypted disk as zero before it is written; ' +
            'use thick-eager, or amend the image to compat=1.1',
        );
      if (need.kind === 'space') {
        if (!plan) continue;
        if (this.#eager) await space.writeOut(need.host, need.length);
        else await space.reserve(need.host, need.length);
        continue;
      }
      const places = need.kind === 'zero-place' || need.kind === 'bare-place';
      if (!places) moves = true;
      if (need.kind === 'data' || need.kind === 'below') counted.read += need.length;
      if (places && !this.#eager) counted.reserved += need.length;
      else counted.written += need.length;
    }
    const { driver } = this.#image;
    const locked = driver instanceof Qcow2WriteDriver && driver.locked;
    if (moves && locked)
      throw new SpindleError(
        'ENCRYPTED',
        'data has to be written, but the image is encrypted and no secret was given',
      );
  }

  #refuseOverlay(): void {
    if (this.#doing.copyBacking) return;
    throw new SpindleError(
      'UNSUPPORTED',
      'an overlay has no space for what its backing file shows: --copy-backing copies that into it ' +
        '(images with extended L2 can have the space without the copy)',
    );
  }

  /** Gives places to what has none. */
  async #makePlaces(driver: Qcow2WriteDriver): Promise<void> {
    const mode = this.#eager ? 'full' : 'falloc';
    await driver.onTables(async (writer, whole) => {
      try {
        for await (const { at, length, kind } of this.#needs(0)) {
          if (kind !== 'zero-place' && kind !== 'bare-place') continue;
          const as: PreallocatedRange['as'] =
            kind === 'bare-place' ? 'bits' : this.#encrypted ? 'zero' : 'data';
          // In steps, between which the work can be stopped.
          const step = Math.max(PLACES, this.#metadata.geometry.clusterSize);
          for (let from = at; from < at + length; from += step) {
            const to = Math.min(from + step, at + length);
            stopIfAborted(this.#doing.signal);
            await preallocate(writer, whole, { from, to, mode, as });
            const { tally } = this.#doing;
            if (this.#eager) tally.written += to - from;
            else tally.reserved += to - from;
            this.#tell(0, Math.min(to, this.#image.size));
          }
        }
      } catch (error) {
        // What was taken for nothing behind the end goes; the error that led here is the one to tell.
        await whole
          .flush()
          .then(() => cutFile(writer, whole))
          .catch(() => undefined);
        throw error;
      }
      await whole.flush();
    });
  }

  /** Writes what needs writing through the guest's disk. */
  async #moveData(): Promise<void> {
    const { tally } = this.#doing;
    for await (const { at, length, kind } of this.#needs(1)) {
      if (kind === 'zero-place' || kind === 'bare-place' || kind === 'space') continue;
      for (let done = 0; done < length;) {
        stopIfAborted(this.#doing.signal);
        const bytes = new Uint8Array(Math.min(length - done, CHUNK - ((at + done) % CHUNK)));
        if (kind !== 'zeroes') {
          await this.#image.read(bytes, at + done);
          tally.read += bytes.length;
        }
        await this.#image.write(bytes, at + done);
        tally.written += bytes.length;
        done += bytes.length;
        this.#tell(1, at + done);
      }
    }
  }

  /** Sees that every place has its blocks, reserved or written. */
  async #fillPlaces(driver: Qcow2WriteDriver): Promise<void> {
    const { tally, signal } = this.#doing;
    const { data } = driver;
    const space = new HostSpace(data, tally, true, signal);
    const work = async (host: number, length: number): Promise<void> => {
      if (host + length > data.size) await this.#lengthen(driver, host + length);
      if (this.#eager) await space.writeOut(host, length);
      else await space.reserve(host, length);
    };
    let open = { host: 0, length: 0 };
    for await (const { at, length, kind, host } of this.#needs(2)) {
      if (kind !== 'space') continue;
      if (open.host + open.length === host && open.length < MOST_JOINED) open.length += length;
      else {
        await work(open.host, open.length);
        open = { host, length };
      }
      this.#tell(2, at + length);
    }
    await work(open.host, open.length);
    await data.flush();
  }

  /** The file ends before the place of a cluster. */
  #lengthen(driver: Qcow2WriteDriver, end: number): Promise<void> {
    return driver.onTables(async (_writer, whole) => {
      if (!whole.external) await whole.reach(end);
      else if (whole.data.can.resize && end > whole.data.size) await whole.data.resize(end);
    });
  }

  #tell(phase: number, at: number): void {
    const { size } = this.#image;
    this.#doing.onProgress?.(phase * size + at, 3 * size);
  }

  /** What the disk needs, run by run; a run may need nothing, and then is not told. */
  async *#needs(phase?: number): AsyncGenerator<Need> {
    const { driver, size } = this.#image;
    for (let at = 0; at < size;) {
      stopIfAborted(this.#doing.signal);
      const mapping = await driver.map(at, size - at);
      const { length } = mapping;
      if (mapping.kind === 'data') yield { at, length, kind: 'space', host: mapping.at };
      else if (mapping.kind === 'compressed') yield { at, length, kind: 'data', host: 0 };
      else if (mapping.reserved !== undefined) yield* this.#reserved(at, mapping, mapping.reserved);
      else yield* this.#absent(at, mapping);
      at += length;
      if (phase !== undefined) this.#tell(phase, at);
    }
  }

  /** A run that has a place but no data in it. */
  *#reserved(at: number, { kind, length }: Mapping, host: number): Generator<Need> {
    const backed = this.#image.backing !== null;
    if (kind === 'backing' && backed) {
      const below = this.#doing.copyBacking ? this.#below(at, length) : 0;
      if (below > 0) yield { at, length: below, kind: 'data', host: 0 };
    } else if (this.#eager) yield { at, length, kind: 'zeroes', host: 0 };
    yield { at, length, kind: 'space', host };
  }

  /** A run that has no place. */
  *#absent(at: number, { kind, length }: Mapping): Generator<Need> {
    const { extendedL2, clusterSize } = this.#metadata.geometry;
    const backed = this.#image.backing !== null;
    const below = kind === 'backing' ? this.#below(at, length) : 0;
    if (extendedL2 && backed) {
      yield* places(at, length, 'bare-place');
      if (below > 0 && this.#doing.copyBacking) yield { at, length: below, kind: 'data', host: 0 };
      return;
    }
    if (below > 0) yield { at, length: below, kind: 'below', host: 0 };
    if (below === length) return;
    if (this.#eager && this.#encrypted)
      yield { at: at + below, length: length - below, kind: 'zeroes', host: 0 };
    else yield* places(at + below, length - below, 'zero-place');

    /** Runs may be parts of a cluster: the first of them gives it its place. */
    function* places(from: number, bytes: number, as: 'zero-place' | 'bare-place'): Generator<Need> {
      const start = alignUp(from, clusterSize);
      const end = alignUp(from + bytes, clusterSize);
      if (start < end) yield { at: start, length: end - start, kind: as, host: 0 };
    }
  }

  /** How much of a run, which no layer above holds, is the backing file's: whole clusters, from its start on. */
  #below(at: number, length: number): number {
    const { backing } = this.#image;
    if (backing === null) return 0;
    const end = alignUp(backing.size, this.#metadata.geometry.clusterSize);
    return Math.max(0, Math.min(length, end - at));
  }
}

/** Guest bytes that get places between two looks at the signal. */
const PLACES = 256 * 1024 * 1024;

/** Host bytes looked at together. */
const MOST_JOINED = 1024 ** 3;
