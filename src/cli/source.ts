import { Option, type Command } from 'commander';
import type { SecretSource } from '../core/crypto.ts';
import { SpindleError } from '../core/errors.ts';
import { hasProtocol } from '../core/path.ts';
import { collect, formatOption } from './command-line.ts';
import { parseOptionList } from './option-list.ts';
import { secretSource, type SecretFlags } from './secret.ts';

/** The options by which a command is told its image. */
export interface SourceFlags extends SecretFlags {
  readonly format?: string;
  readonly imageOpts?: boolean;
  readonly forceShare?: boolean;
}

/** An image as the command line names it. */
export interface Source {
  readonly path: string;
  readonly format: string | undefined;
  /** Look at it though another process may be changing it. */
  readonly share: boolean;
  /** Where the secret of an encrypted image comes from; for commands that read or write its data. */
  readonly secret: SecretSource;
}

/** Adds the options that name an image. */
export function withSourceOptions(command: Command): Command {
  return command
    .argument('<FILE>', 'the image (with --image-opts: its description)')
    .addOption(
      formatOption('-f, --format <FORMAT>', 'format of the image (default: told from its first bytes)'),
    )
    .addOption(new Option('--image-opts', 'FILE is a list of options: driver=qcow2,file.filename=disk.qcow2'))
    .addOption(objectOption())
    .addOption(secretFileOption())
    .addOption(
      new Option('-U, --force-share', 'look at the image though another process may be changing it'),
    );
}

/** `--object`, which says a secret. */
export function objectOption(): Option {
  return new Option('--object <OBJECT>', 'a secret, as secret,id=NAME,file=PATH')
    .argParser(collect)
    .default([], 'none');
}

/** `--secret-file`, for the one secret that most command lines need. */
export function secretFileOption(): Option {
  return new Option(
    '--secret-file <FILE>',
    'file with the passphrase, all of its bytes (default: asked for)',
  );
}

/** What the command line says of the image. @throws SpindleError BAD_OPTION, UNSUPPORTED */
export function sourceOf(file: string, flags: SourceFlags): Source {
  const share = flags.forceShare === true;
  if (flags.imageOpts !== true)
    return { path: file, format: flags.format, share, secret: secretSource(flags) };
  if (flags.format !== undefined) {
    throw new SpindleError(
      'BAD_OPTION',
      '--image-opts and --format exclude each other: put driver=FORMAT in the list',
    );
  }
  return fromImageOptions(file, share, flags);
}

/** What descriptions may say. */
const KNOWN = [
  ...['driver', 'file.driver', 'file.filename', 'filename', 'force-share'],
  ...['encrypt.key-secret', 'encrypt.format', 'key-secret'],
];

/** The simplest descriptions: a format over a local file. */
function fromImageOptions(list: string, share: boolean, flags: SecretFlags): Source {
  const known: Partial<Record<string, string>> = {};
  for (const { name, value } of parseOptionList(list)) {
    if (value === undefined) {
      throw new SpindleError(
        'UNSUPPORTED',
        `--image-opts '${list}': node names are not in this version; name a file`,
      );
    }
    if (!KNOWN.includes(name)) {
      throw new SpindleError(
        'UNSUPPORTED',
        `--image-opts: '${name}' is not in this version; spindle takes driver, file.driver=file, file.filename, force-share and encrypt.key-secret`,
      );
    }
    known[name] = value;
  }
  const protocol = known['file.driver'] ?? 'file';
  const filename = known['file.filename'] ?? known['filename'];
  if (filename === undefined)
    throw new SpindleError('BAD_OPTION', `--image-opts '${list}' has no file.filename`);
  if (protocol !== 'file') {
    throw new SpindleError(
      'UNSUPPORTED',
      `--image-opts: file.driver=${protocol} is not in this version; spindle opens files`,
    );
  }
  return {
    // In a list a name is a name, also with a colon in it.
    path: hasProtocol(filename) ? `./${filename}` : filename,
    format: known['driver'] === 'file' ? 'raw' : known['driver'],
    share: share || known['force-share'] === 'on',
    secret: secretSource(flags, known['encrypt.key-secret'] ?? known['key-secret']),
  };
}
