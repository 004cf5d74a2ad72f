import { topmost, type CompletedOption, type CompletedVerb } from './model.ts';

/** The completion script of fish, for a program named `program`. */
export function fishScript(program: string, verbs: readonly CompletedVerb[]): string {
  const names = [...topmost(verbs).map((verb) => verb.name), 'help'].join(' ');
  const first = `complete -c ${program} -n 'not __fish_seen_subcommand_from ${names}' -f`;
  const lines = [
    `# fish completion of ${program}`,
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
      lines.push(`${here}${flagsOf(option)}${valueOf(option)} -d ${quoted(option.description)}`);
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
