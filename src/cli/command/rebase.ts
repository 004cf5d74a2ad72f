import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { formatSize } from '../../core/size.ts';
import { planRebase } from '../../op/chain-plan.ts';
import { rebase, type NewBacking } from '../../op/rebase.ts';
import { besideName } from '../../op/image-name.ts';
import { cacheOption, type CacheMode } from '../cache-mode.ts';
import { formatOption, newCommand, verb } from '../command-line.ts';
import { alsoSpelled } from '../expand.ts';
import { interruptible } from '../interrupt.ts';
import { out } from '../output.ts';
import { progressOf } from '../percent.ts';
import { progressOption, type ProgressForm } from '../progress.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly backingUnsafe?: boolean;
  readonly force?: boolean;
  readonly compress?: boolean;
  readonly cache?: CacheMode;
  readonly backingCache?: CacheMode;
  readonly plan?: boolean;
  readonly output: 'human' | 'json';
  readonly p?: boolean;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The command line of `rebase`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'rebase',
      'Put an overlay on another backing file. Its disk stays the same: where the files differ, the old content is copied into the overlay.',
      [
        ['-b new.qcow2 -F qcow2 top.qcow2', 'onto another backing file'],
        ['-p -b base.raw -F raw top.qcow2', 'onto an image further down its chain, with progress'],
        ['--plan -b new.qcow2 -F qcow2 top.qcow2', 'how much of the two would have to be compared'],
        ["-b '' top.qcow2", 'onto none: the image holds all of the disk then'],
        [
          '-u -b /new/place/base.qcow2 -F qcow2 top.qcow2',
          'change the name only: for a backing file that was moved',
        ],
      ],
    ),
  )
    .addOption(
      new Option(
        '-b, --backing <FILE>',
        "the new backing file; a relative name starts in the directory of the image; '' for none",
      ),
    )
    .addOption(
      formatOption('-F, --backing-format <FORMAT>', 'format of the new backing file; needed with -b'),
    )
    .addOption(
      alsoSpelled(
        new Option(
          '-u, --backing-unsafe',
          'change the reference only and look at nothing: the disk changes where the files differ',
        ),
        '--unsafe',
      ),
    )
    .option('--force', '-u without -b: take the reference to the backing file away')
    .option('-c, --compress', 'store compressed what is copied')
    .addOption(cacheOption('-t, --cache <MODE>', 'cache of the image; all of them write safely'))
    .addOption(
      cacheOption('-T, --backing-cache <MODE>', 'cache of the new backing file (default: writeback)'),
    )
    .option('--plan', 'tell what would be read, and written at most, and change nothing')
    .addOption(new Option('--output <FORM>', 'form of --plan').choices(['human', 'json']).default('human'))
    .option('-p', 'tell progress on standard output, as qemu-img does')
    .option('-q, --quiet', 'print nothing')
    .addOption(progressOption())
    .action(async (file: string, flags: Flags) => {
      const { path, format, share, secret, gate } = sourceOf(
        file,
        flags,
        flags.backing === undefined ? [] : [besideName(flags.backing, file)],
      );
      const { backingUnsafe: unsafe, compress, cache, backingCache } = flags;
      const backing = newBacking(program, path, flags);
      if (flags.plan === true) {
        const options = { format, secret, share, unsafe, compress, gate, signal: interruptible() };
        const plan = await planRebase(path, backing, options);
        const { size, compared } = plan;
        out(
          flags.output === 'json'
            ? `${JSON.stringify(plan, null, 4)}\n`
            : `disk: ${formatSize(size)} (${String(size)} bytes)\nread on both sides, and at most that much written: ${formatSize(compared)} (${String(compared)} bytes)\n`,
        );
        return;
      }
      await rebase(path, backing, {
        ...{ format, secret, share, unsafe, compress, gate },
        ...{ direct: cache?.direct, directBacking: backingCache?.direct },
        ...{ signal: interruptible(), onProgress: progressOf(flags) },
      });
    }),
);

/** @throws SpindleError BAD_OPTION */
function newBacking(program: string, path: string, flags: Flags): NewBacking | null {
  const { backing: name, backingFormat: format } = flags;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message, { path });
  if (name === undefined) {
    if (flags.backingUnsafe !== true)
      throw bad("name the new backing file with -b, or -b '' for none; -u changes the reference alone");
    // Scripts for qemu-img rely on it; for a person it is a slip that takes the disk apart.
    if (program !== 'qemu-img' && flags.force !== true)
      throw bad(
        '-u without -b takes the backing file away, and with it all that only it holds: ' +
          "add --force if you want that, name another one with -b, or keep the content with -b '' and no -u",
      );
    return null;
  }
  if (name === '') return null;
  if (format === undefined) throw bad(`say the format of the backing file '${name}' with -F`);
  return { name, format };
}
