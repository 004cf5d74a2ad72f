/** The built command line, as a user starts it. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { start } from './starter.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** The entry of the built command line. */
export const MAIN = join(ROOT, 'dist', 'cli', 'main.cjs');

/** What a run said and how it ended. */
export interface CliResult {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number;
}

/** How it is run. */
export interface CliOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** User to run as; needs root. */
  readonly uid?: number;
  /** Arguments of Node itself. */
  readonly node?: readonly string[];
  /** The file to start; default {@link MAIN}. */
  readonly main?: string;
}

/** Exit codes that say which signal ended a program: those of SIGABRT, SIGKILL, SIGSEGV and SIGTERM. */
const SIGNALLED: readonly number[] = [134, 137, 139, 143];

/** Runs `spindle` with these arguments. Throws only when a signal ends it. */
export async function spindle(args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const { cwd, env, uid, node = [], main = MAIN } = options;
  const user = uid === undefined ? [] : ['setpriv', ...asUser(uid)];
  const command = [...user, process.execPath, ...node, main, ...args];
  const result = await start(command, { cwd, env: { TZ: 'UTC', ...env }, timeout: 240_000 });
  if (SIGNALLED.includes(result.code))
    throw new Error(
      `spindle ${args.join(' ')}: ended by a signal (${String(result.code)})\n${result.stderr}`,
    );
  return result;
}

function asUser(uid: number): string[] {
  return [`--reuid=${String(uid)}`, `--regid=${String(uid)}`, '--clear-groups'];
}

/** Builds `dist` when it is missing or older than `src`. Test files that start together build once. */
export async function builtCli(): Promise<void> {
  const lock = join(ROOT, '.cache', 'test-build.lock');
  mkdirSync(join(ROOT, '.cache'), { recursive: true });
  for (;;) {
    try {
      mkdirSync(lock);
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      // One that was killed leaves its lock behind.
      if (Date.now() - mtime(lock) > 120_000) rmSync(lock, { recursive: true, force: true });
      else await sleep(200);
    }
  }
  try {
    if (mtime(MAIN) >= newest(join(ROOT, 'src'))) return;
    const done = spawnSync(process.execPath, [join(ROOT, '.dev', 'build.mjs')], {
      cwd: ROOT,
      encoding: 'utf8',
    });
    if (done.status !== 0) throw new Error(`the build failed\n${done.stdout}${done.stderr}`);
  } finally {
    rmSync(lock, { recursive: true, force: true });
  }
}

function mtime(path: string): number {
  return existsSync(path) ? statSync(path).mtimeMs : 0;
}

function newest(folder: string): number {
  let latest = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true, recursive: true })) {
    if (entry.isFile()) latest = Math.max(latest, mtime(join(entry.parentPath, entry.name)));
  }
  return latest;
}
