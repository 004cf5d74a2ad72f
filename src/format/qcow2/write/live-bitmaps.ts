import { viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { BitmapState } from '../bitmap-state.ts';
import { BitmapFlag, BitmapOffset, Limit } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { flagsOf, storeBitmaps } from './store-bitmaps.ts';
import type { Qcow2Writer } from './writer.ts';

/**
 * The persistent bitmaps of an image that is open for writing. Those that are enabled record every change that the guest
 * can see, in memory; on disk they are marked as in use, durably, before the first such change, and stored, the mark taken
 * off, when the image is closed. A writer that dies in between leaves them marked, and a bitmap that is marked is believed
 * by nobody: it may miss changes, so it can only be removed. Bitmaps that were marked already when the image was opened
 * stay as they are, and so do disabled ones unless the disk changes its size.
 */
export class LiveBitmaps {
  readonly #storage: Storage;
  readonly #clusterSize: number;
  readonly #states: readonly BitmapState[];
  /** Those that record. */
  readonly #recording: readonly BitmapState[];
  /** Those that are marked as in use on disk because of this writer. */
  readonly #marked = new Set<BitmapState>();
  #marking: Promise<void> | undefined;
  #allMarked = false;
  /** Bytes of the disk. */
  #size: number;

  private constructor(storage: Storage, metadata: Metadata) {
    this.#storage = storage;
    this.#size = metadata.size;
    this.#clusterSize = metadata.geometry.clusterSize;
    this.#states = metadata.bitmaps.map((entry) => BitmapState.of(entry, metadata.size));
    this.#recording = this.#states.filter(({ enabled, inconsistent }) => enabled && !inconsistent);
  }

  /** The bitmaps of an image; undefined when it has none. */
  static of(storage: Storage, metadata: Metadata): LiveBitmaps | undefined {
    return metadata.bitmaps.length === 0 ? undefined : new LiveBitmaps(storage, metadata);
  }

  /**
   * Records that a guest range in bytes, which may pass the end of the disk, is about to change. When there is a promise
   * the range must not change before it has resolved.
   */
  record(at: number, length: number): Promise<void> | undefined {
    const there = Math.min(length, this.#size - at);
    if (this.#recording.length === 0 || there <= 0) return undefined;
    for (const bitmap of this.#recording) bitmap.mark(at, there);
    if (this.#allMarked) return undefined;
    this.#marking ??= this.#markInUse(this.#recording)
      .then(() => {
        this.#allMarked = true;
      })
      .finally(() => {
        this.#marking = undefined;
      });
    return this.#marking;
  }

  /**
   * Gets ready for a disk of `size` bytes: bitmaps that record, and those that will have another number of bits, are marked
   * as in use, because between the change of the size and that of the bitmaps they do not go together.
   * @throws SpindleError LIMIT, UNSUPPORTED before anything is changed
   */
  async prepareSize(size: number): Promise<void> {
    if (size === this.#size) return;
    const sound = this.#states.filter(({ inconsistent }) => !inconsistent);
    if (size === 0 && sound.length > 0)
      throw new SpindleError('UNSUPPORTED', 'a disk of no bytes cannot have bitmaps: remove them first');
    for (const { name, granularityBits } of sound) {
      checkBitmapSize(name, size, granularityBits, this.#clusterSize);
    }
    await this.#markInUse(sound.filter((bitmap) => bitmap.enabled || !bitmap.fits(size)));
  }

  /**
   * Follows the disk to another size in bytes; see {@link prepareSize}. What it grows by is dirty in bitmaps that record: it
   * may have held something before the disk was made smaller, and nothing on disk remembers that.
   */
  resize(size: number): void {
    const old = this.#size;
    this.#size = size;
    for (const bitmap of this.#states) if (!bitmap.inconsistent) bitmap.resize(size);
    for (const bitmap of this.#recording) bitmap.mark(old, size - old);
  }

  async #markInUse(bitmaps: readonly BitmapState[]): Promise<void> {
    const unmarked = bitmaps.filter((bitmap) => !this.#marked.has(bitmap));
    if (unmarked.length === 0) return;
    for (const bitmap of unmarked) {
      if (bitmap.entry === null) continue;
      const bytes = new Uint8Array(4);
      viewOf(bytes).setUint32(0, flagsOf(bitmap) | BitmapFlag.IN_USE);
      await this.#storage.write(bytes, bitmap.entry.offset + BitmapOffset.flags);
    }
    await this.#storage.flush();
    for (const bitmap of unmarked) this.#marked.add(bitmap);
  }

  /**
   * Stores what was recorded and takes the marks off, once, when nothing changes any more. Where it fails the bitmaps stay
   * marked.
   * @throws SpindleError NO_SPACE, IO, BAD_BITMAP, CORRUPT
   */
  async store(writer: Qcow2Writer): Promise<void> {
    if (this.#marked.size === 0) return;
    await writer.alone((whole) => storeBitmaps(writer, whole, this.#states, this.#marked));
    this.#marked.clear();
  }
}

/**
 * Refuses a bitmap that no program would load.
 * @throws SpindleError LIMIT for more than 512 MiB of bits
 */
export function checkBitmapSize(
  name: string,
  size: number,
  granularityBits: number,
  clusterSize: number,
): void {
  const bytes = Math.ceil(size / 2 ** granularityBits / 8);
  if (Math.ceil(bytes / clusterSize) * clusterSize <= Limit.BITMAP_DATA) return;
  throw new SpindleError(
    'LIMIT',
    `bitmap '${name}' would need more than 512 MiB for a disk of ${String(size)} bytes; it needs a larger granularity`,
  );
}
