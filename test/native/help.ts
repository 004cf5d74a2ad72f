import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { addonStatus } from '../../src/native/binding.ts';

/** Whether agreement tests can run; SPINDLE_REQUIRE_ADDON=1 makes its absence a failure instead of a skip. */
export const addonHere = addonStatus().loaded || process.env['SPINDLE_REQUIRE_ADDON'] === '1';

/** Whether tests that need root and loop devices run; SPINDLE_REQUIRE_JUDGES=1 makes their absence a failure. */
export const rootHere =
  (process.platform === 'linux' && process.getuid?.() === 0 && have('losetup')) ||
  process.env['SPINDLE_REQUIRE_JUDGES'] === '1';

/** Whether a program can be started. */
export function have(program: string): boolean {
  return spawnSync(program, ['--version'], { stdio: 'ignore', env: withTools() }).error === undefined;
}

/** Runs a program; its output without the last newline. Throws with its complaint when it fails. */
export function run(program: string, ...args: string[]): string {
  const done = spawnSync(program, args, { encoding: 'utf8', env: withTools() });
  if (done.status !== 0)
    throw new Error(`${program} ${args.join(' ')}: ${done.error?.message ?? done.stderr}`);
  return done.stdout.trimEnd();
}

function withTools(): NodeJS.ProcessEnv {
  return { ...process.env, LC_ALL: 'C', PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` };
}

/** A folder made at its first use, removed with what was opened in it when the tests around it have run. */
export interface Scratch {
  path(name: string): string;
  open(path: string, flags?: string): number;
}

/** A {@link Scratch} for the suite that asks. Nothing may be used outside of tests that run: skipped ones clean up nothing. */
export function scratch(): Scratch {
  let folder: string | undefined;
  const opened: number[] = [];
  afterAll(() => {
    opened.forEach((fd) => {
      closeSync(fd);
    });
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  });
  const path = (name: string): string =>
    join((folder ??= mkdtempSync(join(tmpdir(), 'spindle-native-'))), name);
  return {
    path,
    open(name, flags = 'w+') {
      const fd = openSync(name.startsWith('/') ? name : path(name), flags);
      opened.push(fd);
      return fd;
    },
  };
}

/** What a call came to: its value, or the code (or class) of its error. */
export async function outcome(work: () => unknown): Promise<unknown> {
  try {
    return { value: await work() };
  } catch (error) {
    if (isSpindleError(error)) return { code: error.code };
    return { thrown: error instanceof Error ? error.name : String(error) };
  }
}

/** The seed of this run, printed so that a failure can be had again with SPINDLE_SEED. */
export const seed = Number(process.env['SPINDLE_SEED'] ?? Date.now() % 2 ** 31);

/** A generator of whole numbers below a bound (mulberry32). */
export function randomFrom(start: number): (below: number) => number {
  let state = start | 0;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}
