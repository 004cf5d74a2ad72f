import { rmSync, writeFileSync } from 'node:fs';
import { median } from '../table.ts';
import { must, peakMemory, time, type Program, type Taken } from './run.ts';

/** One line of the table. */
export interface Job {
  /** Of the table of bars. */
  readonly row: number;
  readonly what: string;
  /** The most that ours may take of what the best rival takes; absent for lines that are for information. */
  readonly bar?: number | undefined;
  readonly ours: Program;
  readonly rivals: readonly Program[];
  /** Files that each run makes, which are gone before the next. */
  readonly outputs: readonly string[];
  /** Puts in place what a run changes. Not timed. */
  readonly before?: (() => void) | undefined;
  /** Nothing of the files is in memory. */
  readonly cold?: boolean | undefined;
  /** Throws unless what ours just did is worth what the rival does; called after a run of each, ours first. */
  readonly check?: ((whose: 'ours' | 'rival') => void) | undefined;
  /** Bytes of the process that are the work's own, not to be held against the memory limit. */
  readonly remark?: string | undefined;
}

/** What one side took. */
export interface Side {
  readonly name: string;
  readonly seconds: number;
  readonly cpu: number;
  /** Bytes. */
  readonly memory: number;
  readonly all: readonly number[];
}

/** What was measured. */
export interface Measured {
  readonly row: number;
  readonly what: string;
  readonly ours: Side;
  readonly rival: Side;
  /** Medians of the rivals that were slower. */
  readonly others: Readonly<Record<string, number>>;
  readonly ratio: number;
  readonly bar: number | undefined;
  readonly remark: string | undefined;
}

/** Checks what both sides make, takes the fastest rival, then times pairs in the order ABBA. */
export async function measure(job: Job, pairs: number): Promise<Measured> {
  const memory = new Map<Program, number>();
  const tries: { readonly rival: Program; readonly seconds: number }[] = [];
  fresh(job);
  memory.set(job.ours, await peakMemory(job.ours));
  job.check?.('ours');
  for (const rival of job.rivals) {
    const seconds: number[] = [];
    for (let run = 0; run < 3; run++) {
      fresh(job);
      if (run === 0) memory.set(rival, await peakMemory(rival));
      else seconds.push((await time(rival)).seconds);
      if (run === 0) job.check?.('rival');
      if (job.rivals.length === 1) break;
    }
    tries.push({ rival, seconds: Math.min(...seconds, Infinity) });
  }
  tries.sort((a, b) => a.seconds - b.seconds);
  const best = tries[0]?.rival;
  if (best === undefined) throw new Error(`${job.what}: nobody to compare with`);
  const taken = new Map<Program, Taken[]>([
    [job.ours, []],
    [best, []],
  ]);
  for (let pair = 0; pair < pairs; pair++) {
    const order = pair % 2 === 0 ? [job.ours, best] : [best, job.ours];
    for (const program of order) {
      fresh(job);
      taken.get(program)?.push(await time(program));
    }
  }
  const side = (program: Program): Side => {
    const runs = taken.get(program) ?? [];
    return {
      name: program.name,
      seconds: median(runs.map(({ seconds }) => seconds)),
      cpu: median(runs.map(({ cpu }) => cpu)),
      memory: memory.get(program) ?? 0,
      all: runs.map(({ seconds }) => seconds),
    };
  };
  const [ours, rival] = [side(job.ours), side(best)];
  for (const path of job.outputs) rmSync(path, { force: true, recursive: true });
  return {
    row: job.row,
    what: job.what,
    ours,
    rival,
    others: Object.fromEntries(tries.slice(1).map((one) => [one.rival.name, one.seconds])),
    ratio: ours.seconds / rival.seconds,
    bar: job.bar,
    remark: job.remark,
  };
}

/** The state in which every run begins: no outputs, nothing still to be written. */
function fresh(job: Job): void {
  for (const path of job.outputs) rmSync(path, { force: true, recursive: true });
  job.before?.();
  must('sync');
  if (job.cold === true) writeFileSync('/proc/sys/vm/drop_caches', '3');
}
