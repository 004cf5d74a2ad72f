import { SpindleError } from '../core/errors.ts';
import { systemError, type Subject } from './errno.ts';

/** A program that does for a descriptor what Node cannot. */
export interface Program {
  readonly name: string;
  /** The Debian, Fedora and Arch package that holds it, for the message when it is missing. */
  readonly package: string;
  /** The system call that it stands for. */
  readonly call: string;
}

/** The path under which a program finds the descriptor it was given. */
export const GIVEN_FILE = '/proc/self/fd/3';

/** What the C library says for an error number, in the C locale, at the end of a program's complaint. */
const WORDS: readonly (readonly [string, string])[] = [
  ['keep size mode is unsupported', 'EOPNOTSUPP'],
  ['No space left on device', 'ENOSPC'],
  ['Disk quota exceeded', 'EDQUOT'],
  ['File too large', 'EFBIG'],
  ['Operation not supported', 'EOPNOTSUPP'],
  ['Function not implemented', 'ENOSYS'],
  ['Inappropriate ioctl for device', 'ENOTTY'],
  ['not a block device', 'ENOTTY'],
  ['No such device', 'ENODEV'],
  ['Invalid argument', 'EINVAL'],
  ['not aligned', 'EINVAL'],
  ['Permission denied', 'EACCES'],
  ['Operation not permitted', 'EPERM'],
  ['Read-only file system', 'EROFS'],
  ['Bad file descriptor', 'EBADF'],
  ['Text file busy', 'ETXTBSY'],
  ['Illegal seek', 'ESPIPE'],
  ['FIEMAP unsupported', 'EOPNOTSUPP'],
];

/**
 * Runs a program with an argument vector (no shell) and `fd` as its descriptor 3. `onLine` sees each line of its
 * output and may return false to end it early, which is no failure.
 * @throws UNSUPPORTED naming the package when the program is missing, else the code of its complaint
 */
export async function runProgram(
  program: Program,
  args: readonly string[],
  subject: Subject & { readonly fd: number },
  onLine: (line: string) => boolean = () => true,
): Promise<void> {
  const { spawn } = await import('node:child_process');
  await new Promise<void>((resolve, reject) => {
    const child = spawn(program.name, args, {
      stdio: ['ignore', 'pipe', 'pipe', subject.fd],
      // The words above are those of the C locale; the folders hold file system tools, and are not on every PATH.
      env: { ...process.env, LC_ALL: 'C', PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin:/usr/bin` },
    });
    let ended = false;
    let rest = '';
    let complaint = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        if (ended) break;
        if (!onLine(line)) {
          ended = true;
          child.kill();
        }
      }
    });
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      if (complaint.length < 4096) complaint += text;
    });
    child.on('error', (error: NodeJS.ErrnoException) => {
      // A folder on PATH that may not be searched turns "not found" into "permission denied".
      const absent = error.code === 'ENOENT' || error.code === 'EACCES';
      reject(absent ? missing(program) : systemError(error.code ?? 'EIO', 'spawn', subject, error));
    });
    child.on('close', (status) => {
      if (ended || status === 0) resolve();
      else reject(complained(program, complaint.trim(), subject));
    });
  });
}

function missing(program: Program): SpindleError {
  return new SpindleError(
    'UNSUPPORTED',
    `${program.call} needs the addon, or the program ${program.name} (package ${program.package}), and neither is here`,
  );
}

function complained(program: Program, complaint: string, subject: Subject): SpindleError {
  const name = WORDS.find(([words]) => complaint.includes(words))?.[1];
  if (name !== undefined) return systemError(name, program.call, subject, new Error(complaint));
  return new SpindleError('IO', `${program.name} failed: ${complaint || 'without a word'}`);
}
