import { Option } from 'commander';
import { wipe } from '../../core/crypto.ts';
import { SpindleError } from '../../core/errors.ts';
import { amend, type AmendRequest } from '../../op/amend.ts';
import type { KeySlotChange } from '../../op/keys.ts';
import { openLocked } from '../../op/open.ts';
import { amendOptionsHelp, parseAmendOptions } from '../amend-options.ts';
import { collect, formatOption, newCommand, verb } from '../command-line.ts';
import type { Given } from '../create-options.ts';
import { interruptible } from '../interrupt.ts';
import { out } from '../output.ts';
import { progressOf } from '../percent.ts';
import { progressOption, type ProgressForm } from '../progress.ts';
import { secretObjects } from '../secret.ts';
import { objectOption, secretFileOption, sourceOf, untrustedOption, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly options: readonly string[];
  readonly force?: boolean;
  readonly shrink?: boolean;
  readonly quiet?: boolean;
  readonly p?: boolean;
  readonly progress: ProgressForm;
}

/** The command line of `amend`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'amend',
    'Change options of an existing image. All are checked before anything is changed.',
    [
      ['-o compat=1.1 disk.qcow2', 'bring an image of version 2 to version 3'],
      ['-o refcount_bits=64,lazy_refcounts=on disk.qcow2', 'wider refcounts, which are written late'],
      ['-o data_file=/srv/new.raw disk.qcow2', 'tell that the data file was moved'],
      [
        '--secret-file now.txt --object secret,id=n,file=new.txt -o encrypt.state=active,encrypt.new-secret=n x',
        'make another passphrase open the encrypted image x',
      ],
      [
        '--object secret,id=o,file=old.txt -o encrypt.state=inactive,encrypt.old-secret=o x',
        'make that passphrase open it no more',
      ],
      ['-f qcow2 -o help', 'list the options'],
    ],
  )
    .argument('[FILE]', 'the image (with --image-opts: its description)')
    .addOption(
      formatOption('-f, --format <FORMAT>', 'format of the image (default: told from its first bytes)'),
    )
    .addOption(new Option('--image-opts', 'FILE is a list of options: driver=qcow2,file.filename=disk.qcow2'))
    .addOption(
      new Option('-o, --options <LIST>', 'what to change, as name=value,...; may be repeated')
        .argParser(collect)
        .default([], 'none'),
    )
    .option('--force', 'overwrite a key slot in use, erase the last one, name a data file that is not there')
    .option('--shrink', 'allow a smaller size: what is cut off is lost')
    .addOption(
      new Option('-t, --cache <MODE>', 'accepted as qemu-img does').choices([
        ...['none', 'off', 'directsync', 'writeback', 'writethrough', 'unsafe'],
      ]),
    )
    .option('-q, --quiet', 'print nothing')
    .option('-p', 'print percents as qemu-img does')
    .addOption(progressOption())
    .addOption(untrustedOption())
    .addOption(objectOption())
    .addOption(secretFileOption())
    .action((file: string | undefined, flags: Flags) => work(program, file, flags)),
);

async function work(program: string, file: string | undefined, flags: Flags): Promise<void> {
  if (flags.options.length === 0)
    throw new SpindleError('BAD_OPTION', 'name what to change with -o; -o help lists the options');
  const { path, format, secret, gate } = sourceOf(file ?? '', withoutNewSecrets(flags));
  const actual = format ?? (file === undefined ? 'qcow2' : await formatOf(path));
  if (actual !== 'qcow2' && actual !== 'luks')
    throw new SpindleError('UNSUPPORTED', `${actual} images have no options to amend`, { path: file });
  const given = parseAmendOptions(actual, flags.options);
  if (given === 'help') {
    out(amendOptionsHelp(actual));
    return;
  }
  if (file === undefined) throw new SpindleError('BAD_OPTION', 'name the image to amend');
  const keySlots = await keySlotsOf(given, actual === 'luks' ? '' : 'encrypt.', flags);
  try {
    await amend(path, {
      ...requestOf(given),
      ...{ format: actual, secret, gate, keySlots, force: flags.force, signal: interruptible() },
      // qemu-img shrinks without being asked twice.
      shrink: flags.shrink === true || program === 'qemu-img',
      onProgress: progressOf(flags),
    });
  } finally {
    if (keySlots?.state === 'active') wipe(keySlots.newSecret);
    else wipe(keySlots?.oldSecret);
  }
}

async function formatOf(path: string): Promise<string> {
  const { storage, format } = await openLocked(path, {});
  await storage.close();
  return format;
}

/** The objects that may hold the passphrase that opens the image now: not those that the list names as new. */
function withoutNewSecrets(flags: Flags): Flags {
  if (flags.imageOpts === true) return flags;
  const named = flags.options.flatMap((list) =>
    Array.from(list.matchAll(/(?:^|,)(?:encrypt\.)?new-secret=([^,]*)/g), (match) => match[1]),
  );
  const object = flags.object.filter((text) => !named.includes([...secretObjects([text]).keys()][0]));
  return { ...flags, object };
}

/** The values of the list, by their names there. */
interface AmendValues {
  readonly compat?: string;
  readonly size?: number;
  readonly refcount_bits?: number;
  readonly lazy_refcounts?: boolean;
  readonly data_file?: string;
  readonly data_file_raw?: boolean;
  readonly backing_file?: string;
  readonly backing_fmt?: string;
}

/** Those of key slots, without what stands in front of them. */
interface SlotValues {
  readonly state?: 'active' | 'inactive';
  readonly 'new-secret'?: string;
  readonly 'old-secret'?: string;
  readonly keyslot?: number;
  readonly 'iter-time'?: number;
}

type Values = ReadonlyMap<string, Given>;

function requestOf(given: Values): AmendRequest {
  const values: AmendValues = Object.fromEntries([...given].map(([key, { value }]) => [key, value]));
  const { compat, backing_file: name, backing_fmt: format } = values;
  return {
    version: compat === undefined ? undefined : compat === '0.10' || compat === 'v2' ? 2 : 3,
    refcountBits: values.refcount_bits,
    lazyRefcounts: values.lazy_refcounts,
    dataFile: values.data_file,
    dataFileRaw: values.data_file_raw,
    size: values.size,
    backing: name === undefined && format === undefined ? undefined : { name, format },
  };
}

/** What the options say of key slots. @throws SpindleError BAD_OPTION for what contradicts itself */
async function keySlotsOf(given: Values, prefix: string, flags: Flags): Promise<KeySlotChange | undefined> {
  const values: SlotValues = Object.fromEntries(
    [...given].flatMap(([key, { value }]) =>
      key.startsWith(prefix) ? [[key.slice(prefix.length), value]] : [],
    ),
  );
  const { state, keyslot: slot, 'iter-time': iterTime, 'new-secret': fresh, 'old-secret': old } = values;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (state === undefined) {
    if ([slot, iterTime, fresh, old].every((one) => one === undefined)) return undefined;
    throw bad(`options of key slots need ${prefix}state=active or ${prefix}state=inactive`);
  }
  const objects = secretObjects(flags.object);
  const secret = (id: string): Promise<Uint8Array> => {
    const object = objects.get(id);
    if (object === undefined)
      throw bad(`no secret has the id '${id}': add --object secret,id=${id},file=PATH`);
    return object();
  };
  if (state === 'active') {
    if (fresh === undefined) throw bad(`${prefix}state=active needs ${prefix}new-secret`);
    if (old !== undefined) throw bad(`${prefix}old-secret is for ${prefix}state=inactive`);
    return { state, newSecret: await secret(fresh), slot, iterTime };
  }
  if (fresh !== undefined) throw bad(`${prefix}new-secret is for ${prefix}state=active`);
  if (iterTime !== undefined) throw bad(`${prefix}iter-time is for ${prefix}state=active`);
  if (slot === undefined && old === undefined)
    throw bad(`${prefix}state=inactive needs ${prefix}keyslot or ${prefix}old-secret`);
  return { state: 'inactive', slot, oldSecret: old === undefined ? undefined : await secret(old) };
}
