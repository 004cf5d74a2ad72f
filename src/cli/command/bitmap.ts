import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { changeBitmap, type BitmapAction } from '../../op/bitmaps.ts';
import { formatOption, newCommand, sizeValue, verb } from '../command-line.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly granularity?: number;
  readonly sourceFile?: string;
  readonly sourceFormat?: string;
}

/** An action as the command line names it; what else belongs to it stands in other options. */
type Asked = { readonly do: Exclude<BitmapAction['do'], 'merge'> } | { readonly do: 'merge'; source: string };

/** Actions without a value, each with what its help says. */
const PLAIN: readonly (readonly [Exclude<BitmapAction['do'], 'merge'>, string])[] = [
  ['add', 'make BITMAP; it records what is written from now on'],
  ['remove', 'delete BITMAP, also one that is inconsistent'],
  ['clear', 'make nothing dirty in BITMAP'],
  ['enable', 'let BITMAP record what is written from now on'],
  ['disable', 'let BITMAP stay as it is, whatever is written'],
];

/** The command line of `bitmap`. */
export const { define, run } = verb((program) => {
  const asked: Asked[] = [];
  const command = withSourceOptions(
    newCommand(
      program,
      'bitmap',
      'Change the persistent dirty bitmaps of an image: which parts of the disk were written to.\nSeveral actions are done in the order in which they are given: either all of them, or none.',
      [
        ['--add disk.qcow2 since-monday', 'record from now on what is written'],
        ['--add -g 1M --disable disk.qcow2 union', 'make a bitmap that records nothing, one bit for a MiB'],
        [
          '--merge monday --merge tuesday disk.qcow2 union',
          'make dirty in it what is dirty in one of two others',
        ],
        ['--merge monday -b old.qcow2 -F qcow2 disk.qcow2 union', 'the same with a bitmap of another image'],
        ['--disable --clear disk.qcow2 monday', 'stop recording and forget what was recorded'],
        ['--remove disk.qcow2 monday', 'delete a bitmap'],
      ],
    ),
  ).argument('<BITMAP>', 'the name of the bitmap');
  for (const [action, does] of PLAIN) {
    command.addOption(new Option(`--${action}`, does)).on(`option:${action}`, () => {
      asked.push({ do: action });
    });
  }
  return command
    .addOption(
      new Option('--merge <SOURCE>', 'make dirty in BITMAP what is dirty in the bitmap SOURCE').argParser(
        (source: string) => {
          asked.push({ do: 'merge', source });
        },
      ),
    )
    .addOption(
      new Option(
        '-g, --granularity <SIZE>',
        'with --add: bytes of the disk for one bit, 512 to 2G (default: the cluster size, 4k to 64k)',
      ).argParser(sizeValue),
    )
    .addOption(new Option('-b, --source-file <FILE>', 'with --merge: the image that has SOURCE'))
    .addOption(formatOption('-F, --source-format <FORMAT>', 'format of that image'))
    .action(async (file: string, name: string, flags: Flags) => {
      const { path, format, share } = sourceOf(file, flags);
      const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message, { path });
      const has = (action: Asked['do']): boolean => asked.some((one) => one.do === action);
      if (share) throw bad('-U is for looking; bitmaps are changed alone');
      if (asked.length === 0)
        throw bad('name what to do: --add, --remove, --clear, --enable, --disable or --merge');
      const { granularity, sourceFile, sourceFormat } = flags;
      if (granularity !== undefined && !has('add')) throw bad('--granularity goes with --add');
      if (sourceFile !== undefined && !has('merge')) throw bad('--source-file goes with --merge');
      if (sourceFormat !== undefined && sourceFile === undefined)
        throw bad('--source-format goes with --source-file');
      const from = sourceFile === undefined ? undefined : { path: sourceFile, format: sourceFormat };
      await changeBitmap(
        path,
        name,
        asked.map((one): BitmapAction => {
          if (one.do === 'merge') return { ...one, from };
          return one.do === 'add' ? { do: 'add', granularity } : { do: one.do };
        }),
        { format },
      );
    });
});
