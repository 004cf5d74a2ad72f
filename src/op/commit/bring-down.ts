import type { Working } from '../../core/working.ts';
import { DiskImage } from '../../format/disk-image.ts';
import type { Image } from '../../format/image.ts';
import { Qcow2WriteDriver } from '../../format/qcow2/write/driver.ts';
import { aboveSource } from '../copy/above.ts';
import { copyDisk, type Copied } from '../copy/copy.ts';

/** How the content of an overlay is brought down. */
export interface BringDownOptions extends Working {
  /** The overlay is emptied when its content is durable in the base. */
  readonly emptied: boolean;
  /** Bytes a second at most. */
  readonly rate?: number | undefined;
}

/**
 * Writes what the layers of `top` above `base` hold into `base`, which is one of the images below and open for writing,
 * and grows where it is smaller; then empties `top`, where that is wanted. At any moment `top` reads as it did: what is
 * written to the base is hidden by what it was taken from, until it is durable.
 * @throws SpindleError ABORTED, and what reading and writing throw
 */
export async function bringDown(top: Image, base: Image, options: BringDownOptions): Promise<Copied> {
  if (!(base instanceof DiskImage)) throw new TypeError('an image that was opened is a DiskImage');
  const { signal, onProgress, rate, emptied } = options;
  // A disk that has all of its space already keeps it.
  const thick = ((await base.driver.data.allocatedSize?.()) ?? 0) >= base.size;
  if (base.size < top.size) await base.resize(top.size);
  const copied = await copyDisk(aboveSource(top, base), base, {
    ...{ signal, onProgress, rate, blank: false, sparse: 512, verbatim: true, keepSpace: thick },
    // Blocks that stay shared would be copied at the next write.
    share: emptied && !thick,
  });
  await base.flush();
  if (emptied) await empty(top);
  return copied;
}

async function empty(top: Image): Promise<void> {
  const { driver } = top;
  if (!(top instanceof DiskImage) || !(driver instanceof Qcow2WriteDriver))
    throw new TypeError('only a qcow2 image has a backing file');
  await top.alone(() => driver.empty());
}
