import { randomBytes } from 'node:crypto';
import { chmodSync, constants, readdirSync } from 'node:fs';
import { mkdir, open, rename, rm, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { syncDirectory } from '../storage/descriptor.ts';
import { errnoOf, hostError } from '../storage/errno.ts';

/** Makes a directory of spindle's own, for its owner alone. @throws SpindleError PERMISSION, READ_ONLY, NO_SPACE */
export async function ownDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw hostError(error, path, 'make the directory');
  }
}

/**
 * Puts `text` into the file at `path` in one step: whoever reads it finds the old or the new text, whole, also after a
 * crash or a power cut. For a directory that only the owner of the lock writes to: what crashes left is removed.
 * @throws SpindleError PERMISSION, READ_ONLY, NO_SPACE, IO
 */
export async function writeWhole(path: string, text: string): Promise<void> {
  const folder = dirname(path);
  await ownDirectory(folder);
  const prefix = `.${basename(path)}.new-`;
  for (const name of readdirSync(folder))
    if (name.startsWith(prefix)) await rm(join(folder, name), { force: true });
  const temporary = join(folder, prefix + randomBytes(6).toString('hex'));
  try {
    const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_NOFOLLOW;
    const file = await open(temporary, flags, 0o600);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    chmodSync(temporary, 0o600);
    await rename(temporary, path);
    await syncDirectory(folder);
  } catch (error) {
    await rm(temporary, { force: true });
    throw hostError(error, path, 'write');
  }
}

/** Removes a file, durably; whether it was there. @throws SpindleError PERMISSION, READ_ONLY, IO */
export async function removeWhole(path: string): Promise<boolean> {
  try {
    await unlink(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw hostError(error, path, 'remove');
  }
  await syncDirectory(dirname(path));
  return true;
}
