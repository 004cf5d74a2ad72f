import { viewOf } from '../../../core/bytes.ts';
import { readPadded } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { Compatible, HeaderOffset, Incompatible } from '../layout.ts';
import type { Header } from '../header.ts';

/**
 * The dirty bit of an image with lazy refcounts: while it is set, refcounts on disk may be out of date, and whoever
 * opens the image for writing makes them anew from the tables first. It is durable before the first table that needs a
 * refcount which is not, and goes when all refcounts are durable.
 */
export class DirtyMark {
  /** Whether refcounts may be written late. */
  readonly isLazy: boolean;
  readonly #storage: Storage;
  #isSet: boolean;

  constructor(storage: Storage, header: Header) {
    this.#storage = storage;
    this.isLazy = header.version === 3 && (header.compatible.lo & Compatible.LAZY_REFCOUNTS) !== 0;
    this.#isSet = (header.incompatible.lo & Incompatible.DIRTY) !== 0;
  }

  /** Sets the bit, durably, unless it is set. */
  async set(): Promise<void> {
    if (this.#isSet) return;
    await setIncompatible(this.#storage, Incompatible.DIRTY, 0);
    this.#isSet = true;
  }

  /** Clears the bit, durably. Only when all refcounts are durable. */
  async clear(): Promise<void> {
    if (!this.#isSet) return;
    await setIncompatible(this.#storage, 0, Incompatible.DIRTY);
    this.#isSet = false;
  }
}

/** Sets and clears bits in the low word of the incompatible features of a version 3 image, durably. */
export async function setIncompatible(storage: Storage, set: number, clear: number): Promise<void> {
  const bytes = new Uint8Array(8);
  await readPadded(storage, bytes, HeaderOffset.incompatibleFeatures);
  const view = viewOf(bytes);
  view.setUint32(4, ((view.getUint32(4) | set) & ~clear) >>> 0);
  await storage.write(bytes, HeaderOffset.incompatibleFeatures);
  await storage.flush();
}
