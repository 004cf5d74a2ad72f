#!/usr/bin/env node
/*
 * The entry of the command line. It only finds the verb and loads that verb's file, so that each command starts with
 * as little code as it needs.
 */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { loadVerb } from './load-verb.ts';
import { complain, out, OutputClosed } from './output.ts';
import { closest } from './suggest.ts';
import { fileOfVerb, SUBVERBS, VERBS } from './verbs.ts';

const load = createRequire(import.meta.url);

/** Called as `qemu-img` (by a link of that name) it calls itself so. */
function programName(): string {
  const name = (process.argv[1] ?? '').split('/').pop();
  return name === 'qemu-img' ? name : 'spindle';
}

function main(args: readonly string[]): void {
  const program = programName();
  const [first, ...rest] = args;
  if (first === undefined) return fail(program, `name a command; '${program} --help' lists them`);
  if (first === '-h' || first === '--help') return out(overview(program));
  if (first === '-V' || first === '--version') return out(`${version(program)}\n`);
  if (first === 'help') {
    const [topic, ...words] = rest;
    return topic === undefined ? out(overview(program)) : runVerb(program, topic, [...words, '--help']);
  }
  runVerb(program, first, rest);
}

function runVerb(program: string, name: string, args: readonly string[]): void {
  const [word = '', ...rest] = args;
  const found = fileOfVerb(name);
  if (program === 'spindle' && Object.hasOwn(SUBVERBS, `${name} ${word}`))
    loaded(`${name}-${word}`, rest, program);
  else if (found !== undefined) loaded(found.file, [...found.args, ...args], program);
  else
    fail(
      program,
      `there is no ${name.startsWith('-') ? 'option' : 'command'} '${name}'; ${hint(program, name)}`,
    );
}

function loaded(file: string, args: readonly string[], program: string): void {
  void loadVerb(fileURLToPath(new URL(`./command/${file}.cjs`, import.meta.url))).run(args, program);
}

function hint(program: string, name: string): string {
  const near = closest(name, [...Object.keys(VERBS), 'help', '--help', '--version']);
  return near === undefined ? `'${program} --help' lists the commands` : `did you mean '${near}'?`;
}

function fail(program: string, message: string): void {
  complain(`${program}: ${message}`);
  process.exitCode = 1;
}

function version(program: string): string {
  const { version: number } = load('../../package.json') as { version: string };
  // Scripts look for the words in front of the number.
  return program === 'qemu-img' ? `qemu-img version ${number} (spindle)` : `spindle ${number}`;
}

function overview(program: string): string {
  const below = program === 'spindle' ? Object.entries(SUBVERBS) : [];
  const verbs = Object.entries(VERBS).flatMap(([name, does]) => [
    [name, does] as const,
    ...below.filter(([words]) => words.startsWith(`${name} `)),
  ]);
  const width = Math.max(...verbs.map(([name]) => name.length));
  const lines = verbs.map(([name, does]) => `  ${name.padEnd(width)}  ${does}\n`);
  return `Usage: ${program} COMMAND [options]

Makes and inspects raw and qcow2 disk images, and keeps pools of them. The options are those of qemu-img and virsh.

Commands:
${lines.join('')}
'${program} COMMAND --help' tells the options of a command, with examples.
'${program} --version' prints the version.
`;
}

// Reading, writing and compressing all wait for these threads; libuv makes them at the first use, four unless told.
process.env['UV_THREADPOOL_SIZE'] ??= '12';

try {
  main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof OutputClosed)) fail(programName(), `internal error: ${String(error)}`);
}
