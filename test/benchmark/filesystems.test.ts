import { spawn } from 'node:child_process';
import { readdirSync, readFileSync, statfsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { planOf, roomFor, type StudyRequest } from '../../src/benchmark/plan.ts';
import { study, type Study } from '../../src/benchmark/study.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { describeWithFileSystem, FILE_SYSTEMS, withFileSystem } from '../tool/filesystem.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;

// Nothing here depends on how long anything took: only that studies come to an end, and what is proven and kept.

beforeAll(builtCli);

for (const type of FILE_SYSTEMS) {
  describeWithFileSystem(`a study on ${type}`, type, () => {
    it('makes every kind of image, proves it, and leaves nothing', async () => {
      await withFileSystem(type, 400, async (folder) => {
        const results = tempDir();
        const subjects =
          'raw-thin,raw-thick-lazy,raw-thick-eager,qcow2-thin,qcow2-metadata,qcow2-thick-lazy,qcow2-thick-eager,qcow2-overlay,qcow2-thin:cluster_size=128k+extended_l2=on';
        const args = [
          'bench',
          'allocation',
          '--quick',
          '--size',
          '16M',
          '--seed',
          '3',
          '--subjects',
          subjects,
        ];
        const phases =
          type === 'ext4'
            ? 'create,random-sync,random,random-deep-sync,sequential,read,partial,fragmented,discard,together'
            : 'create,random-sync,discard';
        const done = await spindle([
          ...args,
          '--phases',
          phases,
          '--json',
          `${results}/s.json`,
          '--html',
          `${results}/s.html`,
          folder,
        ]);
        expect([done.code, done.stderr]).toEqual([0, '']);
        expect(done.stdout).toContain('seed 3');
        expect(done.stdout).toContain('Verdict');
        const { cells, environment, conclusion } = JSON.parse(
          readFileSync(`${results}/s.json`, 'utf8'),
        ) as Study;
        expect(environment.fileSystem).toBe(type);
        expect(environment.device).toContain('loop');
        expect(cells).toHaveLength(11 * phases.split(',').length * 7);
        expect(conclusion.voids).toEqual([]);
        for (const { subject, scenario, before, steps } of cells) {
          expect(before, subject).not.toBeNull();
          if (subject === 'raw-thin') expect(before?.extents).toBe(0);
          if (subject === 'raw-thick-lazy')
            expect([before?.written, before?.unwritten]).toEqual([0, 16 * 1024 ** 2]);
          if (subject === 'raw-thick-eager')
            expect([before?.written, before?.unwritten]).toEqual([16 * 1024 ** 2, 0]);
          if (scenario !== 'create') expect(steps.length).toBeGreaterThan(1);
          for (const step of steps) expect(step.requests).toBeGreaterThan(0);
        }
        expect(readdirSync(folder).filter((name) => name !== 'lost+found')).toEqual([]);
        const same = await spindle(['bench', 'compare', `${results}/s.json`, `${results}/s.json`]);
        expect(same.code).toBe(0);
        expect(same.stdout).not.toContain('Differs');
        expect(same.stdout).not.toMatch(/ (slower|faster)$/m);
      });
    });
  });
}

for (const type of FILE_SYSTEMS) {
  describeWithFileSystem(`the room that a study asks for on ${type}`, type, () => {
    it('is enough, and a little less is refused beforehand', async () => {
      await withFileSystem(type, 400, async (folder) => {
        const { bavail, bsize } = statfsSync(folder);
        const request: StudyRequest = {
          ...{ seed: 1, subjects: ['raw-thick-eager', 'qcow2-thick-eager'] },
          scenarios: ['sequential', 'random-deep'],
        };
        let size = 16 * MIB;
        while (roomFor(planOf({ ...request, size: size + MIB }), type) <= bavail * bsize) size += MIB;
        await expect(study(folder, { ...request, size: size + 2 * MIB })).rejects.toMatchObject({
          ...{ code: 'NO_SPACE', message: expect.stringContaining('nothing was done') as string },
        });
        const stop = new AbortController();
        const options = { ...request, size, signal: stop.signal };
        // One round has all that any other has.
        const onCell = (done: number): void => {
          if (done === 8) stop.abort();
        };
        await expect(study(folder, { ...options, onCell })).rejects.toMatchObject({ code: 'ABORTED' });
        expect(readdirSync(folder).filter((name) => name !== 'lost+found')).toEqual([]);
      });
    });
  });
}

describe('a study on the command line', () => {
  it('leaves nothing when it is interrupted', async () => {
    const folder = tempDir();
    const child = spawn(process.execPath, [MAIN, 'bench', 'allocation', '--cached', folder], {
      stdio: 'ignore',
    });
    const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
    while (readdirSync(folder).length === 0 && child.exitCode === null) await sleep(20);
    await sleep(300);
    expect(readdirSync(folder).length).toBe(1);
    child.kill('SIGINT');
    expect(await ended).toBe(130);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('says in one line what it cannot do', async () => {
    const folder = tempDir();
    const full = await spindle(['bench', 'allocation', '--size', '100T', folder]);
    expect(full.code).toBe(1);
    expect(full.stderr).toMatch(/^spindle: .*takes up to .* are free; nothing was done\n$/);
    const none = await spindle(['bench', 'compare', '/nowhere.json', '/nowhere.json']);
    expect([none.code, none.stderr.split('\n').length]).toEqual([1, 2]);
  });
});
