import { SpindleError } from '../core/errors.ts';
import { readMetadata } from '../format/qcow2/metadata.ts';
import type { Snapshot } from '../format/qcow2/snapshot.ts';
import { DiskImage } from '../format/disk-image.ts';
import { findSnapshot } from '../format/qcow2/driver.ts';
import { Qcow2WriteDriver } from '../format/qcow2/write/driver.ts';
import {
  applySnapshot as apply,
  createSnapshot as make,
  deleteSnapshot as remove,
} from '../format/qcow2/write/snapshots.ts';
import { openImageFile, openLocked, type OpenFileOptions } from './open.ts';

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
    return format !== 'qcow2' ? [] : (await readMetadata(storage, 'info')).snapshots;
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}

/** How an image is opened for its snapshots to be changed. */
export type SnapshotFileOptions = Pick<OpenFileOptions, 'format' | 'gate' | 'secret'>;

/** What a new snapshot is given besides its name. */
export interface CreateSnapshotOptions extends SnapshotFileOptions {
  /** Default: now. */
  readonly date?: Date | undefined;
  /** Default: one more than the largest number among the ids. */
  readonly id?: string | undefined;
}

/** How an existing snapshot is told. */
export interface FindSnapshotOptions extends SnapshotFileOptions {
  /**
   * `unique` (default): by id, or else by name, which only one snapshot may have. `first`: the same, but the first of
   * several names will do. `name`: the first of that name; ids do not count.
   */
  readonly find?: 'unique' | 'first' | 'name' | undefined;
}

/**
 * Makes an internal snapshot of the disk in a qcow2 image; returns its id. A power cut leaves the image without it, or
 * with it, whole.
 * @throws SpindleError UNSUPPORTED (raw, luks, or an external data file), BAD_OPTION, LIMIT (refcounts too narrow, too
 * many snapshots), and as {@link openImageFile}
 */
export function createSnapshot(
  path: string,
  name: string,
  options: CreateSnapshotOptions = {},
): Promise<string> {
  const { date = new Date(), id } = options;
  return changing(path, options, (driver) =>
    driver.changeSnapshots((image) => make(image, { name, date, id })),
  );
}

/**
 * Makes the disk what it was at a snapshot, its size too. What the disk holds is lost.
 * @throws SpindleError SNAPSHOT_NOT_FOUND, BAD_OPTION for an ambiguous name, UNSUPPORTED, BAD_SNAPSHOT, LIMIT, and as
 * {@link openImageFile}
 */
export function applySnapshot(
  path: string,
  idOrName: string,
  options: FindSnapshotOptions = {},
): Promise<void> {
  return changing(path, options, (driver) => {
    const snapshot = choose(driver.metadata.snapshots, idOrName, options.find);
    return driver.changeSnapshots((image) => apply(image, snapshot));
  });
}

/**
 * Deletes an internal snapshot, and frees what only it held.
 * @throws SpindleError SNAPSHOT_NOT_FOUND, BAD_OPTION for an ambiguous name, UNSUPPORTED, BAD_SNAPSHOT, and as
 * {@link openImageFile}
 */
export function deleteSnapshot(
  path: string,
  idOrName: string,
  options: FindSnapshotOptions = {},
): Promise<void> {
  return changing(path, options, (driver) => {
    const snapshot = choose(driver.metadata.snapshots, idOrName, options.find);
    return driver.changeSnapshots((image) => remove(image, snapshot));
  });
}

async function changing<T>(
  path: string,
  options: SnapshotFileOptions,
  work: (driver: Qcow2WriteDriver) => Promise<T>,
): Promise<T> {
  const { format, gate, secret } = options;
  const image = await openImageFile(path, { format, gate, secret, write: true });
  try {
    const { driver } = image;
    if (!(image instanceof DiskImage) || !(driver instanceof Qcow2WriteDriver)) {
      throw new SpindleError('UNSUPPORTED', `${image.format} images have no snapshots`, { path });
    }
    return await image.alone(() => work(driver));
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await image.close();
  }
}

function choose(
  snapshots: readonly Snapshot[],
  idOrName: string,
  find: FindSnapshotOptions['find'] = 'unique',
): Snapshot {
  const named = snapshots.filter(({ name }) => name === idOrName);
  if (find === 'name') {
    const [first] = named;
    if (first !== undefined) return first;
    throw new SpindleError('SNAPSHOT_NOT_FOUND', `no snapshot is named '${idOrName}'`);
  }
  const byId = snapshots.some(({ id }) => id === idOrName);
  if (find === 'unique' && !byId && named.length > 1) {
    const ids = named.map(({ id }) => id).join(', ');
    throw new SpindleError(
      'BAD_OPTION',
      `several snapshots are named '${idOrName}'; give an id instead: ${ids}`,
    );
  }
  return findSnapshot(snapshots, idOrName);
}
