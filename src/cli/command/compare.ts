import { alignDown } from '../../core/align.ts';
import type { SecretSource } from '../../core/crypto.ts';
import { SpindleError } from '../../core/errors.ts';
import { compare, compareExitCode, type Compared, type CompareSide } from '../../op/compare.ts';
import { cacheOption, type CacheMode } from '../cache-mode.ts';
import { formatOption, newCommand, outputOption, verb, type Verb } from '../command-line.ts';
import { alsoSpelled } from '../expand.ts';
import { interruptible } from '../interrupt.ts';
import { out } from '../output.ts';
import { progressOf } from '../percent.ts';
import { progressOption, type ProgressForm } from '../progress.ts';
import { objectOption, secretFileOption, sourceOf, untrustedOption, type SourceFlags } from '../source.ts';
import { Option } from 'commander';

interface Flags extends SourceFlags {
  readonly secondFormat?: string;
  readonly strict?: boolean;
  readonly cache?: CacheMode;
  readonly output: 'human' | 'json';
  readonly p?: boolean;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The disks differ. */
const DIFFERENT = 1;

/** Bytes in which scripts know differences from qemu-img. */
const SECTOR = 512;

let verdict = false;

const command = verb((program) =>
  newCommand(
    program,
    'compare',
    'Tell whether two images hold the same disk, whatever their formats. Where one disk is longer, the rest of it must be zeroes.\nExit code: 0 the same, 1 different, 2 an image cannot be opened or the command line is wrong, 3 the tables cannot be read, 4 data cannot be read.',
    [
      ['disk.raw disk.qcow2', 'the first difference, or that there is none'],
      ['-f raw -F qcow2 disk.raw disk.qcow2', 'with the formats named, as a guest may have written anything'],
      ['-q -U a.qcow2 b.qcow2 && echo the same', 'the exit code only, of images in use'],
      ['-s --output json a.qcow2 b.qcow2', 'also the sizes, and what is allocated'],
    ],
  )
    .argument('<FILE1>', 'an image (with --image-opts: its description)')
    .argument('<FILE2>', 'another one')
    .addOption(
      alsoSpelled(
        formatOption('-f, --format <FORMAT>', 'format of FILE1 (default: told from its first bytes)'),
        '--a-format',
      ),
    )
    .addOption(
      alsoSpelled(
        formatOption('-F, --second-format <FORMAT>', 'format of FILE2 (default: told from its first bytes)'),
        '--b-format',
      ),
    )
    .addOption(new Option('--image-opts', 'both are lists of options: driver=qcow2,file.filename=disk.qcow2'))
    .option('-s, --strict', 'the sizes must be equal, and in each place what is data, zero and allocated')
    .addOption(cacheOption('-T, --cache <MODE>', 'cache of both images (default: writeback)'))
    .addOption(outputOption())
    .option('-p', 'tell progress on standard output, as qemu-img does')
    .option('-q, --quiet', 'print nothing but failures')
    .addOption(untrustedOption())
    .option('-U, --force-share', 'read the images though another process may be changing them')
    .addOption(progressOption())
    .addOption(objectOption())
    .addOption(secretFileOption())
    .action(work),
);

async function work(first: string, second: string, flags: Flags): Promise<void> {
  const { secondFormat, format, ...rest } = flags;
  const side = (file: string, name: string | undefined): CompareSide => {
    const { path, ...source } = sourceOf(
      file,
      { ...rest, ...(name === undefined ? {} : { format: name }) },
      flags.imageOpts === true ? [] : [first, second],
    );
    const secret = needed(source.secret);
    return { path, ...source, secret, direct: flags.cache?.direct };
  };
  try {
    const done = await compare(side(first, format), side(second, secondFormat), {
      strict: flags.strict,
      signal: interruptible(),
      onProgress: progressOf(flags, ''),
    });
    verdict = true;
    process.exitCode = done.difference === null ? 0 : DIFFERENT;
    if (flags.quiet !== true) out(flags.output === 'json' ? jsonText(done) : text(done));
    // Where qemu-img ends the line of progress: after the verdict.
    if (flags.p === true && flags.quiet !== true) out('\n');
  } catch (error) {
    process.exitCode = compareExitCode(error);
    throw error;
  }
}

/** What cannot be opened cannot be compared, not even where it is known to be zeroes. */
function needed(secret: SecretSource): SecretSource {
  return async (request) => {
    const bytes = await secret(request);
    if (bytes === null)
      throw new SpindleError('ENCRYPTED', 'the image is encrypted, and there is no secret for it', {
        path: request.name,
      });
    return bytes;
  };
}

/** The lines that scripts know from qemu-img. */
function text({ difference, sizes }: Compared): string {
  const offset = difference?.offset ?? 0;
  const rest = sizes[0] !== sizes[1] && (difference === null || offset >= Math.min(...sizes));
  const warning = rest && difference?.kind !== 'size' ? 'Warning: Image size mismatch!\n' : '';
  switch (difference?.kind) {
    case undefined:
      return `${warning}Images are identical.\n`;
    case 'size':
      return 'Strict mode: Image size mismatch!\n';
    case 'status':
      return `Strict mode: Offset ${String(offset)} block status mismatch!\n`;
    case 'content':
      return `${warning}Content mismatch at offset ${String(alignDown(offset, SECTOR))}!\n`;
  }
}

function jsonText({ difference, sizes, read }: Compared): string {
  const answer = {
    identical: difference === null,
    ...(difference === null ? {} : { difference: difference.kind }),
    ...(difference === null || difference.offset === null ? {} : { offset: difference.offset }),
    sizes,
    read,
  };
  return `${JSON.stringify(answer, null, 4)}\n`;
}

/** The command line of `compare`. */
export const define: Verb['define'] = command.define;

/** Runs it. Exit code 1 says that the disks differ, and nothing else. */
export const run: Verb['run'] = async (args, program) => {
  await command.run(args, program);
  if (process.exitCode === DIFFERENT && !verdict) process.exitCode = 2;
};
