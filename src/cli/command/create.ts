import { Option } from 'commander';
import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../core/allocation.ts';
import { printable, SpindleError } from '../../core/errors.ts';
import { knownFormat } from '../../format/open.ts';
import { create } from '../../op/create.ts';
import { collect, formatOption, newCommand, verb } from '../command-line.ts';
import { createOptionsHelp, parseCreateOptions } from '../create-options.ts';
import { encryptionOf, requestOf, type NewImageFlags } from '../create-request.ts';
import { formattingLine } from '../formatting-line.ts';
import { interruptible } from '../interrupt.ts';
import { progressOption, progressTo, type ProgressForm } from '../progress.ts';
import { warnings } from '../report.ts';
import { out } from '../output.ts';
import { secretObjects } from '../secret.ts';
import { gateOf, objectOption, secretFileOption, untrustedOption } from '../source.ts';

interface Flags extends NewImageFlags {
  readonly format?: string;
  readonly options: readonly string[];
  readonly allocation?: AllocationPolicy;
  readonly untrusted?: boolean;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The command line of `create`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'create',
    'Make a new image. An existing file is replaced, once the new one is complete.',
    [
      ['-f qcow2 disk.qcow2 20G', 'a qcow2 image of 20 GiB that takes space as it is written'],
      [
        '--allocation thick-lazy disk.img 20G',
        'a raw image whose space is reserved now and cleared when first used',
      ],
      ['-f qcow2 -b base.qcow2 -F qcow2 top.qcow2', 'an overlay that holds what differs from base.qcow2'],
      ['-f qcow2 -o cluster_size=1M,compression_type=zstd disk.qcow2 1T', 'options of the format'],
      [
        '-f qcow2 -o encrypt.format=luks --secret-file key.txt disk.qcow2 20G',
        'an encrypted image; without --secret-file the passphrase is asked for',
      ],
      ['-f qcow2 -o help', 'list the options of the format'],
    ],
  )
    .argument('[FILE]', 'the image to make')
    .argument('[SIZE]', 'size of the disk, such as 512M or 1.5G (default: that of the backing file)')
    .addOption(formatOption('-f, --format <FORMAT>', 'format of the new image (default: raw)'))
    .addOption(
      new Option('-o, --options <LIST>', 'options of the format as name=value,...; may be repeated')
        .argParser(collect)
        .default([], 'none'),
    )
    .option(
      '-b, --backing <FILE>',
      'put the new image on top of this one; relative to where the new image is',
    )
    .addOption(
      formatOption('-F, --backing-format <FORMAT>', 'format of the backing file; needed with --backing'),
    )
    .option('-u, --backing-unsafe', 'do not open the backing file; needs a SIZE')
    .addOption(new Option('--allocation <POLICY>', 'when the host gives space').choices(ALLOCATION_POLICIES))
    .option('-q, --quiet', 'print nothing')
    .addOption(progressOption())
    .addOption(untrustedOption())
    .addOption(objectOption())
    .addOption(secretFileOption())
    .action((file: string | undefined, size: string | undefined, flags: Flags) =>
      work(program, file, size, flags),
    ),
);

async function work(
  program: string,
  file: string | undefined,
  size: string | undefined,
  flags: Flags,
): Promise<void> {
  secretObjects(flags.object);
  const format = knownFormat(flags.format) ?? 'raw';
  const given = parseCreateOptions(format, flags.options);
  if (given === 'help') {
    out(createOptionsHelp(format));
    return;
  }
  if (file === undefined) throw new SpindleError('BAD_OPTION', 'name the file to create');
  const encryption = encryptionOf(format, flags, given);
  const request = {
    ...requestOf(file, size, flags, given),
    allocation: flags.allocation,
    gate: gateOf(flags, [], true),
    ...(encryption === null ? {} : { encryption }),
  };
  const progress = progressTo(flags.quiet === true ? 'none' : flags.progress);
  try {
    await create({
      ...request,
      format,
      signal: interruptible(),
      onProgress: progress,
      onWarning: warnings(program, file),
      onStart: (created) => {
        if (flags.quiet !== true)
          out(
            `${printable(formattingLine(created, given, { size: request.size, allocation: flags.allocation }))}\n`,
          );
      },
    });
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= file;
    throw error;
  }
}
