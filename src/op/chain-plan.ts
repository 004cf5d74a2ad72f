import { SpindleError } from '../core/errors.ts';
import { stopIfAborted } from '../core/working.ts';
import type { Image } from '../format/image.ts';
import { knownFormat } from '../format/open.ts';
import { Qcow2Driver } from '../format/qcow2/driver.ts';
import { checkBacking } from '../format/qcow2/write/backing.ts';
import { chainOf, findBelow, refuseLoop } from './chain.ts';
import { refuseUncommittable, type CommitOptions } from './commit.ts';
import { aboveSource } from './copy/above.ts';
import { openImageFile } from './open.ts';
import { openBelow, type NewBacking, type RebaseOptions } from './rebase.ts';
import { piecesOf, suspects } from './rebase/suspects.ts';

/** What a commit would do. Bytes. */
export interface CommitPlan {
  /** The image that would be written to. */
  readonly base: string;
  /** Of its disk, before and then. */
  readonly from: number;
  readonly size: number;
  /** Data that is read above it and written to it. */
  readonly read: number;
  /** What becomes zeroes in it. */
  readonly zero: number;
  /** What it keeps. */
  readonly absent: number;
}

/**
 * Tells what {@link commit} would do with the same arguments. Reads tables, no data, and changes nothing.
 * @throws SpindleError as commit does before it writes
 */
export async function planCommit(path: string, options: CommitOptions = {}): Promise<CommitPlan> {
  const { format, secret, direct, gate, signal } = options;
  const chain = await chainOf(path, format, gate);
  refuseUncommittable(chain, path);
  const index = options.base === undefined ? 1 : await findBelow(chain, options.base);
  const top = await openImageFile(path, { format: chain[0]?.format, secret, direct, gate });
  try {
    let base: Image | null = top;
    for (let depth = 0; depth < index; depth++) base = base?.backing ?? null;
    if (base === null)
      throw new SpindleError('IN_USE', 'its backing chain was changed a moment ago; try again', { path });
    const sum = { read: 0, zero: 0, absent: 0 };
    for await (const runs of aboveSource(top, base).runs()) {
      stopIfAborted(signal);
      for (const { kind, length } of runs) sum[kind === 'data' ? 'read' : kind] += length;
    }
    const size = Math.max(base.size, top.size);
    return { base: chain[index]?.path ?? '', from: base.size, size, ...sum };
  } finally {
    await top.close();
  }
}

/** What a rebase would do. Bytes. */
export interface RebasePlan {
  /** The backing file that the image names now; null for none. */
  readonly before: string | null;
  /** Of the disk. */
  readonly size: number;
  /** What would be read on both sides, because it may differ. No more than that is written to the image. */
  readonly compared: number;
}

/**
 * Tells what {@link rebase} would do with the same arguments. Reads tables, no data, and changes nothing.
 * @throws SpindleError as rebase does before it writes
 */
export async function planRebase(
  path: string,
  backing: NewBacking | null,
  options: RebaseOptions = {},
): Promise<RebasePlan> {
  if (backing !== null) {
    knownFormat(backing.format);
    await refuseLoop(path, backing);
  }
  const { format, secret, direct, gate, signal, unsafe, compress } = options;
  // Without the secret and what is below, where nothing is looked at.
  const image = await openImageFile(path, { format, secret, direct, gate, backing: unsafe !== true });
  let next: Image | null = null;
  try {
    const { driver } = image;
    if (!(driver instanceof Qcow2Driver))
      throw new SpindleError('UNSUPPORTED', `${image.format} images have no backing file`);
    const { metadata } = driver;
    checkBacking(metadata, backing);
    const told = { before: metadata.backingName, size: image.size };
    if (unsafe === true) return { ...told, compared: 0 };
    next = backing === null ? null : await openBelow(path, backing, options);
    const { clusterSize, subclusterSize } = metadata.geometry;
    const unit = compress === true ? clusterSize : subclusterSize;
    let compared = 0;
    for await (const { length } of piecesOf(suspects(image, next), unit, image.size)) {
      stopIfAborted(signal);
      compared += length;
    }
    return { ...told, compared };
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await next?.close();
    await image.close();
  }
}
