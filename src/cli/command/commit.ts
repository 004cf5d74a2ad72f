import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { formatSize } from '../../core/size.ts';
import { planCommit, type CommitPlan } from '../../op/chain-plan.ts';
import { commit } from '../../op/commit.ts';
import { cacheOption, type CacheMode } from '../cache-mode.ts';
import { newCommand, sizeValue, verb } from '../command-line.ts';
import { alsoSpelled } from '../expand.ts';
import { interruptible } from '../interrupt.ts';
import { out } from '../output.ts';
import { progressOf } from '../percent.ts';
import { progressOption, type ProgressForm } from '../progress.ts';
import { warn } from '../report.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly base?: string;
  readonly drop?: boolean;
  readonly rate?: number;
  readonly cache?: CacheMode;
  readonly plan?: boolean;
  readonly output: 'human' | 'json';
  readonly p?: boolean;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The command line of `commit`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'commit',
      'Write what an overlay holds into its backing file, and empty the overlay.\nOther overlays of that backing file show something else afterwards: do this only where there are none.',
      [
        ['top.qcow2', 'into its backing file; the overlay stays, empty'],
        ['--plan top.qcow2', 'how much that would write'],
        ['-d top.qcow2 && rm top.qcow2', 'the same where the overlay is not needed any more'],
        ['-p -b base.qcow2 top.qcow2', 'into an image further down, with all layers between; with progress'],
      ],
    ),
  )
    .addOption(
      new Option(
        '-b, --base <FILE>',
        'the image of the backing chain to write to (default: the backing file); implies -d',
      ),
    )
    .addOption(new Option('-d, --drop', 'do not empty the overlay'))
    .addOption(
      alsoSpelled(
        new Option('-r, --rate <SIZE>', 'bytes a second at most').argParser(sizeValue),
        '--rate-limit',
      ),
    )
    .addOption(
      cacheOption('-t, --cache <MODE>', 'cache of the files that are written; all of them write safely'),
    )
    .option('--plan', 'tell what would be read and written, and change nothing')
    .addOption(new Option('--output <FORM>', 'form of --plan').choices(['human', 'json']).default('human'))
    .option('-p', 'tell progress on standard output, as qemu-img does')
    .option('-q, --quiet', 'print nothing')
    .addOption(progressOption())
    .action(async (file: string, flags: Flags) => {
      const { path, format, share, secret, gate } = sourceOf(
        file,
        flags,
        flags.base === undefined ? [] : [flags.base],
      );
      if (share)
        throw new SpindleError('BAD_OPTION', '-U is for looking; an image is committed alone', { path });
      const { base, drop, rate, cache } = flags;
      if (flags.plan === true) {
        const plan = await planCommit(path, { format, secret, gate, base, signal: interruptible() });
        out(flags.output === 'json' ? `${JSON.stringify(plan, null, 4)}\n` : planText(plan));
        return;
      }
      const done = await commit(path, {
        ...{ format, secret, gate, base, rate, direct: cache?.direct },
        ...(drop === true ? { keep: true } : {}),
        ...{ signal: interruptible(), onProgress: progressOf(flags) },
      });
      if (flags.quiet === true) return;
      out('Image committed.\n');
      if (program === 'qemu-img' || done.between.length === 0) return;
      const names = done.between.join(', ');
      warn(program, path, `between it and ${done.base}, ${names} cannot be used by itself any more`);
    }),
);

function planText({ base, from, size, read, zero, absent }: CommitPlan): string {
  const told = (bytes: number): string => `${formatSize(bytes)} (${String(bytes)} bytes)`;
  const grows = size === from ? '' : `, which grows from ${formatSize(from)} to ${formatSize(size)}`;
  return `into: ${base}${grows}
read and written: ${told(read)}
becomes zeroes: ${told(zero)}
stays as it is: ${told(absent)}
`;
}
