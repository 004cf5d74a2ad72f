import { Option } from 'commander';
import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../core/allocation.ts';
import { SpindleError } from '../../core/errors.ts';
import { formatSize } from '../../core/size.ts';
import { allocate, type Allocated, type HostHold } from '../../op/allocate.ts';
import { newCommand, outputOption, verb } from '../command-line.ts';
import { stoppable } from '../interrupt.ts';
import { out } from '../output.ts';
import { progressOf } from '../percent.ts';
import { progressOption, type ProgressForm } from '../progress.ts';
import { warn } from '../report.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly allocation: AllocationPolicy;
  readonly copyBacking?: boolean;
  readonly plan?: boolean;
  readonly output: 'human' | 'json';
  readonly p?: boolean;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The command line of `allocate`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'allocate',
      'Change when the host gives space to an existing image, in place. The disk stays as it is at every moment; stopped or killed, do it again.\n' +
        'thick-lazy reserves all space, thick-eager writes all of it, thin gives back what holds only zeroes. To become thick, ' +
        'compressed clusters become plain ones.',
      [
        ['--allocation thick-lazy disk.qcow2', 'reserve all space: writes cannot run out of it'],
        ['--allocation thick-eager disk.raw', 'write all space: a first write is as fast as any other'],
        ['--allocation thin disk.qcow2', 'give back what holds only zeroes'],
        ['--allocation thin --plan disk.qcow2', 'tell how much that would be, and change nothing'],
        [
          '--allocation thick-lazy --copy-backing top.qcow2',
          'copy into an overlay what its backing file shows',
        ],
      ],
    ),
  )
    .addOption(
      new Option('--allocation <POLICY>', 'what the image is to be')
        .choices(ALLOCATION_POLICIES)
        .makeOptionMandatory(),
    )
    .option('--copy-backing', 'an overlay takes in all that its backing file shows, to have space for it')
    .option('--plan', 'change nothing: tell what would be read and written, and the size on disk afterwards')
    .addOption(outputOption())
    .option('-p', 'tell progress on standard output, as qemu-img does')
    .option('-q, --quiet', 'print nothing')
    .addOption(progressOption())
    .action(async (file: string, flags: Flags) => {
      const { path, format, share, secret, gate } = sourceOf(file, flags);
      if (share)
        throw new SpindleError('BAD_OPTION', '-U is for looking; an image changes its space alone', { path });
      const { allocation: policy, copyBacking, plan } = flags;
      const done = await allocate(path, {
        ...{ policy, format, secret, gate, copyBacking, plan },
        ...{ signal: stoppable(), onProgress: progressOf(flags) },
      });
      if (format === undefined && done.format === 'raw') {
        // The guest of a raw disk could make it look like any other format.
        warn(program, path, 'its format was not given and is taken for raw; say so with -f raw');
      }
      if (flags.quiet === true) return;
      if (flags.output === 'json') out(`${JSON.stringify(jsonOf(path, done, plan === true), null, 4)}\n`);
      else out(`${path}: ${plan === true ? planText(done) : doneText(done)}\n`);
    }),
);

function hold({ policy, allocated }: HostHold): string {
  const space = allocated === null ? '' : ` (${formatSize(allocated)} on disk)`;
  return `${policy ?? 'unknown'}${space}`;
}

function doneText({ before, after, policy }: Allocated): string {
  const why =
    policy === 'thin' && after.policy !== 'thin'
      ? '; what is left holds data'
      : policy === 'thick-lazy' && after.policy === 'thick-eager'
        ? '; all of it was written before'
        : '';
  return `was ${hold(before)}, is now ${hold(after)}${why}`;
}

function planText({ before, after, read, written, reserved, freed }: Allocated): string {
  const parts = [
    ['read', read],
    ['written', written],
    ['reserved', reserved],
    ['freed', freed],
  ] as const;
  const work = parts.map(([name, bytes]) => `${formatSize(bytes)} ${name}`).join(', ');
  return `is ${hold(before)}; to become ${hold(after)}: ${work}`;
}

function jsonOf(path: string, done: Allocated, plan: boolean): object {
  const side = ({ policy, allocated }: HostHold): object => ({ policy, 'actual-size': allocated });
  return {
    filename: path,
    format: done.format,
    'virtual-size': done.size,
    allocation: done.policy,
    plan,
    before: side(done.before),
    after: side(done.after),
    read: done.read,
    written: done.written,
    reserved: done.reserved,
    freed: done.freed,
  };
}
