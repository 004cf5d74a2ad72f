import { SpindleError } from '../core/errors.ts';
import { besideImage, hasProtocol, localName } from '../core/path.ts';
import { parseSize } from '../core/size.ts';
import { OVERLAP_CHECKS, type OverlapCheck } from '../format/qcow2/write/cluster-kinds.ts';

/*
 * Names of images. A name is a path, a path behind `file:`, or a description behind `json:`: the options by which QEMU's
 * block layer opens a node, nested or with dots in the keys. Of these the ones are here that apply to raw, qcow2 and LUKS
 * images in files and on devices.
 */

/** What a name says of an image. Everything but the path may be left open. */
export interface ImageName {
  /** The local file or device. */
  readonly path: string;
  readonly format?: string | undefined;
  /** The file must be of this kind. */
  readonly kind?: 'file' | 'host_device' | undefined;
  /** The part of the file that a raw image is in; without `size` up to the end. Bytes. */
  readonly window?: { readonly offset: number; readonly size: number | undefined } | undefined;
  /** Do not keep others from using the image, and do not mind that they do. */
  readonly share?: boolean | undefined;
  /** Take no locks at all, and look for none. */
  readonly unlocked?: boolean | undefined;
  readonly readOnly?: boolean | undefined;
  /** Bypass the page cache of the host. */
  readonly direct?: boolean | undefined;
  /** Name of the backing file instead of the one that the image records; null for none. */
  readonly backing?: string | null | undefined;
  /** Path of the data file instead of the one that the image records. */
  readonly dataFile?: string | undefined;
  /** Id of the secret that opens the image. */
  readonly secret?: string | undefined;
  /** How the image must be encrypted. */
  readonly encryption?: string | undefined;
  readonly overlapCheck?: OverlapCheck | undefined;
}

const JSON_PREFIX = 'json:';

/** Whether a name is a description. */
export function isDescription(name: string): boolean {
  return name.startsWith(JSON_PREFIX);
}

/**
 * What a name says.
 * @throws SpindleError UNSUPPORTED (a protocol, driver or option that spindle does not have), BAD_OPTION, BAD_SIZE,
 * UNKNOWN_FORMAT
 */
export function imageName(name: string): ImageName {
  if (isDescription(name)) return described(flattened(name));
  const path = localName(name);
  if (path !== null) return { path };
  throw new SpindleError('UNSUPPORTED', `spindle opens local files; write ./${name} if this is one`, {
    path: name,
  });
}

/** The local file that a name is about; null where it is about something else. */
export function fileOf(name: string): string | null {
  if (!isDescription(name)) return localName(name);
  try {
    return imageName(name).path;
  } catch (error) {
    if (error instanceof SpindleError) return null;
    throw error;
  }
}

/**
 * A name as recorded in an image, seen from where the image is: relative paths start in its directory. Those behind
 * `file:` and in descriptions start in the current directory, as for QEMU.
 */
export function besideName(name: string, image: string | undefined): string {
  if (hasProtocol(name)) return name;
  return besideImage(name, image === undefined ? undefined : (fileOf(image) ?? image));
}

/**
 * The name of an image from a list of options, those of a description with dots in their keys: a path where that says it
 * all, but for the format.
 * @throws SpindleError as {@link imageName}
 */
export function nameFromOptions(options: ReadonlyMap<string, string>): {
  readonly name: string;
  readonly says: ImageName;
} {
  const says = described(new Map(options));
  const { path, format: _, secret: __, ...others } = says;
  const isPlain = Object.values(others).every((value) => value === undefined);
  return { name: isPlain ? plainName(path) : nameOf(options), says };
}

/** The name under which an image is shown: its path, or a description where the path does not say what is seen. */
export function shownName({ path, format, window }: ImageName): string {
  if (window === undefined) return path;
  const { offset, size } = window;
  return (
    JSON_PREFIX +
    JSON.stringify({ driver: format ?? 'raw', offset, size, file: { driver: 'file', filename: path } })
  );
}

/** A path as a name: one that looks like a protocol starts with a dot. */
export function plainName(path: string): string {
  return hasProtocol(path) ? `./${path}` : path;
}

/** Options by their keys with dots in them; null stands for "none". */
type Flat = Map<string, string | null>;

function nameOf(flat: ReadonlyMap<string, string | null>): string {
  return JSON_PREFIX + JSON.stringify(Object.fromEntries(flat));
}

function flattened(name: string): Flat {
  let value: unknown;
  try {
    value = JSON.parse(name.slice(JSON_PREFIX.length));
  } catch {
    throw new SpindleError('BAD_OPTION', 'what follows json: is not JSON', { path: name });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new SpindleError('BAD_OPTION', 'what follows json: must be an object, in braces', { path: name });
  const flat: Flat = new Map();
  add(flat, '', value);
  return flat;
}

function add(flat: Flat, key: string, value: unknown): void {
  if (Array.isArray(value)) throw bad(`'${key}' cannot be a list`);
  if (typeof value === 'boolean') flat.set(key, value ? 'on' : 'off');
  else if (typeof value === 'string' || value === null) flat.set(key, value);
  else if (typeof value === 'number') flat.set(key, String(value));
  else if (typeof value === 'object')
    for (const [name, inner] of Object.entries(value)) add(flat, key === '' ? name : `${key}.${name}`, inner);
}

/** Options that are taken one by one, so that what is left is what nobody knows. */
class Options {
  readonly #flat: Flat;
  readonly #prefix: string;

  constructor(flat: Flat, prefix = '') {
    this.#flat = flat;
    this.#prefix = prefix;
  }

  /** How the option stands in the description. */
  key(name: string): string {
    return this.#prefix + name;
  }

  value(name: string): string | null | undefined {
    const value = this.#flat.get(name);
    this.#flat.delete(name);
    return value;
  }

  text(name: string): string | undefined {
    const value = this.value(name);
    if (value === null) throw bad(`'${this.key(name)}' needs a value`);
    return value;
  }

  flag(name: string): boolean | undefined {
    const value = this.choice(name, ['on', 'off']);
    return value === undefined ? undefined : value === 'on';
  }

  choice<T extends string>(name: string, values: readonly T[]): T | undefined {
    const value = this.text(name);
    if (value === undefined || values.includes(value as T)) return value as T | undefined;
    throw bad(`'${this.key(name)}' is one of ${values.join(', ')}, not '${value}'`);
  }

  size(name: string): number | undefined {
    const value = this.text(name);
    return value === undefined ? undefined : parseSize(value);
  }

  /** The options of a node below, without its name in front. */
  node(name: string): Flat {
    const below: Flat = new Map();
    for (const [key, value] of [...this.#flat]) {
      if (!key.startsWith(`${name}.`)) continue;
      below.set(key.slice(name.length + 1), value);
      this.#flat.delete(key);
    }
    return below;
  }

  /** Refuses what was not taken. */
  end(what: string): void {
    const [left] = this.#flat.keys();
    if (left !== undefined)
      throw new SpindleError(
        'UNSUPPORTED',
        `'${this.key(left)}' is not in this version as an option of ${what}`,
      );
  }
}

const FILES = ['file', 'host_device'] as const;
const FORMATS = ['raw', 'qcow2', 'luks'];

function described(flat: Flat): ImageName {
  const options = new Options(flat);
  const driver = options.text('driver');
  if (driver !== undefined && isFile(driver)) {
    const file = protocol(options, driver);
    options.end(`the driver ${driver}`);
    return { ...file, format: 'raw' };
  }
  if (driver !== undefined && !FORMATS.includes(driver))
    throw new SpindleError(
      'UNKNOWN_FORMAT',
      `the driver '${driver}' is not in this version; spindle has ${[...FORMATS, ...FILES].join(', ')}`,
    );
  const file = fileBelow(options, driver);
  const own = common(options);
  const says = {
    ...file,
    ...defined(own),
    // Whichever of the two nodes says so.
    readOnly: own.readOnly === true || file.readOnly === true ? true : undefined,
    format: driver,
    ...(driver === 'raw' ? rawOptions(options) : {}),
    ...(driver === 'luks' ? { secret: options.text('key-secret') } : {}),
    ...(driver === 'qcow2' || driver === undefined ? qcow2Options(options) : {}),
  };
  options.end(driver === undefined ? 'an image of no named driver' : `the driver ${driver}`);
  return defined(says) as ImageName;
}

function isFile(driver: string): driver is 'file' | 'host_device' {
  return (FILES as readonly string[]).includes(driver);
}

/** The node that the format is in. */
function fileBelow(options: Options, driver: string | undefined): ImageName {
  refuseNode(options, 'file');
  const flat = options.node('file');
  if (flat.size === 0)
    throw bad(driver === undefined ? 'neither driver nor file is named' : 'no file.filename is named');
  const below = new Options(flat, 'file.');
  const kind = below.choice('driver', [...FILES, 'raw'] as const);
  // A raw node that shows all of its file adds nothing.
  if (kind === 'raw') {
    const inner = new Map(below.node('file'));
    below.end('a raw node below another');
    return fileBelow(new Options(new Map([...inner].map(([key, value]) => [`file.${key}`, value]))), 'raw');
  }
  const file = protocol(below, kind);
  below.end('a file');
  return file;
}

function protocol(options: Options, kind: 'file' | 'host_device' | undefined): ImageName {
  const path = options.text('filename');
  if (path === undefined || path === '') throw bad(`'${options.key('filename')}' must name a file`);
  const unlocked = options.choice('locking', ['on', 'off', 'auto']) === 'off' ? true : undefined;
  options.choice('aio', ['threads', 'native', 'io_uring']);
  options.size('aio-max-batch');
  options.flag('drop-cache');
  options.flag('x-check-cache-dropped');
  return { path, kind, unlocked, ...common(options) };
}

/** Options of every node. What concerns speed only, or names nodes to a machine, is looked at and has no effect. */
function common(options: Options): Pick<ImageName, 'readOnly' | 'share' | 'direct'> {
  options.text('node-name');
  options.flag('auto-read-only');
  options.flag('cache.no-flush');
  const discard = options.choice('discard', ['ignore', 'off', 'unmap', 'on']);
  const zeroes = options.choice('detect-zeroes', ['off', 'on', 'unmap']);
  if (zeroes === 'unmap' && discard !== 'unmap' && discard !== 'on')
    throw bad(`'${options.key('detect-zeroes')}=unmap' needs discard=unmap`);
  return {
    readOnly: options.flag('read-only') === true ? true : undefined,
    share: options.flag('force-share') === true ? true : undefined,
    direct: options.flag('cache.direct') === true ? true : undefined,
  };
}

/** Guests see whole sectors. */
const SECTOR = 512;

function rawOptions(options: Options): Pick<ImageName, 'window'> {
  const offset = options.size('offset');
  const size = options.size('size');
  if (size !== undefined && size % SECTOR !== 0)
    throw bad(`the size of a part of a raw file must be a multiple of ${String(SECTOR)}`);
  return offset === undefined && size === undefined ? {} : { window: { offset: offset ?? 0, size } };
}

const FLAGS = [
  'lazy-refcounts',
  ...['pass-discard-request', 'pass-discard-snapshot', 'pass-discard-other', 'discard-no-unref'],
];

/** Parts of the metadata that qemu can be told to guard or not. Here they are guarded by level, never less. */
const GUARDED = [
  ...['main-header', 'active-l1', 'active-l2', 'refcount-table', 'refcount-block', 'snapshot-table'],
  ...['inactive-l1', 'inactive-l2', 'bitmap-directory'],
];

function qcow2Options(
  options: Options,
): Pick<ImageName, 'backing' | 'dataFile' | 'secret' | 'encryption' | 'overlapCheck'> {
  for (const name of FLAGS) options.flag(name);
  cacheOptions(options);
  const check = options.choice('overlap-check', OVERLAP_CHECKS);
  const template = options.choice('overlap-check.template', OVERLAP_CHECKS);
  if (check !== undefined && template !== undefined && check !== template)
    throw bad("'overlap-check' and 'overlap-check.template' differ");
  for (const name of GUARDED) options.flag(`overlap-check.${name}`);
  return {
    backing: backingBelow(options),
    dataFile: dataFileBelow(options),
    encryption: options.choice('encrypt.format', ['luks', 'aes']),
    secret: options.text('encrypt.key-secret'),
    overlapCheck: check ?? template,
  };
}

/** Caches are bounded here whatever is asked for; what contradicts itself is refused all the same. */
function cacheOptions(options: Options): void {
  const whole = options.size('cache-size');
  const part = options.size('l2-cache-size');
  const other = options.size('refcount-cache-size');
  const entry = options.size('l2-cache-entry-size');
  options.size('cache-clean-interval');
  if (whole !== undefined && ((part ?? 0) > whole || (other ?? 0) > whole))
    throw bad("a part of the cache cannot be larger than 'cache-size'");
  if (whole !== undefined && part !== undefined && other !== undefined)
    throw bad("only two of 'cache-size', 'l2-cache-size' and 'refcount-cache-size' can be given");
  if (entry !== undefined && (entry < SECTOR || !Number.isInteger(Math.log2(entry))))
    throw bad("'l2-cache-entry-size' must be a power of two from 512 to the cluster size");
}

function backingBelow(options: Options): string | null | undefined {
  const value = options.value('backing');
  const below = options.node('backing');
  if (value === null || value === '') return null;
  if (value !== undefined) throw nodeName('backing', value);
  if (below.size === 0) return undefined;
  const name = nameOf(below);
  // What is wrong in it is told before anything is opened.
  described(below);
  return name;
}

function dataFileBelow(options: Options): string | undefined {
  refuseNode(options, 'data-file');
  const flat = options.node('data-file');
  if (flat.size === 0) return undefined;
  const below = new Options(flat, 'data-file.');
  const file = protocol(below, below.choice('driver', FILES));
  below.end('a data file');
  return plainName(file.path);
}

function refuseNode(options: Options, name: string): void {
  const value = options.value(name);
  if (value === null) throw bad(`'${options.key(name)}' must be a node with a filename`);
  if (value !== undefined) throw nodeName(options.key(name), value);
}

function nodeName(key: string, value: string): SpindleError {
  return new SpindleError(
    'UNSUPPORTED',
    `'${key}=${value}' names a node, and there are none; write ${key}.filename=${value} for a file`,
  );
}

/** `values` without those that are undefined. */
function defined<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Partial<T>;
}

function bad(message: string): SpindleError {
  return new SpindleError('BAD_OPTION', message);
}
