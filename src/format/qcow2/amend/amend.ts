import { isPowerOfTwo } from '../../../core/align.ts';
import { bytesOf, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import type { Working } from '../../../core/working.ts';
import { Autoclear, Compatible, ExtensionMagic, HeaderOffset, Incompatible, Limit } from '../layout.ts';
import { readMetadata, type Metadata } from '../metadata.ts';
import { switchHeader } from '../write/place.ts';
import type { Reloadable, WholeTables } from '../write/whole.ts';
import { refuseHiddenZeroes } from './all-tables.ts';
import { keptExtensions, planHeader, switchToHeader, type NewExtension } from './header-switch.ts';
import { changeWidth, checkWidth } from './refcount-width.ts';
import { downgrade, newerHeader, olderHeader, refuseOlder, upgrade, type Below } from './version.ts';

/** What is to be different; what is left out stays. */
export interface FormatChange {
  readonly version?: 2 | 3 | undefined;
  /** 1, 2, 4, 8, 16, 32 or 64; version 2 has 16. */
  readonly refcountBits?: number | undefined;
  readonly lazyRefcounts?: boolean | undefined;
  /** The name under which the external data file is recorded. Empty: no name. */
  readonly dataFile?: string | undefined;
  /** Whether the data file is kept readable as a raw image. It can be switched off only. */
  readonly dataFileRaw?: boolean | undefined;
}

/** The image that is changed. */
export interface Amending extends Reloadable, Below {}

/** Bytes of the three words of feature bits. */
const FEATURES = 24;

/**
 * Sees whether a change can be made, and with it one of the virtual size to `size` between what makes the image newer and
 * what makes it older. Changes nothing.
 * @throws SpindleError BAD_OPTION, LIMIT, BAD_ENTRY, BAD_SNAPSHOT
 */
export function checkAmend(
  image: Amending,
  change: FormatChange,
  size?: number,
  working: Working = {},
): Promise<void> {
  return image.writer().alone(async (whole) => {
    const writer = image.writer();
    const { metadata } = whole;
    const { header, geometry, size: present } = metadata;
    checkValues(whole, change);
    const version = change.version ?? header.version;
    if (version > header.version) {
      await refuseHiddenZeroes(writer, whole, working);
      await planHeader(whole.storage, metadata, newerHeader(metadata));
    }
    const order = orderOf(change);
    if (order !== undefined && order !== geometry.refcountOrder)
      await checkWidth(writer, whole, order, working);
    if (change.dataFile !== undefined) await planDataFile(whole.storage, metadata, change.dataFile);
    if (version < header.version) {
      await refuseOlder(writer, whole, size ?? present, working);
      await planHeader(whole.storage, metadata, olderHeader(metadata));
    }
  });
}

function orderOf({ refcountBits }: FormatChange): number | undefined {
  return refcountBits === undefined ? undefined : Math.log2(refcountBits);
}

/** @throws SpindleError BAD_OPTION for what contradicts itself, or the image */
function checkValues(whole: WholeTables, change: FormatChange): void {
  const { header, geometry } = whole.metadata;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  const { refcountBits, lazyRefcounts, dataFile, dataFileRaw } = change;
  const version = change.version ?? header.version;
  const older = version === 2;
  const newer = header.version === 2 ? '; add compat=1.1' : '';
  if (
    refcountBits !== undefined &&
    !(isPowerOfTwo(refcountBits) && refcountBits >= 1 && refcountBits <= 2 ** Limit.MAX_REFCOUNT_ORDER)
  )
    throw bad(`refcount_bits must be 1, 2, 4, 8, 16, 32 or 64, not ${String(refcountBits)}`);
  if (older && (refcountBits ?? geometry.refcountBits) !== 16) {
    throw bad(
      refcountBits === undefined
        ? `compat=0.10 (version 2) has refcounts of 16 bits, the image of ${String(geometry.refcountBits)}; add refcount_bits=16`
        : `version 2 has refcounts of 16 bits only${newer}`,
    );
  }
  if (older && lazyRefcounts === true) throw bad(`version 2 has no lazy refcounts${newer}`);
  if (dataFile !== undefined && !whole.external)
    throw bad('data_file is for images that have an external data file; this one has its data inside');
  if (dataFile !== undefined && dataFile.includes('\0')) throw bad('a file name holds no zero byte');
  if (dataFileRaw === true && (header.autoclear.lo & Autoclear.DATA_FILE_RAW) === 0)
    throw bad(
      'data_file_raw cannot be switched on: what the data file holds now is not known to be a raw image',
    );
}

/**
 * Makes a change that {@link checkAmend} has nothing against. Each step leaves an image that is whole: a power cut loses
 * nothing, and leaks at most. The metadata is read anew afterwards by whoever calls.
 * @throws SpindleError as {@link checkAmend} before anything is changed; NO_SPACE, IO, ABORTED
 */
export async function amendQcow2(image: Amending, change: FormatChange, working: Working): Promise<void> {
  await checkAmend(image, change, undefined, working);
  const { header, geometry } = await image.writer().alone(({ metadata }) => Promise.resolve(metadata));
  if (change.version === 3 && header.version === 2) {
    await image.writer().alone((whole) => upgrade(image.writer(), whole));
    await image.reload();
  }
  const order = orderOf(change);
  if (order !== undefined && order !== geometry.refcountOrder) await changeWidth(image, order, working);
  await image.writer().alone((whole) => changeFeatures(whole, change));
  await image.reload();
  if (change.dataFile !== undefined) {
    const { dataFile } = change;
    await image.writer().alone(async (whole) => {
      const now = await readMetadata(whole.storage, 'data');
      if (now.known.dataFile === (dataFile === '' ? undefined : dataFile)) return;
      await switchToHeader(whole, await planDataFile(whole.storage, now, dataFile));
    });
    await image.reload();
  }
  if (change.version === 2 && header.version === 3)
    await image.writer().alone((whole) => downgrade(image.writer(), whole, image, working));
}

/** Sets the feature bits that a change asks for, in one write. */
async function changeFeatures(whole: WholeTables, change: FormatChange): Promise<void> {
  const { lazyRefcounts, dataFileRaw } = change;
  const { version } = whole.metadata.header;
  if (version === 2 || (lazyRefcounts === undefined && dataFileRaw !== false)) return;
  const before = new Uint8Array(FEATURES);
  await readPadded(whole.storage, before, HeaderOffset.incompatibleFeatures);
  const after = before.slice();
  const view = viewOf(after);
  const set = (at: number, bit: number, on: boolean): void => {
    const word = view.getUint32(at + 4);
    view.setUint32(at + 4, (on ? word | bit : word & ~bit) >>> 0);
  };
  const compatible = HeaderOffset.compatibleFeatures - HeaderOffset.incompatibleFeatures;
  const autoclear = HeaderOffset.autoclearFeatures - HeaderOffset.incompatibleFeatures;
  if (lazyRefcounts !== undefined) set(compatible, Compatible.LAZY_REFCOUNTS, lazyRefcounts);
  if (dataFileRaw === false) set(autoclear, Autoclear.DATA_FILE_RAW, false);
  // All refcounts are durable here, and none is late from now on.
  if (lazyRefcounts === false) set(0, Incompatible.DIRTY, false);
  if (after.every((byte, index) => byte === before[index])) return;
  await switchHeader(whole, after, HeaderOffset.incompatibleFeatures);
}

/** The header of an image whose data file has another name; empty: none. */
function planDataFile(
  storage: WholeTables['storage'],
  metadata: Metadata,
  name: string,
): ReturnType<typeof planHeader> {
  const named: NewExtension[] = name === '' ? [] : [{ magic: ExtensionMagic.DATA_FILE, data: bytesOf(name) }];
  const kept = keptExtensions(metadata, ExtensionMagic.DATA_FILE);
  const at = metadata.extensions.findIndex(({ magic }) => magic === ExtensionMagic.DATA_FILE);
  const before = kept.filter(({ offset }) => at < 0 || offset < (metadata.extensions[at]?.offset ?? 0));
  const after = kept.filter((one) => !before.includes(one));
  return planHeader(storage, metadata, { header: {}, extensions: [...before, ...named, ...after] });
}
