// One process and 1,000 images: many.ts spindle|qemu-img create|info FOLDER LIBRARY LANES, so many at a time. Ours from the library,
// theirs by a process each.
import { execFile, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

const COUNT = 1000;
const [whose, what, folder = '.', library = '', lanes = '1'] = process.argv.slice(2);
const { create, info } = (await import(pathToFileURL(library).href)) as typeof import('../../src/index.ts');

const images = join(folder, what === 'create' ? 'many' : 'many-to-see');
const pathOf = (index: number): string => join(images, `${String(index)}.qcow2`);
const ready = existsSync(pathOf(COUNT - 1));
mkdirSync(images, { recursive: true });

const spawned = promisify(execFile);

async function createOne(program: string | undefined, path: string): Promise<void> {
  const words = ['create', '-q', '-f', 'qcow2', path, '10G'];
  if (program === 'spindle') await create({ path, format: 'qcow2', size: 10 * 1024 ** 3 });
  else if (lanes === '1') run(...words);
  else await spawned('qemu-img', words);
}

async function createAll(program: string | undefined): Promise<void> {
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < COUNT) await createOne(program, pathOf(next++));
  };
  await Promise.all(Array.from({ length: Number(lanes) }, lane));
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
