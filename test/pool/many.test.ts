// Ten thousand volumes: the figures are right. How long it takes is printed, and measured by bench/.
import { closeSync, copyFileSync, ftruncateSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { create } from '../../src/op/create.ts';
import { builtCli } from '../tool/cli.ts';
import { newBench } from './help.ts';

beforeAll(builtCli);

describe('a pool of 10,000 volumes', () => {
  it('is refreshed and listed, with the right figures', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    const image = join(bench.root, 'image');
    await create({ path: image, format: 'qcow2', size: 1024 ** 3, qcow2: { clusterSize: 4096 } });
    for (let index = 0; index < 10_000; index++) {
      const path = join(bench.at('p'), `v${String(index).padStart(5, '0')}`);
      if (index % 2 === 0) {
        const fd = openSync(path, 'w');
        ftruncateSync(fd, 1024 ** 2);
        closeSync(fd);
      } else copyFileSync(image, path);
    }
    writeFileSync(join(bench.at('p'), 'V05000x'), 'x');
    const timed = async (...args: string[]): Promise<string> => {
      const start = performance.now();
      const text = await bench.ok(...args);
      console.log(`${args.join(' ')}: ${(performance.now() - start).toFixed(0)} ms`);
      return text;
    };
    await timed('pool-refresh', 'p');
    const names = (await timed('vol-list', 'p')).split('\n').slice(2, -2);
    expect(names.length).toBe(10_001);
    expect(names[5001]).toMatch(/^ V05000x /);
    const details = (await timed('vol-list', 'p', '--details')).split('\n').slice(2, -2);
    expect(details.filter((line) => / file {3}1\.00 GiB {3}/.test(line)).length).toBe(5000);
    expect(details.filter((line) => / file {3}1\.00 MiB {3}0\.00 B$/.test(line)).length).toBe(5000);
    const info = JSON.parse(await timed('pool-info', 'p', '--output', 'json')) as {
      promised: number;
      volumes: number;
    };
    expect(info).toMatchObject({ volumes: 10_001, promised: 5000 * (1024 ** 3 + 1024 ** 2) + 1 });
    expect(await timed('vol-info', 'v09999', 'p')).toMatch(/^Capacity: {7}1\.00 GiB$/m);
  });
});
