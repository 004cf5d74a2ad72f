import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { map } from '../../op/map.ts';
import { openImageFile } from '../../op/open.ts';
import { newCommand, outputOption, sizeValue, verb } from '../command-line.ts';
import { mapHeading, mapJsonLine, mapRow } from '../map-text.ts';
import { OutputBuffer } from '../output.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly startOffset?: number;
  readonly maxLength?: number;
  readonly output: 'human' | 'json';
  readonly host?: boolean;
}

/** The command line of `map`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'map',
      'Tell where the bytes of a disk are: in which file of the backing chain, and at which offset.',
      [
        ['disk.qcow2', 'the data of the disk and where it is'],
        [
          '--output json --start-offset 1G --max-length 64M disk.qcow2',
          'everything about a part of the disk, zeroes too',
        ],
        ['--host disk.qcow2', 'also whether the host has written, reserved or no blocks there'],
      ],
    ),
  )
    .addOption(
      new Option('-s, --start-offset <OFFSET>', 'first byte of the disk to map (default: 0)').argParser(
        sizeValue,
      ),
    )
    .addOption(
      new Option('-l, --max-length <LENGTH>', 'bytes of the disk to map (default: all)').argParser(sizeValue),
    )
    .addOption(new Option('--host', 'also tell what the host has under the image itself'))
    .addOption(outputOption())
    .action(async (file: string, flags: Flags) => {
      const { path, format, share, gate } = sourceOf(file, flags);
      const image = await openImageFile(path, { format, share, gate });
      try {
        const host = flags.host === true;
        const entries = map(image, { start: flags.startOffset, length: flags.maxLength, host });
        if (flags.output === 'json') await printJson(entries);
        else await printTable(entries, host);
      } catch (error) {
        if (error instanceof SpindleError) error.path ??= path;
        throw error;
      } finally {
        await image.close();
      }
    }),
);

type Entries = ReturnType<typeof map>;

async function printJson(entries: Entries): Promise<void> {
  const buffer = new OutputBuffer();
  let before = '[';
  for await (const entry of entries) {
    buffer.add(before + mapJsonLine(entry));
    before = ',\n';
  }
  buffer.add(']\n');
  buffer.flush();
}

async function printTable(entries: Entries, host: boolean): Promise<void> {
  const buffer = new OutputBuffer();
  buffer.add(mapHeading(host));
  for await (const entry of entries) buffer.add(mapRow(entry, host) ?? '');
  buffer.flush();
}
