import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { parseSize } from '../../core/size.ts';
import type { Preallocation } from '../../op/create.ts';
import { resize } from '../../op/resize.ts';
import { newCommand, verb, type Verb } from '../command-line.ts';
import { out } from '../output.ts';
import { warn } from '../report.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly preallocation: Preallocation;
  readonly shrink?: boolean;
  readonly quiet?: boolean;
}

const command = verb((program) =>
  withSourceOptions(
    newCommand(program, 'resize', 'Change the size of a disk. A part that is new reads as zeroes.', [
      ['disk.qcow2 40G', 'make the disk 40 GiB large'],
      ['disk.qcow2 +10G', 'make it 10 GiB larger than it is'],
      ['--preallocation falloc disk.qcow2 +10G', 'the same, with the space for the new part reserved'],
      ['--shrink disk.qcow2 -10G', 'make it 10 GiB smaller; what is cut off is lost'],
    ]),
  )
    .argument(
      '<SIZE>',
      'the new size, such as 40G, or the difference to the present one, such as +10G or -10G',
    )
    .addOption(
      new Option('--preallocation <MODE>', 'how the new part is allocated')
        .choices(['off', 'metadata', 'falloc', 'full'])
        .default('off'),
    )
    .option('--shrink', 'allow a smaller size: what is cut off is lost')
    .option('-q, --quiet', 'print nothing')
    .action(async (file: string, text: string, flags: Flags) => {
      const { path, format, share, secret, gate } = sourceOf(file, flags);
      if (share)
        throw new SpindleError('BAD_OPTION', '-U is for looking; an image is resized alone', { path });
      const { preallocation, shrink } = flags;
      const sign = /^[+-]/.exec(text)?.[0];
      const bytes = parseSize(sign === undefined ? text : text.slice(1));
      const done = await resize(path, sign === '-' ? -bytes : bytes, {
        format,
        secret,
        gate,
        preallocation,
        shrink,
        relative: sign !== undefined,
      });
      if (format === undefined && done.format === 'raw') {
        // The guest of a raw disk could make it look like any other format.
        warn(program, path, 'its format was not given and is taken for raw; say so with -f raw');
      }
      if (flags.quiet !== true) out('Image resized.\n');
    }),
);

/** The command line of `resize`. */
export const define: Verb['define'] = command.define;

/** Runs it. A last argument such as -10G is a size, not options. */
export const run: Verb['run'] = (args, program) => {
  const last = args.length - 1;
  const negative = /^-[\d.]/.test(args[last] ?? '') && !args.includes('--');
  return command.run(negative ? [...args.slice(0, last), '--', ...args.slice(last)] : args, program);
};
