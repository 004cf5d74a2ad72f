import { realpathSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { SpindleError } from '../../core/errors.ts';
import { newCommand, outputOption, verb } from '../command-line.ts';
import { lookAtHost } from '../doctor/host.ts';
import { mountOf } from '../../storage/mount.ts';
import { tryFileSystem, untried, type Trial } from '../doctor/probe.ts';
import { doctorText } from '../doctor/text.ts';
import { out } from '../output.ts';

/** The command line of `doctor`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'doctor',
    'Tell what this host can do, and what the file system at PATH can do, by trying it on a temporary file.',
    [
      ['', 'this host and the current directory'],
      ['/var/lib/libvirt/images', 'another place'],
      ['--output json .', 'for a program, or for a bug report'],
    ],
  )
    .argument('[PATH]', 'a directory, or a file in it', '.')
    .addOption(outputOption())
    .action(async (path: string, flags: { readonly output: 'human' | 'json' }) => {
      const folder = folderOf(path);
      let trials: Trial[] = untried();
      let problem: string | null = null;
      try {
        trials = await tryFileSystem(folder);
      } catch (error) {
        problem = error instanceof Error ? error.message : String(error);
      }
      const findings = {
        ...lookAtHost(),
        path: folder,
        fileSystem: mountOf(folder) ?? null,
        trials,
        problem,
      };
      out(flags.output === 'json' ? `${JSON.stringify(findings, null, 4)}\n` : doctorText(findings));
    }),
);

function folderOf(path: string): string {
  try {
    const real = realpathSync(path);
    return statSync(real).isDirectory() ? real : dirname(real);
  } catch (error) {
    const why =
      (error as NodeJS.ErrnoException).code === 'ENOENT'
        ? 'there is no such file or directory'
        : String(error);
    throw new SpindleError('NOT_FOUND', why, { path, cause: error });
  }
}
