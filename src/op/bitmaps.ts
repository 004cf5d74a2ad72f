import { SpindleError } from '../core/errors.ts';
import type { Storage } from '../core/storage.ts';
import { readMetadata, type Metadata } from '../format/qcow2/metadata.ts';
import {
  BitmapEditor,
  editBitmaps,
  type GuestRange,
  type ReadableBitmap,
} from '../format/qcow2/write/edit-bitmaps.ts';
import { openLocked, type OpenFileOptions } from './open.ts';

/** One thing that is done to a bitmap. */
export type BitmapAction =
  | {
      /** Make the bitmap, enabled, with nothing dirty. */
      readonly do: 'add';
      /** Guest bytes of one bit: a power of two from 512 to 2^31. Default: the cluster size, within 4 KiB and 64 KiB. */
      readonly granularity?: number | undefined;
    }
  | {
      /** Delete it; make nothing dirty in it; let it record what is written from now on, or not. */
      readonly do: 'remove' | 'clear' | 'enable' | 'disable';
    }
  | {
      /** Make dirty in it what is dirty in another bitmap of a disk of the same size. */
      readonly do: 'merge';
      /** The name of the other bitmap. */
      readonly source: string;
      /** The image that has it. Default: the same image. */
      readonly from?: { readonly path: string; readonly format?: string | undefined } | undefined;
    };

/** How an image is opened for its bitmaps. */
export type BitmapFileOptions = Pick<OpenFileOptions, 'format'>;

/**
 * Does `actions`, in order, to the persistent bitmap `name` of a qcow2 image. Either all of them are done or none, also
 * when the power fails. Backing files, data files and secrets are not needed.
 *
 * A bitmap that is inconsistent (in use by a program that did not close the image) can only be removed.
 * @throws SpindleError BITMAP_NOT_FOUND, EXISTS, BAD_BITMAP (inconsistent), BAD_OPTION (name, granularity), BAD_SIZE
 * (merging from a disk of another size), UNSUPPORTED (raw, luks, version 2), LIMIT, NO_SPACE, and as {@link openImageFile}
 */
export async function changeBitmap(
  path: string,
  name: string,
  actions: readonly BitmapAction[],
  options: BitmapFileOptions = {},
): Promise<void> {
  await withBitmaps(path, { ...options, write: true }, (storage, metadata) =>
    editBitmaps(storage, metadata, async (editor) => {
      for (const action of actions) await apply(editor, path, name, action);
    }),
  );
}

async function apply(editor: BitmapEditor, path: string, name: string, action: BitmapAction): Promise<void> {
  switch (action.do) {
    case 'add':
      editor.add(name, action.granularity);
      return;
    case 'remove':
      editor.remove(name);
      return;
    case 'clear':
      editor.clear(name);
      return;
    case 'enable':
    case 'disable':
      editor.enable(name, action.do === 'enable');
      return;
    case 'merge': {
      const { source, from } = action;
      if (from === undefined || from.path === path) await editor.merge(name, editor.read(source));
      else {
        editor.read(name);
        await withBitmap(from.path, source, { format: from.format }, (bitmap) => editor.merge(name, bitmap));
      }
    }
  }
}

/**
 * The guest ranges, in bytes, that a persistent bitmap says are dirty: in ascending order, whole granules but for the last,
 * which ends with the disk. The image stays open and locked until the ranges are through.
 * @throws SpindleError BITMAP_NOT_FOUND, BAD_BITMAP (inconsistent), UNSUPPORTED (raw, luks), and as {@link openImageFile}
 */
export async function* readBitmap(
  path: string,
  name: string,
  options: Pick<OpenFileOptions, 'format' | 'share'> = {},
): AsyncGenerator<GuestRange> {
  const { storage, metadata } = await openForBitmaps(path, options);
  try {
    const bitmap = new BitmapEditor(storage, metadata).read(name);
    for await (const { at, length } of bitmap.ranges()) {
      yield { at, length: Math.min(length, bitmap.size - at) };
    }
  } catch (error) {
    throw named(error, path);
  } finally {
    await storage.close();
  }
}

async function withBitmap(
  path: string,
  name: string,
  options: BitmapFileOptions,
  work: (bitmap: ReadableBitmap) => Promise<void>,
): Promise<void> {
  await withBitmaps(path, options, (storage, metadata) =>
    work(new BitmapEditor(storage, metadata).read(name)),
  );
}

async function withBitmaps(
  path: string,
  options: Pick<OpenFileOptions, 'format' | 'write'>,
  work: (storage: Storage, metadata: Metadata) => Promise<void>,
): Promise<void> {
  const { storage, metadata } = await openForBitmaps(path, options);
  try {
    await work(storage, metadata);
  } catch (error) {
    throw named(error, path);
  } finally {
    await storage.close();
  }
}

async function openForBitmaps(
  path: string,
  options: Pick<OpenFileOptions, 'format' | 'write' | 'share'>,
): Promise<{ readonly storage: Storage; readonly metadata: Metadata }> {
  const { storage, format } = await openLocked(path, options);
  try {
    if (format !== 'qcow2') throw new SpindleError('UNSUPPORTED', `${format} images have no bitmaps`);
    return { storage, metadata: await readMetadata(storage, 'data') };
  } catch (error) {
    await storage.close();
    throw named(error, path);
  }
}

function named(error: unknown, path: string): unknown {
  if (error instanceof SpindleError) error.path ??= path;
  return error;
}
