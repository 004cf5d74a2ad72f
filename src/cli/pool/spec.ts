import { Argument, CommanderError, InvalidArgumentError, Option, type Command } from 'commander';
import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { parseScaled } from '../../pool/scaled.ts';
import { newCommand, outputOption, type Examples, type Verb } from '../command-line.ts';
import { out, OutputClosed } from '../output.ts';
import { progressOption, progressTo, type ProgressForm } from '../progress.ts';
import { report, warn } from '../report.ts';

/*
 * The verbs of pools and volumes take their arguments as virsh does: each has a name, and may be given by it
 * (`--pool default`), or without it in the order of the list, among those that are not flags.
 */

/** One argument of a verb. */
export interface Param {
  readonly name: string;
  readonly does: string;
  /** `text` unless said otherwise. A `size` has a unit as virsh knows them; a `count` is a bare number of bytes. */
  readonly kind?: 'text' | 'size' | 'count' | 'number' | 'flag';
  /** `needed` and `optional` are shown as arguments; the others as options. `named` ones are never told by their place. */
  readonly place?: 'needed' | 'optional' | 'option' | 'named';
  /** How the value is called in the help. */
  readonly value?: string;
  readonly choices?: readonly string[];
  /** May be given more than once. */
  readonly repeats?: boolean;
}

/** What a verb answers: a message (which --quiet leaves out) or data, and both as JSON. */
export interface Answer {
  readonly message?: string;
  readonly data?: string;
  readonly json: unknown;
  /** Exit code; default 0. */
  readonly code?: number;
}

/** A verb. */
export interface PoolVerb {
  readonly does: string;
  readonly params: readonly Param[];
  readonly examples: Examples;
  /** It shows how far it is. */
  readonly long?: boolean;
  readonly run: (given: Given) => Promise<Answer>;
}

/** What was given to a verb. */
export class Given {
  readonly program: string;
  readonly #values: Readonly<Record<string, unknown>>;

  constructor(program: string, values: Readonly<Record<string, unknown>>) {
    this.program = program;
    this.#values = values;
  }

  /** The text of an argument; undefined where it was not given. */
  text(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === 'string' ? value : undefined;
  }

  /** The text of an argument that must be there. */
  need(name: string): string {
    const value = this.text(name);
    if (value === undefined) throw new SpindleError('BAD_OPTION', `the argument '${name}' is missing`);
    return value;
  }

  /** All values of an argument that repeats. */
  all(name: string): string[] {
    const value = this.#values[name];
    return Array.isArray(value) ? (value as string[]) : [];
  }

  /** Bytes, or another number. */
  number(name: string): number | undefined {
    const value = this.#values[name];
    return typeof value === 'number' ? value : undefined;
  }

  /** Whether a flag was given. */
  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  /** --quiet. */
  get quiet(): boolean {
    return this.flag('quiet');
  }

  /** Who hears how far the work is. */
  progress(): ((done: number, total: number) => void) | undefined {
    return progressTo(this.quiet ? 'none' : ((this.text('progress') ?? 'auto') as ProgressForm));
  }

  /** Tells of something unwise. */
  warn(about: string, message: string): void {
    warn(this.program, about, message);
  }
}

/** The commands of some verbs, by their names as `pool-start`. */
export function commandsOf(program: string, verbs: Readonly<Record<string, PoolVerb>>): Map<string, Command> {
  return new Map(Object.entries(verbs).map(([name, verb]) => [name, commandOf(program, name, verb)]));
}

function commandOf(program: string, name: string, verb: PoolVerb): Command {
  const command = newCommand(program, name, verb.does, verb.examples);
  for (const param of verb.params) {
    const { place = 'option' } = param;
    if (place === 'needed') command.argument(`<${param.name}>`, param.does);
    else if (place === 'optional') command.argument(`[${param.name}]`, param.does);
    else command.addOption(optionOf(param));
  }
  command.option('-q, --quiet', 'print no messages, and tables without their head');
  if (verb.long === true) command.addOption(progressOption());
  return command.addOption(outputOption());
}

function optionOf(param: Param): Option {
  if (param.kind === 'flag') {
    const flag = new Option(`--${param.name}`, param.does);
    // `--no-overwrite` is a flag of its own here, and not the contrary of one.
    flag.negate = false;
    return flag;
  }
  const option = new Option(`--${param.name} <${param.value ?? param.name.toUpperCase()}>`, param.does);
  if (param.choices !== undefined) return option.choices(param.choices);
  if (param.repeats === true)
    return option.argParser((value: string, before: readonly string[] | undefined) => [
      ...(before ?? []),
      value,
    ]);
  if (param.kind === 'size') return option.argParser(sizeArgument);
  if (param.kind === 'count' || param.kind === 'number') return option.argParser(numberOf(param));
  return option;
}

function sizeArgument(text: string): number {
  try {
    return parseScaled(text);
  } catch (error) {
    if (isSpindleError(error)) throw new InvalidArgumentError(error.message);
    throw error;
  }
}

function numberOf({ kind }: Param): (text: string) => number {
  return (text) => {
    const pattern = kind === 'count' ? /^\d+$/ : /^\d+(\.\d+)?$/;
    const value = Number(text);
    if (pattern.test(text) && value <= Number.MAX_SAFE_INTEGER) return value;
    throw new InvalidArgumentError(
      kind === 'count' ? 'a whole number of bytes is needed' : 'a number is needed',
    );
  };
}

/**
 * Puts the words of a command line in their places: named ones to options, the others to the arguments that are left, in
 * order. What fits nowhere stays, for the parser to refuse.
 */
export function placed(params: readonly Param[], args: readonly string[]): string[] {
  const filled = new Map<string, string>();
  const options: string[] = [];
  const loose: string[] = [];
  for (let at = 0; at < args.length; at++) {
    const arg = args[at] ?? '';
    if (arg === '--') {
      loose.push(...args.slice(at + 1));
      break;
    }
    const [, name, inline] = /^--([^=]+)(?:=(.*))?$/s.exec(arg) ?? [];
    const param = params.find((one) => one.name === name);
    if (param === undefined) {
      // A bare dash, and a number below zero, are values.
      if (!arg.startsWith('-') || /^-\d*$|^-\d+[a-z]*$/i.test(arg)) loose.push(arg);
      else {
        options.push(arg);
        if ((arg === '--output' || arg === '--progress') && at + 1 < args.length)
          options.push(args[++at] ?? '');
      }
      continue;
    }
    if (param.kind === 'flag') {
      options.push(arg);
      continue;
    }
    const value = inline ?? args[++at];
    if (value === undefined) options.push(arg);
    else if (param.place === 'needed' || param.place === 'optional') filled.set(param.name, value);
    else {
      options.push(`--${param.name}=${value}`);
      filled.set(param.name, value);
    }
  }
  for (const param of params) {
    if (loose.length === 0) break;
    if (param.kind === 'flag' || param.place === 'named' || filled.has(param.name)) continue;
    const value = loose.shift() ?? '';
    filled.set(param.name, value);
    // A dash keeps the place of what is not given.
    if (param.place !== 'needed' && param.place !== 'optional' && value !== '-')
      options.push(`--${param.name}=${value}`);
  }
  const words = params
    .filter(({ place }) => place === 'needed' || place === 'optional')
    .flatMap(({ name }) => filled.get(name) ?? []);
  return [...options, '--', ...words, ...loose];
}

/** Runs one of some verbs. Failures are told and set the exit code; never rejects. */
export async function runVerb(
  program: string,
  name: string,
  verb: PoolVerb,
  args: readonly string[],
): Promise<void> {
  const command = commandOf(program, name, verb);
  command.action(async (...parsed: unknown[]) => {
    const words = parsed.slice(0, -2);
    const options = parsed.at(-2) as Record<string, unknown>;
    const values: Record<string, unknown> = { quiet: options['quiet'], progress: options['progress'] };
    const shown = verb.params.filter(({ place }) => place === 'needed' || place === 'optional');
    shown.forEach(({ name: of }, index) => (values[of] = words[index]));
    for (const param of verb.params)
      if (!shown.includes(param)) values[param.name] = options[camel(param.name)];
    const answer = await verb.run(new Given(program, values));
    if (options['output'] === 'json') out(`${JSON.stringify(answer.json, undefined, 4)}\n`);
    else {
      if (answer.data !== undefined) out(`${answer.data}\n`);
      if (answer.message !== undefined && options['quiet'] !== true) out(`${answer.message}\n\n`);
    }
    if (answer.code !== undefined && answer.code !== 0) process.exitCode = answer.code;
  });
  try {
    const helps = args.some(
      (arg, index) => (arg === '-h' || arg === '--help') && !args.slice(0, index).includes('--'),
    );
    await command.parseAsync(helps ? ['--help'] : placed(verb.params, args), { from: 'user' });
  } catch (error) {
    if (error instanceof OutputClosed || (error instanceof CommanderError && error.exitCode === 0)) return;
    process.exitCode ??= 1;
    report(error, program, command.name());
  }
}

function camel(name: string): string {
  return name.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

/** A group of verbs, `spindle pool VERB`; each is also `spindle pool-VERB`. */
export function verbGroup(
  group: string,
  does: string,
  verbs: Readonly<Record<string, PoolVerb>>,
  examples: Examples,
): Verb {
  const nameOf = (word: string): string | undefined =>
    [`${group}-${word}`, word].find((name) => Object.hasOwn(verbs, name));
  const wordOf = (name: string): string =>
    name.startsWith(`${group}-`) ? name.slice(group.length + 1) : name;
  const define = (program: string): Command => {
    const lines = Object.entries(verbs).map(([name, verb]) => `  ${name.padEnd(30)}${verb.does}`);
    return newCommand(program, group, does, examples)
      .addArgument(new Argument('<VERB>', 'what to do').choices(Object.keys(verbs).map(wordOf)))
      .argument('[ARGUMENTS...]', 'as of the verb')
      .addHelpText('after', `\nVerbs, each also without '${group}' in front:\n${lines.join('\n')}`);
  };
  return {
    define,
    run: async (args, program) => {
      const [word, ...rest] = args;
      const name = word === undefined ? undefined : nameOf(word);
      const verb = name === undefined ? undefined : verbs[name];
      if (name !== undefined && verb !== undefined) {
        await runVerb(program, name, verb, rest);
        return;
      }
      const command = define(program);
      if (word === undefined || word === '-h' || word === '--help') {
        out(command.helpInformation() + helpAfter(command));
        return;
      }
      process.exitCode = 1;
      report(
        new SpindleError('BAD_OPTION', `there is no verb '${word}'; '${program} ${group} --help' lists them`),
        program,
        group,
      );
    },
  };
}

/** The help below the options, which helpInformation leaves out. */
function helpAfter(command: Command): string {
  let text = '';
  command.configureOutput({ writeOut: (more) => (text += more) });
  command.outputHelp();
  return text.slice(command.helpInformation().length);
}
