import { Argument, InvalidArgumentError, Option } from 'commander';
import { wipe, type SecretSource } from '../../core/crypto.ts';
import { SpindleError } from '../../core/errors.ts';
import { addKey, changeKey, listKeys, removeKey } from '../../op/keys.ts';
import { newCommand, outputOption, verb } from '../command-line.ts';
import { out } from '../output.ts';
import { newSecretSource, secretSource } from '../secret.ts';
import { sourceOf, withSourceOptions, type Source, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly keySecret?: string;
  readonly newSecret?: string;
  readonly newSecretFile?: string;
  readonly slot?: number;
  readonly iterTime?: number;
  readonly force?: boolean;
  readonly output: 'human' | 'json';
  readonly quiet?: boolean;
}

const ACTIONS = { list, add, remove, change };
type Action = keyof typeof ACTIONS;

/** What each action takes beside the options of all. */
const TAKES: Readonly<Record<Action, readonly (keyof Flags)[]>> = {
  list: ['forceShare'],
  add: ['keySecret', 'secretFile', 'newSecret', 'newSecretFile', 'slot', 'iterTime'],
  remove: ['keySecret', 'secretFile', 'slot', 'force'],
  change: ['keySecret', 'secretFile', 'newSecret', 'newSecretFile', 'iterTime'],
};

/** The command line of `key`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'key',
      'List, add, remove and change the passphrases of an image that is encrypted with LUKS (qcow2, or LUKS over raw).\nThere is room for eight, each in a key slot of its own. Passphrases that no option names are asked for.',
      [
        ['list disk.qcow2', 'which of the eight key slots are in use'],
        ['add disk.qcow2', 'a second passphrase; asks for one that opens the image, and for the new one'],
        ['add --secret-file now.key --new-secret-file more.key disk.qcow2', 'the same, with both from files'],
        ['change disk.qcow2', 'a new passphrase in the place of an old one'],
        ['remove disk.qcow2', 'asks for the passphrase that is to open the image no more'],
        ['remove --slot 3 disk.qcow2', 'erase key slot 3, whoever has its passphrase'],
        [
          'remove --slot 0 --force disk.qcow2',
          'erase it even if it is the last one: the data can never be read again',
        ],
      ],
    ).addArgument(new Argument('<ACTION>', 'what to do').choices(Object.keys(ACTIONS))),
  )
    .addOption(
      new Option('--key-secret <ID>', 'the --object with the present passphrase (remove: the one to remove)'),
    )
    .addOption(new Option('--new-secret <ID>', 'the --object with the new passphrase'))
    .addOption(new Option('--new-secret-file <FILE>', 'file with the new passphrase, all of its bytes'))
    .addOption(
      new Option(
        '--slot <NUMBER>',
        'key slot, 0 to 7: to put the new key in (default: a free one), or to erase',
      ).argParser(wholeNumber),
    )
    .addOption(
      new Option(
        '--iter-time <MS>',
        'milliseconds that trying the new passphrase takes (default: 2000)',
      ).argParser(wholeNumber),
    )
    .option('--force', 'with remove: also erase the last key, so that nobody can ever read the data again')
    .addOption(outputOption())
    .option('-q, --quiet', 'print nothing but failures')
    .action(async (action: Action, file: string, flags: Flags) => {
      const source = sourceOf(file, flags);
      refuseOthers(action, source, flags);
      await ACTIONS[action](source, flags);
    }),
);

function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('It must be a whole number.');
  return Number(text);
}

/** @throws SpindleError BAD_OPTION for an option of another action */
function refuseOthers(action: Action, { path }: Source, flags: Flags): void {
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message, { path });
  const special = new Set(Object.values(TAKES).flat());
  for (const name of special) {
    if (flags[name] === undefined || TAKES[action].includes(name)) continue;
    const option = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    throw bad(`--${option} does not go with '${action}'`);
  }
  if (flags.newSecret !== undefined && flags.newSecretFile !== undefined)
    throw bad('the new secret is named twice: by --new-secret and by --new-secret-file');
  if (action !== 'remove' || flags.slot === undefined) return;
  if (flags.keySecret !== undefined || flags.secretFile !== undefined)
    throw bad('name the key to be removed by its slot or by its secret, not by both');
}

async function list({ path, format, share }: Source, flags: Flags): Promise<void> {
  const slots = await listKeys(path, { format, share });
  if (flags.quiet === true) return;
  if (flags.output === 'json') {
    const json = slots.map(({ active, iterations, keyOffset, stripes }, slot) => ({
      ...{ slot, active, stripes, 'key-offset': keyOffset },
      ...(active ? { iters: iterations } : {}),
    }));
    out(`${JSON.stringify({ filename: path, slots: json }, null, 4)}\n`);
    return;
  }
  const lines = slots.map(({ active, iterations }, slot) =>
    active ? `${String(slot)}     in use  ${String(iterations).padStart(10)}` : `${String(slot)}     free`,
  );
  out(['SLOT  STATE   ITERATIONS', ...lines].map((line) => `${line}\n`).join(''));
}

async function add(source: Source, flags: Flags): Promise<void> {
  const { slot, iterTime } = flags;
  const made = await withBoth(source, flags, (secret, newSecret) =>
    addKey(source.path, { format: source.format, secret, newSecret, slot, iterTime }),
  );
  tell(source, flags, { added: made }, `The passphrase is in key slot ${String(made)} now.`);
}

async function change(source: Source, flags: Flags): Promise<void> {
  const made = await withBoth(source, flags, (secret, newSecret) =>
    changeKey(source.path, { format: source.format, secret, newSecret, iterTime: flags.iterTime }),
  );
  tell(
    source,
    flags,
    { added: made },
    `The new passphrase is in key slot ${String(made)}; the old one opens the image no more.`,
  );
}

async function remove(source: Source, flags: Flags): Promise<void> {
  const { path, format } = source;
  const { slot, force } = flags;
  await listKeys(path, { format });
  const secret =
    slot !== undefined ? undefined : await given(source, present(source, flags, 'Passphrase to be removed'));
  try {
    const removed = await removeKey(path, { format, slot, secret, force });
    const words =
      removed.length === 1 ? `Key slot ${String(removed[0])} is` : `Key slots ${removed.join(' and ')} are`;
    tell(
      source,
      flags,
      { removed },
      `${words} erased. Old copies of the image still open with what was there.`,
    );
  } finally {
    wipe(secret);
  }
}

/** Work with the present passphrase and the new one, which are wiped afterwards. */
async function withBoth<T>(
  source: Source,
  flags: Flags,
  work: (secret: Uint8Array, newSecret: Uint8Array) => Promise<T>,
): Promise<T> {
  const fresh = newSecretSource(flags, flags.newSecret, flags.newSecretFile);
  // Nobody should type passphrases for an image that has none.
  await listKeys(source.path, { format: source.format });
  const secret = await given(source, present(source, flags));
  try {
    const newSecret = await given(source, fresh, 'new ');
    try {
      return await work(secret, newSecret);
    } finally {
      wipe(newSecret);
    }
  } finally {
    wipe(secret);
  }
}

function present({ secret }: Source, flags: Flags, what?: string): SecretSource {
  if (flags.imageOpts === true && flags.keySecret === undefined && what === undefined) return secret;
  return secretSource(flags, flags.keySecret, false, what);
}

/** @throws SpindleError ENCRYPTED where nobody gives a secret */
async function given({ path }: Source, source: SecretSource, what = ''): Promise<Uint8Array> {
  const secret = await source({ name: path, method: 'luks' });
  if (secret !== null) return secret;
  const options = what === '' ? '--secret-file FILE' : '--new-secret-file FILE';
  const message = `there is no ${what}secret: name a file with ${options}, or run this on a terminal`;
  throw new SpindleError('ENCRYPTED', message, { path });
}

function tell({ path }: Source, flags: Flags, json: object, text: string): void {
  if (flags.quiet === true) return;
  out(flags.output === 'json' ? `${JSON.stringify({ filename: path, ...json }, null, 4)}\n` : `${text}\n`);
}
