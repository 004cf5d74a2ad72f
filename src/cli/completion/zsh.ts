import { lower, topmost, type CompletedOption, type CompletedVerb } from './model.ts';

/** The completion script of zsh, for a program named `program`. */
export function zshScript(program: string, verbs: readonly CompletedVerb[]): string {
  const name = `_${program.replaceAll('-', '_')}`;
  const commands = topmost(verbs).map((verb) => `    ${quoted(`${verb.name}:${verb.description}`)}`);
  const cases = verbs.map((verb) => {
    const options = verb.options.map((option) => `        ${specOf(option, name)} \\`);
    const files = verb.named ? `'*:name:${name}_names'` : `'*:file:_files'`;
    const words = `:word:(${verb.words.join(' ')})'`;
    const below = `'1:word:{_alternative "words:word:(${verb.below.join(' ')})" "files:file:_files"}' ${files}`;
    const rest =
      verb.below.length > 0
        ? below
        : verb.words.length === 0
          ? files
          : verb.files
            ? `'1${words} ${files}`
            : `'*${words}`;
    return `      ${quoted(verb.name)})\n        _arguments -s -S \\\n${options.map((line) => `  ${line}`).join('\n')}\n          ${rest} ;;`;
  });
  const two = lower(verbs).map((verb) => quoted(verb.name));
  const deeper =
    two.length === 0
      ? ''
      : `  case "$verb $words[2]" in
    ${two.join('|')}) if ((CURRENT > 2)); then verb="$verb $words[2]"; shift words; ((CURRENT--)); fi ;;
  esac
`;
  return `#compdef ${program}
# Names of pools and volumes; files where something else is looked for.
${name}_names() {
  local names
  if names=$(${program} pool--names "$((CURRENT - 1))" "\${(@Q)words}" 2>/dev/null); then
    [[ -z $names ]] || compadd -- "\${(@f)names}"
  else
    _files
  fi
}
${name}() {
  local -a commands
  commands=(
${commands.join('\n')}
    'help:tell how a command is used'
  )
  if ((CURRENT == 2)); then
    _describe 'command' commands
    return
  fi
  local verb=$words[2]
  shift words
  ((CURRENT--))
${deeper}  case $verb in
      help) _describe 'command' commands ;;
${cases.join('\n')}
  esac
}
# Run by the completion system itself, or sourced.
if [[ \${funcstack[1]} == ${name} ]]; then ${name} "$@"; else compdef ${name} ${program}; fi
`;
}

function specOf(option: CompletedOption, name: string): string {
  const exclusive = `(${option.names.join(' ')})`;
  const spelled = option.names.length > 1 ? `{${option.names.join(',')}}` : (option.names[0] ?? '');
  const description = `[${option.description.replace(/[[\]:\\]/g, '\\$&')}]`;
  const value =
    option.values === undefined ? '' : `:value:${option.named ? `${name}_names` : valueOf(option)}`;
  return `${quoted(exclusive)}${spelled}${quoted(description + value)}`;
}

function valueOf(option: CompletedOption): string {
  if (option.file) return '_files';
  return option.values === undefined || option.values.length === 0 ? ' ' : `(${option.values.join(' ')})`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
