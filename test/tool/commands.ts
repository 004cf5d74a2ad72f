// The reference of all commands, made from the definitions that parse the command line. `npm run docs` writes it.
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Command, Option } from 'commander';
import { examplesOf, type Verb } from '../../src/cli/command-line.ts';
import { otherSpellings } from '../../src/cli/expand.ts';
import { POOL_VERBS } from '../../src/cli/pool/pool-verbs.ts';
import { commandsOf } from '../../src/cli/pool/spec.ts';
import { VOL_VERBS } from '../../src/cli/pool/vol-verbs.ts';
import { SUBVERBS, VERBS } from '../../src/cli/verbs.ts';

/** Where the reference is. */
export const REFERENCE = fileURLToPath(new URL('../../COMMANDS.md', import.meta.url));

/** What each verb does; those of pools and volumes come last. */
const DOES: Readonly<Record<string, string>> = {
  ...VERBS,
  ...SUBVERBS,
  ...Object.fromEntries(
    Object.entries({ ...POOL_VERBS, ...VOL_VERBS }).map(([name, { does }]) => [name, does]),
  ),
};

/** The definition of each verb. */
export async function definitions(): Promise<Map<string, Command>> {
  const found = new Map<string, Command>();
  for (const name of Object.keys({ ...VERBS, ...SUBVERBS })) {
    const { define } = (await import(`../../src/cli/command/${name.replace(' ', '-')}.ts`)) as Verb;
    found.set(name, define('spindle'));
  }
  for (const [name, command] of commandsOf('spindle', { ...POOL_VERBS, ...VOL_VERBS }))
    found.set(name, command);
  return found;
}

/** The text of the reference. */
export async function reference(): Promise<string> {
  const all = await definitions();
  const list = [...all.keys()].map(
    (name) => `- [${name}](#spindle-${name.replace(' ', '-')}): ${DOES[name] ?? ''}`,
  );
  return `# Commands

Made from the definitions of the commands by \`npm run docs\`. \`spindle COMMAND --help\` prints the same. Called under the
name \`qemu-img\`, spindle has the commands that qemu-img has, with the same options, exit codes and JSON.

The verbs of pools and volumes take their arguments as virsh does: each may be given by its name (\`--pool images\`), or
without it in the order of the list; \`spindle pool-start\` is also \`spindle pool start\`.

${list.join('\n')}

${[...all.values()].map(section).join('\n')}`;
}

function section(command: Command): string {
  const usage = `${command.name()} ${command.usage()}`;
  const rows = command.options.filter((option) => !option.hidden).map(row);
  const args = command.registeredArguments.map(
    (arg) => `- \`${arg.name()}\`: ${arg.description}${choices(arg.argChoices)}`,
  );
  const examples = examplesOf(command).map(([example, does]) => `# ${does}\n${command.name()} ${example}`);
  return `## ${command.name()}

${command.description()}

    ${usage}

${args.length === 0 ? '' : `${args.join('\n')}\n\n`}| option | what it does |
| --- | --- |
${rows.join('\n')}

\`\`\`sh
${examples.join('\n\n')}
\`\`\`
`;
}

function row(option: Option): string {
  const others = otherSpellings(option).map((name) => `\`${name}\``);
  const also = others.length === 0 ? '' : `, also ${others.join(', ')}`;
  const fixed = option.defaultValueDescription ?? (option.defaultValue as string | undefined);
  const standard =
    fixed === undefined || typeof option.defaultValue === 'boolean' ? '' : `; default: ${fixed}`;
  const what = option.description + choices(option.argChoices) + standard;
  return `| \`${option.flags}\`${also} | ${what.replaceAll('|', '\\|')} |`;
}

function choices(all: readonly string[] | undefined): string {
  return all === undefined ? '' : ` (${all.join(', ')})`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(REFERENCE, await reference());
