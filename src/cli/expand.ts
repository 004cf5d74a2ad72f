import type { Command, Option } from 'commander';

/** Further long spellings of options. */
const spellings = new WeakMap<Option, readonly string[]>();

/** An option that is also known by other long names, such as those of another version of qemu-img. */
export function alsoSpelled(option: Option, ...names: string[]): Option {
  spellings.set(option, names);
  return option;
}

/** The further long names of an option. */
export function otherSpellings(option: Option): readonly string[] {
  return spellings.get(option) ?? [];
}

/** What `--progress` takes. */
const FORMS = ['auto', 'json', 'none'];

/**
 * Spells out long options that are shortened to a beginning which fits one only, as getopt allows:
 * `--backing-ch` is `--backing-chain`. What fits none or several stays, to be refused by its own name.
 */
export function expandLongOptions(command: Command, args: readonly string[]): string[] {
  const options = command.options;
  const expanded: string[] = [];
  for (let at = 0; at < args.length; at++) {
    const arg = args[at] ?? '';
    if (arg === '--') return [...expanded, ...args.slice(at)];
    // For qemu-img it is the long name of -p; ours says in which form.
    if (
      arg === '--progress' &&
      !FORMS.includes(args[at + 1] ?? '') &&
      shortOption(options, '-p') !== undefined
    ) {
      expanded.push('-p');
      continue;
    }
    const [, name, value = ''] = /^(--[^=]+)(=.*)?$/s.exec(arg) ?? [];
    const option = name === undefined ? shortOption(options, arg) : longOption(options, name);
    const spelled = name === undefined ? arg : (option?.long ?? name) + value;
    expanded.push(spelled);
    // The next word is this option's value, whatever it looks like.
    if (
      option?.required === true &&
      (name === undefined ? arg.length === 2 : value === '') &&
      at + 1 < args.length
    ) {
      expanded.push(args[++at] ?? '');
    }
  }
  return expanded;
}

function shortOption(options: readonly Option[], arg: string): Option | undefined {
  return options.find((option) => option.short === arg);
}

function longOption(options: readonly Option[], name: string): Option | undefined {
  const exact = options.find(
    (option) => option.long === name || spellings.get(option)?.includes(name) === true,
  );
  if (exact !== undefined) return exact;
  if ('--help'.startsWith(name)) return undefined;
  const fitting = options.filter((option) => option.long?.startsWith(name) === true);
  return fitting.length === 1 ? fitting[0] : undefined;
}
