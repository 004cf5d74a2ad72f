import { fillWithZeroes, reserveNew } from '../core/allocation.ts';
import { SpindleError } from '../core/errors.ts';
import { LuksDriver } from '../format/luks/driver.ts';
import type { Format } from '../format/open.ts';
import { RawDriver } from '../format/raw/driver.ts';
import { openImageFile, type OpenFileOptions } from './open.ts';
import type { Preallocation } from './create.ts';

/** How a disk is resized. */
export interface ResizeRequest extends Pick<OpenFileOptions, 'format' | 'gate' | 'secret' | 'noFollow'> {
  /** `size` is added to the present size; it may be negative. */
  readonly relative?: boolean | undefined;
  /** Allow a size smaller than the present one: what is cut off is lost. */
  readonly shrink?: boolean | undefined;
  /** How the new part is allocated. Default: off. */
  readonly preallocation?: Preallocation | undefined;
}

/** What was done. Sizes in bytes. */
export interface Resized {
  readonly format: Format;
  readonly from: number;
  readonly size: number;
}

/**
 * Changes the size of the disk in an image. A grown part reads as zeroes, whatever lies below; that of a LUKS volume does
 * so with `full` preallocation only, and else as noise, since its zeroes would have to be encrypted and written. Raw
 * images take any number of bytes, others multiples of 512.
 * @throws SpindleError BAD_OPTION (smaller without `shrink`), BAD_SIZE, UNSUPPORTED, LIMIT, NO_SPACE, and as
 * {@link openImageFile}
 */
export async function resize(path: string, size: number, request: ResizeRequest = {}): Promise<Resized> {
  const { format, gate, secret, noFollow, preallocation = 'off' } = request;
  const image = await openImageFile(path, { format, gate, secret, noFollow, write: true });
  try {
    const { driver } = image;
    const raw = driver instanceof RawDriver;
    const from = raw ? driver.length : image.size;
    const target = request.relative === true ? from + size : size;
    if (!Number.isSafeInteger(target) || target < 0) {
      throw new SpindleError('BAD_SIZE', `a disk cannot have ${String(target)} bytes`);
    }
    if (target < from && request.shrink !== true) {
      throw new SpindleError(
        'BAD_OPTION',
        `the disk has ${String(from)} bytes; to make it smaller, which loses what is cut off, use --shrink`,
      );
    }
    if (target === 0) throw new SpindleError('BAD_SIZE', 'the new size of a disk must be larger than zero');
    if (target < from && preallocation !== 'off') {
      throw new SpindleError('BAD_OPTION', 'preallocation is for growing; the new size is smaller');
    }
    if (raw) await resizeRaw(driver, from, target, preallocation);
    else if (image.format === 'qcow2') await image.resize(target, { preallocation });
    else if (driver instanceof LuksDriver) await resizeLuks(driver, target, preallocation);
    else throw new SpindleError('UNSUPPORTED', `${image.format} images cannot be resized`);
    await image.flush();
    return { format: image.format as Format, from, size: target };
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await image.close();
  }
}

async function resizeLuks(driver: LuksDriver, size: number, preallocation: Preallocation): Promise<void> {
  const { size: from, data: storage } = driver;
  if (preallocation === 'metadata')
    throw new SpindleError(
      'BAD_OPTION',
      'LUKS volumes have no metadata to preallocate; use off, falloc or full',
    );
  if (size % 512 !== 0)
    throw new SpindleError(
      'BAD_SIZE',
      `a LUKS volume has whole sectors of 512 bytes, not ${String(size)} bytes`,
    );
  const { payloadOffset } = driver.header;
  const end = storage.size;
  try {
    if (preallocation === 'full') await driver.resize(size);
    else await storage.resize(payloadOffset + size);
    if (preallocation === 'falloc') await reserveNew(storage, payloadOffset + from, size - from);
  } catch (error) {
    if (size > from) await storage.resize(end);
    throw error;
  }
}

async function resizeRaw(
  driver: RawDriver,
  from: number,
  size: number,
  preallocation: Preallocation,
): Promise<void> {
  if (preallocation === 'metadata') {
    throw new SpindleError(
      'BAD_OPTION',
      'raw images have no metadata to preallocate; use off, falloc or full',
    );
  }
  const { data: storage } = driver;
  const end = storage.size;
  await driver.resize(size);
  if (size <= from) return;
  try {
    if (preallocation === 'falloc') await reserveNew(storage, end, size - from);
    if (preallocation === 'full') await fillWithZeroes(storage, end, size - from);
  } catch (error) {
    await driver.resize(from);
    throw error;
  }
}
