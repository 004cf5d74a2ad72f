import { Option } from 'commander';
import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../core/allocation.ts';
import { SpindleError } from '../../core/errors.ts';
import { knownFormat, type Format } from '../../format/open.ts';
import { measure, measureSize, type Measured, type MeasureTarget } from '../../op/measure.ts';
import { collect, formatOption, newCommand, outputOption, sizeValue, verb } from '../command-line.ts';
import { createOptionsHelp, parseCreateOptions, type Given } from '../create-options.ts';
import { encryptionOf, requestOf } from '../create-request.ts';
import { alsoSpelled } from '../expand.ts';
import { interruptible } from '../interrupt.ts';
import { out } from '../output.ts';
import { snapshotIn } from '../snapshot-name.ts';
import { objectOption, secretFileOption, sourceOf, untrustedOption, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly targetFormat?: string;
  readonly options: readonly string[];
  readonly allocation?: AllocationPolicy;
  readonly size?: number;
  readonly snapshot?: string;
  readonly output: 'human' | 'json';
}

/** The command line of `measure`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'measure',
    'Tell how many bytes the file of a new image will have: with the disk of an image copied to it, or empty with --size.',
    [
      ['-O qcow2 --size 20G', 'an empty qcow2 image of 20 GiB, and one that is full'],
      ['-O qcow2 disk.raw', 'what a conversion will need at most'],
      ['-O qcow2 -o cluster_size=4k,extended_l2=off -l before --output json disk.qcow2', 'of a snapshot'],
    ],
  )
    .argument('[FILE]', 'the image to be copied (with --image-opts: its description)')
    .addOption(formatOption('-f, --format <FORMAT>', 'format of FILE (default: told from its first bytes)'))
    .addOption(new Option('--image-opts', 'FILE is a list of options: driver=qcow2,file.filename=disk.qcow2'))
    .addOption(
      alsoSpelled(
        formatOption('-O, --target-format <FORMAT>', 'format of the new image (default: raw)'),
        '--output-format',
      ),
    )
    .addOption(
      alsoSpelled(
        new Option('-o, --options <LIST>', 'options of the new image as name=value,...; -o help lists them')
          .argParser(collect)
          .default([], 'none'),
        '--target-options',
      ),
    )
    .addOption(new Option('--allocation <POLICY>', 'when the host gives space').choices(ALLOCATION_POLICIES))
    .addOption(new Option('-s, --size <SIZE>', 'size of a new disk, instead of FILE').argParser(sizeValue))
    .addOption(
      new Option(
        '-l, --snapshot <SNAPSHOT>',
        'an internal snapshot of FILE: its id or name, or snapshot.name=NAME',
      ),
    )
    .addOption(outputOption())
    .option('-U, --force-share', 'look at FILE though another process may be changing it')
    .addOption(untrustedOption())
    .addOption(objectOption())
    .addOption(secretFileOption())
    .action(work),
);

async function work(file: string | undefined, flags: Flags): Promise<void> {
  const format = knownFormat(flags.targetFormat) ?? 'raw';
  const given = parseCreateOptions(format, flags.options);
  if (given === 'help') {
    out(createOptionsHelp(format));
    return;
  }
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if ((file === undefined) === (flags.size === undefined))
    throw bad('give either --size, or an image that is to be copied');
  const target = targetOf(format, flags, given);
  if (file === undefined) {
    const { format: source, snapshot, imageOpts } = flags;
    if (source !== undefined || snapshot !== undefined || imageOpts === true)
      throw bad('-f, -l and --image-opts are about an image, and there is only a --size');
    print(measureSize(flags.size ?? 0, target), flags.output);
    return;
  }
  const snapshot = flags.snapshot === undefined ? undefined : snapshotIn(flags.snapshot);
  const { path, format: own, share, gate } = sourceOf(file, flags);
  const source = { path, format: own, share, snapshot, gate };
  print(await measure(source, target, { signal: interruptible() }), flags.output);
}

/** The image that the options describe. Whether its backing file exists, and what it is, does not matter. */
function targetOf(format: Format, flags: Flags, given: ReadonlyMap<string, Given>): MeasureTarget {
  const own = new Map(given);
  const backed = own.delete('backing_file');
  own.delete('backing_fmt');
  own.delete('size');
  const { preallocation, qcow2 } = requestOf('', undefined, flags, own);
  const encryption = encryptionOf(format, flags, own);
  return {
    ...{ format, preallocation, qcow2, backed },
    allocation: flags.allocation,
    ...(encryption === null ? {} : { encryption }),
  };
}

function print({ required, fullyAllocated, bitmaps }: Measured, form: 'human' | 'json'): void {
  if (form === 'json') {
    const answer = { required, 'fully-allocated': fullyAllocated, ...(bitmaps === null ? {} : { bitmaps }) };
    out(`${JSON.stringify(answer, null, 4)}\n`);
    return;
  }
  const last = bitmaps === null ? '' : `bitmaps size: ${String(bitmaps)}\n`;
  out(`required size: ${String(required)}\nfully allocated size: ${String(fullyAllocated)}\n${last}`);
}
