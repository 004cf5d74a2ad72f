import { randomUUID } from 'node:crypto';
import { closeSync, constants, copyFileSync, ftruncateSync, openSync, unlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../native/binding.ts';

/** The outcome of trying one thing: it works, it does not, or it could not be found out. */
export interface Trial {
  readonly name: string;
  /** What it is good for. */
  readonly means: string;
  readonly works: boolean | null;
  readonly note?: string;
}

const MIB = 1024 ** 2;

/** A trial says by a note how well it went, or throws why it did not. */
type Attempt = (fd: number, folder: string) => Promise<string | undefined> | string | undefined;

/** Fails a trial without an error of the system to show. */
class Failed extends Error {}

const ATTEMPTS: readonly (readonly [name: string, means: string, attempt: Attempt])[] = [
  [
    'reserve',
    'fallocate: thick-lazy images',
    (fd) =>
      native()
        .fallocate(fd, 'reserve', 0, MIB)
        .then(() => undefined),
  ],
  ['punch', 'punch hole: give space back', punch],
  [
    'zero-range',
    'zero range: zeroes without writing',
    (fd) =>
      native()
        .fallocate(fd, 'zero-range', 0, MIB)
        .then(() => undefined),
  ],
  ['write-zeroes', 'written zeroes: thick-eager images', writeZeroes],
  ['seek-hole', 'SEEK_HOLE: find holes', seekHole],
  ['fiemap', 'FIEMAP: tell reserved from written', fiemap],
  ['reflink', 'reflink: copies that share blocks', reflink],
  ['direct', 'O_DIRECT: past the page cache', direct],
  ['locks', 'OFD locks: keep others away as qemu does', locks],
];

/**
 * Tries on a temporary file in `folder` what the file system can do. The file has no name while it is used, so nothing
 * is left behind whatever happens. @throws the error of making that file
 */
export async function tryFileSystem(folder: string): Promise<Trial[]> {
  const trials: Trial[] = [];
  for (const [name, means, attempt] of ATTEMPTS) {
    const fd = openNameless(folder);
    try {
      const note = await attempt(fd, folder);
      trials.push({ name, means, works: true, ...(note === undefined ? {} : { note }) });
    } catch (error) {
      trials.push({ name, means, works: false, note: reason(error) });
    } finally {
      closeSync(fd);
    }
  }
  return trials;
}

/** Why it failed, without the descriptor and range that nobody asked about. */
function reason(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.replace(/^.* of \d+ bytes at \d+ on descriptor \d+: /, '');
}

/** The same list with nothing tried. */
export function untried(): Trial[] {
  return ATTEMPTS.map(([name, means]) => ({ name, means, works: null }));
}

function temporaryName(folder: string): string {
  return join(folder, `.spindle-doctor-${randomUUID()}`);
}

function openNameless(folder: string): number {
  const name = temporaryName(folder);
  const fd = openSync(name, 'wx+', 0o600);
  unlinkSync(name);
  return fd;
}

/** Opens the file of a descriptor anew: another open file description of the same file. */
function reopen(fd: number, flags: number): number {
  return openSync(`/proc/self/fd/${String(fd)}`, flags);
}

function fill(fd: number, at: number, length: number): void {
  writeSync(fd, Buffer.alloc(length, 0xa5), 0, length, at);
}

async function punch(fd: number): Promise<undefined> {
  fill(fd, 0, MIB);
  await native().fallocate(fd, 'punch', 0, MIB);
}

async function writeZeroes(fd: number): Promise<string> {
  await native()
    .fallocate(fd, 'reserve', 0, MIB)
    .catch(() => undefined);
  const { way } = await native().writeZeroes(fd, 0, MIB);
  return {
    offload: 'the device zeroes by itself',
    direct: 'written past the cache',
    buffered: 'written through the cache',
  }[way];
}

async function seekHole(fd: number): Promise<undefined> {
  ftruncateSync(fd, 8 * MIB);
  fill(fd, 4 * MIB, 65536);
  const [start, end] = await native().dataExtents(fd, 0, 8 * MIB, 8);
  // Some file systems have larger blocks, none of megabytes.
  const exact =
    start !== undefined &&
    end !== undefined &&
    start > 0 &&
    start <= 4 * MIB &&
    end >= 4 * MIB + 65536 &&
    end < 8 * MIB;
  if (!exact) throw new Failed('holes are told as data');
}

async function fiemap(fd: number): Promise<string | undefined> {
  const reserved = await native()
    .fallocate(fd, 'reserve', 0, MIB)
    .then(
      () => true,
      () => false,
    );
  if (!reserved) fill(fd, 0, MIB);
  const extents = await native().fiemap(fd, 0, MIB, 64, true);
  if (extents.length === 0) throw new Failed('no extents are told');
  if (reserved && !extents.some((extent) => extent.unwritten))
    return 'reserved space looks like written space';
  return undefined;
}

function reflink(fd: number, folder: string): undefined {
  fill(fd, 0, 65536);
  const copy = temporaryName(folder);
  try {
    copyFileSync(`/proc/self/fd/${String(fd)}`, copy, constants.COPYFILE_FICLONE_FORCE);
  } catch (error) {
    throw new Failed(
      `the file system cannot (${(error as NodeJS.ErrnoException).code ?? 'no reason given'})`,
    );
  } finally {
    try {
      unlinkSync(copy);
    } catch {
      // It was not made.
    }
  }
}

function direct(fd: number): undefined {
  const flag = (constants as { readonly O_DIRECT?: number }).O_DIRECT;
  if (flag === undefined) throw new Failed('this platform has no O_DIRECT');
  try {
    closeSync(reopen(fd, constants.O_RDWR | flag));
  } catch (error) {
    throw new Failed(
      `the file system cannot (${(error as NodeJS.ErrnoException).code ?? 'no reason given'})`,
    );
  }
}

function locks(fd: number): undefined {
  const other = reopen(fd, constants.O_RDWR);
  try {
    native().lockBytes(fd, [100]);
    if (native().findLocked(other, [100]) !== 100) throw new Failed('a lock is not seen by others');
  } finally {
    closeSync(other);
  }
}
