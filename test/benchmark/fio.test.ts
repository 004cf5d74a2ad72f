import { execFileSync, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { FIO_SCENARIOS, fioJobs } from '../../src/benchmark/fio.ts';
import { planOf } from '../../src/benchmark/plan.ts';
import { seedOf } from '../../src/benchmark/random.ts';
import { makeImage } from '../../src/benchmark/subject.ts';
import { openFile } from '../../src/storage/file.ts';
import { describeUnlessMissing } from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const fio = spawnSync('fio', ['--version']).error === undefined ? undefined : 'fio';
const MIB = 1024 ** 2;

interface Report {
  readonly jobs: readonly {
    readonly error: number;
    readonly write: { readonly total_ios: number };
    readonly sync: { readonly lat_ns: { readonly N: number } };
  }[];
}

/** The blocks of 4 KiB that hold data. */
async function blocksOf(path: string): Promise<number[]> {
  const file = await openFile(path);
  try {
    const all = (await file.hostExtents?.(0, file.size)) ?? [];
    return all.flatMap(({ offset, length }) =>
      Array.from({ length: length / 4096 }, (_, at) => offset + at * 4096),
    );
  } finally {
    await file.close();
  }
}

describeUnlessMissing('the jobs for fio', fio, () => {
  it('do the requests of the study, on an image that was thin, and nothing else', async () => {
    const folder = tempDir();
    const round = 2;
    const request = { preset: 'quick', seed: 8, size: 64 * MIB, cached: true } as const;
    const plan = planOf({ ...request, scenarios: FIO_SCENARIOS, subjects: ['raw-thin'] });
    for (const [name, text] of fioJobs(plan, round)) writeFileSync(join(folder, name), text);
    for (const { id, steps } of plan.scenarios) {
      const path = join(folder, `${id}.raw`);
      const raw = { id: '', format: 'raw', policy: 'thin', control: false, overlay: false } as const;
      await makeImage(path, raw, plan.size, '');
      const [first] = steps(plan.size, plan.scale, seedOf(plan.seed, id, round));
      const wanted = new Set<number>();
      for (let at = 0; at < (first?.operations.length ?? 0); at += 3)
        for (let byte = 0; byte < (first?.operations[at + 1] ?? 0); byte += 4096)
          wanted.add((first?.operations[at] ?? 0) + byte);
      const count = (first?.operations.length ?? 0) / 3;
      for (const section of ['first', 'rewrite']) {
        const told = execFileSync('fio', ['--output-format=json', `--section=${section}`, `${id}.fio`], {
          ...{ cwd: folder, encoding: 'utf8', env: { ...process.env, FILENAME: path } },
        });
        const [done] = (JSON.parse(told.slice(told.indexOf('{'))) as Report).jobs;
        expect([done?.error, done?.write.total_ios], id).toEqual([0, count]);
        if (id === 'random-sync') expect(done?.sync.lat_ns.N).toBe(count);
        const there = await blocksOf(path);
        expect(
          there.filter((block) => !wanted.has(block)),
          `${id}, ${section}`,
        ).toEqual([]);
        // Through the page cache fio drops what is in flight when its log ends, which is less than the depth.
        expect(there.length, `${id}, ${section}`).toBeGreaterThan(
          wanted.size - Math.max(1, first?.depth ?? 1),
        );
      }
    }
  });
});
