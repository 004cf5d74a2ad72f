import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { SpindleError } from '../core/errors.ts';
import { parseSize } from '../core/size.ts';
import { expandLongOptions } from './expand.ts';
import { out, OutputClosed } from './output.ts';
import { report } from './report.ts';

/** What a verb's file exports: its command line, and the way to run it. */
export interface Verb {
  /** The command, named as `program` names itself. */
  readonly define: (program: string) => Command;
  /** Runs the verb. Failures are told and set the exit code; never rejects. */
  readonly run: (args: readonly string[], program: string) => Promise<void>;
}

/** A verb whose command, made by `define`, has an action that gives its exit code. */
export function verb(define: (program: string) => Command): Verb {
  return {
    define,
    run: async (args, program) => {
      const command = define(program);
      try {
        await command.parseAsync(expandLongOptions(command, args), { from: 'user' });
      } catch (error) {
        if (error instanceof OutputClosed || (error instanceof CommanderError && error.exitCode === 0))
          return;
        // A command may have its own code for this failure.
        process.exitCode ??= 1;
        report(error, program, command.name());
      }
    },
  };
}

/** Lines of help below the options: examples, each with what it does. */
export type Examples = readonly (readonly [command: string, does: string])[];

const known = new WeakMap<Command, Examples>();

/** The examples in the help of a command. */
export function examplesOf(command: Command): Examples {
  return known.get(command) ?? [];
}

/** A command with the manners of all commands: no exit, no writing of its own, help with examples. */
export function newCommand(program: string, name: string, description: string, examples: Examples): Command {
  const command = new Command(`${program} ${name}`)
    .description(description)
    .helpOption('-h, --help', 'print this help')
    .allowExcessArguments(false)
    .exitOverride()
    .configureOutput({
      writeOut: out,
      writeErr: () => undefined,
      outputError: () => undefined,
      getOutHelpWidth: helpWidth,
      getErrHelpWidth: helpWidth,
      getOutHasColors: () => false,
      getErrHasColors: () => false,
    });
  known.set(command, examples);
  const lines = examples.map(([example, does]) => `  ${program} ${name} ${example}\n      ${does}`);
  return command.addHelpText('after', `\nExamples:\n${lines.join('\n')}`);
}

function helpWidth(): number {
  const columns = Number(process.env['COLUMNS']);
  return columns >= 40 ? Math.min(columns, 120) : 100;
}

/** The formats that `-f` takes. */
export function formatOption(flags: string, description: string): Option {
  return new Option(flags, description).choices(['raw', 'qcow2', 'luks']);
}

/** `--output human|json`. */
export function outputOption(): Option {
  return new Option('--output <FORM>', 'form of the output').choices(['human', 'json']).default('human');
}

/** The value of an option that is a size. */
export function sizeValue(text: string): number {
  try {
    return parseSize(text);
  } catch (error) {
    if (error instanceof SpindleError) throw new InvalidArgumentError(error.message);
    throw error;
  }
}

/** Gathers the values of an option that may be given more than once. */
export function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}
