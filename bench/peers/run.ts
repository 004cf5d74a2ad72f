import { spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** A program to be timed as a whole. */
export interface Program {
  readonly name: string;
  readonly words: readonly string[];
  /** Where the program says itself what its work took, without its start: finds the seconds in its output. */
  readonly says?: RegExp | undefined;
}

/** What one run of a program took. */
export interface Taken {
  readonly seconds: number;
  /** User and system time of it and its children; in hundredths. */
  readonly cpu: number;
}

/** Runs a program to its end. @throws Error when it fails */
export async function time(program: Program): Promise<Taken> {
  const before = childrenCpu();
  const start = performance.now();
  const output = await ended(program);
  const whole = (performance.now() - start) / 1000;
  const seconds = program.says === undefined ? whole : Number(program.says.exec(output)?.[1]);
  if (!(seconds > 0)) throw new Error(`${program.words.join(' ')}: does not say what it took: ${output}`);
  return { seconds, cpu: childrenCpu() - before };
}

/** The most memory (VmHWM) that the program has at once, in bytes. It is looked at while it runs: not to be timed. */
export async function peakMemory(program: Program): Promise<number> {
  let peak = 0;
  await ended(program, (pid) => {
    peak = Math.max(peak, highWater(pid));
  });
  return peak;
}

/** Its output, where the program is one that says what it took. */
async function ended({ words, says }: Program, watch?: (pid: number) => void): Promise<string> {
  const [command = '', ...args] = words;
  return new Promise<string>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', says === undefined ? 'ignore' : 'pipe', 'pipe'] });
    let [output, said] = ['', ''];
    child.stdout?.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr?.on('data', (chunk: Buffer) => (said += chunk.toString()));
    const timer =
      watch === undefined
        ? undefined
        : setInterval(() => {
            if (child.pid !== undefined) watch(child.pid);
          }, 4);
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearInterval(timer);
      if (code === 0) resolve(output);
      else reject(new Error(`${words.join(' ')}: ended with ${String(code ?? signal)}: ${said.trim()}`));
    });
  });
}

function highWater(pid: number): number {
  try {
    const found = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${String(pid)}/status`, 'latin1'));
    return Number(found?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** Processor time of all children that have ended, seconds (proc(5): cutime and cstime, in ticks of 10 ms). */
function childrenCpu(): number {
  const text = readFileSync('/proc/self/stat', 'latin1');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[13]) + Number(fields[14])) / 100;
}

/** Runs a command; its output. @throws Error when it fails */
export function must(...words: readonly string[]): string {
  const [command = '', ...args] = words;
  const done = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 30 });
  if (done.error !== undefined) throw done.error;
  if (done.status !== 0)
    throw new Error(`${words.join(' ')}: ${done.stderr.trim()}${done.stdout.slice(-500)}`);
  return done.stdout;
}

/** Whether a command can be run here. */
export function has(command: string): boolean {
  return spawnSync('sh', ['-c', 'command -v "$1"', 'sh', command]).status === 0;
}
