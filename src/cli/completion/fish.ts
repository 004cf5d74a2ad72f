import { topmost, type CompletedOption, type CompletedVerb } from './model.ts';

/** The completion script of fish, for a program named `program`. */
export function fishScript(program: string, verbs: readonly CompletedVerb[]): string {
  const names = `__${program.replaceAll('-', '_')}_names`;
  const tops = [...topmost(verbs).map((verb) => verb.name), 'help'].join(' ');
  const first = `complete -c ${program} -n 'not __fish_seen_subcommand_from ${tops}' -f`;
  const lines = [
    `# fish completion of ${program}`,
    // Names of pools and volumes: nothing where something else is looked for.
    `function ${names}`,
    '  set -l words (commandline -opc) (commandline -ct)',
    `  ${program} pool--names (math (count $words) - 2) $words[2..-1] 2>/dev/null`,
    'end',
    ...topmost(verbs).map((verb) => `${first} -a ${verb.name} -d ${quoted(verb.description)}`),
    `${first} -a help -d 'tell how a command is used'`,
  ];
  for (const verb of verbs) {
    const seen = verb.name.split(' ').map((word) => `__fish_seen_subcommand_from ${word}`);
    // What lies below a verb has options of its own.
    if (verb.below.length > 0) seen.push(`not __fish_seen_subcommand_from ${verb.below.join(' ')}`);
    const here = `complete -c ${program} -n '${seen.join('; and ')}'`;
    if (verb.below.length > 0) lines.push(`${here} -a '${verb.below.join(' ')}'`);
    for (const option of verb.options)
      lines.push(
        `${here}${flagsOf(option)}${option.named ? ` -x -a '(${names})'` : valueOf(option)} -d ${quoted(option.description)}`,
      );
    if (verb.named) lines.push(`${here} -a '(${names})'`);
    const words = verb.words.join(' ');
    const first = `complete -c ${program} -n '__fish_seen_subcommand_from ${verb.name}; and not __fish_seen_subcommand_from ${words}'`;
    if (words !== '') lines.push(`${verb.files ? first : here} -f -a '${words}'`);
  }
  return `${lines.join('\n')}\n`;
}

function flagsOf(option: CompletedOption): string {
  return option.names
    .map((name) => (name.startsWith('--') ? ` -l ${name.slice(2)}` : ` -s ${name.slice(1)}`))
    .join('');
}

function valueOf(option: CompletedOption): string {
  if (option.values === undefined) return '';
  if (option.file) return ' -r -F';
  return option.values.length > 0 ? ` -x -a '${option.values.join(' ')}'` : ' -x';
}

function quoted(text: string): string {
  return `'${text.replace(/[\\']/g, '\\$&')}'`;
}
