// The main job, start to end: creates thin, thick-lazy and thick-eager images, inspects them, and prints what each costs.
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './common.mjs';

const { addonStatus, create, formatSize, info, isSpindleError, parseSize } = await import(
  join(root, 'dist', 'index.js')
);

const size = process.argv[2] ?? '256M';
const folder = join(root, '.cache', 'demo');
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

const addon = addonStatus();
console.log(
  addon.loaded
    ? '\nRunning on the native addon.'
    : `\nRunning on the TypeScript twins (${addon.reason}): slower, same bytes.`,
);
console.log(`Six disks of ${size}, created and inspected by spindle:\n`);

const COLUMNS = [
  ['format', 8],
  ['policy', 13],
  ['created in', 12],
  ['on disk', 10],
  ['written', 10],
  ['reserved', 10],
  ['missing', 10],
  ['info says', 12],
];
const line = (cells) =>
  console.log(
    cells
      .map((cell, index) => String(cell).padEnd(COLUMNS[index][1]))
      .join(' ')
      .trimEnd(),
  );
line(COLUMNS.map(([name]) => name));
line(COLUMNS.map(([, width]) => '-'.repeat(width)));

let failed = false;
process.on('SIGINT', () => {
  rmSync(folder, { recursive: true, force: true });
  process.exit(130);
});
try {
  for (const format of ['raw', 'qcow2']) {
    for (const allocation of ['thin', 'thick-lazy', 'thick-eager']) {
      const path = join(folder, `${allocation}.${format}`);
      try {
        const start = performance.now();
        await create({ path, format, size: parseSize(size), allocation });
        const milliseconds = performance.now() - start;
        const { allocation: usage } = await info(path, { allocation: true });
        const told = (bytes) => (usage === null ? '?' : formatSize(bytes));
        line([
          format,
          allocation,
          `${milliseconds.toFixed(1)} ms`,
          formatSize(statSync(path).blocks * 512),
          told(usage?.written + usage?.delayed),
          told(usage?.unwritten),
          told(usage?.hole + usage?.unmapped),
          usage?.policy ?? 'cannot tell',
        ]);
        failed ||= usage !== null && usage.policy !== allocation;
      } catch (error) {
        if (!isSpindleError(error)) throw error;
        failed = true;
        line([format, allocation, `${error.code}: ${error.message}`]);
      }
    }
  }
  if (!failed) quickStudy();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
console.log(
  failed
    ? '\nNot everything worked here: see the lines above, and run `node dist/cli/main.cjs doctor`.'
    : `
"created in" is until the image is durable. Thin: no block yet; the first write finds one. Thick-lazy: all blocks
reserved, none written; the first write pays for that. Thick-eager: zeroes written; the first write is a rewrite.

Try:  node dist/cli/main.cjs create -f qcow2 --allocation thick-lazy disk.qcow2 1G
      node dist/cli/main.cjs info disk.qcow2
      node dist/cli/main.cjs --help`,
);
process.exit(failed ? 1 : 0);

/** About 20 seconds: what the policies cost on this very store. Where it has no O_DIRECT, through the page cache. */
function quickStudy() {
  console.log('\nAnd is thick worth it here? A quick study of this store, about 20 seconds:\n');
  const run = (...more) =>
    spawnSync(
      process.execPath,
      [join(root, 'dist', 'cli', 'main.cjs'), 'bench', 'allocation', '--quick', ...more, folder],
      { stdio: 'inherit' },
    ).status;
  if ((addon.loaded ? run() : run('--cached')) !== 0 && addon.loaded && run('--cached') !== 0)
    console.log('This store cannot be studied: see the line above.');
}
