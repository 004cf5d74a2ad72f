import { viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { Autoclear, Compatible, HeaderOffset, Incompatible } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { repairDirty } from '../repair/dirty.ts';
import { dropStaleDirectory } from './bitmap-header.ts';

/**
 * Refuses what must not be written to before it is repaired. Lazy refcounts explain the dirty mark, and opening such an
 * image makes its refcounts anew; nobody knows what else a program may mean by it.
 * @throws SpindleError CORRUPT, DIRTY
 */
export function refuseUnsound({ header: { incompatible, compatible } }: Metadata): void {
  if ((incompatible.lo & Incompatible.CORRUPT) !== 0) {
    throw new SpindleError(
      'CORRUPT',
      'the image is marked corrupt and must not be written to before it is repaired',
    );
  }
  const isLazy = (compatible.lo & Compatible.LAZY_REFCOUNTS) !== 0;
  if ((incompatible.lo & Incompatible.DIRTY) !== 0 && !isLazy) {
    throw new SpindleError(
      'DIRTY',
      'the image was not closed by the program that wrote it last, and its refcounts may be wrong: repair it first',
    );
  }
}

/**
 * What the header says of an image that is sound enough to be written to; the refcounts of one that a program with lazy
 * refcounts did not close are made anew for it.
 * @throws SpindleError CORRUPT, DIRTY
 */
export async function soundMetadata(storage: Storage, metadata: Metadata): Promise<Metadata> {
  refuseUnsound(metadata);
  const dirty = (metadata.header.incompatible.lo & Incompatible.DIRTY) !== 0;
  return dirty ? repairDirty(storage) : metadata;
}

/**
 * What a program does before it changes an image. One that does not know an autoclear feature has to say that it changed
 * the image, by clearing its bit; and bitmaps whose bit another program has cleared are dropped.
 */
export async function announceChanges(storage: Storage, metadata: Metadata): Promise<void> {
  const { version, autoclear } = metadata.header;
  if (version === 2) return;
  const kept = (autoclear.lo & Autoclear.KNOWN) >>> 0;
  if (autoclear.hi !== 0 || kept !== autoclear.lo) {
    const bytes = new Uint8Array(8);
    viewOf(bytes).setUint32(4, kept);
    await storage.write(bytes, HeaderOffset.autoclearFeatures);
    await storage.flush();
  }
  await dropStaleDirectory(storage, metadata);
}
