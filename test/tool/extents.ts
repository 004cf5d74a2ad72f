import { stat } from 'node:fs/promises';
import { run } from './qemu.ts';

/** A run of blocks of a file. Bytes. */
export interface BlockRun {
  readonly start: number;
  readonly end: number;
  readonly unwritten: boolean;
}

/**
 * The blocks of a file within its length, by filefrag of e2fsprogs: ascending, neighbours of one kind joined. Data that
 * is still on its way to the disk is written out first.
 */
export async function blockRuns(path: string): Promise<BlockRun[]> {
  const { size } = await stat(path);
  const { stdout } = await run('filefrag', ['-v', '-b1', '-s', path]);
  const found = stdout.split('\n').flatMap((line) => {
    const [, start, last, flags = ''] = /^\s*\d+:\s*(\d+)\.\.\s*(\d+):.*:\s*([a-z_,]*)\s*$/.exec(line) ?? [];
    if (start === undefined || Number(start) >= size) return [];
    if (flags.includes('delalloc')) throw new Error(`${path}: not settled: ${line}`);
    return [
      {
        start: Number(start),
        end: Math.min(Number(last) + 1, size),
        unwritten: flags.split(',').includes('unwritten'),
      },
    ];
  });
  return joined(found);
}

/** Neighbours of one kind as one run. */
export function joined(runs: readonly BlockRun[]): BlockRun[] {
  const result: BlockRun[] = [];
  for (const run of runs) {
    const last = result.at(-1);
    if (last?.end === run.start && last.unwritten === run.unwritten) {
      result[result.length - 1] = { ...last, end: run.end };
    } else result.push(run);
  }
  return result;
}

/** Bytes of the runs of one kind within a range. */
export function bytesIn(runs: readonly BlockRun[], unwritten: boolean, from = 0, to = Infinity): number {
  return runs
    .filter((run) => run.unwritten === unwritten)
    .reduce((sum, run) => sum + Math.max(0, Math.min(run.end, to) - Math.max(run.start, from)), 0);
}

/** Bytes of the blocks that the file system has allocated for a file (st_blocks). */
export async function allocatedBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * 512;
}
