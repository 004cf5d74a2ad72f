import { SpindleError } from '../core/errors.ts';
import type { CheckOptions, CheckResult } from '../format/qcow2/check/check.ts';
import { check } from './check.ts';
import { openLocked, type OpenFileOptions } from './open.ts';

/**
 * Checks the metadata of the qcow2 image in a file, which stays locked against changes meanwhile.
 * @throws SpindleError UNSUPPORTED for a raw or LUKS image, which has no metadata to check; as {@link openLocked}, and what
 * {@link check} throws
 */
export async function checkFile(
  path: string,
  options: CheckOptions & Pick<OpenFileOptions, 'format' | 'share'> = {},
): Promise<CheckResult> {
  const { storage, format } = await openLocked(path, options);
  try {
    if (format !== 'qcow2')
      throw new SpindleError('UNSUPPORTED', `${format} images have no metadata to check`, { path });
    return await check(storage, options);
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}
