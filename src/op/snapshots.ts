import { SpindleError } from '../core/errors.ts';
import { readMetadata } from '../format/qcow2/metadata.ts';
import type { Snapshot } from '../format/qcow2/snapshot.ts';
import { openLocked, type OpenFileOptions } from './open.ts';

/**
 * The internal snapshots of an image, in the order of its table. Raw images have none.
 * @throws SpindleError as {@link openLocked}, and the codes of the format's validation
 */
export async function listSnapshots(
  path: string,
  options: Pick<OpenFileOptions, 'format' | 'share'> = {},
): Promise<readonly Snapshot[]> {
  const { storage, format } = await openLocked(path, options);
  try {
    return format === 'raw' ? [] : (await readMetadata(storage, 'info')).snapshots;
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}
