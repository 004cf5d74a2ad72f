import type { Command, Option } from 'commander';
import { SUBVERBS, VERBS } from '../verbs.ts';

/** An option as completion needs it. */
export interface CompletedOption {
  /** Its spellings: `-f`, `--format`. */
  readonly names: readonly string[];
  readonly description: string;
  /** undefined: takes no value; empty: any value; else the values it takes. */
  readonly values: readonly string[] | undefined;
  /** The value is a file. */
  readonly file: boolean;
  /** The value is the name of a pool or volume, which `pool--names` tells. */
  readonly named: boolean;
}

/** A verb as completion needs it. */
export interface CompletedVerb {
  readonly name: string;
  readonly description: string;
  readonly options: readonly CompletedOption[];
  /** Words that its first argument can be; empty: files. */
  readonly words: readonly string[];
  /** Files follow the word. */
  readonly files: boolean;
  /** Names of pools and volumes stand among its arguments, which `pool--names` tells. */
  readonly named: boolean;
  /** Verbs below it: the second words of those whose names are this name and another word. Files may stand there as well. */
  readonly below: readonly string[];
}

/** The verbs that are named by one word. */
export function topmost(verbs: readonly CompletedVerb[]): CompletedVerb[] {
  return verbs.filter(({ name }) => !name.includes(' '));
}

/** The verbs that are named by two words. */
export function lower(verbs: readonly CompletedVerb[]): CompletedVerb[] {
  return verbs.filter(({ name }) => name.includes(' '));
}

/** What there is to complete, from the very definitions that parse the command line. */
export function completedVerbs(commands: Readonly<Record<string, Command>>): CompletedVerb[] {
  const names = Object.keys(commands);
  return Object.entries(commands).map(([name, command]) => ({
    name,
    description: VERBS[name] ?? SUBVERBS[name] ?? command.description(),
    below: names.filter((other) => other.startsWith(`${name} `)).map((other) => other.slice(name.length + 1)),
    options: [...command.options.filter((option) => !option.hidden).map(completedOption), HELP],
    words: command.registeredArguments[0]?.argChoices ?? [],
    files: command.registeredArguments.length > 1,
    named: /^(pool|vol)(-|$)/.test(name),
  }));
}

const HELP: CompletedOption = {
  names: ['-h', '--help'],
  description: 'print this help',
  values: undefined,
  file: false,
  named: false,
};

function completedOption(option: Option): CompletedOption {
  return {
    names: [option.short, option.long].filter((name) => name !== undefined),
    description: option.description,
    values: option.required ? (option.argChoices ?? []) : undefined,
    file: /<FILE>/.test(option.flags),
    named: /^--(pool|inputpool|backing-vol) /.test(option.flags),
  };
}
