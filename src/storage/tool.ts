import { execFile } from 'node:child_process';
import { SpindleError } from '../core/errors.ts';
import { errnoOf } from './errno.ts';

/** Which Debian package brings a program. */
const PACKAGES: Readonly<Record<string, string>> = {
  mount: 'mount',
  umount: 'mount',
  blkid: 'util-linux',
  stat: 'coreutils',
  udevadm: 'udev',
  showmount: 'nfs-common',
  'mount.nfs': 'nfs-common',
  iscsiadm: 'open-iscsi',
  scsi_id: 'udev',
  'mkfs.xfs': 'xfsprogs',
  mkfs: 'util-linux',
  'mkfs.ext4': 'e2fsprogs',
  'mkfs.btrfs': 'btrfs-progs',
};

/** The programs of lvm2. */
const LVM = /^(pv|vg|lv)[a-z]+$/;

/** How a tool is run. */
export interface ToolOptions {
  /** Milliseconds until it is given up. Default: 60 s. */
  readonly timeout?: number;
  /** Exit codes that are fine. Default: 0. */
  readonly expect?: readonly number[];
  /** What is not to be shown in messages, such as a secret. */
  readonly hide?: string;
}

/** What a tool said. */
export interface ToolResult {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number;
}

/**
 * Runs a program of the administrator with these arguments; no shell has a part in it. A program that does not end in
 * time is killed and not waited for: the kernel may hold it.
 * @throws SpindleError TOOL_MISSING, naming the package; TOOL_FAILED, quoting it; TOOL_TIMEOUT
 */
export function runTool(
  program: string,
  args: readonly string[],
  { timeout = 60_000, expect = [0], hide }: ToolOptions = {},
): Promise<ToolResult> {
  const shown = (text: string): string => (hide === undefined ? text : text.replaceAll(hide, '(hidden)'));
  const command = shown([program, ...args].join(' '));
  return new Promise((resolve, reject) => {
    const path = `${process.env['PATH'] ?? ''}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:/lib/udev:/usr/lib/udev`;
    const settings = {
      encoding: 'utf8' as const,
      maxBuffer: 64 * 1024 * 1024,
      env: { ...process.env, PATH: path, LC_ALL: 'C' },
    };
    let late = false;
    const child = execFile(program, [...args], settings, (error, stdout, stderr) => {
      clearTimeout(timer);
      if (late) return;
      const name = errnoOf(error);
      // What Node says of it has all arguments in it.
      const cause = hide === undefined ? error : undefined;
      if (name === 'ENOENT') {
        const from = LVM.test(program) ? 'lvm2' : (PACKAGES[program] ?? program);
        reject(
          new SpindleError(
            'TOOL_MISSING',
            `the program '${program}' is not here; install the package ${from}`,
            { cause },
          ),
        );
        return;
      }
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : 128;
      if (expect.includes(code)) resolve({ stdout, stderr, code });
      else
        reject(
          new SpindleError(
            'TOOL_FAILED',
            `'${command}' failed (exit ${String(code)}): ${shown(lastWords(stderr, stdout, error))}`,
            { cause },
          ),
        );
    });
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
      child.stdout?.destroy();
      child.stderr?.destroy();
      child.unref();
      reject(
        new SpindleError(
          'TOOL_TIMEOUT',
          `'${command}' did not end within ${String(timeout / 1000)} s and was given up`,
        ),
      );
    }, timeout);
  });
}

/** What a tool said last, in one line. */
function lastWords(stderr: string, stdout: string, error: Error | null): string {
  const lines = (stderr.trim() === '' ? stdout : stderr)
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
  return lines.slice(-3).join('; ').slice(0, 1000) || (error?.message ?? 'it said nothing');
}
