import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  writeSync,
} from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { drill, type Drill } from '../../src/benchmark/drill/drill.ts';
import { linesOf } from '../../src/benchmark/drill/words.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { describeWithFileSystem, FILE_SYSTEMS, withFileSystem } from '../tool/filesystem.ts';
import { tempDir } from '../tool/temp.ts';

beforeAll(builtCli);

const NOBODY = 65534;

/** What is mounted below a folder, and the loop devices on files in it. */
function held(folder: string): string[] {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  const loops = spawnSync('losetup', ['--list', '--noheadings', '--output', 'BACK-FILE'], {
    encoding: 'utf8',
  });
  return [...mounts, ...loops.stdout.split('\n')].filter((line) => line.includes(folder));
}

for (const type of FILE_SYSTEMS) {
  describeWithFileSystem(`the out-of-space drill on ${type}`, type, () => {
    it(
      'tells what fails when, loses nothing that was accepted, and leaves nothing',
      { timeout: 240_000 },
      async () => {
        const [folder, results] = [tempDir(), tempDir()];
        const files = ['--json', `${results}/d.json`, '--html', `${results}/d.html`];
        const args = ['bench', 'allocation', '--drill', '--drill-fs', type, '--seed', '5', ...files, folder];
        const done = await spindle(args);
        expect([done.code, done.stderr]).toEqual([0, '']);
        expect([readdirSync(folder), held(folder)]).toEqual([[], []]);
        const found = JSON.parse(readFileSync(`${results}/d.json`, 'utf8')) as Drill;
        expect([found.kind, found.fileSystem, found.made, found.seed]).toEqual([
          'spindle bench drill',
          type,
          true,
          5,
        ]);
        expect(found.rows).toHaveLength(7);
        for (const {
          subject,
          create,
          first,
          growth,
          kept,
          neighbourKept,
          check,
          after,
          left,
          ...row
        } of found.rows) {
          expect(row.promised, subject).toBeGreaterThan(row.free);
          expect(left, subject).toEqual([]);
          if (subject.includes('thick')) {
            expect(create.failure, subject).toMatchObject({
              request: 'create',
              code: 'NO_SPACE',
              errno: 'ENOSPC',
            });
            expect(create.done, subject).toBeLessThan(4);
            expect(create.done, subject).toBeGreaterThan(0);
          } else {
            expect(create, subject).toEqual({ tried: 4, done: 4, failure: null });
            expect(first.failure, subject).toMatchObject({ code: 'NO_SPACE', errno: 'ENOSPC' });
            expect(first.done, subject).toBeLessThan(first.tried);
            expect(growth.failure, subject).toMatchObject({ code: 'NO_SPACE', errno: 'ENOSPC' });
            expect(after.tried, subject).toBeGreaterThan(0);
          }
          // Where blocks are written in place, who has space keeps it; btrfs writes elsewhere, and may run out.
          if (subject.includes('thick') && type !== 'btrfs')
            expect([first.failure, row.rewrite.failure, growth.failure], subject).toEqual([null, null, null]);
          if (type !== 'btrfs') expect(row.neighbour.failure, subject).toBeNull();
          expect(kept.units, subject).toBeGreaterThan(100);
          expect([kept.lost, neighbourKept], subject).toEqual([0, { units: 32, lost: 0 }]);
          expect(after.done, subject).toBe(after.tried);
          if (subject.startsWith('raw')) expect(check).toBeNull();
          else expect(check, subject).toMatchObject({ corruptions: 0, errors: 0 });
          expect(done.stdout).toContain(`\n${subject}: `);
        }
        const page = readFileSync(`${results}/d.html`, 'utf8');
        expect(page).toContain('<table id="drill">');
        expect(page).toContain('refuses at creation');
        expect(page).not.toMatch(/<(script|link(?! rel="icon" href="data:)|img|iframe)|@import|url\(/);
      },
    );
  });
}

describeWithFileSystem('the out-of-space drill', 'ext4', () => {
  it('sees data that is lost and images that do not open', { timeout: 120_000 }, async () => {
    const found = await drill({
      ...{ folder: tempDir(), seed: 6, subjects: ['raw-thin', 'qcow2-thin', 'qcow2-thick-lazy'] },
      beforeVerify: (folder, { id }) => {
        if (id === 'qcow2-thick-lazy') return Promise.resolve();
        const file = openSync(`${folder}/1.${id.startsWith('raw') ? 'raw' : 'qcow2'}`, 'r+');
        for (let at = 0; at < 1024 ** 2; at += 4096) {
          try {
            writeSync(file, Buffer.alloc(4096, 0x5a), 0, 4096, at);
          } catch (error) {
            // A hole, for which there is no room any more.
            expect(error).toMatchObject({ code: 'ENOSPC' });
          }
        }
        closeSync(file);
        return Promise.resolve();
      },
    });
    const [raw, qcow2, sound] = found.rows;
    expect(raw?.kept.lost).toBeGreaterThan(5);
    expect(qcow2?.kept.lost).toBeGreaterThan(20);
    expect((qcow2?.check?.errors ?? 0) + (qcow2?.check?.corruptions ?? 0)).toBeGreaterThan(0);
    expect([sound?.kept.lost, sound?.check]).toEqual([0, { corruptions: 0, leaks: 0, errors: 0 }]);
    expect(linesOf(found)[0]).toMatch(/are LOST/);
  });

  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)
    it(`unmounts and removes its store at ${signal}`, { timeout: 60_000 }, async () => {
      const folder = tempDir();
      const child = spawn(process.execPath, [MAIN, 'bench', 'allocation', '--drill', folder], {
        stdio: 'ignore',
      });
      const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
      while (held(folder).length === 0 && child.exitCode === null) await sleep(20);
      await sleep(300);
      expect(child.exitCode).toBeNull();
      child.kill(signal);
      expect(await ended).toBe(code);
      expect([readdirSync(folder), held(folder)]).toEqual([[], []]);
    });

  it('unmounts and removes its store when it is told twice', { timeout: 60_000 }, async () => {
    const folder = tempDir();
    const child = spawn(process.execPath, [MAIN, 'bench', 'allocation', '--drill', folder], {
      stdio: 'ignore',
    });
    const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
    while (held(folder).length === 0 && child.exitCode === null) await sleep(20);
    child.kill('SIGINT');
    child.kill('SIGTERM');
    expect([130, 143]).toContain(await ended);
    // The kernel lets go of a mount that was in use a little later.
    for (let time = 0; time < 50 && held(folder).length > 0; time++) await sleep(100);
    expect([readdirSync(folder), held(folder)]).toEqual([[], []]);
  });

  it(
    'fills a store that is named and agreed to, without root, and gives it back',
    { timeout: 120_000 },
    async () => {
      await withFileSystem('ext4', 64, async (mounted) => {
        const store = `${mounted}/own`;
        mkdirSync(store);
        chmodSync(`${mounted}/..`, 0o755);
        chownSync(store, NOBODY, NOBODY);
        const args = ['bench', 'allocation', '--drill', '--drill-store', store];
        const asked = await spindle(args);
        expect([asked.code, asked.stderr]).toEqual([
          1,
          expect.stringMatching(/^spindle: [^\n]*--fill-store agrees[^\n]*\n$/),
        ]);
        expect(readdirSync(store)).toEqual([]);
        const subjects = ['--subjects', 'raw-thin,qcow2-thick-lazy', '--fill-store', '--output', 'json'];
        const done = await spindle([...args, ...subjects], { uid: NOBODY });
        expect([done.code, done.stderr]).toEqual([0, '']);
        const { made, rows } = JSON.parse(done.stdout) as Drill;
        expect(made).toBe(false);
        expect(rows.map(({ first }) => first.failure?.code)).toEqual(['NO_SPACE', undefined]);
        expect(rows.map(({ create }) => create.failure?.code)).toEqual([undefined, 'NO_SPACE']);
        expect(rows.map(({ kept }) => kept.lost)).toEqual([0, 0]);
        expect(readdirSync(store)).toEqual([]);
      });
    },
  );

  it('says in one line what it will not do', async () => {
    const folder = tempDir();
    const refused = async (args: readonly string[], uid?: number): Promise<string> => {
      const done = await spindle(['bench', 'allocation', ...args], uid === undefined ? {} : { uid });
      expect([done.code, done.stderr.split('\n').length]).toEqual([1, 2]);
      return done.stderr;
    };
    expect(await refused(['--drill', folder], NOBODY)).toContain('--drill-store DIR --fill-store');
    expect(await refused(['--drill-fs', 'xfs', folder])).toContain('go with --drill');
    expect(await refused(['--drill', `${folder}/none`])).toContain('needs a directory');
    expect(await refused(['--drill', '--drill-store', '/', '--fill-store'])).toContain('root file system');
    expect(await refused(['--drill', '--subjects', 'qcow2-overlay', folder])).toContain('no backing files');
    expect(readdirSync(folder)).toEqual([]);
    await withFileSystem('ext4', 2048, async (large) => {
      const store = ['--drill', '--drill-store', large, '--fill-store'];
      expect(await refused(store)).toContain('more than the 1 GiB');
      expect(await refused([...store, '--drill-fs', 'ext4'])).toContain('leave --drill-fs out');
    });
  });
});

describe('the words of a drill', () => {
  it('are for every policy', () => {
    const none = { tried: 0, done: 0, failure: null };
    const found = {
      rows: [
        {
          ...{
            subject: 'raw-thin',
            format: 'raw',
            free: 1024,
            promised: 4096,
            create: { ...none, tried: 4, done: 4 },
          },
          ...{
            left: ['x'],
            first: none,
            rewrite: none,
            growth: none,
            neighbour: none,
            after: { ...none, tried: 2 },
          },
          ...{ kept: { units: 3, lost: 1 }, neighbourKept: { units: 1, lost: 0 }, check: null },
        },
      ],
    } as unknown as Drill;
    expect(linesOf(found)[0]).toMatch(/LEFT x.*1 of 4 blocks.*LOST.*2 of 2 volumes still failed/);
  });
});
