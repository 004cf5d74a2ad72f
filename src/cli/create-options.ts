import { SpindleError } from '../core/errors.ts';
import { parseSize } from '../core/size.ts';
import { CIPHER_ALGS, CIPHER_MODES, IV_GENERATORS } from '../format/crypto/cipher-spec.ts';
import { LUKS_HASHES } from '../format/crypto/luks-header.ts';
import type { Format } from '../format/open.ts';
import { closest } from './suggest.ts';
import { listed, parseOptionList, type Listed } from './option-list.ts';

/** What an option of `create -o` takes. */
type Kind = 'size' | 'number' | 'switch' | 'text' | readonly string[];

/** An option of a list for `-o`. */
export interface ListedOption {
  readonly kind: Kind;
  readonly help: string;
}

const SIZE: ListedOption = { kind: 'size', help: 'virtual size' };
const HOST: Readonly<Record<string, ListedOption>> = {
  nocow: { kind: 'switch', help: 'no copy-on-write by the file system (btrfs)' },
  extent_size_hint: { kind: 'size', help: 'unit of allocation in the file system (XFS); 0 for its default' },
};

const SPACE: ListedOption = {
  kind: ['off', 'falloc', 'full'],
  help: 'space of the file: none, reserved, or written',
};

/** Options of encryption, in the order in which the line before the work shows them. */
const ENCRYPTION: Readonly<Record<string, ListedOption>> = {
  'key-secret': { kind: 'text', help: 'id of the --object that holds the passphrase' },
  'cipher-alg': { kind: CIPHER_ALGS, help: 'cipher (default aes-256)' },
  'cipher-mode': { kind: CIPHER_MODES, help: 'mode of the cipher (default xts)' },
  'ivgen-alg': { kind: IV_GENERATORS, help: 'how the vector of a sector is made (default plain64)' },
  'ivgen-hash-alg': { kind: LUKS_HASHES, help: 'hash of ivgen-alg=essiv (default sha256)' },
  'hash-alg': { kind: LUKS_HASHES, help: 'hash that stretches the passphrase (default sha256)' },
  'iter-time': { kind: 'number', help: 'milliseconds that stretching takes (default 2000)' },
};

/** Whether an image of the format can be created with an option of this name. */
export function isCreateOption(format: Format, name: string): boolean {
  return Object.hasOwn(OPTIONS[format], name);
}

/** The names of the encryption options of a format, in the order of {@link ENCRYPTION}. */
export function encryptionOptions(format: Format): string[] {
  if (format === 'raw') return [];
  const names = Object.keys(ENCRYPTION);
  return format === 'luks'
    ? names
    : ['encryption', 'encrypt.format', ...names.map((name) => `encrypt.${name}`)];
}

const OPTIONS: Readonly<Record<Format, Readonly<Record<string, ListedOption>>>> = {
  raw: {
    size: SIZE,
    preallocation: SPACE,
    ...HOST,
  },
  luks: { size: SIZE, preallocation: SPACE, ...ENCRYPTION, ...HOST },
  qcow2: {
    size: SIZE,
    backing_file: { kind: 'text', help: 'image to put this one on top of' },
    backing_fmt: { kind: 'text', help: 'format of the backing file' },
    cluster_size: { kind: 'size', help: 'unit of allocation, 512 to 2M (default 64k)' },
    compat: { kind: ['0.10', 'v2', '1.1', 'v3'], help: 'version of the format (default 1.1)' },
    compression_type: { kind: ['zlib', 'zstd'], help: 'how clusters are compressed (default zlib)' },
    data_file: { kind: 'text', help: 'file for the guest data; the image then holds tables only' },
    data_file_raw: { kind: 'switch', help: 'keep the data file readable as a raw image' },
    extended_l2: { kind: 'switch', help: '32 subclusters for each cluster' },
    lazy_refcounts: { kind: 'switch', help: 'write refcounts late' },
    preallocation: {
      kind: ['off', 'metadata', 'falloc', 'full'],
      help: 'what is there from the start: nothing, tables, reserved space, or written space',
    },
    refcount_bits: { kind: 'number', help: 'width of a refcount: 1, 2, 4, 8, 16, 32 or 64 (default 16)' },
    encryption: { kind: 'switch', help: 'an older way to say encrypt.format=aes' },
    'encrypt.format': {
      kind: ['aes', 'luks'],
      help: 'encrypt the disk; aes is weak, and refused by machines',
    },
    ...Object.fromEntries(Object.entries(ENCRYPTION).map(([name, option]) => [`encrypt.${name}`, option])),
    ...HOST,
  },
};

/** The value of one option, and how the line before the work shows it. */
export interface Given {
  readonly value: string | number | boolean;
  readonly shown: string;
}

/** The options of all lists by name, the last one counting; or the wish to see which there are. */
export type CreateOptions = ReadonlyMap<string, Given> | 'help';

/** Reads the lists of `-o`. @throws SpindleError BAD_OPTION, BAD_SIZE, UNSUPPORTED */
export function parseCreateOptions(format: Format, lists: readonly string[]): CreateOptions {
  return parseOptions(OPTIONS[format], lists, (name) => unknown(format, name));
}

/** Reads lists of these options; `unknown` makes the error of any other. @throws SpindleError BAD_OPTION, BAD_SIZE */
export function parseOptions(
  options: Readonly<Record<string, ListedOption>>,
  lists: readonly string[],
  unknown: (name: string) => SpindleError,
): CreateOptions {
  const elements = lists.flatMap(parseOptionList);
  const wish = ({ name, value }: Listed): boolean =>
    value === undefined && ['help', '?', 'list'].includes(name);
  if (elements.some(wish)) return 'help';
  return new Map(elements.map((element) => parseOne(options, element, unknown)));
}

function parseOne(
  options: Readonly<Record<string, ListedOption>>,
  { name, value }: Listed,
  unknown: (name: string) => SpindleError,
): [string, Given] {
  const option = options[name];
  if (option === undefined) {
    const negated = name.startsWith('no') ? name.slice(2) : '';
    if (value === undefined && options[negated]?.kind === 'switch')
      return [negated, { value: false, shown: 'off' }];
    throw unknown(name);
  }
  if (value === undefined && option.kind !== 'switch')
    throw bad(name, 'needs a value: write it as name=value');
  return [name, parseValue(name, option.kind, value ?? 'on')];
}

function unknown(format: Format, name: string): SpindleError {
  const names = Object.keys(OPTIONS[format]);
  const near = closest(name, names);
  const hint = near === undefined ? `'-f ${format} -o help' lists them` : `did you mean ${near}?`;
  return new SpindleError('BAD_OPTION', `there is no option '${name}' for ${format} images; ${hint}`);
}

function bad(name: string, why: string): SpindleError {
  return new SpindleError('BAD_OPTION', `option ${name} ${why}`);
}

const ON = ['on', 'yes', 'true', 'y'];
const OFF = ['off', 'no', 'false', 'n'];

function parseValue(name: string, kind: Kind, text: string): Given {
  switch (kind) {
    case 'size':
      return sizeOf(name, text);
    case 'number': {
      if (!/^(\d+|0[xX][0-9a-fA-F]+)$/.test(text)) throw bad(name, `takes a number, not '${text}'`);
      return { value: Number(text), shown: String(Number(text)) };
    }
    case 'switch':
      if (ON.includes(text)) return { value: true, shown: text };
      if (OFF.includes(text)) return { value: false, shown: text };
      throw bad(name, `takes on or off, not '${text}'`);
    case 'text':
      return { value: text, shown: listed(text) };
    default:
      if (kind.includes(text)) return { value: text, shown: text };
      throw bad(name, `takes ${kind.slice(0, -1).join(', ')} or ${kind.at(-1) ?? ''}, not '${text}'`);
  }
}

function sizeOf(name: string, text: string): Given {
  try {
    const value = parseSize(text);
    return { value, shown: String(value) };
  } catch (error) {
    if (!(error instanceof SpindleError)) throw error;
    throw new SpindleError(error.code, `option ${name}: ${error.message}`);
  }
}

/** The text of `-o help`. */
export function createOptionsHelp(format: Format): string {
  return optionsHelp(`Options for ${format} images`, OPTIONS[format]);
}

/** A table of options under a title. */
export function optionsHelp(title: string, options: Readonly<Record<string, ListedOption>>): string {
  const rows = Object.entries(options)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, { kind, help }]) => [`${name}=${placeholder(kind)}`, help] as const);
  const width = Math.max(...rows.map(([left]) => left.length));
  return `${title}:\n${rows.map(([left, help]) => `  ${left.padEnd(width)}  ${help}\n`).join('')}`;
}

function placeholder(kind: Kind): string {
  if (kind === 'switch') return 'on|off';
  if (typeof kind === 'object') return kind.join('|');
  return kind.toUpperCase();
}
