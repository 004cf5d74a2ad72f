import { spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
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
  'mkfs.vfat': 'dosfstools',
  'mkfs.ext2': 'e2fsprogs',
  'mkfs.ext3': 'e2fsprogs',
  'mkfs.ext4': 'e2fsprogs',
  'mkfs.btrfs': 'btrfs-progs',
};

/** Characters of either output of a tool that are kept. */
const MOST = 64 * 1024 * 1024;

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
 * time is killed, with all that it started, and not waited for: the kernel may hold it. It has a process group of its own,
 * which a signal that ends this process ends too.
 * @throws SpindleError TOOL_MISSING, naming the package; TOOL_FAILED, quoting it; TOOL_TIMEOUT
 */
export function runTool(
  program: string,
  args: readonly string[],
  { timeout = 60_000, expect = [0], hide }: ToolOptions = {},
): Promise<ToolResult> {
  const shown = (text: string): string => (hide === undefined ? text : text.replaceAll(hide, '(hidden)'));
  const command = shown([program, ...args].join(' '));
  const path = `${process.env['PATH'] ?? ''}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:/lib/udev:/usr/lib/udev`;
  return new Promise((resolve, reject) => {
    const child = spawn(program, [...args], {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, PATH: path, LC_ALL: 'C' },
    });
    const forget = endWith(child.pid);
    const said = [gather(child.stdout), gather(child.stderr)] as const;
    let done = false;
    const timer = setTimeout(() => {
      done = true;
      forget();
      killGroup(child.pid, 'SIGKILL');
      child.stdout.destroy();
      child.stderr.destroy();
      child.unref();
      reject(
        new SpindleError(
          'TOOL_TIMEOUT',
          `'${command}' did not end within ${String(timeout / 1000)} s and was given up`,
        ),
      );
    }, timeout);
    const finish = (ended: number | null, failure?: Error): void => {
      if (done) return;
      done = true;
      clearTimeout(timer);
      forget();
      // What Node says of it has all arguments in it.
      const cause = hide === undefined ? failure : undefined;
      if (errnoOf(failure) === 'ENOENT') {
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
      const [stdout, stderr] = [said[0](), said[1]()];
      const code = failure === undefined ? (ended ?? 128) : 128;
      if (expect.includes(code)) resolve({ stdout, stderr, code });
      else
        reject(
          new SpindleError(
            'TOOL_FAILED',
            `'${command}' failed (exit ${String(code)}): ${shown(lastWords(stderr, stdout, failure))}`,
            { cause },
          ),
        );
    };
    child.on('error', (error) => {
      finish(null, error);
    });
    child.on('close', (ended) => {
      finish(ended);
    });
  });
}

/** Gathers what comes, up to {@link MOST} characters; what it gives tells it. */
function gather(from: Readable | undefined): () => string {
  let text = '';
  // There is none where the process has no descriptor left.
  from?.setEncoding('utf8').on('data', (part: string) => {
    if (text.length < MOST) text += part;
  });
  return () => text;
}

function killGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, signal);
  } catch {
    // It ended.
  }
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Groups that end with this process. */
const groups = new Set<number>();

function endGroups(signal: NodeJS.Signals): void {
  for (const pid of groups) killGroup(pid, signal);
  // Without this listener the signal would have ended the process.
  if (process.listenerCount(signal) > 1) return;
  process.off(signal, endGroups);
  process.kill(process.pid, signal);
}

/** Has a group end with this process, when that is told to; until the function that it gives is called. */
function endWith(pid: number | undefined): () => void {
  if (pid === undefined) return () => undefined;
  if (groups.size === 0) for (const signal of SIGNALS) process.on(signal, endGroups);
  groups.add(pid);
  return () => {
    if (groups.delete(pid) && groups.size === 0) for (const signal of SIGNALS) process.off(signal, endGroups);
  };
}

/** What a tool said last, in one line. */
function lastWords(stderr: string, stdout: string, error: Error | undefined): string {
  const lines = (stderr.trim() === '' ? stdout : stderr)
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
  return lines.slice(-3).join('; ').slice(0, 1000) || (error?.message ?? 'it said nothing');
}
