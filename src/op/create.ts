import type { AllocationPolicy } from '../core/allocation.ts';
import { alignUp } from '../core/align.ts';
import { wipe, type SecretSource } from '../core/crypto.ts';
import { SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import { localName } from '../core/path.ts';
import { LUKS_DEFAULTS, resolveLuksOptions, type LuksOptions } from '../format/crypto/cipher-spec.ts';
import { createLuks } from '../format/luks/create.ts';
import {
  checkCreateOptions,
  createQcow2,
  QCOW2_DEFAULTS,
  type Encrypting,
  type Qcow2CreateOptions,
} from '../format/qcow2/create.ts';
import type { Gate } from '../format/gate.ts';
import type { Format } from '../format/open.ts';
import { knownFormat } from '../format/open.ts';
import { createRaw, type RawPreallocation } from '../format/raw/create.ts';
import { nodeCrypto } from '../native/crypto.ts';
import type { FileStorage } from '../storage/file.ts';
import { replaceFile, type ReplaceOptions } from '../storage/replace.ts';
import { lookBelow, refuseOverlap } from './create-guard.ts';

/** The preallocation modes of all formats. */
export type Preallocation = Qcow2CreateOptions['preallocation'];

/** The options of a new qcow2 image; what is left out has its default. */
export type Qcow2Options = Partial<
  Pick<
    Qcow2CreateOptions,
    | 'version'
    | 'clusterSize'
    | 'refcountBits'
    | 'extendedL2'
    | 'lazyRefcounts'
    | 'compressionType'
    | 'dataFileRaw'
  >
> & {
  /** Name of an external data file: made or replaced, and recorded as given. */
  readonly dataFile?: string;
};

/** What to create. */
export interface CreateRequest extends Working {
  readonly path: string;
  readonly format?: string | undefined;
  /** Virtual size in bytes, rounded up to whole sectors. Default: that of the backing file. */
  readonly size?: number | undefined;
  /** The allocation policy; the same as preallocation off, falloc or full. */
  readonly allocation?: AllocationPolicy | undefined;
  /** qemu's preallocation mode; may say the same as `allocation`, not another thing. */
  readonly preallocation?: Preallocation | undefined;
  readonly qcow2?: Qcow2Options | undefined;
  /** Encrypt the disk: with qcow2 where this is present, with luks always. */
  readonly encryption?: EncryptionRequest | undefined;
  readonly backing?:
    | {
        /** Recorded as given; a relative name starts in the directory of the new image. */
        readonly name: string;
        readonly format: string;
        /** Do not open it. Then `size` is needed. */
        readonly unchecked?: boolean;
      }
    | undefined;
  /** Who decides what is opened below the backing file, and whether that is. Default: local files. */
  readonly gate?: Gate | undefined;
  /** Turn copy-on-write of the file system off for the file, where it has such a switch (btrfs). */
  readonly noCow?: boolean | undefined;
  /**
   * Unit in bytes in which the file is given space, where the file system has such a hint (XFS). Default: 1 MiB there,
   * as qemu has it. 0: leave the hint alone.
   */
  readonly extentSizeHint?: number | undefined;
  /** Told what will be created: when everything is decided and nothing stands against it, before it is written. */
  onStart?(created: Created): void;
  /** Told what was asked for and could not be done, though the image is made, or is unwise. */
  onWarning?(message: string, about: WarningAbout): void;
}

/** What a warning is about: how the image is encrypted, or a hint to the file system. */
export type WarningAbout = 'encryption' | 'extent size hint';

/** How a new image is encrypted. */
export interface EncryptionRequest {
  /** Default luks. `aes`, which only qcow2 has, is weak: virtual machines no longer open it. */
  readonly format?: 'luks' | 'aes' | undefined;
  /** Asked once, when everything else is decided. */
  readonly secret: SecretSource;
  /** Options of LUKS; what is left out has qemu's default. */
  readonly luks?: Partial<LuksOptions> | undefined;
}

/** What was created: every option as it took effect. */
export interface Created {
  readonly path: string;
  readonly format: Format;
  /** Bytes. */
  readonly size: number;
  readonly preallocation: Preallocation;
  readonly qcow2: Qcow2CreateOptions | null;
  /** The options of a LUKS volume that is an image by itself. */
  readonly luks: LuksOptions | null;
}

/** Bytes. qemu sets it so that images grow in large extents. */
const DEFAULT_EXTENT_SIZE_HINT = 1024 ** 2;

const MODE_OF: Readonly<Record<AllocationPolicy, Preallocation>> = {
  thin: 'off',
  'thick-lazy': 'falloc',
  'thick-eager': 'full',
};

/**
 * Creates an image. An existing file of that name is replaced in one step, and only after everything else succeeded.
 * @throws SpindleError BAD_OPTION, BAD_SIZE, LIMIT, ENCRYPTED (no secret was given), UNKNOWN_FORMAT, UNSUPPORTED, NO_SPACE, IN_USE, PERMISSION,
 * NOT_FOUND, NOT_A_FILE, BACKING_NOT_FOUND and what opening the backing chain throws
 */
export function create(request: CreateRequest): Promise<Created> {
  return createFilled(request, {});
}

/** What goes into a new image before it takes its name. */
export interface Filling extends ReplaceOptions {
  /**
   * Puts data into the image, which is complete but for it; `dataFile` holds the data where it is external. May close
   * the storages. Nothing stays when it fails.
   */
  readonly fill?: (storage: FileStorage, dataFile: FileStorage | null, created: Created) => Promise<void>;
}

/** {@link create}, with data in the image. @throws as create, and what `fill` throws */
export async function createFilled(request: CreateRequest, filling: Filling): Promise<Created> {
  const created = await decide(request);
  const method = created.luks === null ? created.qcow2?.encryption?.format : 'luks';
  const encrypting = method === undefined ? null : await askSecret(request, method);
  if (method === 'aes')
    request.onWarning?.(
      'the encryption format aes is weak and virtual machines refuse it; luks is better',
      'encryption',
    );
  try {
    if (created.qcow2 === null) await createFlat(request, created, encrypting, filling);
    else await createLayered(request, created, created.qcow2, encrypting, filling);
    return created;
  } finally {
    wipe(encrypting?.secret);
  }
}

async function askSecret(request: CreateRequest, method: 'luks' | 'aes'): Promise<Encrypting> {
  const secret = (await request.encryption?.secret({ name: request.path, method })) ?? null;
  if (secret !== null) return { secret, crypto: await nodeCrypto() };
  throw new SpindleError('ENCRYPTED', 'an encrypted image needs a secret, and none was given');
}

/** An image without tables: raw, or a LUKS volume. */
async function createFlat(
  request: CreateRequest,
  created: Created,
  encrypting: Encrypting | null,
  filling: Filling,
): Promise<void> {
  const { size, luks } = created;
  const preallocation = created.preallocation as RawPreallocation;
  await replaceFile(
    fileName(request.path),
    async (storage) => {
      await prepare(storage, request);
      request.onStart?.(created);
      if (luks === null || encrypting === null) await createRaw(storage, size, preallocation, request);
      else await createLuks(storage, { size, preallocation, luks, ...encrypting }, request);
      await filling.fill?.(storage, null, created);
    },
    filling,
  );
}

async function createLayered(
  request: CreateRequest,
  created: Created,
  options: Qcow2CreateOptions,
  encrypting: Encrypting | null,
  filling: Filling,
): Promise<void> {
  const withDataFile = async (storage: FileStorage, dataFile: FileStorage | null): Promise<void> => {
    await prepare(storage, request);
    request.onStart?.(created);
    await createQcow2(storage, options, dataFile, request, encrypting);
    await filling.fill?.(storage, dataFile, created);
  };
  await replaceFile(
    fileName(request.path),
    async (storage) => {
      if (options.dataFile === null) await withDataFile(storage, null);
      else {
        await replaceFile(
          fileName(options.dataFile),
          async (dataFile) => {
            await prepare(dataFile, request);
            await withDataFile(storage, dataFile);
          },
          filling,
        );
      }
    },
    filling,
  );
}

function fileName(path: string): string {
  const name = localName(path);
  if (name !== null) return name;
  throw new SpindleError('UNSUPPORTED', `spindle creates local files; write ./${path} if this is one`, {
    path,
  });
}

/** The switches of the file system, which count only while a file is empty. */
async function prepare(storage: FileStorage, request: CreateRequest): Promise<void> {
  if (request.noCow === true) await storage.setNoCow();
  const { extentSizeHint: asked } = request;
  const hint = storage.isDevice ? (asked ?? 0) : (asked ?? DEFAULT_EXTENT_SIZE_HINT);
  if (hint === 0) return;
  try {
    await storage.setExtentSizeHint(hint);
  } catch (error) {
    if (!(error instanceof SpindleError)) throw error;
    if (asked === undefined) return;
    const why = error.code === 'UNSUPPORTED' ? 'has no such hint' : `refuses one of ${String(asked)} bytes`;
    request.onWarning?.(`the extent size hint is not set: the file system ${why}`, 'extent size hint');
  }
}

/** Settles every option and checks all that can be checked without touching the target. @throws SpindleError as {@link create} */
export async function decide(request: CreateRequest): Promise<Created> {
  optionsOf(request);
  return settle(request, await sizeOf(request));
}

/** Every option of an image for a disk of `bytes`, rounded up to whole sectors; looks at no file. @throws SpindleError BAD_OPTION, BAD_SIZE, LIMIT, UNKNOWN_FORMAT */
export function settle(request: CreateRequest, bytes: number): Created {
  const { format, preallocation, luks } = optionsOf(request);
  const size = alignUp(bytes, 512);
  if (!Number.isSafeInteger(size)) throw new SpindleError('BAD_SIZE', 'sizes end below 8 PiB (2^53 bytes)');
  const base = { path: request.path, format, size, preallocation, luks: format === 'luks' ? luks : null };
  if (format !== 'qcow2') return { ...base, qcow2: null };
  const qcow2: Qcow2CreateOptions = {
    ...QCOW2_DEFAULTS,
    ...request.qcow2,
    size,
    preallocation,
    dataFile: request.qcow2?.dataFile ?? null,
    encryption:
      luks === null
        ? null
        : request.encryption?.format === 'aes'
          ? { format: 'aes' }
          : { format: 'luks', luks },
    backing:
      request.backing === undefined ? null : { name: request.backing.name, format: request.backing.format },
  };
  checkCreateOptions(qcow2);
  return { ...base, qcow2 };
}

/** What the request says apart from the size. @throws SpindleError BAD_OPTION, UNKNOWN_FORMAT */
function optionsOf(request: CreateRequest): Pick<Created, 'format' | 'preallocation' | 'luks'> {
  const format = knownFormat(request.format) ?? 'raw';
  const preallocation = preallocationOf(request);
  const hint = request.extentSizeHint ?? 0;
  if (!Number.isSafeInteger(hint) || hint < 0 || hint >= 2 ** 32) {
    throw bad(`extent_size_hint must be smaller than 4G, not ${String(hint)}`);
  }
  const luks = luksOptions(request, format);
  if (format !== 'qcow2') {
    if (request.backing !== undefined) throw bad(`${format} images have no backing file; use --format qcow2`);
    if (request.qcow2 !== undefined && Object.keys(request.qcow2).length > 0) {
      throw bad(`${format} images do not have the option ${Object.keys(request.qcow2).join(', ')}`);
    }
    if (preallocation === 'metadata')
      throw bad(`${format} images have no metadata to preallocate; use off, falloc or full`);
  }
  return { format, preallocation, luks };
}

/** The options of LUKS as they take effect; null where nothing is encrypted. @throws SpindleError BAD_OPTION */
function luksOptions({ encryption }: CreateRequest, format: Format): LuksOptions | null {
  if (format === 'luks') {
    if (encryption?.format === 'aes') throw bad('a luks image is encrypted with luks, not with aes');
  } else if (encryption === undefined) return null;
  else if (format === 'raw') throw bad('raw images are not encrypted; use --format luks, or qcow2');
  if (encryption?.format === 'aes' && Object.keys(encryption.luks ?? {}).length > 0)
    throw bad('the encryption format aes has no options: they are those of luks');
  const options = { ...LUKS_DEFAULTS, ...encryption?.luks };
  resolveLuksOptions(options);
  return options;
}

function preallocationOf(request: CreateRequest): Preallocation {
  const { allocation, preallocation } = request;
  if (allocation === undefined) return preallocation ?? 'off';
  const mode = MODE_OF[allocation];
  const thinEnough = allocation === 'thin' && preallocation === 'metadata';
  if (preallocation === undefined || preallocation === mode) return mode;
  if (thinEnough) return preallocation;
  throw bad(`allocation ${allocation} and preallocation=${preallocation} contradict each other`);
}

/** The virtual size, and whether the files of the image keep out of each other's way. */
async function sizeOf(request: CreateRequest): Promise<number> {
  const { backing } = request;
  if (backing !== undefined) knownFormat(backing.format);
  const below = backing === undefined ? null : await lookBelow(request.path, backing, request.gate);
  await refuseOverlap(request.path, request.qcow2?.dataFile ?? null, below?.identities ?? []);
  const size = request.size ?? below?.size;
  if (size === undefined) throw new SpindleError('BAD_SIZE', 'a size is needed, such as 10G');
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new SpindleError('BAD_SIZE', `${String(size)} bytes is no size`);
  }
  return size;
}

function bad(message: string): SpindleError {
  return new SpindleError('BAD_OPTION', message);
}
