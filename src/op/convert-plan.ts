import { alignUp } from '../core/align.ts';
import { localName } from '../core/path.ts';
import { stopIfAborted, type Working } from '../core/working.ts';
import type { Image } from '../format/image.ts';
import { FileStorage } from '../storage/file.ts';
import { placeOf } from '../storage/place.ts';
import { checkConversion, refuseSame } from './convert.ts';
import type { ConvertOptions, ConvertSource, ExistingTarget, NewTarget } from './convert.ts';
import { imageSource, joinedSource, sizedSource, type SourceDisk } from './copy/source.ts';
import { tooSmall } from './copy/copy.ts';
import { measureDisk } from './measure.ts';
import { openImageFile } from './open.ts';

/** What a conversion would do. Bytes. */
export interface ConvertPlan {
  /** Of the disk. */
  readonly size: number;
  /** Data that is read. It is written but for the zeroes in it, which only reading finds. */
  readonly read: number;
  /** Data that the target shares with the source instead, if the file system does that: else it is read too. */
  readonly shared: number;
  /** What is known to be zeroes, and is not read. */
  readonly zero: number;
  /** What the backing file of a new overlay holds, and is not looked at. */
  readonly absent: number;
  /** The length of the new image file at most; null for one that exists. Compressed data takes less. */
  readonly required: number | null;
  /** Free space where the target is; null where there is no telling. */
  readonly free: number | null;
  /** There is a file of this name: a new image takes its place when it is complete. */
  readonly exists: boolean;
}

/**
 * Tells what {@link convert} would do with the same arguments. Reads tables, no data, and changes nothing.
 * @throws SpindleError as {@link convert} does before it makes a target
 */
export async function planConvert(
  sources: readonly ConvertSource[],
  target: NewTarget | ExistingTarget,
  options: ConvertOptions = {},
): Promise<ConvertPlan> {
  checkConversion(sources, target, options);
  const images: Image[] = [];
  try {
    for (const source of sources) images.push(await openImageFile(source.path, { ...source, steady: true }));
    await refuseSame(images, target.path);
    const overlay = target.existing !== true && target.backing !== undefined;
    const joined = joinedSource(images.map((image) => imageSource(image, overlay)));
    const size = alignUp((target.existing === true ? undefined : target.size) ?? joined.size, 512);
    const disk = sizedSource(joined, size);
    const local = localName(target.path);
    const place = local === null ? null : await placeOf(local);
    const sharing = shares(target, options) ? place?.device : undefined;
    return {
      size,
      ...(await amounts(disk, sharing, options)),
      required:
        target.existing === true ? await existing(target, size) : await required(disk, target, options),
      free: place?.free ?? null,
      exists: place?.exists === true,
    };
  } finally {
    await Promise.all(images.map((image) => image.close()));
  }
}

/** Whether blocks would be shared as far as the options go. */
function shares(target: NewTarget | ExistingTarget, options: ConvertOptions): boolean {
  if (options.share === false || options.compress === true || options.sparse !== undefined) return false;
  if (target.existing === true) return true;
  const thick = target.allocation !== undefined && target.allocation !== 'thin';
  return !thick && target.encryption === undefined && target.format !== 'luks';
}

async function amounts(
  disk: SourceDisk,
  device: bigint | undefined,
  { signal }: Working,
): Promise<Pick<ConvertPlan, 'read' | 'shared' | 'zero' | 'absent'>> {
  const sum = { read: 0, shared: 0, zero: 0, absent: 0 };
  for await (const runs of disk.runs()) {
    stopIfAborted(signal);
    for (const { length, kind, host } of runs) {
      if (kind !== 'data') sum[kind] += length;
      else if (device !== undefined && host !== null && isOn(host.storage, device)) sum.shared += length;
      else sum.read += length;
    }
  }
  return sum;
}

function isOn(storage: unknown, device: bigint): boolean {
  return storage instanceof FileStorage && storage.identity.startsWith(`${device.toString()}:`);
}

async function required(disk: SourceDisk, target: NewTarget, { signal }: ConvertOptions): Promise<number> {
  const { format, allocation, preallocation, qcow2, encryption, backing } = target;
  const measured = { format, preallocation, qcow2, backed: backing !== undefined };
  const policy = allocation === 'keep' ? undefined : allocation;
  const { required: length } = await measureDisk(
    disk,
    { ...measured, allocation: policy, encryption },
    { signal },
  );
  return length;
}

/** @throws SpindleError as opening it, BAD_SIZE */
async function existing(target: ExistingTarget, size: number): Promise<null> {
  const { path, format, gate, secret } = target;
  const image = await openImageFile(path, { format, gate, secret });
  try {
    if (image.size < size) throw tooSmall(size, image.size);
    return null;
  } finally {
    await image.close();
  }
}
