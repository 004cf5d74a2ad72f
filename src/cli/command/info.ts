import { Option } from 'commander';
import { info, infoChain } from '../../op/info.ts';
import { infoJson } from '../../op/info-json.ts';
import { newCommand, outputOption, verb } from '../command-line.ts';
import { infoText } from '../info-text.ts';
import { out } from '../output.ts';
import { warn } from '../report.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly backingChain?: boolean;
  readonly output: 'human' | 'json';
  readonly allocation?: boolean;
}

/** The command line of `info`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'info',
      'Tell what an image is: format, sizes, backing file, snapshots, and how it is allocated.',
      [
        ['disk.qcow2', 'everything about one image'],
        ['--backing-chain top.qcow2', 'the image, its backing file, the one behind that, ...'],
        ['--output json -U disk.qcow2', 'JSON, though a virtual machine is using the image'],
      ],
    ),
  )
    .addOption(new Option('-b, --backing-chain', 'go on with the backing files'))
    .addOption(outputOption())
    .addOption(
      new Option(
        '--allocation',
        'tell how the disk lies on the host, however long that takes (default: where it is quick)',
      ),
    )
    .addOption(new Option('--no-allocation', 'do not tell how the disk lies on the host'))
    .action(async (file: string, flags: Flags) => {
      const { path, format, share, gate } = sourceOf(file, flags);
      // Who calls it qemu-img expects nothing but what that prints.
      const allocation = flags.allocation ?? (program === 'qemu-img' ? false : ('auto' as const));
      const options = { format, share, gate, allocation };
      const chain = flags.backingChain === true;
      const images = chain ? await infoChain(path, options) : [await info(path, options)];
      for (const image of images) for (const warning of image.warnings) warn(program, image.path, warning);
      if (flags.output === 'human') out(images.map(infoText).join('\n'));
      else {
        const objects = images.map(infoJson);
        out(`${JSON.stringify(chain ? objects : objects[0], null, 4)}\n`);
      }
    }),
);
