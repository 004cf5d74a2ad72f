import { divUp } from '../core/align.ts';
import { SpindleError } from '../core/errors.ts';
import { stopIfAborted, type Working } from '../core/working.ts';
import { luksLength } from '../format/crypto/luks-create.ts';
import type { Image } from '../format/image.ts';
import { measureBitmaps, measureQcow2 } from '../format/qcow2/measure.ts';
import { Qcow2Driver } from '../format/qcow2/driver.ts';
import { imageSource, type SourceDisk } from './copy/source.ts';
import { settle, type CreateRequest, type EncryptionRequest } from './create.ts';
import { openImageFile, type OpenFileOptions } from './open.ts';

/** What the image that is measured will be like; its files need not be there. */
export interface MeasureTarget extends Pick<
  CreateRequest,
  'format' | 'allocation' | 'preallocation' | 'qcow2'
> {
  /** It will have a backing file. How much of the source is below already is not known: all of it counts. */
  readonly backed?: boolean | undefined;
  /** It will be encrypted; no secret is needed. */
  readonly encryption?: Omit<EncryptionRequest, 'secret'> | undefined;
}

/** The image that would be copied. Its tables are looked at, not its data: no secret is needed. */
export interface MeasureSource extends Pick<OpenFileOptions, 'format' | 'share' | 'snapshot' | 'gate'> {
  readonly path: string;
}

/** Lengths of an image file in bytes. */
export interface Measured {
  /** With what the source holds now, or empty. */
  readonly required: number;
  /** With data in every place of the disk. */
  readonly fullyAllocated: number;
  /** What the bitmaps of the source take besides; null where one of the two formats has none. */
  readonly bitmaps: number | null;
}

/**
 * How long the file of a new, empty image will be. An external data file counts as part of it.
 * @throws SpindleError BAD_OPTION, BAD_SIZE, LIMIT, UNKNOWN_FORMAT
 */
export function measureSize(size: number, target: MeasureTarget = {}): Measured {
  return lengths(size, target, () => 0);
}

/**
 * How long the file of an image becomes that the disk of `source` is copied to: never less than it will be. Reads no
 * data.
 * @throws SpindleError as {@link measureSize} and {@link openImageFile}
 */
export async function measure(
  source: MeasureSource,
  target: MeasureTarget = {},
  working: Pick<Working, 'signal'> = {},
): Promise<Measured> {
  const image = await openImageFile(source.path, source);
  try {
    const found = await measureDisk(imageSource(image), target, working);
    const { qcow2 } = settle(requestOf(target), image.size);
    const bitmaps = qcow2 === null || qcow2.version < 3 ? null : bitmapsOf(image, qcow2.clusterSize);
    return { ...found, bitmaps };
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= source.path;
    throw error;
  } finally {
    await image.close();
  }
}

/**
 * How long the file of an image becomes that `disk` is copied to. Reads no data.
 * @throws SpindleError as {@link measureSize}, ABORTED
 */
export async function measureDisk(
  disk: SourceDisk,
  target: MeasureTarget,
  working: Pick<Working, 'signal'> = {},
): Promise<Measured> {
  // Options that make no sense are refused before the tables are read.
  const { qcow2 } = settle(requestOf(target), disk.size);
  const counted = qcow2 !== null && target.backed !== true;
  const clusters = counted ? await dataClusters(disk, qcow2.clusterSize, working.signal) : 0;
  return lengths(disk.size, target, (all) => (target.backed === true ? all : clusters));
}

/** `data` gives the clusters of data of a qcow2 image from all that the disk has. */
function lengths(size: number, target: MeasureTarget, data: (all: number) => number): Measured {
  const { qcow2, luks, size: sectors } = settle(requestOf(target), size);
  if (qcow2 !== null) {
    const all = divUp(qcow2.size, qcow2.clusterSize);
    return { ...measureQcow2(qcow2, data(all)), bitmaps: null };
  }
  // qemu does not round here.
  const length = luks === null ? sectors : luksLength(luks) + size;
  return { required: length, fullyAllocated: length, bitmaps: null };
}

function requestOf(target: MeasureTarget): CreateRequest {
  const { format, allocation, preallocation, qcow2, encryption } = target;
  const withSecret =
    encryption === undefined ? {} : { encryption: { ...encryption, secret: () => Promise.resolve(null) } };
  return { path: '', format, allocation, preallocation, qcow2, ...withSecret };
}

/** Clusters of a new image that data of the disk falls into. */
async function dataClusters(
  disk: SourceDisk,
  clusterSize: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  let count = 0;
  /** Clusters from this one on are not counted yet. */
  let next = 0;
  for await (const runs of disk.runs()) {
    stopIfAborted(signal);
    for (const { at, length, kind } of runs) {
      if (kind !== 'data') continue;
      const first = Math.max(next, Math.floor(at / clusterSize));
      const end = divUp(at + length, clusterSize);
      count += Math.max(0, end - first);
      next = Math.max(next, end);
    }
  }
  return count;
}

/** What the bitmaps of a qcow2 image take elsewhere; null where it can have none. */
function bitmapsOf(image: Image, clusterSize: number): number | null {
  const { driver } = image;
  if (!(driver instanceof Qcow2Driver) || driver.metadata.header.version < 3) return null;
  return measureBitmaps(driver.metadata.bitmaps, driver.metadata.size, clusterSize);
}
