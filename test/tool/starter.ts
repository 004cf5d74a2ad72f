import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';

/** What a program said and how it ended. */
export interface RunResult {
  readonly stdout: string;
  readonly stderr: string;
  /** The exit code; 128 and more where a signal ended the program, as shells count. */
  readonly code: number;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Where and how a program runs. */
export interface Start {
  readonly cwd?: string | undefined;
  /** Beside what the tests have. */
  readonly env?: Environment;
  /** Milliseconds until it is killed. */
  readonly timeout: number;
}

/**
 * Starts short programs by way of a shell that lives on. Node starts a program by a copy of its own page tables, which takes
 * ten milliseconds where the tests have grown to some hundred megabytes; a shell is small. Does one thing at a time.
 */
class Starter {
  readonly #shell: ChildProcessByStdio<Writable, Readable, null>;
  readonly #folder: string;
  #heard: (code: number) => void = () => undefined;

  readonly #environment: Environment = { ...process.env };

  constructor(folder: string) {
    this.#folder = folder;
    this.#shell = spawn('/bin/sh', [], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: this.#environment,
      detached: true,
    });
    this.#shell.stdout.setEncoding('utf8').on('data', (line: string) => {
      this.#heard(Number(line));
    });
    this.#shell.on('exit', () => {
      this.#heard(NaN);
    });
    this.#hold(false);
  }

  /** Code NaN: the time was over, and this starter is no more. */
  async run(command: readonly string[], { cwd, env = {}, timeout }: Start): Promise<RunResult> {
    this.#hold(true);
    const [out, err] = [join(this.#folder, 'out'), join(this.#folder, 'err')];
    const first = [...this.#changes({ ...process.env, ...env }), `cd ${quoted(cwd ?? process.cwd())}`];
    const inner = `${first.join(' && ')} && exec ${command.map(quoted).join(' ')}`;
    const timer = setTimeout(() => {
      this.end();
    }, timeout);
    const code = await new Promise<number>((resolve) => {
      this.#heard = resolve;
      this.#shell.stdin.write(`(${inner}) </dev/null >${quoted(out)} 2>${quoted(err)}; echo $?\n`);
    });
    clearTimeout(timer);
    this.#hold(false);
    return { stdout: readFileSync(out, 'utf8'), stderr: readFileSync(err, 'utf8'), code };
  }

  /** Kills the shell and what it runs. */
  end(): void {
    try {
      process.kill(-(this.#shell.pid ?? 0), 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  }

  /** What makes the shell's environment that one. */
  #changes(wanted: Environment): string[] {
    const names = new Set([...Object.keys(this.#environment), ...Object.keys(wanted)]);
    return [...names]
      .filter((name) => wanted[name] !== this.#environment[name])
      .map((name) => {
        const value = wanted[name];
        return value === undefined ? `unset ${name}` : `export ${name}=${quoted(value)}`;
      });
  }

  /** Whether this process waits for it before it ends. */
  #hold(yes: boolean): void {
    const how = yes ? 'ref' : 'unref';
    this.#shell[how]();
    for (const stream of [this.#shell.stdin, this.#shell.stdout]) if (stream instanceof Socket) stream[how]();
  }
}

function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

const idle: Starter[] = [];
const all = new Set<Starter>();
let folder: string | undefined;
let count = 0;

process.once('exit', () => {
  for (const starter of all) starter.end();
  if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
});

/** Runs a program without input. Throws when there is none of that name, and when its time is over. */
export async function start(command: readonly string[], how: Start): Promise<RunResult> {
  folder ??= mkdtempSync(join(tmpdir(), 'spindle-starter-'));
  const starter = idle.pop() ?? new Starter(mkdtempSync(join(folder, String(count++))));
  all.add(starter);
  const result = await starter.run(command, how);
  if (Number.isNaN(result.code)) {
    all.delete(starter);
    throw new Error(
      `${command.join(' ')}: took more than ${String(how.timeout)} ms\n${result.stdout}${result.stderr}`,
    );
  }
  idle.push(starter);
  if (result.code === 127) throw new Error(`${command.join(' ')}: ${result.stderr}`);
  return result;
}
