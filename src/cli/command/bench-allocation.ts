import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isatty } from 'node:tty';
import { InvalidArgumentError, Option } from 'commander';
import { fioJobs } from '../../benchmark/fio.ts';
import { drill, type Drill } from '../../benchmark/drill/drill.ts';
import { DRILL_FILE_SYSTEMS, type DrillFileSystem } from '../../benchmark/drill/store.ts';
import type { Plan, Preset } from '../../benchmark/plan.ts';
import { SCENARIOS } from '../../benchmark/scenario.ts';
import { DEFAULT_SUBJECTS } from '../../benchmark/subject.ts';
import { study, type Study } from '../../benchmark/study.ts';
import { SpindleError } from '../../core/errors.ts';
import { drillPageOf } from '../../report/drill.ts';
import { chartsOf, pageOf } from '../../report/study.ts';
import { newCommand, outputOption, sizeValue, verb } from '../command-line.ts';
import { drillText } from '../drill-text.ts';
import { stoppable } from '../interrupt.ts';
import { complain, out, overwrite } from '../output.ts';
import { cellText, planText, studyText } from '../study-text.ts';

interface Flags {
  readonly quick?: boolean;
  readonly thorough?: boolean;
  readonly seed?: number;
  readonly rounds?: number;
  readonly size?: number;
  readonly subjects?: string[];
  readonly phases?: string[];
  readonly cached?: boolean;
  readonly threads?: boolean;
  readonly output: 'human' | 'json';
  readonly json?: string;
  readonly html?: string;
  readonly svg?: string;
  readonly fio?: string;
  readonly drill?: boolean;
  readonly drillFs?: DrillFileSystem;
  readonly drillStore?: string;
  readonly fillStore?: boolean;
}

/** The command line of `bench allocation`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'bench allocation',
    'Measure what thin, thick-lazy and thick-eager disks cost on the storage of a directory, and say whether it matters.\nWorks in a directory of its own there, which is gone afterwards. A few minutes; --quick about 20 seconds.',
    [
      ['--quick /var/lib/images', 'a first look at that store'],
      ['--json study.json --html study.html', 'the default study of the current directory, with a report'],
      ['--subjects raw-thin,raw-thick-eager --phases random-sync', 'one question only'],
      ['--quick --fio jobs .', 'also the jobs with which fio does the same to raw files'],
      [
        '--drill --drill-fs xfs --html drill.html',
        'what fails when space runs out, on a small XFS made for it (as root)',
      ],
      [
        '--drill --drill-store /mnt/small --fill-store',
        'the same in a small store of your own, which it fills',
      ],
    ],
  )
    .argument('[DIR]', 'a directory on the store (default: this one)')
    .option('--quick', 'about 20 seconds: effects of a factor show')
    .option('--thorough', 'larger disks, 15 rounds: for publishing')
    .addOption(
      new Option('--seed <NUMBER>', 'of orders, blocks, data and intervals (default: by chance)').argParser(
        whole,
      ),
    )
    .addOption(new Option('--rounds <NUMBER>', 'repeats, at least 7').argParser(whole))
    .addOption(new Option('--size <SIZE>', 'of the disks').argParser(sizeValue))
    .addOption(
      new Option(
        '--subjects <LIST>',
        `what is measured, such as qcow2-metadata, qcow2-overlay, qcow2-thin:cluster_size=128k; between options of one subject stands +  (default: ${DEFAULT_SUBJECTS.join(',')})`,
      ).argParser((text: string) => text.split(',').map((name) => name.replaceAll('+', ','))),
    )
    .addOption(
      new Option('--phases <LIST>', `of ${SCENARIOS.map(({ id }) => id).join(', ')}`).argParser(
        (text: string) => text.split(','),
      ),
    )
    .option('--cached', 'through the page cache of the host instead of past it')
    .option('--threads', 'requests from threads, even where there is io_uring')
    .addOption(outputOption())
    .option('--json <FILE>', 'write all that was measured')
    .option('--html <FILE>', 'write a report with charts, one file that needs no network')
    .option('--svg <DIR>', 'write each chart by itself')
    .option('--fio <DIR>', 'write jobs with which fio does the same to raw files')
    .option(
      '--drill',
      'the out-of-space drill instead of the study; with --quick, --thorough or --phases before it',
    )
    .addOption(
      new Option('--drill-fs <TYPE>', 'file system of the small store that it makes (default: ext4)').choices(
        DRILL_FILE_SYSTEMS,
      ),
    )
    .option('--drill-store <DIR>', 'do the drill in this small store instead, with at most 1 GiB free')
    .option('--fill-store', 'agree that --drill-store is filled to its last byte')
    .action((folder: string | undefined, flags: Flags) => work(folder ?? '.', flags)),
);

function whole(text: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  throw new InvalidArgumentError('it takes a whole number');
}

async function work(folder: string, flags: Flags): Promise<void> {
  const human = flags.output === 'human';
  const isAlone =
    flags.drill === true && flags.quick !== true && flags.thorough !== true && flags.phases === undefined;
  if (flags.drill !== true && (flags.drillFs ?? flags.drillStore ?? flags.fillStore) !== undefined)
    throw new SpindleError('BAD_OPTION', 'the options of the drill go with --drill');
  const signal = stoppable();
  const drilled = flags.drill === true ? await drills(folder, flags, signal) : undefined;
  if (human && drilled !== undefined) out(drillText(drilled));
  const found = isAlone ? undefined : await studied(folder, flags, signal);
  const all =
    found === undefined ? drilled : { ...found, ...(drilled === undefined ? {} : { drill: drilled }) };
  const json = `${JSON.stringify(all)}\n`;
  if (flags.json !== undefined) writeFileSync(flags.json, json);
  const page = found === undefined ? drilled && drillPageOf(drilled) : pageOf(found, drilled);
  if (flags.html !== undefined && page !== undefined) writeFileSync(flags.html, page);
  if (flags.svg !== undefined && found !== undefined) {
    mkdirSync(flags.svg, { recursive: true });
    for (const { name, svg } of chartsOf(found)) writeFileSync(join(flags.svg, `${name}.svg`), svg);
  }
  if (!human) out(json);
}

async function studied(folder: string, flags: Flags, signal: AbortSignal): Promise<Study> {
  const human = flags.output === 'human';
  const preset: Preset = flags.thorough === true ? 'thorough' : flags.quick === true ? 'quick' : 'default';
  const start = performance.now();
  const show = live();
  const found = await study(folder, {
    ...{ preset, seed: flags.seed, rounds: flags.rounds, size: flags.size, subjects: flags.subjects },
    ...{ scenarios: flags.phases, cached: flags.cached, threads: flags.threads, signal },
    onPlan: (plan, environment) => {
      if (human) out(`${planText(plan, environment)}\n`);
      else complain(`seed ${String(plan.seed)}`);
      writeJobs(plan, flags.fio);
    },
    onCell: (done, total, next) => {
      show(next === undefined, () => cellText(done, total, next, (performance.now() - start) / 1000));
    },
  });
  if (human) out(studyText(found));
  return found;
}

function drills(folder: string, flags: Flags, signal: AbortSignal): Promise<Drill> {
  const show = live();
  return drill({
    ...{ folder, fileSystem: flags.drillFs, store: flags.drillStore, fill: flags.fillStore },
    ...{ subjects: flags.subjects, seed: flags.seed, signal },
    onSubject: (done, total, subject) => {
      const line = `${String(Math.floor((done / total) * 100)).padStart(2)} %  drill: ${subject ?? ''}`;
      show(subject === undefined, () => (subject === undefined ? '' : line));
    },
  });
}

/** Shows lines of progress one over the other where somebody looks; the last one always. */
function live(): (isLast: boolean, line: () => string) => void {
  if (!isatty(2)) return () => undefined;
  let shown = -Infinity;
  return (isLast, line) => {
    const now = performance.now();
    if (!isLast && now - shown < 100) return;
    shown = now;
    overwrite(line());
  };
}

function writeJobs(plan: Plan, folder: string | undefined): void {
  if (folder === undefined) return;
  mkdirSync(folder, { recursive: true });
  for (const [name, text] of fioJobs(plan)) writeFileSync(join(folder, name), text);
}
