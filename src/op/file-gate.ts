import { isSpindleError, SpindleError } from '../core/errors.ts';
import { besideImage, localName } from '../core/path.ts';
import { denied, type Gate, type Opened, type Reference } from '../format/gate.ts';
import { openFile, type FileStorage } from '../storage/file.ts';
import { lockImage } from '../storage/lock.ts';

/** How referenced files are opened. */
export interface FileGateOptions {
  /** Do not keep others from using the files, and do not mind that they do (-U). */
  readonly share?: boolean | undefined;
}

/**
 * The gate for images in files: opens local files and nothing else, for reading but for the data file of an image that is written to. A relative backing file name starts in
 * the directory of the image. A relative data file name does so too; qemu starts it in the current directory, so where
 * only that one exists it is taken, and where both exist as different files the reference is refused as ambiguous.
 */
export function fileGate(options: FileGateOptions = {}): Gate {
  return async (reference) => {
    const name = localName(reference.name);
    if (name === null) throw denied(reference, 'spindle opens local files only');
    return reference.kind === 'data file'
      ? openDataFile(reference, name, options)
      : openReferenced(reference, besideImage(name, reference.from), options);
  };
}

async function openReferenced(reference: Reference, path: string, options: FileGateOptions): Promise<Opened> {
  let storage: FileStorage;
  try {
    storage = await openFile(path, { write: reference.write });
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
    await lockImage(storage, options.share ? 'snoop' : reference.write ? 'write' : 'read');
    return { storage, name: path, id: storage.identity };
  } catch (error) {
    await storage.close();
    throw error;
  }
}

async function openDataFile(reference: Reference, name: string, options: FileGateOptions): Promise<Opened> {
  const beside = besideImage(name, reference.from);
  if (beside === name) return openReferenced(reference, name, options);
  const first = await openReferenced(reference, beside, options).catch((error: unknown) => {
    if (isSpindleError(error, 'DATA_FILE_NOT_FOUND')) return null;
    throw error;
  });
  const second = await openReferenced(reference, name, options).catch((error: unknown) => {
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
