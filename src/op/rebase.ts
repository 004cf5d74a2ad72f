import { SpindleError } from '../core/errors.ts';
import type { Storage } from '../core/storage.ts';
import type { Working } from '../core/working.ts';
import { DiskImage } from '../format/disk-image.ts';
import type { Image } from '../format/image.ts';
import { knownFormat, openImage } from '../format/open.ts';
import { readMetadata, type Metadata } from '../format/qcow2/metadata.ts';
import { checkBacking, switchBacking } from '../format/qcow2/write/backing.ts';
import { checkCompressible } from '../format/qcow2/write/compress.ts';
import { Layer } from '../layer/layer.ts';
import { nodeCodec } from '../native/codec.ts';
import { nodeCrypto } from '../native/crypto.ts';
import { refuseLoop } from './chain.ts';
import { fileGate } from './file-gate.ts';
import { besideName, imageName, isDescription, plainName } from './image-name.ts';
import { describedBy, openImageFile, openLocked, type OpenFileOptions } from './open.ts';
import { keepDifferences, type Kept } from './rebase/keep.ts';

/** The backing file that an image is given. */
export interface NewBacking {
  /** As it is to stand in the image: a relative name starts in the directory of the image. */
  readonly name: string;
  readonly format: string;
}

/** How an image is put on another backing file. */
export interface RebaseOptions
  extends Working, Pick<OpenFileOptions, 'format' | 'secret' | 'share' | 'direct' | 'gate'> {
  /**
   * Change the reference only, and look at nothing: right where the new backing file has the same content as the old
   * one (it was renamed, say), harmful everywhere else.
   */
  readonly unsafe?: boolean | undefined;
  /** Store compressed what has to be copied. */
  readonly compress?: boolean | undefined;
  /** Bypass the page cache of the host for the new backing file. */
  readonly directBacking?: boolean | undefined;
}

/** What a rebase did; the bytes are 0 where it was `unsafe`. */
export interface Rebased extends Kept {
  /** The backing file that the image named before; null for none. */
  readonly before: string | null;
}

/**
 * Makes a qcow2 image refer to another backing file, or to none, without changing what its disk holds: where the old and
 * the new backing file differ, the content of the old one is copied into the image first. What both chains share is not
 * read. `share` is for the backing files; the image itself is always locked.
 *
 * Stopped, failed or killed at any moment, the image shows what it showed, over the old reference or the new one: the
 * reference is changed last, in one step, when everything else is durable.
 * @throws SpindleError UNSUPPORTED (not qcow2), BAD_OPTION (a name that does not fit into the header), BACKING_LOOP,
 * BACKING_NOT_FOUND, IN_USE, CORRUPT, NO_SPACE, ABORTED, and as {@link openImageFile}
 */
export async function rebase(
  path: string,
  backing: NewBacking | null,
  options: RebaseOptions = {},
): Promise<Rebased> {
  if (backing !== null) {
    knownFormat(backing.format);
    await refuseLoop(path, backing);
  }
  const { format, direct, unsafe } = options;
  const opened = await openLocked(path, { format, direct, write: true });
  const { storage } = opened;
  try {
    if (opened.format !== 'qcow2')
      throw new SpindleError('UNSUPPORTED', `${opened.format} images have no backing file`);
    const metadata = await readMetadata(storage, unsafe === true ? 'info' : 'data');
    checkBacking(metadata, backing);
    const kept =
      unsafe === true
        ? { copied: 0, zeroed: 0 }
        : await keepContent(storage, metadata, path, backing, storage.identity, options);
    await switchBacking(storage, backing);
    return { ...kept, before: metadata.backingName };
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}

/** Copies into the image what the new backing file does not hold. Everything is durable when it resolves. */
async function keepContent(
  storage: Storage,
  metadata: Metadata,
  path: string,
  backing: NewBacking | null,
  id: string,
  options: RebaseOptions,
): Promise<Kept> {
  const { secret, share, compress, gate = fileGate({ share }) } = options;
  const says = imageName(path);
  if (compress === true) checkCompressible(metadata, 0, 0);
  const next = backing === null ? null : await openBelow(path, backing, options);
  let image: Image | undefined;
  try {
    image = await openImage(new Held(storage), {
      ...{ format: 'qcow2', codec: nodeCodec, crypto: nodeCrypto, secret, gate },
      ...{ write: true, covering: next !== null, id, described: describedBy(says) },
      name: isDescription(path) ? plainName(says.path) : path,
    });
    if (!(image instanceof DiskImage)) throw new TypeError('an image that was opened is a DiskImage');
    const kept = await keepDifferences(image, next, metadata.geometry, options);
    await image.flush();
    await image.close();
    return kept;
  } catch (error) {
    // What closing would say is only what went wrong already.
    await image?.close().catch(() => undefined);
    throw error;
  } finally {
    await next?.close();
  }
}

/** Opens the backing file that an image is to have. @throws SpindleError BACKING_NOT_FOUND, and as {@link openImageFile} */
export async function openBelow(path: string, backing: NewBacking, options: RebaseOptions): Promise<Image> {
  const { secret, share, directBacking, gate } = options;
  const beside = besideName(backing.name, path);
  try {
    return await openImageFile(beside, {
      ...{ format: backing.format, secret, share, direct: directBacking, gate },
      steady: share !== true,
    });
  } catch (error) {
    if (!(error instanceof SpindleError) || error.code !== 'NOT_FOUND') throw error;
    throw new SpindleError(
      'BACKING_NOT_FOUND',
      `the new backing file '${beside}' cannot be opened: there is no such file`,
      { path, cause: error },
    );
  }
}

/** A storage that outlives the image in it. */
class Held extends Layer {
  override close(): Promise<void> {
    return Promise.resolve();
  }
}
