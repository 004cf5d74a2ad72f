import { lower, topmost, type CompletedVerb } from './model.ts';

/** The completion script of bash, for a program named `program`. */
export function bashScript(program: string, verbs: readonly CompletedVerb[]): string {
  const name = `_${program.replaceAll('-', '_')}`;
  const cases = verbs.flatMap((verb) =>
    verb.options
      .filter((option) => option.values !== undefined)
      .map((option) => {
        const pattern = option.names.map((flag) => `'${verb.name}:${flag}'`).join('|');
        const values = option.values ?? [];
        const reply =
          values.length > 0
            ? `compgen -W '${values.join(' ')}' -- "$word"`
            : option.file
              ? 'compgen -f -- "$word"'
              : '';
        return `    ${pattern}) ${reply === '' ? 'COMPREPLY=()' : `mapfile -t COMPREPLY < <(${reply})`}; return ;;`;
      }),
  );
  const options = verbs.map((verb) => {
    const flags = verb.options.flatMap((option) => option.names).join(' ');
    return `      '${verb.name}') words='${flags}' ;;`;
  });
  const words = verbs
    .filter((verb) => verb.words.length > 0)
    .map((verb) => {
      const reply = `mapfile -t COMPREPLY < <(compgen -W '${verb.words.join(' ')}' -- "$word"); return`;
      return `    ${verb.name}) ${verb.files ? `if ((COMP_CWORD == 2)); then ${reply}; fi` : reply} ;;`;
    });
  const above = verbs
    .filter(({ below }) => below.length > 0)
    .map(
      ({ name: verb, below }) =>
        `    ${verb}) if ((COMP_CWORD == 2)); then mapfile -t COMPREPLY < <(compgen -W '${below.join(' ')}' -- "$word"; compgen -f -- "$word"); compopt -o filenames 2>/dev/null; return; fi ;;`,
    );
  const tops = topmost(verbs).map((verb) => verb.name);
  const named = verbs.flatMap((verb) => (verb.named ? [`'${verb.name}'`] : [])).join('|');
  const two = lower(verbs).map((verb) => `'${verb.name}'`);
  const deeper =
    two.length === 0
      ? ''
      : `  case "$verb \${COMP_WORDS[2]-}" in
    ${two.join('|')}) if ((COMP_CWORD > 2)); then verb="$verb \${COMP_WORDS[2]}"; fi ;;
  esac
`;
  return `# bash completion of ${program}
${name}() {
  local word="\${COMP_WORDS[COMP_CWORD]}" before="\${COMP_WORDS[COMP_CWORD-1]}" verb="\${COMP_WORDS[1]}" words=''
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W '${[...tops, 'help', '--help', '--version'].join(' ')}' -- "$word")
    return
  fi
  # Names of pools and volumes. What they are is not known: nothing is said, and files are offered.
  case "$verb" in
    ${named})
      local names
      if [[ $word != -* ]] && names=$("\${COMP_WORDS[0]}" pool--names "$((COMP_CWORD - 1))" "\${COMP_WORDS[@]:1}" 2>/dev/null); then
        while IFS= read -r names; do
          [[ -z $names ]] || COMPREPLY+=("$(printf %q "$names")")
        done <<<"$names"
        return
      fi ;;
  esac
${deeper}  case "$verb:$before" in
${cases.join('\n')}
  esac
  if [[ $word == -* ]]; then
    case "$verb" in
${options.join('\n')}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    return
  fi
  case "$verb" in
    help) mapfile -t COMPREPLY < <(compgen -W '${tops.join(' ')}' -- "$word"); return ;;
${[...words, ...above].join('\n')}
  esac
  compopt -o filenames 2>/dev/null
  mapfile -t COMPREPLY < <(compgen -f -- "$word")
}
complete -F ${name} ${program}
`;
}
