import { wipe } from '../core/crypto.ts';
import { isSpindleError, SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import { DiskImage } from '../format/disk-image.ts';
import type { Image } from '../format/image.ts';
import type { FormatChange } from '../format/qcow2/amend/amend.ts';
import { Qcow2WriteDriver } from '../format/qcow2/write/driver.ts';
import { settleSize } from '../format/qcow2/write/resize.ts';
import { nodeCrypto } from '../native/crypto.ts';
import {
  changeKeySlots,
  changeKeySlotsIn,
  checkKeySlots,
  luksOf,
  type KeySlotChange,
  type KeySlotTerms,
} from './keys.ts';
import { openImageFile, openLocked, type OpenFileOptions } from './open.ts';

/** What is to be different in an existing image; what is left out stays. */
export interface AmendRequest
  extends FormatChange, Working, Pick<OpenFileOptions, 'format' | 'gate' | 'secret'> {
  /** Virtual size in bytes, as {@link resize} changes it. */
  readonly size?: number | undefined;
  /** Allow a size smaller than the present one: what is cut off is lost. */
  readonly shrink?: boolean | undefined;
  /** The backing file as it is recorded. Another one is refused: that is for rebase to change. */
  readonly backing?: { readonly name?: string | undefined; readonly format?: string | undefined } | undefined;
  readonly keySlots?: KeySlotChange | undefined;
  /**
   * Also do what may lose data: overwrite a key slot in use, erase the last one, record the name of a data file that is
   * not there or shorter than the disk, or none.
   */
  readonly force?: boolean | undefined;
}

/**
 * Changes options of an existing image: the version of qcow2 and the width of its refcounts, lazy refcounts, the name of its
 * data file, its size, and the key slots of LUKS, in qcow2 or by itself. Everything is checked before anything is changed.
 * A power cut leaves an image that opens and holds all data, some of the changes made and the others not; it leaks at most.
 * @throws SpindleError BAD_OPTION for changes that exclude each other or that the image cannot take, UNSUPPORTED, LIMIT
 * (refcounts too large for the new width, no room in the header), BAD_SECRET, ENCRYPTED, DATA_FILE_NOT_FOUND, NO_SPACE,
 * ABORTED, and as {@link openImageFile} and {@link resize}
 */
export async function amend(path: string, request: AmendRequest): Promise<void> {
  const secret = rememberedSecret(request.secret, path);
  try {
    const kind = await kindOf(path, request);
    if (kind === 'keys' && request.keySlots !== undefined)
      await changeKeySlotsIn(path, request, request.keySlots, secret.terms(request.force === true));
    else await amendImage(path, request, secret);
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    secret.wipe();
  }
}

/** Whether there are only key slots to change, for which nothing else of an image is opened. */
async function kindOf(path: string, request: AmendRequest): Promise<'keys' | 'image'> {
  const { keySlots, version, refcountBits, lazyRefcounts, dataFile, dataFileRaw, size, backing } = request;
  const others = [version, refcountBits, lazyRefcounts, dataFile, dataFileRaw, size, backing];
  const isOnlyKeys = others.every((value) => value === undefined);
  if (isOnlyKeys && keySlots === undefined)
    throw new SpindleError('BAD_OPTION', 'nothing to amend: name an option and its new value');
  const { storage, format } = await openLocked(path, { format: request.format });
  await storage.close();
  if (format === 'raw') throw new SpindleError('UNSUPPORTED', 'raw images have no options to amend');
  if (format === 'luks' && !isOnlyKeys)
    throw new SpindleError('BAD_OPTION', 'a luks image has key slots to amend, and no other options');
  return isOnlyKeys ? 'keys' : 'image';
}

async function amendImage(path: string, request: AmendRequest, secret: Remembered): Promise<void> {
  const image = await openToAmend(path, request, secret);
  try {
    const { driver } = image;
    if (!(image instanceof DiskImage) || !(driver instanceof Qcow2WriteDriver))
      throw new SpindleError('UNSUPPORTED', `${image.format} images have no options to amend`);
    await checkAll(image, driver, request, secret);
    await carryOut(image, driver, request, secret);
  } finally {
    await image.close();
  }
}

/** Opens the image with the data file that it is to have, so that what is recorded is there. */
async function openToAmend(path: string, request: AmendRequest, secret: Remembered): Promise<Image> {
  const { format, gate, dataFile, force } = request;
  const options = {
    format,
    gate,
    write: true,
    ...(request.secret === undefined ? {} : { secret: secret.source }),
  };
  if (dataFile === undefined) return openImageFile(path, options);
  if (dataFile === '') {
    if (force === true) return openImageFile(path, options);
    throw new SpindleError(
      'BAD_OPTION',
      'without the name of its data file the image cannot be opened until it gets another; force it if that is wanted',
    );
  }
  try {
    return await openImageFile(path, { ...options, dataFile });
  } catch (error) {
    if (force !== true || !isSpindleError(error, 'DATA_FILE_NOT_FOUND')) throw error;
    return openImageFile(path, options);
  }
}

/** Everything that can be refused is, before the first change. */
async function checkAll(
  image: DiskImage,
  driver: Qcow2WriteDriver,
  request: AmendRequest,
  secret: Remembered,
): Promise<void> {
  const { metadata } = driver;
  const { size, backing, keySlots, dataFile, version } = request;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (
    (backing?.name !== undefined && backing.name !== metadata.backingName) ||
    (backing?.format !== undefined && backing.format !== metadata.known.backingFormat)
  )
    throw bad('amend does not change the backing file; use rebase');
  if (
    dataFile !== undefined &&
    dataFile !== '' &&
    request.force !== true &&
    driver.data.size < metadata.size
  ) {
    throw bad(
      `the data file '${dataFile}' has ${String(driver.data.size)} bytes, less than the disk of ${String(metadata.size)}; force it if it is the right one`,
    );
  }
  await image.alone(() => driver.checkAmend(request, size));
  if (size !== undefined) {
    // The size changes while the image is as new as it ever is.
    const newest = version === 3 ? 3 : metadata.header.version;
    const then = { ...metadata, header: { ...metadata.header, version: newest } };
    settleSize(then, size, { backingSize: image.backing?.size ?? 0 });
    if (size < metadata.size && request.shrink !== true) {
      throw bad(
        `the disk has ${String(metadata.size)} bytes; to make it smaller, which loses what is cut off, use --shrink`,
      );
    }
  }
  if (keySlots !== undefined) {
    const place = luksOf(image.storage, metadata);
    await checkKeySlots(await nodeCrypto(), place, keySlots, secret.terms(request.force === true));
  }
}

async function carryOut(
  image: DiskImage,
  driver: Qcow2WriteDriver,
  request: AmendRequest,
  secret: Remembered,
): Promise<void> {
  const { size, keySlots, version, signal, onProgress } = request;
  const total = image.storage.size;
  const older = version === 2 && driver.metadata.header.version === 3;
  const parts = older ? 2 : 1;
  const working = (part: number): Working => ({
    signal,
    onProgress: (done, all) => onProgress?.(Math.floor(((part + done / all) / parts) * total), total),
  });
  const { refcountBits, lazyRefcounts, dataFile, dataFileRaw } = request;
  const first: FormatChange = {
    ...{ refcountBits, lazyRefcounts, dataFile, dataFileRaw },
    version: older ? undefined : version,
  };
  await image.alone(() => driver.amend(first, working(0)));
  if (size !== undefined) await image.resize(size);
  if (keySlots !== undefined) {
    const place = luksOf(image.storage, driver.metadata);
    await changeKeySlots(await nodeCrypto(), place, keySlots, secret.terms(request.force === true));
  }
  if (older) await image.alone(() => driver.amend({ version: 2 }, working(1)));
  await image.flush();
  onProgress?.(total, total);
}

/** A secret that is asked for once, however many need it. */
interface Remembered {
  readonly source: NonNullable<OpenFileOptions['secret']>;
  readonly terms: (force: boolean) => KeySlotTerms;
  readonly wipe: () => void;
}

function rememberedSecret(secret: OpenFileOptions['secret'], path: string): Remembered {
  let known: Uint8Array | null | undefined;
  const source: Remembered['source'] = async (asked) => {
    known ??= (await secret?.(asked)) ?? null;
    return known === null ? null : known.slice();
  };
  return {
    source,
    terms: (force) => ({ secret: () => source({ name: path, method: 'luks' }), force }),
    wipe: () => {
      wipe(known);
    },
  };
}
