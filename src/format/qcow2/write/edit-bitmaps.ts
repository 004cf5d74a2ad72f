import { isPowerOfTwo } from '../../../core/align.ts';
import { bytesOf, sameBytes } from '../../../core/bytes.ts';
import { isSpindleError, SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { BitmapState, dirtyRanges } from '../bitmap-state.ts';
import { Limit } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { checkBitmapSize } from './live-bitmaps.ts';
import { announceChanges, refuseUnsound, soundMetadata } from './open-header.ts';
import { storeBitmaps } from './store-bitmaps.ts';
import { Qcow2Writer } from './writer.ts';

/** Bitmaps that an error message names at most. */
const MOST_NAMED = 8;

/** A guest range in bytes. */
export interface GuestRange {
  readonly at: number;
  readonly length: number;
}

/** A bitmap whose bits are read. */
export interface ReadableBitmap {
  readonly name: string;
  /** Guest bytes of one bit. */
  readonly granularity: number;
  /** Bytes of the disk that it belongs to. */
  readonly size: number;
  /** What is dirty: whole granules, in ascending order, runs apart from each other; the last may pass the end of the disk. */
  ranges(): AsyncIterable<GuestRange>;
}

/** The bitmaps of one image, to be changed in memory. Nothing reaches the disk before {@link editBitmaps} stores it. */
export class BitmapEditor {
  states: BitmapState[];
  readonly #storage: Storage;
  readonly #size: number;
  readonly #clusterSize: number;

  constructor(storage: Storage, metadata: Metadata) {
    this.#storage = storage;
    this.#size = metadata.size;
    this.#clusterSize = metadata.geometry.clusterSize;
    this.states = metadata.bitmaps.map((entry) => BitmapState.of(entry, metadata.size));
  }

  #find(name: string): BitmapState {
    const bytes = bytesOf(name);
    const found = this.states.find(({ nameBytes }) => sameBytes(nameBytes, bytes));
    if (found !== undefined) return found;
    const names = this.states.slice(0, MOST_NAMED).map((state) => `'${state.name}'`);
    if (this.states.length > MOST_NAMED) names.push('others');
    throw new SpindleError(
      'BITMAP_NOT_FOUND',
      `no bitmap '${name}'; the image has ${names.length === 0 ? 'none' : names.join(', ')}`,
    );
  }

  #findUsable(name: string): BitmapState {
    const found = this.#find(name);
    if (!found.inconsistent) return found;
    throw new SpindleError(
      'BAD_BITMAP',
      `bitmap '${name}' was in use by a program that did not close the image, and may miss changes; it can only be removed`,
    );
  }

  /**
   * Adds an enabled bitmap in which nothing is dirty. `granularity`: guest bytes of one bit, a power of two from 512 to 2 GiB; by
   * default the cluster size, but at least 4 KiB and at most 64 KiB.
   * @throws SpindleError EXISTS, BAD_OPTION, BAD_SIZE for a disk of no bytes, LIMIT
   */
  add(name: string, granularity = Math.max(4096, Math.min(65536, this.#clusterSize))): void {
    const nameBytes = bytesOf(name);
    const bits = Math.log2(granularity);
    if (
      !isPowerOfTwo(granularity) ||
      bits < Limit.MIN_BITMAP_GRANULARITY_BITS ||
      bits > Limit.MAX_BITMAP_GRANULARITY_BITS
    ) {
      throw new SpindleError(
        'BAD_OPTION',
        `the granularity of a bitmap is a power of two from 512 to 2G, not ${String(granularity)}`,
      );
    }
    if (name === '' || name.includes('\0')) throw new SpindleError('BAD_OPTION', 'a bitmap needs a name');
    if (nameBytes.length > Limit.BITMAP_NAME) {
      throw new SpindleError('BAD_OPTION', 'the name of a bitmap has at most 1023 bytes');
    }
    if (this.#size === 0) throw new SpindleError('BAD_SIZE', 'a disk of no bytes cannot have bitmaps');
    if (this.states.some((state) => sameBytes(state.nameBytes, nameBytes))) {
      throw new SpindleError('EXISTS', `there is a bitmap '${name}' already`);
    }
    if (this.states.length >= Limit.BITMAPS) {
      throw new SpindleError('LIMIT', 'the image has 65535 bitmaps; the format allows no more');
    }
    checkBitmapSize(name, this.#size, bits, this.#clusterSize);
    this.states.push(new BitmapState(nameBytes, bits, null, this.#size));
  }

  /** Removes a bitmap, also one that is inconsistent. @throws SpindleError BITMAP_NOT_FOUND */
  remove(name: string): void {
    const found = this.#find(name);
    this.states = this.states.filter((state) => state !== found);
  }

  /** Makes a bitmap say that nothing is dirty. @throws SpindleError BITMAP_NOT_FOUND, BAD_BITMAP when inconsistent */
  clear(name: string): void {
    this.#findUsable(name).clear();
  }

  /** Says whether a bitmap records what is written from now on. @throws SpindleError BITMAP_NOT_FOUND, BAD_BITMAP */
  enable(name: string, enabled: boolean): void {
    this.#findUsable(name).enabled = enabled;
  }

  /** One of these bitmaps, as it is now. @throws SpindleError BITMAP_NOT_FOUND, BAD_BITMAP */
  read(name: string): ReadableBitmap {
    const state = this.#findUsable(name);
    return {
      name,
      granularity: state.granularity,
      size: this.#size,
      ranges: () => dirtyRanges(this.#storage, this.#clusterSize, state),
    };
  }

  /**
   * Makes everything dirty in `name` that is dirty in `source`: a granule is when any byte of it is.
   * @throws SpindleError BITMAP_NOT_FOUND, BAD_BITMAP, BAD_SIZE for disks of different sizes
   */
  async merge(name: string, source: ReadableBitmap): Promise<void> {
    const into = this.#findUsable(name);
    if (source.size !== this.#size) {
      throw new SpindleError(
        'BAD_SIZE',
        `bitmap '${source.name}' belongs to a disk of ${String(source.size)} bytes, bitmap '${name}' to one of ${String(this.#size)}`,
      );
    }
    for await (const { at, length } of source.ranges()) into.mark(at, length);
  }
}

/**
 * Changes the bitmaps of the image in `storage`, which is open for writing, alone. Either all of what `work` does reaches
 * the disk or nothing, also when the power fails. Guest data is not touched, so neither a backing file nor a data file nor
 * a secret is needed.
 * @throws SpindleError UNSUPPORTED (version 2), CORRUPT, DIRTY, LIMIT, NO_SPACE, and what `work` throws
 */
export async function editBitmaps(
  storage: Storage,
  found: Metadata,
  work: (editor: BitmapEditor) => Promise<void>,
): Promise<void> {
  refuseUnsound(found);
  if (found.header.version === 2) {
    throw new SpindleError('UNSUPPORTED', 'version 2 images have no bitmaps');
  }
  const metadata = await soundMetadata(storage, found);
  const writer = await Qcow2Writer.open(storage, metadata, null, { backed: true });
  const editor = new BitmapEditor(storage, metadata);
  await work(editor);
  await announceChanges(storage, metadata);
  try {
    await writer.alone((whole) => storeBitmaps(writer, whole, editor.states, new Set()));
  } catch (error) {
    // What was taken back is freed on disk too, unless the tables are not to be trusted.
    const damaged = isSpindleError(error, 'CORRUPT') || isSpindleError(error, 'BAD_ENTRY');
    if (!damaged) await writer.close().catch(() => undefined);
    throw error;
  }
  await writer.close();
}
