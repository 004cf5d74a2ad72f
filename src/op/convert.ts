import type { AllocationPolicy } from '../core/allocation.ts';
import { alignUp } from '../core/align.ts';
import { SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import { DiskImage } from '../format/disk-image.ts';
import type { Gate } from '../format/gate.ts';
import type { Image } from '../format/image.ts';
import { openImage } from '../format/open.ts';
import { nodeCodec } from '../native/codec.ts';
import { nodeCrypto } from '../native/crypto.ts';
import type { FileStorage } from '../storage/file.ts';
import { addBitmaps, bitmapsOf, refuseBitmaps, type CopiedBitmap } from './copy/bitmaps.ts';
import { copyDisk, tooSmall, type Copied } from './copy/copy.ts';
import { imageSource, joinedSource, sizedSource, type SourceDisk } from './copy/source.ts';
import { createFilled, type Created, type CreateRequest } from './create.ts';
import { identitiesOf, identityIfAny } from './create-guard.ts';
import { fileGate } from './file-gate.ts';
import { hostUsage } from './host-usage.ts';
import { fileOf } from './image-name.ts';
import { openImageFile, type OpenFileOptions } from './open.ts';

/** An image to copy from. */
export interface ConvertSource extends Pick<
  OpenFileOptions,
  'format' | 'share' | 'direct' | 'snapshot' | 'gate' | 'secret'
> {
  readonly path: string;
}

/** A new image, with options as for {@link create}. */
export interface NewTarget extends Omit<CreateRequest, 'allocation' | keyof Working> {
  readonly existing?: false;
  /** `keep`: the policy that the source was made with. */
  readonly allocation?: AllocationPolicy | 'keep' | undefined;
  /** False: a file that was not there before need not survive a power cut. Default: true. */
  readonly lasting?: boolean | undefined;
  /** Write past the page cache (O_DIRECT). Default: no. */
  readonly direct?: boolean | undefined;
}

/** An image that exists, whose disk is written over. It keeps its size, which must suffice, and its format. */
export interface ExistingTarget extends Pick<OpenFileOptions, 'format' | 'direct' | 'gate' | 'secret'> {
  readonly existing: true;
  readonly path: string;
  /** Its disk reads as zeroes: zeroes are not written. */
  readonly zeroed?: boolean | undefined;
}

/** How a disk is converted. */
export interface ConvertOptions extends Working {
  /** Store data compressed (qcow2). */
  readonly compress?: boolean | undefined;
  /**
   * Bytes of zeroes in data that are looked for, a multiple of 512. 0: write everything, zeroes too. Default: 4096, and
   * none in data whose blocks are shared with the source.
   */
  readonly sparse?: number | undefined;
  /** Share blocks with the source where the file system can (reflink). Default: yes, unless `sparse` is given. */
  readonly share?: boolean | undefined;
  /** Bytes a second at most. Default: no limit. */
  readonly rate?: number | undefined;
  /** Copy the persistent bitmaps of the one source too, so that they say of the copy what they say of it. Default: no. */
  readonly bitmaps?: boolean | undefined;
  /** Leave out inconsistent bitmaps, telling of each; default: fail. */
  readonly onBitmapSkipped?: ((name: string) => void) | undefined;
  /** Fill with zeroes what cannot be read, telling of each piece; default: fail. */
  readonly onUnreadable?: ((at: number, length: number, error: unknown) => void) | undefined;
}

/** What a conversion did. */
export interface Converted extends Copied {
  /** Bytes of the disk. */
  readonly size: number;
  /** The image that was made; null for one that existed. */
  readonly created: Created | null;
}

/**
 * Copies the disks of one or more images, one after the other, into a new image or over an existing one. A new image
 * replaces a file of its name only when it is complete. With a backing file, only what the top layer of the one source
 * holds is copied: the rest must be the same below. The same sources and options make the same bytes.
 * @throws SpindleError as {@link create} and {@link openImageFile}; BAD_SIZE (an existing target that is too small, or
 * has another size than the disk of bitmaps), BAD_BITMAP, EXISTS (bitmaps), ENCRYPTED, ABORTED, IO
 */
export async function convert(
  sources: readonly ConvertSource[],
  target: NewTarget | ExistingTarget,
  options: ConvertOptions = {},
): Promise<Converted> {
  checkConversion(sources, target, options);
  const images: Image[] = [];
  try {
    for (const source of sources) images.push(await openImageFile(source.path, { ...source, steady: true }));
    await refuseSame(images, target.path);
    const bitmaps =
      options.bitmaps === true ? images.flatMap((one) => bitmapsOf(one, options.onBitmapSkipped)) : [];
    const overlay = target.existing !== true && target.backing !== undefined;
    const disk = joinedSource(images.map((image) => imageSource(image, overlay)));
    return target.existing === true
      ? await writeOver(disk, target, options, bitmaps)
      : await convertInto(disk, images, target, options, bitmaps);
  } finally {
    await Promise.all(images.map((image) => image.close()));
  }
}

/** @throws SpindleError BAD_OPTION for what cannot be, whatever the images are */
export function checkConversion(
  sources: readonly ConvertSource[],
  target: NewTarget | ExistingTarget,
  { sparse, compress, bitmaps }: ConvertOptions,
): void {
  const bad = (message: string): SpindleError =>
    new SpindleError('BAD_OPTION', message, { path: target.path });
  if (sources.length === 0) throw bad('name an image to convert');
  if (sparse !== undefined && (sparse % 512 !== 0 || sparse < 0 || sparse > 16 * 1024 ** 2))
    throw bad(`zeroes are looked for in units of 0 to 16M, multiples of 512, not ${String(sparse)}`);
  if (bitmaps === true && sources.length > 1)
    throw bad('bitmaps are copied from one source only: they cannot be put one after the other');
  if (bitmaps === true && sources[0]?.snapshot !== undefined)
    throw bad('bitmaps belong to the disk as it is now, not to a snapshot');
  if (target.existing === true) return;
  if (bitmaps === true && ((target.format ?? 'raw') !== 'qcow2' || target.qcow2?.version === 2))
    throw bad('only qcow2 images from version 3 on take bitmaps');
  if (sources.length > 1 && target.backing !== undefined)
    throw bad('several sources cannot become one overlay: leave the backing file out');
  if (compress === true && (target.format ?? 'raw') !== 'qcow2')
    throw bad(`${target.format ?? 'raw'} images have no compressed data; use qcow2`);
  if (compress === true && target.encryption !== undefined)
    throw bad('an encrypted image cannot hold compressed clusters');
  if (compress === true && target.qcow2?.dataFile !== undefined)
    throw bad('an image with an external data file cannot hold compressed clusters');
}

/** @throws SpindleError BAD_OPTION when the target is a file that is read */
export async function refuseSame(images: readonly Image[], path: string): Promise<void> {
  const local = fileOf(path);
  const identity = local === null ? null : await identityIfAny(local);
  if (identity === null || !images.flatMap(identitiesOf).includes(identity)) return;
  throw new SpindleError('BAD_OPTION', 'this file is the source, or the source reads it', { path });
}

async function writeOver(
  disk: SourceDisk,
  target: ExistingTarget,
  options: ConvertOptions,
  bitmaps: readonly CopiedBitmap[],
): Promise<Converted> {
  const { path, format, direct, gate, secret } = target;
  const image = await openImageFile(path, { format, direct, gate, secret, write: true });
  let done: Converted;
  try {
    if (options.bitmaps === true) refuseBitmaps(image, bitmaps);
    const size = alignUp(disk.size, 512);
    if (image.size < size) throw tooSmall(size, image.size);
    const copied = await copyInto(disk, image, { ...options, blank: target.zeroed === true });
    await image.flush();
    done = { ...copied, size, created: null };
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await image.close();
  }
  await addBitmaps(path, bitmaps);
  return done;
}

/**
 * Makes a new image of a disk, which the first of `images` has in it, with `bitmaps`: {@link convert} for a disk of any kind.
 * @throws as convert
 */
export async function convertInto(
  disk: SourceDisk,
  images: readonly Image[],
  target: NewTarget,
  options: ConvertOptions,
  bitmaps: readonly CopiedBitmap[] = [],
): Promise<Converted> {
  const { allocation, lasting, direct, existing: _, ...request } = target;
  const size = alignUp(target.size ?? disk.size, 512);
  let copied: Copied = { written: 0, shared: 0, zero: 0 };
  const filled: CreateRequest = {
    ...request,
    size,
    allocation: allocation === 'keep' ? await policyOf(images) : allocation,
    signal: options.signal,
  };
  const created = await createFilled(filled, {
    lasting,
    direct,
    fill: async (storage, dataFile, made) => {
      const image = await openImage(storage, {
        format: made.format,
        codec: nodeCodec,
        crypto: nodeCrypto,
        secret: request.encryption?.secret,
        gate: targetGate(dataFile, request.gate),
        write: true,
        name: request.path,
      });
      try {
        const thick = made.preallocation === 'falloc' || made.preallocation === 'full';
        copied = await copyInto(sizedSource(disk, size), image, {
          ...options,
          // Shared blocks are nobody's own space.
          share: !thick && options.share !== false,
          blank: isBlank(made, storage),
        });
        await image.flush();
      } finally {
        await image.close();
      }
      await addBitmaps(storage.path, bitmaps);
    },
  });
  return { ...copied, size, created };
}

/** Opens what a new image refers to: the data file that is being made, and its backing file, which is only looked at. */
function targetGate(dataFile: FileStorage | null, gate?: Gate): Gate {
  const files = gate ?? fileGate({ share: true });
  return (reference) =>
    reference.kind === 'data file' && dataFile !== null
      ? Promise.resolve({ storage: dataFile, name: reference.name, id: dataFile.identity })
      : files(reference);
}

/** Whether the disk of a new image reads as zeroes. */
function isBlank(made: Created, storage: FileStorage): boolean {
  if (made.format === 'luks') return false;
  if (made.format === 'raw') return !storage.isDevice || made.preallocation === 'full';
  const { qcow2 } = made;
  if (qcow2 === null || qcow2.backing !== null) return false;
  return qcow2.encryption === null || made.preallocation === 'off';
}

async function copyInto(
  disk: SourceDisk,
  image: Image,
  options: ConvertOptions & { readonly blank: boolean },
): Promise<Copied> {
  if (!(image instanceof DiskImage)) throw new TypeError('an image that was opened is a DiskImage');
  const { signal, onProgress, compress, rate, onUnreadable, blank } = options;
  return copyDisk(disk, image, {
    signal,
    onProgress,
    compress,
    rate,
    onUnreadable,
    blank,
    sparse: options.sparse ?? 4096,
    share: options.sparse === undefined && options.share !== false,
  });
}

/** The policy of the first source. @throws SpindleError UNSUPPORTED where it shows none */
async function policyOf([image]: readonly Image[]): Promise<AllocationPolicy> {
  const usage = image === undefined ? null : await hostUsage(image);
  if (usage !== null && usage.policy !== null && usage.policy !== 'mixed') return usage.policy;
  const why = usage === null ? 'the host does not tell how it lies' : 'it is partly thick, partly thin';
  throw new SpindleError('UNSUPPORTED', `the policy of the source cannot be kept: ${why}; name one instead`, {
    path: image?.name,
  });
}
