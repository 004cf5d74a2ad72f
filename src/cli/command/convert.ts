import { join } from 'node:path';
import { InvalidArgumentError, Option } from 'commander';
import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../core/allocation.ts';
import { SpindleError } from '../../core/errors.ts';
import { formatSize } from '../../core/size.ts';
import { formatOf, knownFormat, type Format } from '../../format/open.ts';
import {
  convert,
  type ConvertOptions,
  type ConvertSource,
  type ExistingTarget,
  type NewTarget,
} from '../../op/convert.ts';
import { planConvert, type ConvertPlan } from '../../op/convert-plan.ts';
import { besideName } from '../../op/image-name.ts';
import { convertFromStream, convertToStream } from '../../op/convert-stream.ts';
import { cacheOption, type CacheMode } from '../cache-mode.ts';
import { collect, formatOption, newCommand, sizeValue, verb } from '../command-line.ts';
import { createOptionsHelp, parseCreateOptions, type Given } from '../create-options.ts';
import { encryptionOf, requestOf, type NewImageFlags } from '../create-request.ts';
import { alsoSpelled } from '../expand.ts';
import { interruptible } from '../interrupt.ts';
import { out } from '../output.ts';
import { progressOf } from '../percent.ts';
import { progressOption, type ProgressForm } from '../progress.ts';
import { warn, warnings } from '../report.ts';
import { snapshotIn } from '../snapshot-name.ts';
import {
  gateOf,
  objectOption,
  secretFileOption,
  sourceOf,
  untrustedOption,
  type SourceFlags,
} from '../source.ts';
import {
  fileBytes,
  peek,
  refuseTerminal,
  spool,
  spoolFolder,
  standardInput,
  STREAM,
  toStandardOutput,
} from '../stream.ts';

interface Flags extends SourceFlags, NewImageFlags {
  readonly sourceFormat?: string;
  readonly targetFormat?: string;
  readonly targetOptions: readonly string[];
  readonly targetImageOpts?: boolean;
  readonly allocation?: AllocationPolicy | 'keep';
  readonly compress?: boolean;
  readonly create: boolean;
  readonly targetIsZero?: boolean;
  readonly sourceSnapshot?: string;
  readonly sparseSize?: number;
  readonly rate?: number;
  readonly copyRangeOffloading?: boolean;
  readonly reflink: boolean;
  readonly salvage?: boolean;
  readonly bitmaps?: boolean;
  readonly skipBrokenBitmaps?: boolean;
  readonly targetCache?: CacheMode;
  readonly sourceCache?: CacheMode;
  readonly spool?: string;
  readonly plan?: boolean;
  readonly output: 'human' | 'json';
  readonly p?: boolean;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The command line of `convert`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'convert',
    'Copy the disk in an image to another image: another format, other options, without what is only zeroes.',
    [
      ['-O qcow2 disk.raw disk.qcow2', 'a raw image as qcow2'],
      ['-p -n disk.qcow2 /dev/vg/disk', 'onto a block device, with progress'],
      ['-c -O qcow2 -o compression_type=zstd disk.qcow2 small.qcow2', 'compressed'],
      ['-O qcow2 --allocation keep disk.qcow2 copy.qcow2', 'as thin or thick as the source is'],
      ["-O qcow2 disk.raw - | ssh host 'cat > disk.qcow2'", 'into a pipe; - is standard input or output'],
      ['-f raw -O qcow2 - disk.qcow2 < disk.raw', 'out of a pipe'],
      ['--plan -O qcow2 disk.raw disk.qcow2', 'what that would read and write, and how large it gets'],
      ['-l snapshot.name=before disk.qcow2 before.raw', 'the disk as an internal snapshot has it'],
      [
        '-O qcow2 -B base.qcow2 -F qcow2 top.qcow2 copy.qcow2',
        'an overlay, on top of the same or an equal base',
      ],
    ],
  )
    .argument(
      '[FILES...]',
      'the image to copy, or several to put one after the other; then the new image; - for a pipe',
    )
    .addOption(
      alsoSpelled(
        formatOption(
          '-f, --source-format <FORMAT>',
          'format of the sources (default: told from their first bytes)',
        ),
        '--format',
      ),
    )
    .addOption(
      alsoSpelled(
        new Option('--image-opts', 'the sources are lists of options: driver=qcow2,file.filename=disk.qcow2'),
        '--source-image-opts',
      ),
    )
    .addOption(
      alsoSpelled(
        formatOption('-O, --target-format <FORMAT>', 'format of the new image (default: raw)'),
        '--output-format',
      ),
    )
    .option('--target-image-opts', 'the target is a list of options; needs -n')
    .addOption(
      alsoSpelled(
        new Option(
          '-o, --target-options <LIST>',
          'options of the new image as name=value,...; -o help lists them',
        )
          .argParser(collect)
          .default([], 'none'),
        '--options',
      ),
    )
    .addOption(
      new Option('--allocation <POLICY>', 'when the host gives space; keep: as the source was made').choices([
        ...ALLOCATION_POLICIES,
        'keep',
      ]),
    )
    .option('-c, --compress', 'store data compressed (qcow2)')
    .option(
      '-B, --backing <FILE>',
      'make an overlay on this image, of what the top layer of the source holds',
    )
    .addOption(formatOption('-F, --backing-format <FORMAT>', 'format of that image; needed with -B'))
    .option('-n, --no-create', 'write over the disk of an image that exists')
    .option('--target-is-zero', 'that disk reads as zeroes: do not write zeroes; needs -n')
    .addOption(
      alsoSpelled(
        new Option(
          '-l, --source-snapshot <SNAPSHOT>',
          'an internal snapshot of the source: its id or name, or snapshot.name=NAME',
        ),
        '--snapshot',
      ),
    )
    .addOption(
      new Option(
        '-S, --sparse-size <SIZE>',
        'look for this much of zeroes in data (default: 4k); 0: write everything, so that nothing is sparse',
      ).argParser(sizeValue),
    )
    .addOption(
      alsoSpelled(
        new Option('-r, --rate <SIZE>', 'bytes a second at most').argParser(sizeValue),
        '--rate-limit',
      ),
    )
    .addOption(
      new Option('-m, --parallel <NUMBER>', 'accepted: how much is done at a time is decided here').argParser(
        parallel,
      ),
    )
    .option('-W, --oob-writes', 'accepted: parts are written in the order of the disk all the same')
    .addOption(
      alsoSpelled(
        new Option(
          '-C, --copy-range-offloading',
          'accepted: blocks are shared where the file system can, also without it',
        ),
        '--copy-range',
      ),
    )
    .option('--no-reflink', 'do not share blocks with the source, though the file system could')
    .option('--bitmaps', 'copy the persistent bitmaps of the source too (qcow2)')
    .option('--skip-broken-bitmaps', 'leave out bitmaps that are inconsistent; needs --bitmaps')
    .option('--plan', 'tell what would be read, shared and written, and change nothing')
    .addOption(new Option('--output <FORM>', 'form of --plan').choices(['human', 'json']).default('human'))
    .option('--salvage', 'fill with zeroes what cannot be read')
    .option(
      '--spool <FOLDER>',
      'where a file is kept for a pipe that needs one (default: that for temporary files)',
    )
    .addOption(
      alsoSpelled(
        cacheOption('-t, --target-cache <MODE>', 'cache of the target (default: unsafe)'),
        '--cache',
      ),
    )
    .addOption(cacheOption('-T, --source-cache <MODE>', 'cache of the sources (default: writeback)'))
    .option('-p', 'tell progress on standard output, as qemu-img does')
    .option('-q, --quiet', 'print nothing')
    .option('-U, --force-share', 'read the sources though another process may be changing them')
    .addOption(progressOption())
    .addOption(untrustedOption())
    .addOption(objectOption())
    .addOption(secretFileOption())
    .action((files: string[], flags: Flags) => work(program, files, flags)),
);

function parallel(text: string): number {
  const number = Number(text);
  if (Number.isInteger(number) && number >= 1 && number <= 16) return number;
  throw new InvalidArgumentError('it takes a number from 1 to 16');
}

async function work(program: string, files: readonly string[], flags: Flags): Promise<void> {
  const format = knownFormat(flags.targetFormat) ?? 'raw';
  const given = parseCreateOptions(format, flags.targetOptions);
  if (given === 'help') {
    out(createOptionsHelp(format));
    return;
  }
  const path = files.at(-1) ?? '';
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message);
  if (files.length < 2) throw bad('name the image to copy and the new image');
  const existing = !flags.create;
  refuseMixtures(flags, existing, bad);
  const unreadable: number[] = [];
  const options: ConvertOptions = {
    compress: flags.compress,
    sparse: flags.sparseSize,
    share: flags.reflink,
    rate: flags.rate,
    bitmaps: flags.bitmaps,
    signal: interruptible(),
    onProgress: progressOf(flags),
    ...(flags.skipBrokenBitmaps === true
      ? {
          onBitmapSkipped: (name: string) => {
            warn(program, files[0] ?? '', `bitmap '${name}' is inconsistent and is not copied`);
          },
        }
      : {}),
    ...(flags.salvage === true
      ? { onUnreadable: (_at: number, length: number) => void unreadable.push(length) }
      : {}),
  };
  const plan = { program, path, format, flags, given, existing, options };
  const names = files.slice(0, -1);
  if (flags.plan === true) {
    if (files.includes(STREAM)) throw bad('--plan looks at files: a pipe tells nothing beforehand');
    const sources = names.map((file, index) => sourceIn(file, flags, index));
    printPlan(await planConvert(sources, targetIn(plan), options), flags);
  } else if (names.includes(STREAM)) await fromStream(names, plan);
  else {
    const sources = names.map((file, index) => sourceIn(file, flags, index));
    if (path === STREAM && !existing) await toStream(sources, plan);
    else await convert(sources, targetIn(plan), options);
  }
  const lost = unreadable.reduce((sum, length) => sum + length, 0);
  if (lost > 0) warn(program, files[0] ?? '', `${formatSize(lost)} could not be read and are zeroes now`);
}

function printPlan(plan: ConvertPlan, { output, compress }: Flags): void {
  if (output === 'json') {
    out(`${JSON.stringify(plan, null, 4)}\n`);
    return;
  }
  const { size, read, shared, zero, absent, required, free, exists } = plan;
  const told = (bytes: number): string => `${formatSize(bytes)} (${String(bytes)} bytes)`;
  const lines = [
    `disk: ${told(size)}`,
    `read and written, but for zeroes found in it: ${told(read)}`,
    ...(shared > 0 ? [`shared if the file system can, else read and written: ${told(shared)}`] : []),
    `zeroes, not read: ${told(zero)}`,
    ...(absent > 0 ? [`left to the backing file: ${told(absent)}`] : []),
    ...(required === null
      ? ['target: exists; its disk is written over']
      : [`new image file: ${compress === true ? 'less than ' : 'at most '}${told(required)}`]),
    ...(free === null ? [] : [`free there: ${told(free)}`]),
    ...(exists && required !== null
      ? ['a file of this name exists: it is replaced when the new one is complete']
      : []),
  ];
  out(`${lines.join('\n')}\n`);
}

/** What the command line asks for. */
interface Plan {
  readonly program: string;
  readonly path: string;
  readonly format: Format;
  readonly flags: Flags;
  readonly given: ReadonlyMap<string, Given>;
  readonly existing: boolean;
  readonly options: ConvertOptions;
}

function targetIn({ program, path, format, flags, given, existing }: Plan): NewTarget | ExistingTarget {
  return existing ? existingTarget(path, flags) : newTarget(program, path, format, flags, given);
}

/** To standard output: in one pass where the image can be laid out beforehand, else by way of a file. */
async function toStream(sources: readonly ConvertSource[], plan: Plan): Promise<void> {
  refuseTerminal();
  const { program, format, flags, given, options } = plan;
  const target = newTarget(program, STREAM, format, flags, given);
  const direct =
    flags.compress !== true &&
    flags.bitmaps !== true &&
    target.encryption === undefined &&
    format !== 'luks' &&
    target.preallocation === undefined &&
    flags.allocation === undefined &&
    target.qcow2?.dataFile === undefined &&
    flags.sparseSize === undefined;
  if (direct) return toStandardOutput(convertToStream(sources, { ...target, format }, options));
  if (target.qcow2?.dataFile !== undefined)
    throw new SpindleError(
      'UNSUPPORTED',
      'an image with an external data file is two files: a pipe takes one',
    );
  const path = join(spoolFolder(flags.spool), 'image');
  await convert(sources, { ...target, path, lasting: false }, options);
  await toStandardOutput(fileBytes(path));
}

/** From standard input: raw as it comes; anything else by way of a file. */
async function fromStream(names: readonly string[], plan: Plan): Promise<void> {
  const { flags, options, existing } = plan;
  if (names.length > 1)
    throw new SpindleError('BAD_OPTION', 'standard input is a source by itself, not one of several');
  const { first, whole } = await peek(standardInput(), 8);
  const format = knownFormat(flags.sourceFormat) ?? formatOf(first);
  const target = targetIn(plan);
  const fits = (one: NewTarget): boolean =>
    (one.allocation ?? 'thin') === 'thin' && (one.preallocation ?? 'off') === 'off';
  const straight = format === 'raw' && plan.path !== STREAM && flags.bitmaps !== true;
  if (straight && target.existing !== true && fits(target)) {
    await convertFromStream(whole, target, options);
    return;
  }
  const path = join(spoolFolder(flags.spool), 'source');
  await spool(whole, path);
  const source = { ...sourceIn(path, { ...flags, imageOpts: false, sourceFormat: format }, 0) };
  if (plan.path === STREAM && !existing) await toStream([source], plan);
  else await convert([source], target, options);
}

/** Options that exclude each other, as far as the command line alone tells. */
function refuseMixtures(flags: Flags, existing: boolean, bad: (message: string) => SpindleError): void {
  if (flags.targetIsZero === true && !existing)
    throw bad('--target-is-zero is for a target that exists: add -n');
  if (flags.targetImageOpts === true && !existing)
    throw bad('--target-image-opts describes an image that exists: add -n');
  if (flags.skipBrokenBitmaps === true && flags.bitmaps !== true)
    throw bad('--skip-broken-bitmaps needs --bitmaps');
  if (existing && flags.targetOptions.length > 0)
    throw bad('-o is for a new image; with -n the target keeps its own options');
  if (existing && (flags.backing !== undefined || flags.allocation !== undefined))
    throw bad('-B and --allocation are for a new image; with -n the target stays as it was made');
  if (flags.copyRangeOffloading === true && flags.sparseSize !== undefined)
    throw bad('-C and -S exclude each other: what the host copies is not looked at');
  if (flags.copyRangeOffloading === true && flags.salvage === true)
    throw bad('-C and --salvage exclude each other: what the host copies is not read here');
  if (flags.copyRangeOffloading === true && flags.compress === true)
    throw bad('-C and -c exclude each other: compressed data is not copied by the host');
}

function sourceIn(file: string, flags: Flags, index: number): ConvertSource {
  const { path, format, share, secret, gate } = sourceOf(file, {
    ...flags,
    ...(flags.sourceFormat === undefined ? {} : { format: flags.sourceFormat }),
  });
  const snapshot =
    index === 0 && flags.sourceSnapshot !== undefined ? snapshotIn(flags.sourceSnapshot) : undefined;
  return { path, format, share, secret, snapshot, gate, direct: flags.sourceCache?.direct };
}

function existingTarget(file: string, flags: Flags): ExistingTarget {
  const { path, format, secret, gate } = sourceOf(file, {
    ...(flags.untrusted === true ? { untrusted: true } : {}),
    object: flags.object,
    ...(flags.secretFile === undefined ? {} : { secretFile: flags.secretFile }),
    ...(flags.targetImageOpts === true ? { imageOpts: true } : { format: flags.targetFormat ?? 'raw' }),
  });
  return {
    existing: true,
    path,
    format,
    secret,
    gate,
    zeroed: flags.targetIsZero,
    direct: flags.targetCache?.direct,
  };
}

function newTarget(
  program: string,
  path: string,
  format: Format,
  flags: Flags,
  given: ReadonlyMap<string, Given>,
): NewTarget {
  const encryption = encryptionOf(format, flags, given);
  const request = requestOf(path, undefined, flags, given);
  const { backing } = request;
  return {
    ...request,
    ...(encryption === null ? {} : { encryption }),
    format,
    allocation: flags.allocation,
    gate: gateOf(flags, backing === undefined ? [] : [besideName(backing.name, path)], true),
    lasting: flags.targetCache !== undefined && !flags.targetCache.unsafe,
    direct: flags.targetCache?.direct,
    onWarning: warnings(program, path),
  };
}
