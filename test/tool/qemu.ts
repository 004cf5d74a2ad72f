/**
 * The judges: qemu-img and qemu-io behind typed functions. Arguments are vectors, never shell text.
 * Only tests use this; spindle itself never runs qemu.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, readFile, rm } from 'node:fs/promises';
import { describe, it } from 'vitest';
import { start, type RunResult } from './starter.ts';

export type { RunResult } from './starter.ts';

/** Where and how long a program runs, and which exit codes are fine. */
export interface RunOptions {
  readonly cwd?: string;
  /** Exit codes that do not throw; 'any' for all. Default [0]. */
  readonly expect?: readonly number[] | 'any';
  /** Milliseconds until it is killed. Default four minutes: the machine may have much else to do. */
  readonly timeout?: number;
}

/** A judge ended with an exit code that was not expected. */
export class JudgeError extends Error {
  readonly result: RunResult;

  constructor(command: readonly string[], result: RunResult) {
    super(`${command.join(' ')}\nexit ${String(result.code)}\n${result.stdout}${result.stderr}`);
    this.name = 'JudgeError';
    this.result = result;
  }
}

/** Runs a program. Throws a {@link JudgeError} when it ends with an unexpected exit code. */
export async function run(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const { cwd, expect = [0], timeout = 240_000 } = options;
  const result = await start([program, ...args], { cwd, timeout, env: { LC_ALL: 'C', TZ: 'UTC' } });
  if (expect === 'any' || expect.includes(result.code)) return result;
  throw new JudgeError([program, ...args], result);
}

/** Runs qemu-img. */
export function qemuImg(args: readonly string[], options?: RunOptions): Promise<RunResult> {
  return run('qemu-img', args, options);
}

/** Runs qemu-io. */
export function qemuIo(args: readonly string[], options?: RunOptions): Promise<RunResult> {
  return run('qemu-io', args, options);
}

/** How an image is named to a judge. */
export interface ImageOptions extends RunOptions {
  /** The format of the image; default qcow2. */
  readonly format?: string;
  /** Arguments that name the image instead of `-f FORMAT PATH`, such as `--image-opts` and a secret. */
  readonly source?: readonly string[];
  /** Looks at an image that another process holds open for writing. */
  readonly forceShare?: boolean;
}

function source(path: string, options: ImageOptions): string[] {
  const share = options.forceShare === true ? ['-U'] : [];
  return [...share, ...(options.source ?? ['-f', options.format ?? 'qcow2', path])];
}

/** What `qemu-img create` makes. */
export interface CreateOptions extends ImageOptions {
  /** For `-o`, such as `{ cluster_size: '4k' }`. Commas in values are escaped. */
  readonly options?: Readonly<Record<string, string | number>>;
  readonly backing?: { readonly path: string; readonly format: string };
}

/** A list for `-o`: commas in values are doubled. */
export function optionList(options: Readonly<Record<string, string | number>>): string {
  return Object.entries(options)
    .map(([key, value]) => `${key}=${String(value).replaceAll(',', ',,')}`)
    .join(',');
}

/** `qemu-img create`. Without a size the image is as large as its backing file. */
export async function create(
  path: string,
  size?: string | number,
  options: CreateOptions = {},
): Promise<void> {
  const { options: list = {}, backing } = options;
  await qemuImg(
    [
      ...['create', '-q', '-f', options.format ?? 'qcow2'],
      ...(Object.keys(list).length === 0 ? [] : ['-o', optionList(list)]),
      ...(backing === undefined ? [] : ['-b', backing.path, '-F', backing.format]),
      path,
      ...(size === undefined ? [] : [String(size)]),
    ],
    options,
  );
}

/** `qemu-img info --output=json`; with `chain` an array of the whole backing chain. */
export async function info(path: string, options: ImageOptions & { chain?: boolean } = {}): Promise<unknown> {
  const chain = options.chain === true ? ['--backing-chain'] : [];
  const { stdout } = await qemuImg(['info', '--output=json', ...chain, ...source(path, options)], options);
  return JSON.parse(stdout) as unknown;
}

/** One extent as `qemu-img map --output=json` prints it. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly compressed: boolean;
  readonly offset?: number;
}

/** `qemu-img map --output=json`. */
export async function map(path: string, options: ImageOptions = {}): Promise<MapEntry[]> {
  const { stdout } = await qemuImg(['map', '--output=json', ...source(path, options)], options);
  return JSON.parse(stdout) as MapEntry[];
}

/** The object that `qemu-img check --output=json` prints; counts that are zero are absent. */
export interface CheckJson {
  readonly filename: string;
  readonly format: string;
  readonly 'check-errors': number;
  readonly corruptions?: number;
  readonly leaks?: number;
  readonly 'corruptions-fixed'?: number;
  readonly 'leaks-fixed'?: number;
  readonly 'image-end-offset'?: number;
  readonly 'total-clusters'?: number;
  readonly 'allocated-clusters'?: number;
  readonly 'fragmented-clusters'?: number;
  readonly 'compressed-clusters'?: number;
}

/** The verdict of `qemu-img check`: 0 clean, 1 cannot check, 2 corrupt, 3 leaks, 63 no checks for this format. */
export interface CheckResult {
  readonly code: number;
  /** Undefined where qemu prints none. */
  readonly json: CheckJson | undefined;
  readonly stderr: string;
}

/** `qemu-img check --output=json`, with repairs when asked for. Never throws for the exit code. */
export async function check(
  path: string,
  options: ImageOptions & { repair?: 'leaks' | 'all' } = {},
): Promise<CheckResult> {
  const repair = options.repair === undefined ? [] : ['-r', options.repair];
  const args = ['check', '--output=json', ...repair, ...source(path, options)];
  const { stdout, stderr, code } = await qemuImg(args, { ...options, expect: 'any' });
  return { code, json: stdout.trim() === '' ? undefined : (JSON.parse(stdout) as CheckJson), stderr };
}

/** One side of {@link compare}. */
export interface CompareSide {
  readonly path: string;
  readonly format: string;
}

/** `qemu-img compare`: whether the guest contents are equal. Throws unless it says equal or different. */
export async function compare(
  a: CompareSide,
  b: CompareSide,
  options: RunOptions & { strict?: boolean } = {},
): Promise<boolean> {
  const strict = options.strict === true ? ['-s'] : [];
  const args = ['compare', ...strict, '-f', a.format, '-F', b.format, a.path, b.path];
  const result = await qemuImg(args, { ...options, expect: [0, 1] });
  // Exit code 1 is a usage error as well: only a verdict on stdout counts.
  if (result.code === 1 && result.stdout.trim() === '') throw new JudgeError(['qemu-img', ...args], result);
  return result.code === 0;
}

/** What `qemu-img convert` is told. */
export interface ConvertOptions extends ImageOptions {
  readonly to?: string;
  readonly options?: Readonly<Record<string, string | number>>;
  readonly compressed?: boolean;
  /** More arguments, such as `['-l', 'snapshot.id=1']`. */
  readonly more?: readonly string[];
}

/** `qemu-img convert`, to raw unless `to` says otherwise. One coroutine, so that equal input gives equal files. */
export async function convert(from: string, to: string, options: ConvertOptions = {}): Promise<void> {
  const { options: list = {} } = options;
  await qemuImg(
    [
      ...['convert', '-m', '1', '-O', options.to ?? 'raw'],
      ...(options.compressed === true ? ['-c'] : []),
      ...(Object.keys(list).length === 0 ? [] : ['-o', optionList(list)]),
      ...(options.more ?? []),
      ...source(from, options),
      to,
    ],
    options,
  );
}

/** The sha256 of everything the guest sees, by way of `qemu-img convert -O raw` into the file `scratch`. */
export async function contentHash(
  path: string,
  scratch: string,
  options: ConvertOptions = {},
): Promise<string> {
  await convert(path, scratch, options);
  try {
    const hash = createHash('sha256');
    for await (const chunk of createReadStream(
      options.cwd === undefined ? scratch : `${options.cwd}/${scratch}`,
    )) {
      hash.update(chunk as Buffer);
    }
    return hash.digest('hex');
  } finally {
    await rm(options.cwd === undefined ? scratch : `${options.cwd}/${scratch}`, { force: true });
  }
}

/** `qemu-img snapshot`: creates, applies (id, then name) or deletes (name only) an internal snapshot. */
export async function snapshot(
  path: string,
  action: 'create' | 'apply' | 'delete',
  name: string,
  options: RunOptions = {},
): Promise<void> {
  const flag = { create: '-c', apply: '-a', delete: '-d' }[action];
  await qemuImg(['snapshot', '-q', flag, name, path], options);
}

/** `qemu-img bitmap` with actions in order, such as `['--add', '-g', '4k']`. */
export async function bitmap(
  path: string,
  name: string,
  actions: readonly string[],
  options: RunOptions = {},
): Promise<void> {
  await qemuImg(['bitmap', '-f', 'qcow2', ...actions, path, name], options);
}

/** One thing that {@link fill} does to an image. Offsets and lengths are in bytes. */
export type Fill =
  | { readonly do: 'write'; readonly at: number; readonly length: number; readonly pattern: number }
  | { readonly do: 'compress'; readonly at: number; readonly length: number; readonly pattern: number }
  | { readonly do: 'zero'; readonly at: number; readonly length: number; readonly unmap?: boolean }
  | { readonly do: 'discard'; readonly at: number; readonly length: number }
  | { readonly do: 'flush' }
  /** Ends the process with SIGKILL at once: what was not flushed may be lost, and nothing is closed. */
  | { readonly do: 'kill' };

function fillCommand(step: Fill): string {
  switch (step.do) {
    case 'write':
      return `write -P ${String(step.pattern)} ${String(step.at)} ${String(step.length)}`;
    case 'compress':
      return `write -c -P ${String(step.pattern)} ${String(step.at)} ${String(step.length)}`;
    case 'zero':
      return `write -z${step.unmap === true ? ' -u' : ''} ${String(step.at)} ${String(step.length)}`;
    case 'discard':
      return `discard ${String(step.at)} ${String(step.length)}`;
    case 'flush':
      return 'flush';
    case 'kill':
      return 'sigraise 9';
  }
}

/** Changes an image with qemu-io, all steps in one process. Throws when one of them fails. */
export async function fill(path: string, steps: readonly Fill[], options: ImageOptions = {}): Promise<void> {
  // Without commands qemu-io asks for some.
  if (steps.length === 0) return;
  const commands = steps.flatMap((step) => ['-c', fillCommand(step)]);
  const last = steps.at(-1)?.do === 'kill' ? [137] : [0];
  const args = [...commands, ...source(path, options)];
  const result = await qemuIo(args, { ...options, expect: last });
  // qemu-io goes on after a command that failed, and older ones exit with 0 all the same.
  if (/failed|rror|nvalid/.test(result.stdout + result.stderr))
    throw new JudgeError(['qemu-io', ...args], result);
}

/** Whether every byte of a range has a value, as qemu-io reads it. */
export async function holds(
  path: string,
  range: { readonly at: number; readonly length: number; readonly pattern: number },
  options: ImageOptions = {},
): Promise<boolean> {
  const command = `read -P ${String(range.pattern)} ${String(range.at)} ${String(range.length)}`;
  const args = ['-r', '-c', command, ...source(path, options)];
  const result = await qemuIo(args, { ...options, expect: [0, 1] });
  if (/Pattern verification failed/.test(result.stdout + result.stderr)) return false;
  if (result.code !== 0) throw new JudgeError(['qemu-io', ...args], result);
  return true;
}

/** JSON of qemu without what depends on the host: sorted keys, no `actual-size`. The goldens are kept like this. */
export function normalise(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(normalise);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key]) => key !== 'actual-size')
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, inner]) => [key, normalise(inner)]),
  );
}

/**
 * Copies a fixture into the form that its goldens belong to: without any hole, or, when `sparse`, with a hole for every
 * aligned block of 4 KiB that holds only zeros. `qemu-img map` depends on it, and neither git nor a package keeps holes.
 */
export async function copyFixture(from: string, to: string, sparse = false): Promise<void> {
  const bytes = await readFile(from);
  const zeros = Buffer.alloc(4096);
  await rm(to, { force: true });
  const file = await open(to, 'w');
  try {
    if (!sparse) {
      await file.writeFile(bytes);
      return;
    }
    for (let at = 0; at < bytes.length; at += 4096) {
      const block = bytes.subarray(at, at + 4096);
      if (!block.equals(zeros.subarray(0, block.length))) await file.write(block, 0, block.length, at);
    }
    await file.truncate(bytes.length);
  } finally {
    await file.close();
  }
}

function version(program: string): number | undefined {
  const { stdout, error } = spawnSync(program, ['--version'], { encoding: 'utf8' });
  if (error !== undefined) return undefined;
  const match = /version (\d+)\./.exec(stdout);
  return match?.[1] === undefined ? undefined : Number(match[1]);
}

let known: { missing: string | undefined } | undefined;

/** Why the judges cannot judge here, or undefined when they can. */
export function qemuMissing(): string | undefined {
  if (known === undefined) {
    const old = ['qemu-img', 'qemu-io'].filter((program) => (version(program) ?? 0) < 10);
    known = { missing: old.length === 0 ? undefined : `${old.join(' and ')} of version 10 or later` };
  }
  return known.missing;
}

/**
 * Runs the block of tests when nothing is missing. Otherwise one test stands for it: skipped, or failed when
 * the environment says SPINDLE_REQUIRE_JUDGES=1, so that a machine that should judge cannot quietly stop doing so.
 */
export function describeUnlessMissing(name: string, missing: string | undefined, block: () => void): void {
  if (missing === undefined) {
    describe(name, block);
    return;
  }
  describe(name, () => {
    if (process.env['SPINDLE_REQUIRE_JUDGES'] === '1') {
      it(`needs ${missing}`, () => {
        throw new Error(`SPINDLE_REQUIRE_JUDGES is 1, but this machine lacks ${missing}`);
      });
    } else {
      it.skip(`needs ${missing}`, () => undefined);
    }
  });
}

/** A block of tests that needs qemu-img and qemu-io, version 10 or later; see {@link describeUnlessMissing}. */
export function describeWithQemu(name: string, block: () => void): void {
  describeUnlessMissing(name, qemuMissing(), block);
}
