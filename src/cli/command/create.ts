import { Option } from 'commander';
import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../core/allocation.ts';
import { printable, SpindleError } from '../../core/errors.ts';
import { parseSize } from '../../core/size.ts';
import { knownFormat, type Format } from '../../format/open.ts';
import { create, type CreateRequest, type EncryptionRequest, type Preallocation } from '../../op/create.ts';
import { collect, formatOption, newCommand, verb } from '../command-line.ts';
import { createOptionsHelp, parseCreateOptions, type Given } from '../create-options.ts';
import { formattingLine } from '../formatting-line.ts';
import { interruptible } from '../interrupt.ts';
import { progressOption, progressTo, type ProgressForm } from '../progress.ts';
import { warn } from '../report.ts';
import { out } from '../output.ts';
import { secretObjects, secretSource, type SecretFlags } from '../secret.ts';
import { objectOption, secretFileOption } from '../source.ts';

interface Flags extends SecretFlags {
  readonly format?: string;
  readonly options: readonly string[];
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly backingUnsafe?: boolean;
  readonly allocation?: AllocationPolicy;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The command line of `create`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'create',
    'Make a new image. An existing file is replaced, once the new one is complete.',
    [
      ['-f qcow2 disk.qcow2 20G', 'a qcow2 image of 20 GiB that takes space as it is written'],
      [
        '--allocation thick-lazy disk.img 20G',
        'a raw image whose space is reserved now and cleared when first used',
      ],
      ['-f qcow2 -b base.qcow2 -F qcow2 top.qcow2', 'an overlay that holds what differs from base.qcow2'],
      ['-f qcow2 -o cluster_size=1M,compression_type=zstd disk.qcow2 1T', 'options of the format'],
      [
        '-f qcow2 -o encrypt.format=luks --secret-file key.txt disk.qcow2 20G',
        'an encrypted image; without --secret-file the passphrase is asked for',
      ],
      ['-f qcow2 -o help', 'list the options of the format'],
    ],
  )
    .argument('[FILE]', 'the image to make')
    .argument('[SIZE]', 'size of the disk, such as 512M or 1.5G (default: that of the backing file)')
    .addOption(formatOption('-f, --format <FORMAT>', 'format of the new image (default: raw)'))
    .addOption(
      new Option('-o, --options <LIST>', 'options of the format as name=value,...; may be repeated')
        .argParser(collect)
        .default([], 'none'),
    )
    .option(
      '-b, --backing <FILE>',
      'put the new image on top of this one; relative to where the new image is',
    )
    .addOption(
      formatOption('-F, --backing-format <FORMAT>', 'format of the backing file; needed with --backing'),
    )
    .option('-u, --backing-unsafe', 'do not open the backing file; needs a SIZE')
    .addOption(new Option('--allocation <POLICY>', 'when the host gives space').choices(ALLOCATION_POLICIES))
    .option('-q, --quiet', 'print nothing')
    .addOption(progressOption())
    .addOption(objectOption())
    .addOption(secretFileOption())
    .action((file: string | undefined, size: string | undefined, flags: Flags) =>
      work(program, file, size, flags),
    ),
);

async function work(
  program: string,
  file: string | undefined,
  size: string | undefined,
  flags: Flags,
): Promise<void> {
  secretObjects(flags.object);
  const format = knownFormat(flags.format) ?? 'raw';
  const given = parseCreateOptions(format, flags.options);
  if (given === 'help') {
    out(createOptionsHelp(format));
    return;
  }
  if (file === undefined) throw new SpindleError('BAD_OPTION', 'name the file to create');
  const encryption = encryptionOf(format, flags, given);
  const request = { ...requestOf(file, size, flags, given), ...(encryption === null ? {} : { encryption }) };
  const progress = progressTo(flags.quiet === true ? 'none' : flags.progress);
  try {
    await create({
      ...request,
      format,
      signal: interruptible(),
      onProgress: progress,
      onWarning: (message) => warn(program, file, message),
      onStart: (created) => {
        if (flags.quiet !== true)
          out(
            `${printable(formattingLine(created, given, { size: request.size, allocation: flags.allocation }))}\n`,
          );
      },
    });
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= file;
    throw error;
  }
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

function requestOf(
  file: string,
  size: string | undefined,
  flags: Flags,
  given: ReadonlyMap<string, Given>,
): CreateRequest {
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
    allocation: flags.allocation,
    preallocation: values.preallocation,
    qcow2,
    backing: backingOf(file, flags, given),
    noCow: values.nocow,
    extentSizeHint: values.extent_size_hint,
  };
}

/** What the options say of encryption; null where nothing is to be encrypted. */
function encryptionOf(
  format: Format,
  flags: Flags,
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

function backingOf(file: string, flags: Flags, given: ReadonlyMap<string, Given>): CreateRequest['backing'] {
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
