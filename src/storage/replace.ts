import { randomBytes } from 'node:crypto';
import { constants, unlinkSync, type BigIntStats } from 'node:fs';
import { chmod, chown, rename, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { isSpindleError } from '../core/errors.ts';
import { closeDescriptor, openDescriptor, syncDescriptor, syncDirectory } from './descriptor.ts';
import { errnoOf, hostError } from './errno.ts';
import { realTarget } from './identity.ts';
import { openFile, type FileStorage } from './file.ts';
import { lockImage } from './lock.ts';
import { refuseOther } from './open.ts';

/** Bytes of the name of the target that its temporary name keeps: all names must fit in 255 bytes. */
const NAME_KEPT = 180;

/** How {@link replaceFile} makes a file. */
export interface ReplaceOptions {
  /**
   * False: a file that was not there before need not be durable, only complete, and flushing it while it is made does
   * nothing. Default: what was made survives a power cut.
   */
  readonly lasting?: boolean | undefined;
  /** Write past the page cache (O_DIRECT). Default: no. */
  readonly direct?: boolean | undefined;
}

/** Temporary files that exist now. */
const leftovers = new Set<string>();

/** Removes the temporary files of replacements that are under way, at once: for a signal handler about to exit. */
export function removeLeftovers(): void {
  for (const path of leftovers) removeQuietly(path);
}

/**
 * Makes or replaces the file at `path` in one step: `build` fills a new file beside it, which is made durable and then
 * takes its name. Whatever fails before that, the file that was there stays exactly as it was and the new one is removed.
 *
 * The new file keeps the mode of the old one, and its owner when run as root; hard links, access control lists and
 * extended attributes stay with the old one. A symbolic link is followed: what it names is replaced. A block device
 * cannot be replaced: `build` gets the device itself, and a failure leaves it half written. `build` may close the
 * storage.
 * @throws NOT_A_FILE, NOT_FOUND (the directory), PERMISSION, READ_ONLY, NO_SPACE, IO; IN_USE when another process has
 * the old file or the device open in a way that creation may not disturb
 */
export async function replaceFile(
  path: string,
  build: (storage: FileStorage) => Promise<void>,
  how: ReplaceOptions = {},
): Promise<void> {
  const target = await realTarget(path);
  const old = await statIfThere(target);
  if (old !== undefined) {
    refuseOther(old, path);
    await refuseInUse(target);
  }
  if (old?.isBlockDevice() === true) await writeDevice(target, build, how);
  else await writeFile(target, path, old, build, how);
}

async function writeDevice(
  target: string,
  build: (storage: FileStorage) => Promise<void>,
  { direct }: ReplaceOptions,
): Promise<void> {
  const storage = await openFile(target, { write: true, direct: direct === true });
  try {
    await build(storage);
    if (!storage.closed) await storage.flush();
  } finally {
    await storage.close();
  }
}

async function writeFile(
  target: string,
  path: string,
  old: BigIntStats | undefined,
  build: (storage: FileStorage) => Promise<void>,
  how: ReplaceOptions,
): Promise<void> {
  // What was there is given up only for something that is durable.
  const lasting = old !== undefined || how.lasting !== false;
  const temporary = temporaryName(target);
  leftovers.add(temporary);
  let flushed = false;
  try {
    const storage = await openFile(temporary, {
      create: 'temporary',
      unsafe: how.lasting === false,
      direct: how.direct === true,
    });
    try {
      await build(storage);
      if (!storage.closed) {
        await storage.flush();
        flushed = how.lasting !== false;
      }
    } finally {
      await storage.close();
    }
    if (old !== undefined) {
      await keepOwner(temporary, old);
      await refuseInUse(target);
    }
    // A new owner or mode is not durable yet either.
    if (lasting && (old !== undefined || !flushed)) await syncFile(temporary);
    await rename(temporary, target);
  } catch (error) {
    removeQuietly(temporary);
    throw error instanceof Error && error.message.includes(temporary)
      ? renamed(error, temporary, path)
      : error;
  } finally {
    leftovers.delete(temporary);
  }
  if (lasting) await syncDirectory(dirname(target));
}

/** An error about the temporary file, told about the file that the caller knows. */
function renamed(error: Error, temporary: string, path: string): Error {
  const told = isSpindleError(error) ? error : hostError(error, path, 'replace');
  told.message = told.message.replaceAll(temporary, path);
  if (told.path === temporary) told.path = path;
  return told;
}

async function statIfThere(path: string): Promise<BigIntStats | undefined> {
  try {
    return await stat(path, { bigint: true });
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw hostError(error, path, 'create');
  }
}

/**
 * A file that may not be written may not be replaced either, though its directory would allow that.
 * @throws PERMISSION, READ_ONLY; IN_USE when the locks that creation takes for a moment are refused
 */
async function refuseInUse(target: string): Promise<void> {
  const storage = await openFile(target, { write: true });
  try {
    await lockImage(storage, 'create');
  } finally {
    await storage.close();
  }
}

async function keepOwner(temporary: string, old: BigIntStats): Promise<void> {
  try {
    if (process.geteuid?.() === 0) await chown(temporary, Number(old.uid), Number(old.gid));
    // After the owner, as a change of owner takes set-uid bits away.
    await chmod(temporary, Number(old.mode) & 0o7777);
  } catch (error) {
    throw hostError(error, temporary, 'set the owner and mode');
  }
}

/** Everything of the file is durable, also its mode and what `build` left unflushed. */
async function syncFile(path: string): Promise<void> {
  const fd = await openDescriptor(path, constants.O_RDONLY, 0, 'open');
  try {
    await syncDescriptor(fd, path, false);
  } finally {
    await closeDescriptor(fd, path);
  }
}

function temporaryName(target: string): string {
  const name = Buffer.from(basename(target))
    .subarray(0, NAME_KEPT)
    .toString()
    .replace(/\ufffd+$/, '');
  const unique = `${String(process.pid)}-${randomBytes(6).toString('hex')}`;
  return join(dirname(target), `.${name}.spindle-${unique}`);
}

function removeQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // It was never made, or somebody else removed it.
  }
}
