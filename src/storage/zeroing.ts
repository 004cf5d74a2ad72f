import { alignDown, alignUp } from '../core/align.ts';
import { SpindleError } from '../core/errors.ts';
import type { ZeroOptions } from '../core/storage.ts';
import { native } from '../native/binding.ts';
import type { FallocateMode } from '../native/types.ts';

/** Zeroes are written in chunks of this many bytes where nothing better works. */
export const ZERO_CHUNK = 1024 ** 2;

/** A file or a device whose ranges are zeroed. */
export interface ZeroTarget {
  readonly fd: number;
  readonly path: string;
  readonly isDevice: boolean;
  /** Bytes in which a device is zeroed without being read. */
  readonly alignment: number;
  /** Zeroed memory for {@link write}. */
  buffer(size: number): Uint8Array;
  write(from: Uint8Array, at: number): Promise<void>;
  /** Whether `work` could be done; what cannot be done here at all need not be tried again. */
  try(what: string, work: () => Promise<void>): Promise<boolean>;
}

/**
 * Makes a range read as zeroes in the fastest way that there is. Never changes the size.
 * @throws SpindleError UNSUPPORTED for `fastOnly` before anything is changed; what writing throws
 */
export function zeroRange(target: ZeroTarget, at: number, length: number, how: ZeroOptions): Promise<void> {
  return target.isDevice ? zeroDevice(target, at, length, how) : zeroFile(target, at, length, how);
}

async function zeroFile(target: ZeroTarget, at: number, length: number, how: ZeroOptions): Promise<void> {
  const modes: FallocateMode[] = how.keepAllocated === true ? ['zero-range'] : ['punch', 'zero-range'];
  // The twin starts a program each time: writing a few zeroes is faster.
  if (native().kind === 'twin' && length <= ZERO_CHUNK && how.fastOnly !== true) modes.length = 0;
  for (const mode of modes) {
    if (await target.try(mode, () => native().fallocate(target.fd, mode, at, length))) return;
  }
  await writeZeroes(target, at, length, how);
}

async function zeroDevice(target: ZeroTarget, at: number, length: number, how: ZeroOptions): Promise<void> {
  const { fd, alignment } = target;
  const start = Math.min(alignUp(at, alignment), at + length);
  const end = Math.max(alignDown(at + length, alignment), start);
  if (start < end) {
    // Punching a device zeroes it without writing, or not at all. BLKZEROOUT may write: nothing for `fastOnly`.
    const zeroed =
      (how.keepAllocated !== true &&
        (await target.try('punch', () => native().fallocate(fd, 'punch', start, end - start)))) ||
      (how.fastOnly !== true &&
        (await target.try('zero-out', () => native().deviceZeroOut(fd, start, end - start))));
    if (!zeroed) return writeZeroes(target, at, length, how);
  }
  await writeZeroes(target, at, start - at, {});
  await writeZeroes(target, end, at + length - end, {});
}

async function writeZeroes(target: ZeroTarget, at: number, length: number, how: ZeroOptions): Promise<void> {
  if (length === 0) return;
  if (how.fastOnly === true) {
    const message = `${target.path}: cannot zero without writing zeroes`;
    throw new SpindleError('UNSUPPORTED', message, { path: target.path });
  }
  const zeroes = target.buffer(Math.min(ZERO_CHUNK, length));
  for (let done = 0; done < length; done += zeroes.length) {
    await target.write(zeroes.subarray(0, Math.min(zeroes.length, length - done)), at + done);
  }
}
