import { Option, type Command } from 'commander';
import { SpindleError } from '../core/errors.ts';
import { hasProtocol } from '../core/path.ts';
import { collect, formatOption } from './command-line.ts';
import { parseOptionList } from './option-list.ts';

/** The options by which a command is told its image. */
export interface SourceFlags {
  readonly format?: string;
  readonly imageOpts?: boolean;
  readonly forceShare?: boolean;
  readonly object: readonly string[];
}

/** An image as the command line names it. */
export interface Source {
  readonly path: string;
  readonly format: string | undefined;
  /** Look at it though another process may be changing it. */
  readonly share: boolean;
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
    .addOption(
      new Option('-U, --force-share', 'look at the image though another process may be changing it'),
    );
}

/** `--object`, which says a secret. */
export function objectOption(): Option {
  return new Option('--object <OBJECT>', 'a secret, as secret,id=NAME,file=PATH (no command needs one yet)')
    .argParser(collect)
    .default([], 'none');
}

/** What the command line says of the image. @throws SpindleError BAD_OPTION, UNSUPPORTED */
export function sourceOf(file: string, flags: SourceFlags): Source {
  checkObjects(flags.object);
  const share = flags.forceShare === true;
  if (flags.imageOpts !== true) return { path: file, format: flags.format, share };
  if (flags.format !== undefined) {
    throw new SpindleError(
      'BAD_OPTION',
      '--image-opts and --format exclude each other: put driver=FORMAT in the list',
    );
  }
  return fromImageOptions(file, share);
}

/** @throws SpindleError BAD_OPTION when an object is not one that spindle can take */
export function checkObjects(objects: readonly string[]): void {
  for (const object of objects) {
    const [type] = parseOptionList(object);
    const name = type?.name === 'qom-type' ? type.value : type?.value === undefined ? type?.name : undefined;
    if (name !== 'secret')
      throw new SpindleError('BAD_OPTION', `--object '${object}': spindle knows secret,... only`);
  }
}

/** The simplest descriptions: a format over a local file. */
function fromImageOptions(list: string, share: boolean): Source {
  const known: Partial<Record<string, string>> = {};
  for (const { name, value } of parseOptionList(list)) {
    if (value === undefined) {
      throw new SpindleError(
        'UNSUPPORTED',
        `--image-opts '${list}': node names are not in this version; name a file`,
      );
    }
    if (!['driver', 'file.driver', 'file.filename', 'filename', 'force-share'].includes(name)) {
      throw new SpindleError(
        'UNSUPPORTED',
        `--image-opts: '${name}' is not in this version; spindle takes driver, file.driver=file, file.filename and force-share`,
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
  };
}
