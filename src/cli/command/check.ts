import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { check, checkExitCode, checkJson } from '../../op/check.ts';
import { openLocked } from '../../op/open.ts';
import { checkText, problemLine } from '../check-text.ts';
import { newCommand, outputOption, verb } from '../command-line.ts';
import { out, OutputBuffer } from '../output.ts';
import { sourceOf, withSourceOptions, type Source, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly output: 'human' | 'json';
  readonly repair?: string;
  readonly quiet?: boolean;
}

/** The exit code for a format that has nothing to check. */
const NO_CHECKS = 63;

/** The command line of `check`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(
      program,
      'check',
      'Look for damage in the tables of an image. Nothing is changed.\nExit code: 0 clean, 2 damaged, 3 only wasted space, 1 could not be checked, 63 the format has no checks.',
      [
        ['disk.qcow2', 'a verdict, and one line for each problem'],
        ['--output json disk.qcow2', 'the counts for a program'],
        ['-q disk.qcow2 && start-the-machine', 'the exit code only'],
      ],
    ),
  )
    .addOption(outputOption())
    .addOption(
      new Option('-r, --repair <WHAT>', 'repair the image: not in this version').choices(['leaks', 'all']),
    )
    .addOption(
      new Option('-T, --cache <MODE>', 'accepted as qemu-img does; nothing is written').choices([
        ...['none', 'off', 'directsync', 'writeback', 'writethrough', 'unsafe'],
      ]),
    )
    .addOption(new Option('-q, --quiet', 'print nothing but failures'))
    .action(async (file: string, flags: Flags) => {
      const source = sourceOf(file, flags);
      if (flags.repair !== undefined) {
        throw new SpindleError(
          'UNSUPPORTED',
          'this version of spindle checks images; it cannot repair them yet',
          {
            path: source.path,
          },
        );
      }
      await work(source, flags, program !== 'qemu-img');
    }),
);

async function work(
  { path, format: wanted, share }: Source,
  flags: Flags,
  withProblems: boolean,
): Promise<void> {
  const { storage, format } = await openLocked(path, { format: wanted, share });
  try {
    if (format === 'raw') {
      process.exitCode = NO_CHECKS;
      throw new SpindleError('UNSUPPORTED', 'raw images have no tables that could be checked', { path });
    }
    const buffer = new OutputBuffer();
    const human = flags.output === 'human' && flags.quiet !== true;
    const result = await check(
      storage,
      human ? { onProblem: (problem) => buffer.add(problemLine(problem)) } : {},
    );
    process.exitCode = checkExitCode(result);
    buffer.flush();
    if (flags.quiet === true) return;
    if (human) {
      const separator = result.problems.length > 0 ? '\n' : '';
      out(separator + checkText(result));
      return;
    }
    const problems = withProblems && result.problems.length > 0 ? { problems: result.problems } : {};
    out(`${JSON.stringify({ ...checkJson(result, path, format), ...problems }, null, 4)}\n`);
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}
