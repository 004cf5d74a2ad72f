import { SpindleError } from '../../core/errors.ts';
import { DiskImage } from '../../format/disk-image.ts';
import type { Image } from '../../format/image.ts';
import { Qcow2Driver } from '../../format/qcow2/driver.ts';
import { readMetadata } from '../../format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../format/qcow2/write/driver.ts';
import { BitmapEditor, editBitmaps, type ReadableBitmap } from '../../format/qcow2/write/edit-bitmaps.ts';
import { openLocked } from '../open.ts';

/** A bitmap that goes along with a disk. */
export interface CopiedBitmap extends ReadableBitmap {
  readonly enabled: boolean;
}

/**
 * The persistent bitmaps of an image that can be copied. Inconsistent ones are passed to `onSkipped`; where that is not
 * given they are an error.
 * @throws SpindleError UNSUPPORTED (a format or version without bitmaps), BAD_BITMAP
 */
export function bitmapsOf(image: Image, onSkipped?: (name: string) => void): CopiedBitmap[] {
  const { driver } = image;
  if (!(image instanceof DiskImage) || !(driver instanceof Qcow2Driver))
    throw new SpindleError('UNSUPPORTED', 'only qcow2 images have bitmaps', { path: image.name });
  if (driver.metadata.header.version < 3)
    throw new SpindleError('UNSUPPORTED', 'version 2 images have no bitmaps', { path: image.name });
  const editor = new BitmapEditor(image.storage, driver.metadata);
  const found: CopiedBitmap[] = [];
  for (const { name, inconsistent, enabled } of editor.states) {
    if (!inconsistent) found.push({ ...editor.read(name), enabled });
    else if (onSkipped !== undefined) onSkipped(name);
    else {
      throw new SpindleError(
        'BAD_BITMAP',
        `bitmap '${name}' was in use by a program that did not close the image, and may miss changes: skip such bitmaps, or remove it`,
        { path: image.name },
      );
    }
  }
  return found;
}

/**
 * Refuses, before anything is copied, a target that cannot take the bitmaps.
 * @throws SpindleError UNSUPPORTED (a format without bitmaps), EXISTS, BAD_SIZE
 */
export function refuseBitmaps(target: Image, bitmaps: readonly CopiedBitmap[]): void {
  const { driver } = target;
  if (!(driver instanceof Qcow2WriteDriver) || driver.metadata.header.version < 3)
    throw new SpindleError('UNSUPPORTED', 'only qcow2 images from version 3 on take bitmaps', {
      path: target.name,
    });
  for (const { name, size } of bitmaps) {
    if (driver.metadata.bitmaps.some((one) => one.name === name))
      throw new SpindleError('EXISTS', `there is a bitmap '${name}' already`, { path: target.name });
    if (size !== target.size)
      throw new SpindleError(
        'BAD_SIZE',
        `bitmaps of a disk of ${String(size)} bytes do not fit one of ${String(target.size)}`,
        { path: target.name },
      );
  }
}

/**
 * Adds bitmaps to the qcow2 image at `path`, which nobody has open; all of them or none.
 * @throws as {@link editBitmaps}, EXISTS, BAD_SIZE
 */
export async function addBitmaps(path: string, bitmaps: readonly CopiedBitmap[]): Promise<void> {
  if (bitmaps.length === 0) return;
  const { storage } = await openLocked(path, { format: 'qcow2', write: true });
  try {
    await editBitmaps(storage, await readMetadata(storage, 'data'), async (editor) => {
      for (const bitmap of bitmaps) {
        editor.add(bitmap.name, bitmap.granularity);
        await editor.merge(bitmap.name, bitmap);
        editor.enable(bitmap.name, bitmap.enabled);
      }
    });
  } finally {
    await storage.close();
  }
}
