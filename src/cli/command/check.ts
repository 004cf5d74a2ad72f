import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { check, checkExitCode, checkJson } from '../../op/check.ts';
import { openLocked } from '../../op/open.ts';
import { repairFile, repairJson, undoRepairFile, type RepairResult } from '../../op/repair.ts';
import { checkText, problemLine } from '../check-text.ts';
import { newCommand, outputOption, verb } from '../command-line.ts';
import { interruptible } from '../interrupt.ts';
import { progressOption, progressTo, type ProgressForm } from '../progress.ts';
import { out, OutputBuffer } from '../output.ts';
import { dryRunText, patchLine, plannedChange, repairText, type PlannedChange } from '../repair-text.ts';
import type { CheckResult } from '../../format/qcow2/check/check.ts';
import { sourceOf, withSourceOptions, type Source, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly output: 'human' | 'json';
  readonly repair?: 'leaks' | 'all';
  readonly dryRun?: boolean;
  readonly journal?: string;
  readonly undo?: string;
  readonly quiet?: boolean;
  readonly progress: ProgressForm;
}

/** The exit code for a format that has nothing to check. */
const NO_CHECKS = 63;

/** The command line of `check`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'check',
      'Look for damage in the tables of an image, and repair it with -r.\nExit code (with -r: of a check after the repair; with --dry-run: of the image as it is): 0 clean, 2 damaged, 3 only wasted space, 1 could not be checked, 63 the format has no checks.',
      [
        ['disk.qcow2', 'a verdict, and one line for each problem'],
        ['--output json disk.qcow2', 'the counts for a program'],
        ['-r all --dry-run disk.qcow2', 'what a repair would change; nothing is changed'],
        ['-r all --journal disk.undo disk.qcow2', 'a repair that can be taken back'],
        ['--undo disk.undo disk.qcow2', 'take it back'],
        ['-q disk.qcow2 && start-the-machine', 'the exit code only'],
      ],
    ),
  )
    .addOption(outputOption())
    .addOption(
      new Option('-r, --repair <WHAT>', 'repair leaks (wasted space) or all damage').choices([
        'leaks',
        'all',
      ]),
    )
    .addOption(new Option('--dry-run', 'with -r: tell each change, change nothing'))
    .addOption(new Option('--journal <NEW>', 'with -r: keep in this new file what takes the repair back'))
    .addOption(new Option('--undo <JOURNAL>', 'take a repair back'))
    .addOption(
      new Option('-T, --cache <MODE>', 'accepted as qemu-img does').choices([
        ...['none', 'off', 'directsync', 'writeback', 'writethrough', 'unsafe'],
      ]),
    )
    .addOption(new Option('-q, --quiet', 'print nothing but failures'))
    .addOption(progressOption())
    .action(async (file: string, flags: Flags) => {
      const source = sourceOf(file, flags);
      refuseNonsense(source, flags);
      if (flags.undo !== undefined) await undo(source, flags.undo, flags);
      else if (flags.repair === undefined) await work(source, file, flags, program !== 'qemu-img');
      else await repair(source, file, flags, flags.repair, program !== 'qemu-img');
    }),
);

/** @throws SpindleError BAD_OPTION */
function refuseNonsense({ share, path }: Source, flags: Flags): void {
  const { repair: mode, undo: journal } = flags;
  const bad = (message: string): SpindleError => new SpindleError('BAD_OPTION', message, { path });
  if (mode !== undefined && journal !== undefined) throw bad('--repair and --undo exclude each other');
  if (mode === undefined && flags.dryRun === true) throw bad('--dry-run goes with --repair');
  if (mode === undefined && flags.journal !== undefined) throw bad('--journal goes with --repair');
  if (flags.dryRun === true && flags.journal !== undefined)
    throw bad('--journal and --dry-run exclude each other: nothing is changed, so there is nothing to keep');
  if (share && (mode !== undefined || journal !== undefined))
    throw bad('--force-share is for looking: nobody else may use an image that is being changed');
}

/** What stands in the JSON of a dry run at most. */
const PLANNED = 10_000;

async function repair(
  { path, format }: Source,
  named: string,
  flags: Flags,
  mode: 'leaks' | 'all',
  withProblems: boolean,
): Promise<void> {
  const buffer = new OutputBuffer();
  const dryRun = flags.dryRun === true;
  const human = flags.output === 'human' && flags.quiet !== true;
  const planned: PlannedChange[] = [];
  let done: RepairResult;
  try {
    done = await repairFile(path, {
      ...{ mode, format, dryRun, journal: flags.journal, signal: interruptible() },
      ...(human ? { onProblem: (problem) => buffer.add(problemLine(problem)) } : {}),
      onProgress: progressTo(flags.quiet === true ? 'none' : flags.progress),
      onPatch: dryRun
        ? (patch) => {
            if (human) buffer.add(patchLine(patch));
            else if (planned.length < PLANNED) planned.push(plannedChange(patch));
          }
        : undefined,
    });
  } catch (error) {
    if (error instanceof SpindleError && error.code === 'UNSUPPORTED' && hasNoTables(error))
      process.exitCode = NO_CHECKS;
    throw error;
  }
  // After a dry run the image is what it was.
  const now = dryRun ? done.before : done.after;
  process.exitCode = checkExitCode(now);
  buffer.flush();
  if (flags.quiet === true) return;
  if (human) {
    out(dryRun ? dryRunText(done) : repairText(done, !withProblems) + checkText(done.after));
    if (!dryRun && flags.journal !== undefined && done.changes > 0)
      out(`'check --undo ${flags.journal}' takes the repair back.\n`);
    return;
  }
  const more = withProblems
    ? {
        ...(now.problems.length > 0 ? { problems: now.problems } : {}),
        ...(done.left.length > 0 ? { 'not-repaired': done.left.map(({ message }) => message) } : {}),
        ...(done.snapshots.mended.length > 0 ? { 'mended-snapshots': done.snapshots.mended } : {}),
        ...(done.snapshots.dropped.length > 0 ? { 'dropped-snapshots': done.snapshots.dropped } : {}),
        ...(dryRun ? { 'planned-changes': planned, 'after-repair': counts(done.after) } : {}),
      }
    : {};
  const json = dryRun ? checkJson(now, named, 'qcow2') : repairJson(done, named, 'qcow2');
  out(`${JSON.stringify({ ...json, ...more }, null, 4)}\n`);
}

function counts({ corruptions, leaks, checkErrors }: CheckResult): Readonly<Record<string, number>> {
  return { corruptions, leaks, 'check-errors': checkErrors };
}

async function undo({ path }: Source, journal: string, flags: Flags): Promise<void> {
  const { changes, size } = await undoRepairFile(path, journal);
  if (flags.quiet === true) return;
  if (flags.output === 'json') out(`${JSON.stringify({ filename: path, changes, size }, null, 4)}\n`);
  else out(`${String(changes)} changes were taken back; the image is as it was before the repair.\n`);
}

async function work(
  { path, format: wanted, share }: Source,
  named: string,
  flags: Flags,
  withProblems: boolean,
): Promise<void> {
  const { storage, format } = await openLocked(path, { format: wanted, share });
  try {
    if (format !== 'qcow2') {
      process.exitCode = NO_CHECKS;
      throw new SpindleError('UNSUPPORTED', `${format} images have no tables that could be checked`, {
        path,
      });
    }
    const buffer = new OutputBuffer();
    const human = flags.output === 'human' && flags.quiet !== true;
    const progress = progressTo(flags.quiet === true ? 'none' : flags.progress);
    const result = await check(storage, {
      ...(human ? { onProblem: (problem) => buffer.add(problemLine(problem)) } : {}),
      ...(progress === undefined ? {} : { onProgress: progress }),
    });
    process.exitCode = checkExitCode(result);
    buffer.flush();
    if (flags.quiet === true) return;
    if (human) {
      const separator = result.problems.length > 0 ? '\n' : '';
      out(separator + checkText(result));
      return;
    }
    const problems = withProblems && result.problems.length > 0 ? { problems: result.problems } : {};
    out(`${JSON.stringify({ ...checkJson(result, named, format), ...problems }, null, 4)}\n`);
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}

function hasNoTables({ message }: SpindleError): boolean {
  return message.startsWith('only qcow2 images have tables');
}
