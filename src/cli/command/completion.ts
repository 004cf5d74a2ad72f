import { Argument } from 'commander';
import { POOL_VERBS } from '../pool/pool-verbs.ts';
import { commandsOf } from '../pool/spec.ts';
import { VOL_VERBS } from '../pool/vol-verbs.ts';
import { newCommand, verb } from '../command-line.ts';
import { bashScript } from '../completion/bash.ts';
import { fishScript } from '../completion/fish.ts';
import { completedVerbs } from '../completion/model.ts';
import { zshScript } from '../completion/zsh.ts';
import { out } from '../output.ts';
import { define as allocate } from './allocate.ts';
import { define as amend } from './amend.ts';
import { define as allocation } from './bench-allocation.ts';
import { define as compareStudies } from './bench-compare.ts';
import { define as benchImage } from './bench-image.ts';
import { define as bench } from './bench.ts';
import { define as bitmap } from './bitmap.ts';
import { define as check } from './check.ts';
import { define as commit } from './commit.ts';
import { define as compare } from './compare.ts';
import { define as convert } from './convert.ts';
import { define as create } from './create.ts';
import { define as dd } from './dd.ts';
import { define as doctor } from './doctor.ts';
import { define as info } from './info.ts';
import { define as key } from './key.ts';
import { define as map } from './map.ts';
import { define as measure } from './measure.ts';
import { define as pool } from './pool.ts';
import { define as rebase } from './rebase.ts';
import { define as resize } from './resize.ts';
import { define as snapshot } from './snapshot.ts';
import { define as vol } from './vol.ts';

const SCRIPTS = { bash: bashScript, zsh: zshScript, fish: fishScript };
type Shell = keyof typeof SCRIPTS;

/** The command line of `completion`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'completion',
    'Print a script that teaches a shell to complete the commands and options.',
    [
      ['bash > ~/.local/share/bash-completion/completions/' + program, 'for bash, from the next shell on'],
      ['zsh > "${fpath[1]}/_' + program + '"', 'for zsh'],
      ['fish > ~/.config/fish/completions/' + program + '.fish', 'for fish'],
    ],
  )
    .addArgument(new Argument('<SHELL>', 'the shell').choices(Object.keys(SCRIPTS)))
    .action((shell: Shell) => {
      const images = {
        create,
        info,
        map,
        check,
        convert,
        compare,
        dd,
        measure,
        bench,
        resize,
        allocate,
        amend,
        snapshot,
        bitmap,
        commit,
        rebase,
        key,
      };
      const below = {
        'bench allocation': allocation,
        'bench compare': compareStudies,
        'bench image': benchImage,
      };
      const definitions = { ...images, ...below, pool, vol, doctor, completion: define };
      const commands = Object.entries(definitions).map(([name, make]) => [name, make(program)] as const);
      const pools = commandsOf(program, { ...POOL_VERBS, ...VOL_VERBS });
      out(SCRIPTS[shell](program, completedVerbs(Object.fromEntries([...commands, ...pools]))));
    }),
);
