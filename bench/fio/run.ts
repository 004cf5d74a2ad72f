// fio as the judge of the figures of `bench allocation`: the same requests to images of the same kind.
import { execFile } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { measure, type Bench } from '../../src/benchmark/cell.ts';
import { fioJobs } from '../../src/benchmark/fio.ts';
import type { Plan, Slot } from '../../src/benchmark/plan.ts';
import { broken } from '../../src/benchmark/precondition.ts';
import { makeImage } from '../../src/benchmark/subject.ts';

const run = promisify(execFile);

/** Median latencies of a first write and a rewrite, in nanoseconds. */
export interface Pair {
  readonly first: number;
  readonly rewrite: number;
}

/** What our engine takes. @throws Error where the image is not what its policy says */
export async function ours(plan: Plan, slot: Slot, bench: Bench): Promise<Pair> {
  const cell = await measure(plan, slot, bench);
  if (cell.void !== null) throw new Error(`${slot.subject.id}: ${cell.void}`);
  const of = (name: string): number => cell.steps.find(({ step }) => step === name)?.latency.p50 ?? NaN;
  return { first: of('first'), rewrite: of('rewrite') };
}

/** What fio takes. @throws Error where fio fails, or does not do all of the requests */
export async function theirs(plan: Plan, { round, subject, scenario }: Slot, folder: string): Promise<Pair> {
  const path = join(folder, '0.raw');
  const jobs = join(folder, 'jobs');
  mkdirSync(jobs);
  for (const [name, text] of fioJobs(plan, round)) writeFileSync(join(jobs, name), text);
  await makeImage(path, subject, plan.size, '');
  const wrong = await broken(path, subject.format, subject.policy);
  if (wrong !== null) throw new Error(`${subject.id}: ${wrong}`);
  const { operations = new Float64Array(), depth = 1 } =
    scenario.steps(plan.size, plan.scale, 0).find(({ name }) => name === 'first') ?? {};
  const count = operations.length / 3;
  const first = await job('first', { id: scenario.id, jobs, path, count, depth });
  const rewrite = await job('rewrite', { id: scenario.id, jobs, path, count, depth });
  rmSync(jobs, { recursive: true });
  return { first, rewrite };
}

interface Job {
  readonly id: string;
  readonly jobs: string;
  readonly path: string;
  readonly count: number;
  readonly depth: number;
}

interface Report {
  readonly jobs: readonly {
    readonly error: number;
    readonly write: { readonly total_ios: number; readonly lat_ns: Latency };
    readonly sync: { readonly lat_ns: Latency };
  }[];
}

interface Latency {
  readonly N: number;
  readonly percentile?: Readonly<Record<string, number>>;
}

async function job(section: string, { id, jobs, path, count, depth }: Job): Promise<number> {
  const { stdout } = await run('fio', ['--output-format=json', `--section=${section}`, `${id}.fio`], {
    ...{ cwd: jobs, env: { ...process.env, FILENAME: path }, timeout: 120_000, maxBuffer: 64 * 1024 ** 2 },
  });
  const [done] = (JSON.parse(stdout.slice(stdout.indexOf('{'))) as Report).jobs;
  const isSynced = id === 'random-sync';
  // Requests that are in flight when the log ends are done, but not timed.
  const timed = done?.write.lat_ns.N ?? 0;
  const isWhole = done?.write.total_ios === count && timed > count - depth;
  if (done?.error !== 0 || !isWhole || done.sync.lat_ns.N < (isSynced ? count : 0))
    throw new Error(`fio did not do the ${String(count)} requests of ${id}`);
  const middle = ({ percentile }: Latency): number => percentile?.['50.000000'] ?? NaN;
  return middle(done.write.lat_ns) + (isSynced ? middle(done.sync.lat_ns) : 0);
}
