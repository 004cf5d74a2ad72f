import { ALLOCATION_POLICIES, type AllocationPolicy } from '../core/allocation.ts';
import { SpindleError } from '../core/errors.ts';
import { formatSize } from '../core/size.ts';
import type { Storage } from '../core/storage.ts';
import type { Working } from '../core/working.ts';
import { DiskImage } from '../format/disk-image.ts';
import type { Image } from '../format/image.ts';
import type { Format } from '../format/open.ts';
import { checkImage } from '../format/qcow2/check/check.ts';
import { readMetadata } from '../format/qcow2/metadata.ts';
import { freeSpaceOf } from '../storage/ability.ts';
import { FileStorage } from '../storage/file.ts';
import { allocateFlat } from './allocate/flat.ts';
import { isDevice, type Tally } from './allocate/host.ts';
import { inflate } from './allocate/inflate.ts';
import { thin } from './allocate/thin.ts';
import { hostUsage, type HostUsage } from './host-usage.ts';
import { openImageFile, type OpenFileOptions } from './open.ts';

/** What is made of an image. */
export interface AllocateRequest
  extends Working, Pick<OpenFileOptions, 'format' | 'gate' | 'secret' | 'noFollow'> {
  readonly policy: AllocationPolicy;
  /** Take into an overlay what its backing file shows, so that it can have all of its space. */
  readonly copyBacking?: boolean | undefined;
  /** Change nothing: tell what would be done. Reads all data where it looks for zeroes. */
  readonly plan?: boolean | undefined;
}

/** How much of the host an image takes. */
export interface HostHold {
  /** The policy that it looks like; null where the host cannot tell. */
  readonly policy: HostUsage['policy'];
  /** Bytes of the blocks of its file, and of its data file; null where the host cannot tell. */
  readonly allocated: number | null;
}

/** What was done, or would be. Bytes. */
export interface Allocated extends Readonly<Tally> {
  readonly format: Format;
  /** The policy that was asked for. */
  readonly policy: AllocationPolicy;
  /** Bytes of the disk. */
  readonly size: number;
  readonly before: HostHold;
  /** Of a plan: about what it would be. */
  readonly after: HostHold;
}

/**
 * Changes the allocation policy of an image in place: gives all of its disk space (`thick-lazy`), written space
 * (`thick-eager`), or gives back what holds only zeroes (`thin`). The disk and its internal snapshots read the same at every
 * moment.
 *
 * Stopped, failed or killed at any moment, the image is whole, has leaked clusters at most, and is between the two
 * policies: doing it again finishes it, and asking for another policy goes there.
 *
 * An overlay gets space for what its backing file shows only with extended L2, or with `copyBacking`. On a block device
 * `thick-eager` writes zeroes over zeroes, and `thin` makes the device forget zeroes, where it can.
 * @throws SpindleError BAD_OPTION, UNSUPPORTED, ENCRYPTED, CORRUPT (the check finds damage), NO_SPACE for what can be told
 * before anything is changed; NO_SPACE, ABORTED, and as {@link openImageFile}
 */
export async function allocate(path: string, request: AllocateRequest): Promise<Allocated> {
  const { policy, format, gate, secret, noFollow, plan = false, signal } = request;
  if (!ALLOCATION_POLICIES.includes(policy))
    throw new SpindleError('BAD_OPTION', `the allocation policies are ${ALLOCATION_POLICIES.join(', ')}`);
  const tally: Tally = { read: 0, written: 0, reserved: 0, freed: 0 };
  const image = await openImageFile(path, { format, gate, secret, noFollow, write: !plan, steady: true });
  let done: Omit<Allocated, 'after' | keyof Tally>;
  try {
    const usage = await hostUsage(image, signal);
    const before = { policy: usage?.policy ?? null, allocated: await allocatedBy(image) };
    done = { format: image.format as Format, policy, size: image.size, before };
    if (!plan && policy !== 'thin') refuseTooLarge(image.driver.data, usage, before);
    await work(image, request, tally);
    if (!plan) await image.flush();
    await image.close();
    if (plan) {
      const more = grown(policy, tally, usage) - tally.freed;
      const allocated = before.allocated === null ? null : Math.max(0, before.allocated + more);
      return { ...done, ...tally, after: { policy, allocated } };
    }
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    // What closing would say is only what went wrong already.
    await image.close().catch(() => undefined);
    throw error;
  }
  const after = await lookAgain(path, done.format, request);
  const freed = Math.max(0, (done.before.allocated ?? 0) - (after.allocated ?? 0));
  return { ...done, ...tally, freed, after };
}

async function work(image: Image, request: AllocateRequest, tally: Tally): Promise<void> {
  const { policy, plan = false, copyBacking = false, signal, onProgress } = request;
  const doing = { plan, tally, signal, onProgress };
  if (image.format !== 'qcow2') return allocateFlat(image.storage, { ...doing, policy });
  if (!(image instanceof DiskImage)) throw new TypeError('an image that was opened is a DiskImage');
  const found = await checkImage(image.storage, await readMetadata(image.storage, 'check'), {
    ...(signal === undefined ? {} : { signal }),
  });
  if (found.corruptions > 0 || found.checkErrors > 0)
    throw new SpindleError(
      'CORRUPT',
      'the image is damaged: check it, and repair it before its space is changed',
    );
  const metadata = await readMetadata(image.storage, 'data');
  if (policy === 'thin') await thin(image, metadata, { ...doing, policy });
  else await inflate(image, metadata, { ...doing, policy, copyBacking });
}

/** Bytes that the host has allocated for the files of an image. */
async function allocatedBy(image: { storage: Storage; driver: { data: Storage } }): Promise<number | null> {
  const { storage, driver } = image;
  let sum = 0;
  for (const file of new Set([storage, driver.data])) {
    if (file.allocatedSize === undefined || isDevice(file)) return null;
    sum += await file.allocatedSize();
  }
  return sum;
}

/** How it is now. */
async function lookAgain(path: string, format: Format, { gate }: AllocateRequest): Promise<HostHold> {
  const image = await openImageFile(path, { format, gate, share: true, backing: false });
  try {
    const usage = await hostUsage(image);
    return { policy: usage?.policy ?? null, allocated: await allocatedBy(image) };
  } finally {
    await image.close();
  }
}

/** Bytes of blocks that a plan adds. */
function grown(policy: AllocationPolicy, tally: Tally, usage: HostUsage | null): number {
  if (policy === 'thin') return 0;
  // What is unwritten has its blocks already.
  return usage === null ? tally.reserved : usage.hole + usage.unmapped + usage.compressed;
}

/** @throws SpindleError NO_SPACE when the file system surely has too little left */
function refuseTooLarge(data: Storage, usage: HostUsage | null, before: HostHold): void {
  const free = data instanceof FileStorage && !data.isDevice ? freeSpaceOf(data.fd) : null;
  if (free === null || usage === null || before.allocated === null) return;
  const missing = usage.hole + usage.unmapped + usage.compressed;
  // Free clusters of the file, and what compressed ones leave, can be used.
  const own = Math.max(0, before.allocated - usage.written - usage.unwritten);
  if (missing <= free + own) return;
  throw new SpindleError(
    'NO_SPACE',
    `it needs ${formatSize(missing)} more, and its file system has ${formatSize(free)} left`,
  );
}
