import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { parseSize } from '../../core/size.ts';
import { dd, MOST_BLOCK } from '../../op/dd.ts';
import { formatOption, newCommand, verb } from '../command-line.ts';
import { alsoSpelled } from '../expand.ts';
import { interruptible } from '../interrupt.ts';
import { progressOption, progressTo, type ProgressForm } from '../progress.ts';
import { warn } from '../report.ts';
import { objectOption, secretFileOption, sourceOf, untrustedOption, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly outputFormat?: string;
  readonly progress: ProgressForm;
}

/** The command line of `dd`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'dd',
    'Copy a part of the disk in an image to a new image. Operands:\n  if=FILE      the image to read (with --image-opts: its description)\n  of=FILE      the image to make\n  bs=SIZE      bytes of a block (default: 512)\n  count=BLOCKS stop after so many blocks from the start of the source\n  skip=BLOCKS  leave out so many blocks at the start: count - skip blocks are copied',
    [
      ['if=disk.qcow2 of=disk.raw bs=1M', 'the whole disk, as raw'],
      ['if=disk.qcow2 of=start.raw bs=1M count=1', 'its first megabyte'],
      ['-O qcow2 bs=512 skip=2048 count=4096 if=disk.raw of=part.qcow2', 'sectors 2048 to 4095, as qcow2'],
    ],
  )
    .argument('<OPERANDS...>', 'what to copy, as above')
    .addOption(
      formatOption('-f, --format <FORMAT>', 'format of the source (default: told from its first bytes)'),
    )
    .addOption(new Option('--image-opts', 'if= is a list of options: driver=qcow2,file.filename=disk.qcow2'))
    .addOption(
      alsoSpelled(
        formatOption('-O, --output-format <FORMAT>', 'format of the new image (default: raw)'),
        '--target-format',
      ),
    )
    .option('-U, --force-share', 'read the source though another process may be changing it')
    .addOption(progressOption())
    .addOption(untrustedOption())
    .addOption(objectOption())
    .addOption(secretFileOption())
    .action((operands: string[], flags: Flags) => work(program, operands, flags)),
);

/** The operands of dd, by name. */
type Operands = Readonly<Record<'if' | 'of' | 'bs' | 'count' | 'skip', string | undefined>>;

async function work(program: string, words: readonly string[], flags: Flags): Promise<void> {
  const operands = operandsIn(words);
  const { if: input, of: output, bs, count, skip } = operands;
  if (input === undefined || output === undefined)
    throw bad('name the image to read and the image to make: if=FILE of=FILE');
  const blockSize = bs === undefined ? undefined : parseSize(bs);
  if (blockSize !== undefined && (blockSize < 1 || blockSize > MOST_BLOCK))
    throw bad(`bs=${String(bs)}: a block has 1 to ${String(MOST_BLOCK)} bytes`);
  const blocks = { count: blocksOf(count), skip: blocksOf(skip) };
  const { path, format, share, secret, gate } = sourceOf(input, flags);
  await dd(
    { path, format, share, secret, gate },
    { path: output, format: flags.outputFormat },
    {
      ...{ ...blocks, blockSize, signal: interruptible(), onProgress: progressTo(flags.progress) },
      onBeyond: () => {
        warn(program, path, 'the disk ends before the first block to copy, so that the new image is empty');
      },
    },
  );
}

function operandsIn(words: readonly string[]): Operands {
  const operands: Record<string, string | undefined> = {};
  for (const word of words) {
    const [, name = word, value] = /^([^=]*)=(.*)$/s.exec(word) ?? [];
    if (value === undefined || !['if', 'of', 'bs', 'count', 'skip'].includes(name))
      throw bad(`there is no operand '${name}'; dd takes if=, of=, bs=, count= and skip=`);
    operands[name] = value;
  }
  return operands as Operands;
}

/** A number of blocks, which may be any that qemu-img takes: past 2^53 it is past the end of every disk. */
function blocksOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (/^\s*\+?\d{16,19}$/.test(text) && BigInt(text.trim()) < 2n ** 63n) return Number(text);
  return parseSize(text);
}

function bad(message: string): SpindleError {
  return new SpindleError('BAD_OPTION', message);
}
