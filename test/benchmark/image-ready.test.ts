import { expect, it, vi } from 'vitest';
import { benchImages } from '../../src/benchmark/image.ts';
import { create } from '../../src/op/create.ts';
import { tempDir } from '../tool/temp.ts';

const happened: string[] = [];

vi.mock(import('../../src/native/workload.ts'), async (original) => {
  const all = await original();
  return {
    ...all,
    noise: (...args) => {
      happened.push('noise');
      return all.noise(...args);
    },
  };
});

vi.mock(import('../../src/op/request-queue.ts'), async (original) => {
  const all = await original();
  return {
    ...all,
    runQueue: (...args) => {
      happened.push('requests');
      return all.runQueue(...args);
    },
  };
});

it('the noise of every image is there before the first request of any', async () => {
  const folder = tempDir();
  const images = ['a', 'b', 'c'].map((name) => ({ path: `${folder}/${name}` }));
  for (const { path } of images) await create({ path, format: 'raw', size: 1024 ** 2 });
  await benchImages(images, { write: true, count: 10 });
  expect(happened).toEqual(['noise', 'noise', 'noise', 'requests', 'requests', 'requests']);
  happened.length = 0;
  await benchImages(images, { count: 10 });
  expect(happened, 'reads need no noise').toEqual(['requests', 'requests', 'requests']);
});
