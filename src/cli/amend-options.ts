import { SpindleError } from '../core/errors.ts';
import {
  isCreateOption,
  optionsHelp,
  parseOptions,
  type CreateOptions,
  type ListedOption,
} from './create-options.ts';
import { closest } from './suggest.ts';

/** Options of key slots; `encrypt.` stands in front of them for qcow2. */
const KEY_SLOTS: Readonly<Record<string, ListedOption>> = {
  state: { kind: ['active', 'inactive'], help: 'add a passphrase, or erase one' },
  'new-secret': { kind: 'text', help: 'id of the --object that holds the new passphrase' },
  'old-secret': { kind: 'text', help: 'id of the --object that holds the passphrase to erase' },
  keyslot: { kind: 'number', help: 'number of the key slot, 0 to 7' },
  'iter-time': { kind: 'number', help: 'milliseconds that stretching takes (default 2000)' },
};

const OPTIONS: Readonly<Record<'qcow2' | 'luks', Readonly<Record<string, ListedOption>>>> = {
  luks: KEY_SLOTS,
  qcow2: {
    size: { kind: 'size', help: 'virtual size' },
    backing_file: { kind: 'text', help: 'the present name; another one is for rebase to set' },
    backing_fmt: { kind: 'text', help: 'the present format of the backing file' },
    compat: { kind: ['0.10', 'v2', '1.1', 'v3'], help: 'version of the format' },
    data_file: { kind: 'text', help: 'name under which the external data file is recorded' },
    data_file_raw: { kind: 'switch', help: 'keep the data file readable as a raw image (off only)' },
    lazy_refcounts: { kind: 'switch', help: 'write refcounts late' },
    refcount_bits: { kind: 'number', help: 'width of a refcount: 1, 2, 4, 8, 16, 32 or 64' },
    ...Object.fromEntries(Object.entries(KEY_SLOTS).map(([name, option]) => [`encrypt.${name}`, option])),
  },
};

/** Reads the lists of `amend -o`. @throws SpindleError BAD_OPTION, BAD_SIZE */
export function parseAmendOptions(format: 'qcow2' | 'luks', lists: readonly string[]): CreateOptions {
  return parseOptions(OPTIONS[format], lists, (name) => {
    if (isCreateOption(format, name))
      return new SpindleError(
        'BAD_OPTION',
        `option ${name} is decided when an image is created; amend cannot change it`,
      );
    const near = closest(name, Object.keys(OPTIONS[format]));
    const hint = near === undefined ? `'-f ${format} -o help' lists them` : `did you mean ${near}?`;
    return new SpindleError('BAD_OPTION', `there is no option '${name}' to amend; ${hint}`);
  });
}

/** The text of `amend -o help`. */
export function amendOptionsHelp(format: 'qcow2' | 'luks'): string {
  return optionsHelp(`Options of ${format} images that can be amended`, OPTIONS[format]);
}
