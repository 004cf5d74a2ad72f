import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { formatSize } from '../../core/size.ts';
import { bench, type Benched, type BenchPlan } from '../../op/bench.ts';
import { cacheOption, type CacheMode } from '../cache-mode.ts';
import { newCommand, outputOption, sizeValue, verb } from '../command-line.ts';
import { stoppable } from '../interrupt.ts';
import { numberValue } from '../number-value.ts';
import { out } from '../output.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly cache?: CacheMode;
  readonly count?: number;
  readonly depth?: number;
  readonly bufferSize?: number;
  readonly stepSize?: number;
  readonly offset?: number;
  readonly aio?: 'threads' | 'native' | 'io_uring';
  readonly native?: boolean;
  readonly write?: boolean;
  readonly pattern?: number;
  readonly flushInterval?: number;
  readonly drain: boolean;
  readonly output: 'human' | 'json';
  readonly quiet?: boolean;
}

/** The command line of `bench`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'bench',
      'Time requests to the disk in an image, many at a time.\nWith -w it WRITES OVER THE DISK: what is there is lost. Without -w nothing is changed.',
      [
        ['disk.qcow2', '75000 reads of 4 KiB, one after the other, 64 at a time'],
        ['-t none -c 10000 -s 64k -S 1M disk.raw', '10000 reads of 64 KiB, 1 MiB apart, past the page cache'],
        [
          '-w -c 1000 -d 1 --flush-interval 1 scratch.qcow2',
          'durable writes, one by one; the disk in scratch.qcow2 is lost',
        ],
      ],
    ),
  )
    .addOption(cacheOption('-t, --cache <MODE>', 'cache of the image (default: writeback)'))
    .addOption(new Option('-c, --count <NUMBER>', 'requests in all (default: 75000)').argParser(numberValue))
    .addOption(new Option('-d, --depth <NUMBER>', 'requests at a time (default: 64)').argParser(numberValue))
    .addOption(
      new Option('-s, --buffer-size <SIZE>', 'bytes of a request (default: 4k)').argParser(sizeValue),
    )
    .addOption(
      new Option('-S, --step-size <SIZE>', 'from one request to the next (default: their size)').argParser(
        sizeValue,
      ),
    )
    .addOption(new Option('-o, --offset <OFFSET>', 'of the first request (default: 0)').argParser(sizeValue))
    .option('-w, --write', 'write over the disk instead of reading it: what is there is lost')
    .addOption(
      new Option('--pattern <BYTE>', 'the byte to write, 0 to 255 (default: 0)').argParser(numberValue),
    )
    .addOption(
      new Option(
        '--flush-interval <NUMBER>',
        'writes after which they are made durable; at least the depth',
      ).argParser(numberValue),
    )
    .option('--no-drain', 'flush while other requests are in flight')
    .addOption(
      new Option('-i, --aio <WAY>', 'accepted: spindle has one way to do requests').choices([
        ...['threads', 'native', 'io_uring'],
      ]),
    )
    .option('-n, --native', 'the same as --aio native')
    .addOption(outputOption())
    .option('-q, --quiet', 'accepted as qemu-img does')
    .action((file: string, flags: Flags) => work(program, file, flags)),
);

async function work(program: string, file: string, flags: Flags): Promise<void> {
  const { path, format, share, secret, gate } = sourceOf(file, flags);
  const { cache, count, depth, offset, write, pattern, flushInterval, drain } = flags;
  if ((flags.native === true || flags.aio === 'native') && cache?.direct !== true)
    throw new SpindleError('BAD_OPTION', 'native requests bypass the page cache: they need -t none', {
      path,
    });
  const human = flags.output === 'human';
  const done = await bench(path, {
    ...{ format, share, secret, gate, count, depth, offset, write, pattern, flushInterval, drain },
    ...{ length: flags.bufferSize, step: flags.stepSize },
    ...{ direct: cache?.direct, through: cache?.through, unsafe: cache?.unsafe },
    signal: stoppable(),
    onStart: (plan) => {
      if (human) out(startText(plan));
    },
  });
  if (human) out(doneText(done, program !== 'qemu-img'));
  else out(jsonText(done));
}

function startText({ count, write, length, depth, offset, step, flushInterval }: BenchPlan): string {
  const start =
    `Sending ${String(count)} ${write ? 'write' : 'read'} requests, ${String(length)} bytes each, ` +
    `${String(depth)} in parallel (starting at offset ${String(offset)}, step size ${String(step)})\n`;
  if (flushInterval === 0) return start;
  return `${start}Sending flush every ${String(flushInterval)} requests\n`;
}

function doneText({ seconds, requests, bytes }: Benched, more: boolean): string {
  const line = `Run completed in ${seconds.toFixed(3)} seconds.\n`;
  if (!more) return line;
  const rate = Math.round(requests / Math.max(seconds, 1e-6));
  return `${line}${String(rate)} requests and ${formatSize(bytes / Math.max(seconds, 1e-6))} a second.\n`;
}

function jsonText({ seconds, requests, bytes, flushes }: Benched): string {
  const rate = (amount: number): number => Math.round(amount / Math.max(seconds, 1e-6));
  const answer = {
    seconds,
    requests,
    bytes,
    flushes,
    requestsPerSecond: rate(requests),
    bytesPerSecond: rate(bytes),
  };
  return `${JSON.stringify(answer, null, 4)}\n`;
}
