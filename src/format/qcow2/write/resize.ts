import { alignDown, alignUp, divUp, isAligned } from '../../../core/align.ts';
import { SpindleError } from '../../../core/errors.ts';
import { lockedData } from '../../crypto/encrypted-storage.ts';
import type { ResizeTools } from '../../driver.ts';
import { ZERO } from '../entry.ts';
import { l1SizeFor } from '../geometry.ts';
import { CryptMethod, Autoclear, Limit, SECTOR, TABLE_ENTRY } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import type { Qcow2Preallocation } from '../plan.ts';
import { clearFrom } from './clear.ts';
import { ALL } from './l2-editor.ts';
import { giveTable, placeTable, switchL1, switchSize } from './place.ts';
import { preallocate } from './preallocate.ts';
import { encodeL1 } from './tree.ts';
import type { Reloadable, WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/**
 * Changes the virtual size. Growing, the header's size comes last: before it nobody sees what is prepared. Shrinking,
 * what is cut off is made to read as zeroes first, so that a power cut leaves the disk large or small but never brings old
 * data back. Nothing else may use the image meanwhile.
 * @throws SpindleError BAD_SIZE, BAD_OPTION, UNSUPPORTED, ENCRYPTED, LIMIT before anything is changed; NO_SPACE, IO
 */
export async function resizeQcow2(image: Reloadable, size: number, tools: ResizeTools): Promise<void> {
  const locked = image.writer().options.plain === lockedData;
  const mode = await image
    .writer()
    .alone((whole) => Promise.resolve(settleSize(whole.metadata, size, tools, locked)));
  if (mode === null) return;
  const { bitmaps } = image.writer().options;
  await bitmaps?.prepareSize(size);
  // What is cut off changes before the size does.
  if (mode === 'shrink') await bitmaps?.record(size, Infinity);
  try {
    if (mode === 'shrink') await shrink(image, size, tools);
    else await grow(image, size, tools, mode);
  } finally {
    await image.reload();
  }
}

/**
 * What there is to do for a size; null for nothing. `locked`: guest data is encrypted, and no secret was given.
 * @throws SpindleError BAD_SIZE, BAD_OPTION, UNSUPPORTED, ENCRYPTED, LIMIT for what cannot be done
 */
export function settleSize(
  metadata: Metadata,
  size: number,
  tools: Pick<ResizeTools, 'preallocation' | 'backingSize'>,
  locked = false,
): Qcow2Preallocation | 'shrink' | null {
  const { header, geometry, snapshots, size: old } = metadata;
  if (!Number.isSafeInteger(size) || size < 0 || size % SECTOR !== 0) {
    throw new SpindleError('BAD_SIZE', `the size of a qcow2 disk is a multiple of 512, not ${String(size)}`);
  }
  if (size === old) return null;
  if (header.version === 2 && snapshots.length > 0) {
    throw new SpindleError(
      'UNSUPPORTED',
      'version 2 images with snapshots keep their size: delete the snapshots',
    );
  }
  if (locked && !isAligned(Math.min(size, old), geometry.clusterSize)) {
    throw new SpindleError(
      'ENCRYPTED',
      'a size that ends inside a cluster needs zeroes behind it, but the image is encrypted and no secret was given',
    );
  }
  const mode = tools.preallocation ?? 'off';
  if (size < old) {
    if (mode === 'off') return 'shrink';
    throw new SpindleError('BAD_OPTION', 'preallocation is for growing; the new size is smaller');
  }
  if (header.cryptMethod !== CryptMethod.NONE && mode !== 'off') {
    throw new SpindleError(
      'UNSUPPORTED',
      'encrypted images grow without preallocation: unwritten clusters would not read as zeroes; grow it without, then allocate space',
    );
  }
  if (l1SizeFor(geometry, size) * TABLE_ENTRY > Limit.L1_TABLE) {
    throw new SpindleError(
      'LIMIT',
      `${String(size)} bytes are too much for clusters of ${String(geometry.clusterSize)}`,
    );
  }
  if (header.version === 2 && tools.backingSize > old) {
    throw new SpindleError(
      'UNSUPPORTED',
      'the backing file is longer than the disk, and version 2 cannot hide what growing would bring up',
    );
  }
  const raw = (header.autoclear.lo & Autoclear.DATA_FILE_RAW) !== 0;
  return raw && mode === 'off' ? 'metadata' : mode;
}

async function grow(
  image: Reloadable,
  size: number,
  tools: ResizeTools,
  mode: Qcow2Preallocation,
): Promise<void> {
  const { clusterSize, old } = await image.writer().alone(async (whole) => {
    const { geometry, size: before } = whole.metadata;
    await clearFrom(image.writer(), whole, divUp(before, geometry.clusterSize), null);
    await growL1(image.writer(), whole, size);
    return { clusterSize: geometry.clusterSize, old: before };
  });
  const tail = alignUp(old, clusterSize);
  try {
    await image.reload(alignUp(size, clusterSize));
    // Nobody says what the last cluster holds behind the end of the disk.
    if (tail > old) await tools.zero(old, tail - old);
    if (mode !== 'off') {
      const writer = image.writer();
      await writer.alone(async (whole) => {
        await preallocate(writer, whole, { from: tail, to: size, mode, as: 'data' });
        await whole.flush();
      });
    } else if (tools.backingSize > tail && size > tail) {
      await image.writer().zero(tail, alignUp(Math.min(size, tools.backingSize), clusterSize) - tail, {});
    }
    await image.writer().alone(async (whole) => {
      if (whole.external && whole.data.can.resize && whole.data.size !== size) {
        if (whole.data.size < size || whole.data.size <= alignUp(size, clusterSize))
          await whole.data.resize(size);
      }
      await switchSize(whole, size);
    });
  } catch (error) {
    await undo(image);
    throw error;
  }
}

/** Unmaps what was prepared behind the end of the disk. Where that fails it stays, and harms nobody. */
async function undo(image: Reloadable): Promise<void> {
  try {
    await image.reload();
    const writer = image.writer();
    await writer.alone(async (whole) => {
      const { geometry, size } = whole.metadata;
      await clearFrom(writer, whole, divUp(size, geometry.clusterSize), null);
      await whole.flush();
      await cutFile(writer, whole);
    });
  } catch {
    // The error that led here is the one to tell.
  }
}

/** Moves the L1 table to a place with room for a disk of `size` bytes, unless it has that. */
async function growL1(writer: Qcow2Writer, whole: WholeTables, size: number): Promise<void> {
  const { header, geometry } = whole.metadata;
  const { l1 } = writer.editor;
  const entries = l1SizeFor(geometry, size);
  if (entries > header.l1Size) {
    const bytes = encodeL1(l1, entries, (index) => l1.copied(index));
    const offset = await placeTable(writer, whole, bytes, 'L1 table');
    await switchL1(whole, header.size, entries, offset);
    giveTable(writer, whole, header.l1TableOffset, header.l1Size * TABLE_ENTRY);
  }
  await whole.flush();
}

async function shrink(image: Reloadable, size: number, tools: ResizeTools): Promise<void> {
  const {
    geometry,
    header,
    size: old,
  } = await image.writer().alone((whole) => Promise.resolve(whole.metadata));
  const { clusterSize, extendedL2 } = geometry;
  const kept = divUp(size, clusterSize);
  if (size < kept * clusterSize) {
    await image.reload(alignUp(old, clusterSize));
    await tools.zero(size, kept * clusterSize - size);
  }
  const writer = image.writer();
  await writer.alone(async (whole) => {
    const backed = tools.backingSize > 0;
    // Over a backing file nothing would show the file's data; version 2 cannot say zero, and changes the size first.
    if (!backed) await clearFrom(writer, whole, kept, { hi: 0, lo: 0, zeros: 0, data: 0 });
    else if (header.version !== 2) {
      const zero = { hi: 0, lo: extendedL2 ? 0 : ZERO, zeros: extendedL2 ? ALL : 0, data: 0 };
      await clearFrom(writer, whole, kept, zero);
    }
    await switchSize(whole, size);
    await clearFrom(writer, whole, kept, null);
    await whole.flush();
    if (whole.external && whole.data.can.resize) await whole.data.resize(size);
    await cutFile(writer, whole);
  });
}

/** Cuts the file after the last cluster in use. Runs inside {@link Qcow2Writer.alone}. */
export async function cutFile(writer: Qcow2Writer, whole: WholeTables): Promise<void> {
  const { clusterSize } = whole.metadata.geometry;
  let last = Math.floor(alignDown(whole.storage.size + clusterSize - 1, clusterSize) / clusterSize) - 1;
  while (last > 0 && (await writer.refcounts.get(last)) === 0) last--;
  await whole.cut((last + 1) * clusterSize);
}
