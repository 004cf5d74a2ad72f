import { SpindleError } from '../core/errors.ts';
import { parseSize } from '../core/size.ts';
import type { Format } from '../format/open.ts';
import type { CreateRequest, EncryptionRequest, Preallocation } from '../op/create.ts';
import type { Given } from './create-options.ts';
import { secretSource, type SecretFlags } from './secret.ts';

/** The flags that say what a new image is like. */
export interface NewImageFlags extends SecretFlags {
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly backingUnsafe?: boolean;
}

/** The values of the list, by their names there. */
interface Values {
  readonly size?: number;
  readonly preallocation?: Preallocation;
  readonly compat?: string;
  readonly cluster_size?: number;
  readonly refcount_bits?: number;
  readonly extended_l2?: boolean;
  readonly lazy_refcounts?: boolean;
  readonly compression_type?: 'zlib' | 'zstd';
  readonly data_file?: string;
  readonly data_file_raw?: boolean;
  readonly nocow?: boolean;
  readonly extent_size_hint?: number;
}

/** What a command line asks for: its size, flags and option lists together. @throws SpindleError BAD_OPTION, BAD_SIZE */
export function requestOf(
  file: string,
  size: string | undefined,
  flags: NewImageFlags,
  given: ReadonlyMap<string, Given>,
): Omit<CreateRequest, 'allocation'> {
  if (size !== undefined && given.has('size')) {
    throw new SpindleError('BAD_OPTION', 'the size is given twice, as an argument and as an option', {
      path: file,
    });
  }
  const values: Values = Object.fromEntries([...given].map(([name, { value }]) => [name, value]));
  const { compat } = values;
  const qcow2 = defined({
    version:
      compat === undefined ? undefined : compat === '0.10' || compat === 'v2' ? (2 as const) : (3 as const),
    clusterSize: values.cluster_size,
    refcountBits: values.refcount_bits,
    extendedL2: values.extended_l2,
    lazyRefcounts: values.lazy_refcounts,
    compressionType: values.compression_type,
    dataFile: values.data_file,
    dataFileRaw: values.data_file_raw,
  });
  return {
    path: file,
    size: size === undefined ? values.size : parseSize(size),
    preallocation: values.preallocation,
    qcow2,
    backing: backingOf(file, flags, given),
    noCow: values.nocow,
    extentSizeHint: values.extent_size_hint,
  };
}

/** What the options say of encryption; null where nothing is to be encrypted. @throws SpindleError BAD_OPTION */
export function encryptionOf(
  format: Format,
  flags: SecretFlags,
  given: ReadonlyMap<string, Given>,
): EncryptionRequest | null {
  const prefix = format === 'luks' ? '' : 'encrypt.';
  const text = (name: string): string | undefined => given.get(prefix + name)?.value as string | undefined;
  const asked = format === 'luks' ? 'luks' : (text('format') as 'luks' | 'aes' | undefined);
  const old = given.get('encryption')?.value;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (old !== undefined && asked !== undefined)
    throw bad('encryption and encrypt.format say the same; use the latter');
  const method = old === true ? 'aes' : asked;
  if (method === undefined) {
    const other = [...given.keys()].find((name) => name.startsWith('encrypt.'));
    if (other !== undefined) throw bad(`${other} needs encrypt.format=luks`);
    return null;
  }
  const iterTime = given.get(`${prefix}iter-time`)?.value as number | undefined;
  const luks = defined({
    cipherAlg: text('cipher-alg'),
    cipherMode: text('cipher-mode'),
    ivgenAlg: text('ivgen-alg'),
    ivgenHashAlg: text('ivgen-hash-alg'),
    hashAlg: text('hash-alg'),
    iterTime,
  });
  return { format: method, secret: secretSource(flags, text('key-secret'), true), luks };
}

function backingOf(
  file: string,
  flags: NewImageFlags,
  given: ReadonlyMap<string, Given>,
): CreateRequest['backing'] {
  const name = same(file, 'backing file', flags.backing, given.get('backing_file'));
  const format = same(file, 'backing format', flags.backingFormat, given.get('backing_fmt'));
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message, { path: file });
  if (name === undefined) {
    if (format !== undefined) throw bad(`a backing format (${format}) needs a backing file: add -b FILE`);
    return undefined;
  }
  if (name === '') throw bad('the name of the backing file is empty; leave it out for an image without one');
  if (format === undefined)
    throw bad(`the format of the backing file '${name}' must be named: add -F qcow2 or -F raw`);
  return { name, format, unchecked: flags.backingUnsafe === true };
}

/** What a flag and its older spelling in a list say together. */
function same(
  file: string,
  what: string,
  flag: string | undefined,
  option: Given | undefined,
): string | undefined {
  const other = option === undefined ? undefined : String(option.value);
  if (flag === undefined || other === undefined || flag === other) return flag ?? other;
  throw new SpindleError('BAD_OPTION', `two different values for the ${what}: '${flag}' and '${other}'`, {
    path: file,
  });
}

/** `values` without those that are undefined. */
function defined<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> };
}
