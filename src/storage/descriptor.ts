import * as fs from 'node:fs';
import { SpindleError } from '../core/errors.ts';
import { errnoOf, hostError } from './errno.ts';

/*
 * Whole reads and writes on an open descriptor. The kernel may move less than was asked (at most 2 GiB less a page at
 * once, less on signals or a full disk); these loop until all is moved. `path` is for messages only.
 */

/** The most bytes for one call to the kernel. */
const MOST = 1024 ** 3;

/** Reads into `into` from `at` until it is full or the file ends; the bytes read. @throws IO and the like */
export async function readUpTo(fd: number, into: Uint8Array, at: number, path: string): Promise<number> {
  let done = 0;
  while (done < into.length) {
    const count = await readOnce(fd, into, done, at + done, path);
    if (count === 0) break;
    done += count;
  }
  return done;
}

/** One read, which may be short: `into` from `from` on; the bytes read, 0 at the end of the file. */
export function readOnce(
  fd: number,
  into: Uint8Array,
  from: number,
  at: number,
  path: string,
): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.read(fd, into, from, Math.min(into.length - from, MOST), at, (error, count) => {
      if (!error) resolve(count);
      else reject(hostError(error, path, 'read'));
    });
  });
}

/** Writes all of `from` at `at`. @throws NO_SPACE, IO and the like: some of it may be written then */
export async function writeAll(fd: number, from: Uint8Array, at: number, path: string): Promise<void> {
  let done = 0;
  while (done < from.length) {
    const count = await writeOnce(fd, from, done, at + done, path);
    if (count === 0)
      throw new SpindleError('IO', `${path}: cannot write: the system took no bytes`, { path });
    done += count;
  }
}

function writeOnce(fd: number, bytes: Uint8Array, from: number, at: number, path: string): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.write(fd, bytes, from, Math.min(bytes.length - from, MOST), at, (error, count) => {
      if (!error) resolve(count);
      else reject(hostError(error, path, 'write'));
    });
  });
}

/** Opens `path`; the descriptor is closed on exec. `flags` as open(2). */
export function openDescriptor(path: string, flags: number, mode: number, doing: string): Promise<number> {
  return call(path, doing, (done) => {
    fs.open(path, flags, mode, done);
  });
}

/** As {@link openDescriptor}, without a turn of the thread pool: for what opens from the kernel's memory. */
export function openAtOnce(path: string, flags: number, doing: string): number {
  try {
    return fs.openSync(path, flags);
  } catch (error) {
    throw hostError(error, path, doing);
  }
}

/** stat(2), through symbolic links, with whole numbers of any size. */
export function statPath(path: string, doing: string): Promise<fs.BigIntStats> {
  return call(path, doing, (done) => {
    fs.stat(path, { bigint: true }, done);
  });
}

/**
 * fstat(2) with whole numbers of any size. Without a turn of the thread pool: what is known of an open file lies in
 * the kernel's memory, and the turn takes ten times as long as the call.
 */
export function statDescriptor(fd: number, path: string): fs.BigIntStats {
  try {
    return fs.fstatSync(fd, { bigint: true });
  } catch (error) {
    throw hostError(error, path, 'look at');
  }
}

/** Sets the length of the file. */
export function truncateDescriptor(fd: number, size: number, path: string): Promise<void> {
  return call(path, 'resize', (done) => {
    fs.ftruncate(fd, size, done);
  });
}

/** fsync(2), or fdatasync(2), which may leave times behind. */
export function syncDescriptor(fd: number, path: string, dataOnly: boolean): Promise<void> {
  return call(path, 'flush', (done) => {
    if (dataOnly) fs.fdatasync(fd, done);
    else fs.fsync(fd, done);
  });
}

/** Closes the descriptor, which is gone even when this fails. */
export function closeDescriptor(fd: number, path: string): Promise<void> {
  return call(path, 'close', (done) => {
    fs.close(fd, done);
  });
}

/** As {@link closeDescriptor}, at once: for descriptors that wrote nothing, or made it durable: closing has nothing to wait for then. */
export function closeFlushed(fd: number, path: string): void {
  try {
    fs.closeSync(fd);
  } catch (error) {
    throw hostError(error, path, 'close');
  }
}

type Done<T> = (error: NodeJS.ErrnoException | null | undefined, value: T) => void;

function call<T>(path: string, doing: string, start: (done: Done<T>) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    start((error, value) => {
      if (!error) resolve(value);
      else reject(hostError(error, path, doing));
    });
  });
}

/** Makes the names in a directory durable, where the file system lets directories be synced. */
export async function syncDirectory(directory: string): Promise<void> {
  // Something in it was just made or renamed: it is in the kernel's memory.
  const fd = openAtOnce(directory, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY, 'open');
  try {
    await syncDescriptor(fd, directory, false);
  } catch (error) {
    const cause = error instanceof SpindleError ? error.cause : undefined;
    if (errnoOf(cause) !== 'EINVAL') throw error;
  } finally {
    closeFlushed(fd, directory);
  }
}
