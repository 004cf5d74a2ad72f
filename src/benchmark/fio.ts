import { OperationKind } from '../native/types.ts';
import { seedOf } from './random.ts';
import { SCENARIOS } from './scenario.ts';
import type { Plan } from './plan.ts';

/** Scenarios of a raw file that fio can do too. */
export const FIO_SCENARIOS = ['random-sync', 'random', 'random-deep', 'sequential'] as const;

/**
 * Jobs for fio that do what the study does to raw files in a round, by file name: `ID.fio`, and `ID.iolog`, the very requests of the
 * study in their order, which fio replays as fast as it can. A job takes `FILENAME` from the environment: an image
 * made beforehand, so that fio makes and lays out nothing; it is run in the directory of its files.
 */
export function fioJobs(
  { seed, size, scale, scenarios, cached }: Plan,
  round = 0,
): ReadonlyMap<string, string> {
  const files = new Map<string, string>();
  const wanted: readonly string[] = FIO_SCENARIOS;
  for (const { id, title, steps } of SCENARIOS) {
    if (!wanted.includes(id) || !scenarios.some((own) => own.id === id)) continue;
    const [first] = steps(size, scale, seedOf(seed, id, round));
    if (first === undefined) continue;
    files.set(`${id}.iolog`, logOf(first.operations));
    const job = (name: string): string => `[${name}]\nstonewall\nread_iolog=${id}.iolog\n`;
    files.set(
      `${id}.fio`,
      `# ${title}. Make the image, and then run this in the directory of this file:
#   spindle create -f raw --allocation POLICY FILE ${String(size)}
#   FILENAME=FILE fio --section=first ${id}.fio
#   FILENAME=FILE fio --section=rewrite ${id}.fio
# ${id}.iolog holds the requests of the study, with its fdatasyncs, in its order; both jobs do the same ones.
# The study tells what a request takes from its submission to its end: fio's "lat", not its "clat", which leaves out the
# submission, where a file system may allocate. A synced write of the study is fio's "lat" and sync "lat" together.
# Of a deep queue fio times all but the last requests, which are in flight when the log ends; through the page cache it may
# drop them.
[global]
replay_redirect=\${FILENAME}
ioengine=io_uring
iodepth=${String(first.depth)}
direct=${cached ? '0' : '1'}
allow_file_create=0
fallocate=none
overwrite=0
create_on_open=0
refill_buffers=1
end_fsync=1
thread=1
lat_percentiles=1
clat_percentiles=0

${job('first')}
${job('rewrite')}`,
    );
  }
  return files;
}

/** The requests as a log of fio, version 2, which has no times. */
function logOf(operations: Float64Array): string {
  const lines = ['fio version 2 iolog', 'disk add', 'disk open'];
  for (let at = 0; at < operations.length; at += 3) {
    lines.push(`disk write ${String(operations[at])} ${String(operations[at + 1])}`);
    if (operations[at + 2] === OperationKind.writeSync) lines.push('disk datasync 0 0');
  }
  return [...lines, 'disk close', ''].join('\n');
}
