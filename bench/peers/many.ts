// One process and 1,000 images: many.ts spindle|qemu-img create|info FOLDER LIBRARY. Ours from the library, theirs by a process each.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const COUNT = 1000;
const [whose, what, folder = '.', library = ''] = process.argv.slice(2);
const { create, info } = (await import(pathToFileURL(library).href)) as typeof import('../../src/index.ts');

const images = join(folder, what === 'create' ? 'many' : 'many-to-see');
const pathOf = (index: number): string => join(images, `${String(index)}.qcow2`);
const ready = existsSync(pathOf(COUNT - 1));
mkdirSync(images, { recursive: true });

async function createAll(program: string | undefined): Promise<void> {
  for (let index = 0; index < COUNT; index++) {
    if (program === 'spindle') await create({ path: pathOf(index), format: 'qcow2', size: 10 * 1024 ** 3 });
    else run('create', '-q', '-f', 'qcow2', pathOf(index), '10G');
  }
}

function run(...words: readonly string[]): string {
  const done = spawnSync('qemu-img', words, { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(done.stderr);
  return done.stdout;
}

if (what === 'create') await createAll(whose);
else {
  if (!ready) await createAll('spindle');
  for (let index = 0; index < COUNT; index++) {
    const size =
      whose === 'spindle'
        ? (await info(pathOf(index))).virtualSize
        : (JSON.parse(run('info', '--output=json', pathOf(index))) as { 'virtual-size': number })[
            'virtual-size'
          ];
    if (size !== 10 * 1024 ** 3) throw new Error(`${pathOf(index)} has ${String(size)} bytes`);
  }
}
