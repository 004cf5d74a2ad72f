import { SCENARIOS } from './scenario.ts';
import type { Plan } from './plan.ts';

/** Scenarios of a raw file that fio can do too: depth, whether each write is synced, block size, order. */
const JOBS = {
  random: { depth: 1, sync: false, block: '4k', mode: 'randwrite' },
  'random-sync': { depth: 1, sync: true, block: '4k', mode: 'randwrite' },
  'random-deep': { depth: 32, sync: false, block: '4k', mode: 'randwrite' },
  sequential: { depth: 1, sync: false, block: '1m', mode: 'write' },
} as const;

/**
 * Jobs for fio that do what the study does to raw files, by file name. Each takes `FILENAME` from the environment: an image
 * made beforehand, so that fio makes and lays out nothing. Run by itself (`--section`), the job `rewrite` draws the blocks of
 * `first` again; in one run with it, it would draw others. fio draws its blocks itself, from all of the disk: with the
 * same number of requests, not with the same offsets.
 */
export function fioJobs({ seed, size, scale, scenarios, cached }: Plan): ReadonlyMap<string, string> {
  const files = new Map<string, string>();
  for (const { id, title } of SCENARIOS.filter((scenario) =>
    scenarios.some((own) => own.id === scenario.id),
  )) {
    if (!(id in JOBS)) continue;
    const { depth, sync, block, mode } = JOBS[id as keyof typeof JOBS];
    const count = id === 'sequential' ? size / 1024 ** 2 : depth === 1 ? scale.shallow : scale.deep;
    const bytes = block === '4k' ? 4096 : 1024 ** 2;
    const job = (name: string): string => `[${name}]
stonewall
rw=${mode}
bs=${block}
size=${String(size)}
io_size=${String(count * bytes)}
iodepth=${String(depth)}
${sync ? 'fdatasync=1\n' : ''}randseed=${String(seed)}
`;
    files.set(
      `${id}.fio`,
      `# ${title}. Make the image, and then run this:
#   spindle create -f raw --allocation POLICY FILE ${String(size)}
#   FILENAME=FILE fio --section=first ${id}.fio
#   FILENAME=FILE fio --section=rewrite ${id}.fio
# Two runs: in one, the second job would draw other blocks than the first.
# A synced write of the study is fio's completion and sync latency together.
[global]
filename=\${FILENAME}
ioengine=${depth === 1 ? 'psync' : 'io_uring'}
direct=${cached ? '0' : '1'}
allow_file_create=0
fallocate=none
overwrite=0
create_on_open=0
refill_buffers=1
norandommap=0
randrepeat=1
thread=1
invalidate=1

${job('first')}
${job('rewrite')}`,
    );
  }
  return files;
}
