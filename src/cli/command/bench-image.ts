import { InvalidArgumentError, Option } from 'commander';
import { ACCESSES, type Access, type SizeShare } from '../../benchmark/access.ts';
import { benchImages } from '../../benchmark/image.ts';
import type { WriteData } from '../../benchmark/image-plan.ts';
import { SpindleError } from '../../core/errors.ts';
import { startText, benchText } from '../bench-image-text.ts';
import { cacheOption, type CacheMode } from '../cache-mode.ts';
import { newCommand, outputOption, sizeValue, verb } from '../command-line.ts';
import { stoppable } from '../interrupt.ts';
import { numberValue } from '../number-value.ts';
import { complain, out } from '../output.ts';
import { progressOption, progressTo, type ProgressForm } from '../progress.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly cache?: CacheMode;
  readonly access?: Access;
  readonly count?: number;
  readonly duration?: number;
  readonly depth?: number;
  readonly bufferSize?: number;
  readonly sizes?: SizeShare[];
  readonly stepSize?: number;
  readonly offset?: number;
  readonly range?: number;
  readonly write?: boolean;
  readonly readPercent?: number;
  readonly data?: WriteData;
  readonly pattern?: number;
  readonly seed?: number;
  readonly flushInterval?: number;
  readonly drain: boolean;
  readonly aio?: string;
  readonly native?: boolean;
  readonly progress: ProgressForm;
  readonly output: 'human' | 'json';
  readonly quiet?: boolean;
}

/** The command line of `bench image`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'bench image',
      'Time reads and writes of the disks in images, each image with a queue of its own: how many, and how long each took.\nWith -w it WRITES OVER THE DISKS: what is there is lost. Without -w nothing is changed.',
      [
        ['--access random --duration 10 disk.qcow2', 'random reads of 4 KiB for ten seconds, 64 at a time'],
        [
          '-w --access random --read-percent 70 -d 16 scratch.qcow2',
          'seven reads to three writes; the disk in scratch.qcow2 is lost',
        ],
        [
          '--sizes 4k:80,64k:15,1M:5 -t none a.raw b.raw',
          'a mix of sizes, past the page cache, on two disks at once',
        ],
        [
          '--access random --seed 7 --output json disk.raw',
          'the very requests of an earlier run, for a script',
        ],
      ],
    ),
    '<FILE...>',
  )
    .addOption(cacheOption('-t, --cache <MODE>', 'cache of the images (default: writeback)'))
    .addOption(
      new Option(
        '--access <WAY>',
        'where one request lies after the other (default: sequential; strided with -S)',
      ).choices([...ACCESSES]),
    )
    .addOption(
      new Option(
        '-c, --count <NUMBER>',
        'requests for each image (default: 75000, or as many as the duration allows)',
      ).argParser(numberValue),
    )
    .addOption(
      new Option('--duration <SECONDS>', 'begin no further request after that').argParser(secondsValue),
    )
    .addOption(
      new Option('-d, --depth <NUMBER>', 'requests at a time for each image (default: 64)').argParser(
        numberValue,
      ),
    )
    .addOption(
      new Option('-s, --buffer-size <SIZE>', 'bytes of a request (default: 4k)').argParser(sizeValue),
    )
    .addOption(
      new Option(
        '--sizes <LIST>',
        'several sizes, drawn by their weights, such as 4k:80,64k:20; instead of -s',
      ).argParser(sizesValue),
    )
    .addOption(
      new Option(
        '-S, --step-size <SIZE>',
        'strided access: from one request to the next; each pass starts one request later',
      ).argParser(sizeValue),
    )
    .addOption(
      new Option('-o, --offset <OFFSET>', 'where the range that is touched starts (default: 0)').argParser(
        sizeValue,
      ),
    )
    .addOption(
      new Option('--range <SIZE>', 'how long that range is (default: to the end of the disk)').argParser(
        sizeValue,
      ),
    )
    .option('-w, --write', 'write over the disks: what is there is lost')
    .addOption(
      new Option(
        '--read-percent <NUMBER>',
        'how many of 100 requests read, by chance; fewer than 100 need -w (default: 0 with -w)',
      ).argParser(percentValue),
    )
    .addOption(
      new Option(
        '--data <WHAT>',
        'what is written: noise (which neither compresses nor repeats), zero, or a byte, 0 to 255 (default: noise)',
      ).argParser(dataValue),
    )
    .addOption(
      new Option('--pattern <BYTE>', 'the same as --data BYTE, as bench spells it').argParser(numberValue),
    )
    .addOption(
      new Option(
        '--seed <NUMBER>',
        'of places, sizes, mix and noise (default: by chance, and printed)',
      ).argParser(numberValue),
    )
    .addOption(
      new Option(
        '--flush-interval <NUMBER>',
        'requests after which what was written is made durable; at least the depth (default: at the end only)',
      ).argParser(numberValue),
    )
    .option('--no-drain', 'flush while other requests are in flight')
    .addOption(
      new Option('-i, --aio <WAY>', 'accepted: spindle has one way to do requests').choices([
        ...['threads', 'native', 'io_uring'],
      ]),
    )
    .option('-n, --native', 'the same as --aio native')
    .addOption(progressOption())
    .addOption(outputOption())
    .option('-q, --quiet', 'print no progress')
    .action(work),
);

async function work(files: readonly string[], flags: Flags): Promise<void> {
  const { access, cache, count, depth, duration, offset, range, write, readPercent, seed } = flags;
  if ((flags.native === true || flags.aio === 'native') && cache?.direct !== true)
    throw new SpindleError('BAD_OPTION', 'native requests bypass the page cache: they need -t none');
  if (flags.sizes !== undefined && flags.bufferSize !== undefined)
    throw new SpindleError('BAD_OPTION', '-s is one size and --sizes are several: give one of the two');
  if (flags.data !== undefined && flags.pattern !== undefined)
    throw new SpindleError('BAD_OPTION', '--pattern BYTE is --data BYTE: give one of the two');
  const images = files.map((file) => {
    const { path, format, share, secret, gate } = sourceOf(file, flags);
    return { ...{ path, format, share, secret, gate }, direct: cache?.direct };
  });
  const human = flags.output === 'human';
  const found = await benchImages(images, {
    ...{ access, count, depth, duration, offset, range, write, readPercent, seed },
    sizes:
      flags.sizes ?? (flags.bufferSize === undefined ? undefined : [{ size: flags.bufferSize, weight: 1 }]),
    ...{ step: flags.stepSize === 0 ? undefined : flags.stepSize, data: flags.data ?? flags.pattern },
    ...{ flushInterval: flags.flushInterval, drain: flags.drain },
    ...{ through: cache?.through, unsafe: cache?.unsafe, signal: stoppable() },
    onProgress: progressTo(flags.quiet === true ? 'none' : flags.progress),
    onStart: (plan) => {
      if (human) out(startText(plan, files));
      // Known also where the run never comes to its end.
      else if (flags.quiet !== true) complain(`seed ${String(plan.seed)}`);
    },
  });
  out(human ? benchText(found) : `${JSON.stringify(found)}\n`);
}

function secondsValue(text: string): number {
  const value = Number(text);
  if (/^\d+(\.\d+)?$/.test(text) && value > 0) return value;
  throw new InvalidArgumentError('it takes a number of seconds above 0');
}

function percentValue(text: string): number {
  const value = Number(text);
  if (/^\d+(\.\d+)?$/.test(text) && value <= 100) return value;
  throw new InvalidArgumentError('it takes a number from 0 to 100');
}

function dataValue(text: string): WriteData {
  if (text === 'noise') return 'noise';
  if (text === 'zero') return 0;
  const value = /^(\d+|0[xX][0-9a-fA-F]+)$/.test(text) ? Number(text) : NaN;
  if (value <= 255) return value;
  throw new InvalidArgumentError('it takes noise, zero, or a byte from 0 to 255');
}

function sizesValue(text: string): SizeShare[] {
  return text.split(',').map((part) => {
    const [size = '', weight = '1', ...more] = part.split(':');
    if (more.length > 0 || !/^\d+$/.test(weight))
      throw new InvalidArgumentError('it takes sizes and their weights, such as 4k:80,64k:20');
    return { size: sizeValue(size), weight: Number(weight) };
  });
}
