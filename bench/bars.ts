import { spawnSync } from 'node:child_process';
import { mkdtempSync, promises as fs, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openImage } from '../src/format/open.ts';
import { trace } from '../src/layer/trace.ts';
import { nodeCodec } from '../src/native/codec.ts';
import { openFile } from '../src/storage/file.ts';
import { median, type Bar } from './table.ts';

const PAIRS = 21;
const CALLS = 2000;
/** Calls of one kind before it is the other's turn. */
const BLOCK = 100;

/** Measures all bars; `root` is the checkout, whose `dist` must be built. */
export async function measureBars(root: string): Promise<Bar[]> {
  const folder = mkdtempSync(join(tmpdir(), 'spindle-bench-'));
  try {
    const { create, info } = (await import(
      join(root, 'dist', 'index.js')
    )) as typeof import('../src/index.ts');
    const small = join(folder, 'small.qcow2');
    await create({ path: small, format: 'qcow2', size: 1024 ** 3 });
    const large = join(folder, 'large.qcow2');
    await create({ path: large, format: 'qcow2', size: 1024 ** 4, preallocation: 'metadata' });
    return [
      await inProcess(info, small),
      startUp(root, ['--version'], 'command line, --version'),
      startUp(root, ['info', small], 'command line, info of a small image'),
      await opening(large),
    ];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** `info`, and its floor in turn with it: what Node takes to look at, open, read twice and close the same file. */
async function inProcess(info: (path: string) => Promise<unknown>, path: string): Promise<Bar> {
  const bare = async (): Promise<void> => {
    await fs.stat(path);
    const file = await fs.open(path);
    await file.read(new Uint8Array(8), 0, 8, 0);
    await file.read(new Uint8Array(4096), 0, 4096, 0);
    await file.close();
  };
  const times: { info: number[]; bare: number[] } = { info: [], bare: [] };
  const time = async (work: () => Promise<unknown>): Promise<number[]> => {
    const taken: number[] = [];
    for (let i = 0; i < BLOCK; i++) {
      const start = performance.now();
      await work();
      taken.push(performance.now() - start);
    }
    return taken;
  };
  for (let done = -CALLS / 4; done < CALLS; done += BLOCK) {
    const ours = await time(() => info(path));
    const floor = await time(bare);
    if (done < 0) continue;
    times.info.push(...ours);
    times.bare.push(...floor);
  }
  return {
    what: 'info in process',
    unit: 'ms',
    limit: 0.2,
    measured: median(times.info),
    how: `${String(CALLS)} calls; stat, open, two reads and close by Node take ${median(times.bare).toFixed(3)} ms`,
  };
}

/** Whole processes, ours and an empty Node in turn, the order changing from pair to pair. */
function startUp(root: string, args: readonly string[], what: string): Bar {
  const time = (words: readonly string[]): number => {
    const start = performance.now();
    const done = spawnSync(process.execPath, words, { stdio: 'ignore' });
    if (done.status !== 0) throw new Error(`${words.join(' ')} ended with ${String(done.status)}`);
    return performance.now() - start;
  };
  const ours = [join(root, 'dist', 'cli', 'main.cjs'), ...args];
  const empty = ['-e', '0'];
  const times: { ours: number[]; empty: number[] } = { ours: [], empty: [] };
  for (let pair = 0; pair < PAIRS; pair++) {
    if (pair % 2 === 0) {
      times.ours.push(time(ours));
      times.empty.push(time(empty));
    } else {
      times.empty.push(time(empty));
      times.ours.push(time(ours));
    }
  }
  const floor = median(times.empty);
  return {
    what,
    unit: 'x node -e 0',
    limit: 1.3,
    measured: median(times.ours) / floor,
    how: `${String(PAIRS)} pairs; node -e 0 takes ${floor.toFixed(1)} ms`,
  };
}

/** Not a time: bytes read to open an image of 1 TiB of which every cluster is mapped. */
async function opening(path: string): Promise<Bar> {
  const storage = trace(await openFile(path));
  const image = await openImage(storage, { format: 'qcow2', codec: nodeCodec });
  const reads = storage.records.filter(({ operation }) => operation === 'read');
  const bytes = reads.reduce((sum, { length }) => sum + length, 0);
  await image.close();
  return {
    what: 'opening a mapped 1 TiB image',
    unit: 'KiB read',
    limit: 20,
    measured: bytes / 1024,
    how: `${String(reads.length)} reads: header and L1 table`,
  };
}
