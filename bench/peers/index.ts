// npm run bench:peers [-- --floors | --row N,N] [--match TEXT] [--pairs N] [--folder FOLDER] [--json FILE] [--seed N]
//   --floors: not the rivals, but what the work takes with nothing around it
// The bars of speed, each against the fastest rival in the same run. Installs nothing; what is not there is named.
import { spawnSync } from 'node:child_process';
import { cpus, release, tmpdir, totalmem } from 'node:os';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { printFloors } from './floors.ts';
import { measure, type Job, type Measured } from './job.ts';
import { GROUPS } from './jobs.ts';
import { loopMount, type LoopMount } from './mount.ts';
import { has, must } from './run.ts';
import { printPeers } from './table.ts';

const { values } = parseArgs({
  options: {
    row: { type: 'string' },
    match: { type: 'string', default: '' },
    pairs: { type: 'string', default: '7' },
    folder: { type: 'string', default: join(tmpdir(), 'spindle-peers') },
    json: { type: 'string' },
    seed: { type: 'string', default: '1' },
    floors: { type: 'boolean', default: false },
  },
});
const root = fileURLToPath(new URL('../..', import.meta.url));
const { folder } = values;
const rows = values.row?.split(',').map(Number);

if (!has('qemu-img')) {
  console.error('bench:peers: qemu-img, the rival, is not here');
  process.exit(1);
}
mkdirSync(folder, { recursive: true });
if (values.floors) {
  await printFloors(root, folder, Number(values.seed), Number(values.pairs));
  process.exit();
}
const mounts: LoopMount[] = [];
const results: Measured[] = [];
const missed: { readonly what: string; readonly why: string }[] = [];

function mount(kind: LoopMount['kind'], gib: number): string {
  const made = loopMount(kind, gib, folder);
  mounts.push(made);
  return made.folder;
}

async function one(job: Job): Promise<void> {
  process.stderr.write(`${String(job.row).padStart(2)} ${job.what} ... `);
  try {
    const result = await measure(job, Number(values.pairs));
    results.push(result);
    process.stderr.write(`${result.ratio.toFixed(3)}\n`);
  } catch (error) {
    missed.push({ what: job.what, why: error instanceof Error ? error.message : String(error) });
    process.stderr.write('failed\n');
  }
}

try {
  for (const { rows: has, jobs } of GROUPS) {
    if (rows !== undefined && !has.some((row) => rows.includes(row))) continue;
    let made: Job[] = [];
    try {
      made = jobs({ root, folder, seed: Number(values.seed) }, mount);
    } catch (error) {
      missed.push({
        what: `rows ${has.join(', ')}`,
        why: error instanceof Error ? error.message : String(error),
      });
    }
    for (const job of made) {
      if (rows !== undefined && !rows.includes(job.row)) continue;
      if (job.what.includes(values.match)) await one(job);
    }
    for (const mounted of mounts.splice(0)) mounted.end();
  }
} finally {
  for (const mounted of mounts) mounted.end();
}

const about = {
  date: new Date().toISOString(),
  seed: Number(values.seed),
  pairs: Number(values.pairs),
  node: process.version,
  rival: must('qemu-img', '--version').split('\n')[0],
  kernel: release(),
  cpus: `${String(cpus().length)} x ${cpus()[0]?.model ?? '?'}`,
  memory: totalmem(),
  fileSystem: spawnSync('findmnt', ['-n', '-o', 'FSTYPE,SOURCE,OPTIONS', '-T', folder], {
    encoding: 'utf8',
  }).stdout.trim(),
};
results.sort((a, b) => a.row - b.row);
printPeers(results);
for (const { what, why } of missed) console.log(`not measured: ${what}: ${why}`);
const out = values.json ?? join(root, '.cache', 'peers.json');
writeFileSync(out, JSON.stringify({ about, results, missed }, null, 2));
console.log(`\n${about.cpus}, ${about.kernel}, ${about.fileSystem}\nall figures: ${out}`);
process.exitCode = missed.length > 0 ? 1 : 0;
