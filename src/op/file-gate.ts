import { isSpindleError, SpindleError } from '../core/errors.ts';
import { denied, type Gate, type Opened, type Reference } from '../format/gate.ts';
import { openFile, type FileStorage } from '../storage/file.ts';
import { pathIdentity } from '../storage/identity.ts';
import { lockImage } from '../storage/lock.ts';
import { besideName, fileOf, imageName, isDescription, plainName, type ImageName } from './image-name.ts';

/** How referenced files are opened. */
export interface FileGateOptions {
  /** Do not keep others from using the files, and do not mind that they do (-U). */
  readonly share?: boolean | undefined;
}

/**
 * The gate for images in files: opens local files and nothing else, for reading but for the data file of an image that
 * is written to. A relative backing file name starts in the directory of the image; one behind `file:`, and those in a
 * description (`json:{...}`), in the current directory. A relative data file name starts in the directory of the image
 * too; qemu starts it in the current directory, so where only that one exists it is taken, and where both exist as
 * different files the reference is refused as ambiguous.
 */
export function fileGate(options: FileGateOptions = {}): Gate {
  return async (reference) => {
    if (reference.kind === 'data file') return openDataFile(reference, dataFileName(reference), options);
    return openReferenced(reference, backingName(reference), options);
  };
}

/**
 * A gate for images of unknown origin: opens what the caller names, which are `names` and what stands in descriptions,
 * and nothing else, whatever the images say.
 */
export function namedGate(names: readonly string[], options: FileGateOptions = {}): Gate {
  const files = fileGate(options);
  return async (reference) => {
    if (reference.given !== true && !(await isNamed(reference, names)))
      throw denied(reference, 'only named files are opened (--untrusted)');
    return files(reference);
  };
}

async function isNamed(reference: Reference, names: readonly string[]): Promise<boolean> {
  const wanted = await identityOf(besideName(reference.name, reference.from));
  if (wanted === null) return false;
  for (const name of names) if ((await identityOf(name)) === wanted) return true;
  return false;
}

async function identityOf(name: string): Promise<string | null> {
  const path = fileOf(name);
  if (path === null) return null;
  try {
    return await pathIdentity(path);
  } catch (error) {
    if (isSpindleError(error)) return null;
    throw error;
  }
}

/** @throws SpindleError BACKING_DENIED for what is no local file */
function backingName(reference: Reference): ImageName {
  try {
    return imageName(besideName(reference.name, reference.from));
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    throw denied(reference, isDescription(reference.name) ? error.message : 'spindle opens local files only');
  }
}

/** A data file is a plain file: descriptions that an image holds are not followed there. */
function dataFileName(reference: Reference): string {
  const path = isDescription(reference.name) ? null : fileOf(reference.name);
  if (path === null) throw denied(reference, 'spindle opens local files only');
  return path;
}

async function openReferenced(
  reference: Reference,
  says: ImageName,
  options: FileGateOptions,
): Promise<Opened> {
  const { path, format, window, backing, dataFile, secret, encryption } = says;
  let storage: FileStorage;
  try {
    storage = await openFile(path, { write: reference.write, direct: says.direct === true });
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    if (error.code === 'NOT_A_FILE')
      throw denied(reference, 'it is neither a regular file nor a block device');
    const code =
      error.code !== 'NOT_FOUND'
        ? error.code
        : reference.kind === 'backing file'
          ? 'BACKING_NOT_FOUND'
          : 'DATA_FILE_NOT_FOUND';
    const why = error.code === 'NOT_FOUND' ? 'there is no such file' : error.message;
    throw new SpindleError(code, `its ${reference.kind} '${path}' cannot be opened: ${why}`, {
      path: reference.from,
      cause: error,
    });
  }
  try {
    const snoops = options.share === true || says.share === true;
    // That an image wants its backing file unlocked is its word alone.
    const unlocked = says.unlocked === true && reference.given === true;
    if (!unlocked) await lockImage(storage, snoops ? 'snoop' : reference.write ? 'write' : 'read');
    const described = { given: reference.given, window, backing, dataFile, secret, encryption };
    return { storage, name: plainName(path), id: storage.identity, format, described };
  } catch (error) {
    await storage.close();
    throw error;
  }
}

async function openDataFile(reference: Reference, name: string, options: FileGateOptions): Promise<Opened> {
  const open = (path: string): Promise<Opened> => openReferenced(reference, { path }, options);
  const beside = fileOf(besideName(plainName(name), reference.from)) ?? name;
  if (beside === name || beside === plainName(name)) return open(name);
  const first = await open(beside).catch((error: unknown) => {
    if (isSpindleError(error, 'DATA_FILE_NOT_FOUND')) return null;
    throw error;
  });
  const second = await open(name).catch((error: unknown) => {
    if (isSpindleError(error) && first !== null) return null;
    throw error;
  });
  if (first === null) return second as Opened;
  if (second === null) return first;
  await second.storage.close();
  if (first.id === second.id) return first;
  await first.storage.close();
  throw denied(reference, `both '${beside}' and '${name}' exist and are different files; move one away`);
}
