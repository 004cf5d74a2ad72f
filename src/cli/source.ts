import { Option, type Command } from 'commander';
import type { SecretSource } from '../core/crypto.ts';
import { isSpindleError, SpindleError } from '../core/errors.ts';
import type { Gate } from '../format/gate.ts';
import { namedGate } from '../op/file-gate.ts';
import { imageName, isDescription, nameFromOptions } from '../op/image-name.ts';
import { collect, formatOption } from './command-line.ts';
import { parseOptionList } from './option-list.ts';
import { secretSource, type SecretFlags } from './secret.ts';

/** The options by which a command is told its image. */
export interface SourceFlags extends SecretFlags {
  readonly format?: string;
  readonly imageOpts?: boolean;
  readonly forceShare?: boolean;
  readonly untrusted?: boolean;
}

/** An image as the command line names it. */
export interface Source {
  readonly path: string;
  readonly format: string | undefined;
  /** Look at it though another process may be changing it. */
  readonly share: boolean;
  /** Where the secret of an encrypted image comes from; for commands that read or write its data. */
  readonly secret: SecretSource;
  /** Decides what is opened on the word of the image; undefined: as the operations do by themselves. */
  readonly gate: Gate | undefined;
}

/** Adds the options that name an image, or several. */
export function withSourceOptions(command: Command, name: '<FILE>' | '<FILE...>' = '<FILE>'): Command {
  return command
    .argument(name, 'the image (with --image-opts: its description)')
    .addOption(
      formatOption('-f, --format <FORMAT>', 'format of the image (default: told from its first bytes)'),
    )
    .addOption(new Option('--image-opts', 'FILE is a list of options: driver=qcow2,file.filename=disk.qcow2'))
    .addOption(objectOption())
    .addOption(secretFileOption())
    .addOption(new Option('-U, --force-share', 'look at the image though another process may be changing it'))
    .addOption(untrustedOption());
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

/** `--untrusted`, for images of unknown origin. */
export function untrustedOption(): Option {
  return new Option(
    '--untrusted',
    'open named files only, whatever images say (default: also local files that they name)',
  );
}

/**
 * What the command line says of the image; `also` are further files that it names.
 * @throws SpindleError BAD_OPTION, UNSUPPORTED, UNKNOWN_FORMAT
 */
export function sourceOf(file: string, flags: SourceFlags, also: readonly string[] = []): Source {
  const described = flags.imageOpts === true ? fromImageOptions(file, flags) : fromName(file, flags);
  const { path, share } = described;
  return { ...described, gate: gateOf(flags, [path, ...also], share) };
}

/** The gate of a command that names these files: none of its own where images are trusted. */
export function gateOf(
  { untrusted }: { readonly untrusted?: boolean },
  names: readonly string[],
  share = false,
): Gate | undefined {
  return untrusted === true ? namedGate(names, { share }) : undefined;
}

function fromName(file: string, flags: SourceFlags): Omit<Source, 'gate'> {
  const share = flags.forceShare === true;
  const { format, secret: id } = isDescription(file) ? imageName(file) : {};
  return { path: file, format: flags.format ?? format, share, secret: secretSource(flags, id) };
}

function fromImageOptions(list: string, flags: SourceFlags): Omit<Source, 'gate'> {
  if (flags.format !== undefined)
    throw new SpindleError(
      'BAD_OPTION',
      '--image-opts and --format exclude each other: put driver=FORMAT in the list',
    );
  const options = new Map<string, string>();
  for (const { name, value } of parseOptionList(list)) {
    if (value === undefined)
      throw new SpindleError(
        'UNSUPPORTED',
        `--image-opts '${list}': there are no nodes to name; name a file: file.filename=${list}`,
      );
    options.set(name, value);
  }
  try {
    const { name, says } = nameFromOptions(options);
    return {
      path: name,
      format: says.format,
      share: flags.forceShare === true || says.share === true,
      secret: secretSource(flags, says.secret),
    };
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    throw new SpindleError(error.code, `--image-opts '${list}': ${error.message}`, { cause: error });
  }
}
