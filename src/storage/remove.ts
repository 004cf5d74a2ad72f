import { unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { syncDirectory } from './descriptor.ts';
import { errnoOf, hostError } from './errno.ts';

/** Removes a file, durably. One that is not there is no failure. @throws SpindleError PERMISSION, READ_ONLY, IO */
export async function removeFile(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return;
    throw hostError(error, path, 'remove');
  }
  await syncDirectory(dirname(path));
}
