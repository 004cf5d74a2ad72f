// How the command line behaves as a whole: options it takes, help, names, start-up, pipes and signals.
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { parseMount } from '../../src/storage/mount.ts';
import { parseOptionList } from '../../src/cli/option-list.ts';
import { closest } from '../../src/cli/suggest.ts';
import { SUBVERBS, VERBS } from '../../src/cli/verbs.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { tempDir } from '../tool/temp.ts';

let cwd = '';

beforeAll(async () => {
  await builtCli();
  cwd = tempDir();
  await spindle(['create', '-f', 'qcow2', 'x', '1M'], { cwd });
}, 120_000);

/** Every option of `qemu-img VERB --help` (Debian's parser) in an accepted use, with the exit code. */
const ACCEPTED: readonly (readonly [args: string, code: number])[] = [
  ['create -f raw y 1M', 0],
  ['create --format raw --options size=1M y', 0],
  ['create -f qcow2 -b x -F qcow2 -u y 1M', 0],
  ['create -f qcow2 --backing x --backing-format qcow2 --backing-unsafe y 1M', 0],
  ['create --object secret,id=a,data=b -q y 1M', 0],
  ['create --quiet y 1M', 0],
  ['info -f qcow2 x', 0],
  ['info --format=qcow2 --backing-chain x', 0],
  ['info -b -U x', 0],
  ['info --force-share --output human x', 0],
  ['info --output=json --object secret,id=a,data=b x', 0],
  ['info --image-opts driver=qcow2,file.driver=file,file.filename=x', 0],
  ['map -f qcow2 --output json -U x', 0],
  ['map --start-offset=0 --max-length=1M --force-share x', 0],
  ['map -s 0 -l 1M --object secret,id=a,data=b x', 0],
  ['map --image-opts driver=qcow2,file.filename=x', 0],
  ['check -q -f qcow2 -T none -U x', 0],
  ['check --quiet --format qcow2 --cache unsafe --force-share --output json x', 0],
  ['check --object secret,id=a,data=b x', 0],
  ['check --repair leaks x', 0],
  ['snapshot -l x', 0],
  ['snapshot --list -q -U -f qcow2 x', 0],
  ['snapshot --quiet --force-share --format qcow2 --object secret,id=a,data=b x', 0],
  ['snapshot --create n x', 0],
  ['snapshot --apply n x', 0],
  ['snapshot --delete n x', 0],
  ['resize --quiet --preallocation=off x +1M', 0],
  ['resize -q --shrink x 1M', 0],
  ['bitmap --add -g 64k x a', 0],
  ['bitmap --add --granularity=1M --disable --format qcow2 x b', 0],
  ['bitmap --merge a --clear --enable -f qcow2 x b', 0],
  ['bitmap --image-opts --object secret,id=a,data=b --merge a driver=qcow2,file.filename=x b', 0],
  ['create -q -f qcow2 y 1M', 0],
  ['bitmap --add --merge a -b x -F qcow2 y c', 0],
  ['bitmap --merge a --source-file x --source-format=qcow2 y c', 0],
  ['bitmap --remove x a', 0],
  ['bitmap --remove x b', 0],
  ['amend -f qcow2 -p -q -t none --force -o compat=1.1 x', 0],
  ['amend --format qcow2 --quiet --cache unsafe --options lazy_refcounts=off x', 0],
  ['amend --object secret,id=a,data=b -o refcount_bits=16 x', 0],
  ['amend --image-opts -o compat=v3 driver=qcow2,file.filename=x', 0],
  ['doctor', 0],
  ['doctor --output json .', 0],
];

describe('the options of qemu-img', () => {
  it.each(ACCEPTED)('%s', async (args, code) => {
    const result = await spindle(args.split(' '), { cwd });
    expect(result.stderr).not.toMatch(/unknown option|internal error/);
    expect(result.code).toBe(code);
  });

  it('may be shortened as long as they are clear', async () => {
    expect((await spindle(['info', '--backing-ch', '--out', 'json', 'x'], { cwd })).stdout).toMatch(/^\[/);
    expect((await spindle(['create', '--backing', 'x', '--back', 'y', 'z'], { cwd })).stderr).toMatch(
      /--back/,
    );
  });
});

describe('help', () => {
  const all = Object.keys({ ...VERBS, ...SUBVERBS });

  it.each(all)('of %s tells what it does, its options, and examples', async (verb) => {
    const words = verb.split(' ');
    const { stdout, stderr, code } = await spindle([...words, '--help']);
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
    expect(stdout).toMatch(/^Usage: spindle /);
    expect(stdout).toMatch(/\n\nExamples:\n {2}spindle /);
    expect(stdout.split(`\n  spindle ${verb} `).length).toBeGreaterThan(2);
    expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(120);
    expect((await spindle(['help', ...words])).stdout).toBe(stdout);
    expect((await spindle([...words, '-h'])).stdout).toBe(stdout);
  });

  it('lists the commands', async () => {
    const { stdout, code } = await spindle(['--help']);
    expect(code).toBe(0);
    for (const verb of all) expect(stdout).toMatch(new RegExp(`^ {2}${verb} `, 'm'));
    expect((await spindle(['-h'])).stdout).toBe(stdout);
    expect((await spindle(['help'])).stdout).toBe(stdout);
  });

  it('lists every verb that has a file, but for the one that only completion scripts call', () => {
    const files = readdirSync(new URL('../../src/cli/command/', import.meta.url))
      .map((name) => name.replace('.ts', ''))
      .filter((name) => name !== 'names');
    expect(all.map((verb) => verb.replace(' ', '-')).sort()).toEqual(files.sort());
  });

  it('tells the version', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
      version: string;
    };
    expect((await spindle(['--version'])).stdout).toBe(`spindle ${version}\n`);
    expect((await spindle(['-V'])).stdout).toBe(`spindle ${version}\n`);
  });
});

describe('called as qemu-img', () => {
  it('goes by that name and prints nothing of its own', async () => {
    const main = join(tempDir(), 'qemu-img');
    symlinkSync(MAIN, main);
    expect((await spindle(['info', 'absent'], { main })).stderr).toMatch(/^qemu-img: absent: /);
    expect((await spindle(['--version'], { main })).stdout).toMatch(/^qemu-img version \d/);
    expect((await spindle(['info', 'x'], { main, cwd })).stdout).not.toContain('Allocation');
    expect((await spindle(['info', '--output=json', 'x'], { main, cwd })).stdout).not.toContain('allocation');
    expect((await spindle(['info', '--help'], { main })).stdout).toMatch(/^Usage: qemu-img info /);
  });
});

describe('start-up', () => {
  /** The files that a run loads. */
  async function loaded(args: readonly string[]): Promise<string[]> {
    const folder = tempDir();
    const preload = join(folder, 'preload.cjs');
    const list = join(folder, 'list');
    writeFileSync(
      preload,
      `process.on('exit', () => require('node:fs').writeFileSync(${JSON.stringify(list)}, Object.keys(require.cache).join('\\n')));`,
    );
    await spindle(args, { cwd, node: ['-r', preload] });
    return readFileSync(list, 'utf8')
      .split('\n')
      .filter((path) => path !== preload)
      .map((path) => path.replace(/^.*\//, ''));
  }

  it('loads nothing but the entry for --version', async () => {
    expect((await loaded(['--version'])).sort()).toEqual(['main.cjs', 'package.json']);
  });

  it('loads one verb, and the addon only where it is needed', async () => {
    expect((await loaded(['info', '--help'])).sort()).toEqual(['info.cjs', 'main.cjs']);
    expect(await loaded(['create', '-o', 'help'])).toEqual(['main.cjs', 'create.cjs']);
    expect(
      (await loaded(['snapshot', 'x'])).filter((name) => !name.endsWith('.node') && name !== 'fs-ext.js'),
    ).toEqual(['main.cjs', 'snapshot.cjs']);
  });
});

describe('pipes and signals', () => {
  it('ends quietly when the reader of its output is gone', async () => {
    const child = spawn(
      'sh',
      ['-c', `"$0" "$1" --help | true; "$0" "$1" info x | true`, process.execPath, MAIN],
      { cwd },
    );
    let stderr = '';
    child.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
    const code = await new Promise((resolve) => child.once('close', resolve));
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s leaves nothing behind', async (signal, code) => {
    const folder = tempDir();
    const child = spawn(process.execPath, [MAIN, 'create', '-q', '-o', 'preallocation=full', 'big', '3G'], {
      cwd: folder,
    });
    const ended = new Promise((resolve) => child.once('close', resolve));
    for (let i = 0; i < 200 && readdirSync(folder).length === 0; i++) await sleep(10);
    child.kill(signal);
    expect(await ended).toBe(code);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('shows where an error comes from when asked', async () => {
    const { stderr } = await spindle(['info', 'absent'], { env: { SPINDLE_DEBUG: '1' } });
    expect(stderr).toMatch(/^spindle: .*\n {4}code: NOT_FOUND\n/);
    expect(stderr).toMatch(/\n {4}at /);
  });
});

describe('doctor', () => {
  it('tries the file system and leaves nothing behind', async () => {
    const folder = tempDir();
    const { stdout, code } = await spindle(['doctor', '--output', 'json', folder]);
    expect(code).toBe(0);
    const found = JSON.parse(stdout) as {
      trials: { name: string; works: boolean }[];
      fileSystem: unknown;
      problem: null;
    };
    expect(found.trials.map(({ name }) => name)).toContain('seek-hole');
    expect(found.trials.every(({ works }) => typeof works === 'boolean')).toBe(true);
    expect(found.problem).toBeNull();
    expect(readdirSync(folder)).toEqual([]);
  });

  it('works without the addon', async () => {
    const { stdout, code } = await spindle(['doctor', cwd], { env: { SPINDLE_ADDON: 'off' } });
    expect(code).toBe(0);
    expect(stdout).toContain('not loaded: switched off by SPINDLE_ADDON=off');
  });

  it('reads mounts', () => {
    expect(
      parseMount('36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue'),
    ).toEqual({
      type: 'ext3',
      source: '/dev/root',
      point: '/mnt 2',
      options: ['rw', 'noatime', 'errors=continue'],
    });
    expect(parseMount('')).toBeUndefined();
  });
});

describe('completion', () => {
  const shells = { bash: ['bash', '-n'], zsh: ['zsh', '-n'], fish: ['fish', '-n'] } as const;
  it.each(Object.entries(shells))('%s', async (shell, [program, flag]) => {
    const { stdout, code } = await spindle(['completion', shell]);
    expect(code).toBe(0);
    for (const verb of Object.keys(VERBS)) expect(stdout).toContain(verb);
    expect(stdout).toContain('backing-format');
    expect(stdout).toContain('thick-lazy');
    expect(stdout).toContain('drill-fs');
    const path = join(tempDir(), 'script');
    writeFileSync(path, stdout);
    const parsed = spawnSync(program, [flag, path], { encoding: 'utf8' });
    if (parsed.error === undefined)
      expect({ status: parsed.status, stderr: parsed.stderr }).toEqual({ status: 0, stderr: '' });
  });

  it('of bash completes verbs, options and values', async () => {
    const { stdout } = await spindle(['completion', 'bash']);
    const complete = (words: string): string => {
      const script = `${stdout}\nCOMP_WORDS=(${words}); COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)); _spindle; echo "\${COMPREPLY[*]}"`;
      return spawnSync('bash', ['-c', script], { encoding: 'utf8', cwd }).stdout.trim();
    };
    expect(complete('spindle cr')).toBe('create');
    expect(complete('spindle create --allocation ""')).toBe('thin thick-lazy thick-eager');
    expect(complete('spindle info --back')).toBe('--backing-chain');
    expect(complete('spindle info x')).toBe('x');
    expect(complete('spindle completion z')).toBe('zsh');
    expect(complete('spindle key ""')).toBe('list add remove change');
    expect(complete('spindle key list x')).toBe('x');
    expect(complete('spindle key add --new-s')).toBe('--new-secret --new-secret-file');
    expect(complete('spindle bench im')).toBe('image');
    expect(complete('spindle bench x')).toBe('x');
    expect(complete('spindle bench --dep')).toBe('--depth');
    expect(complete('spindle bench allocation --drill-f')).toBe('--drill-fs');
    expect(complete('spindle bench allocation --drill-fs x')).toBe('xfs');
    expect(complete('spindle bench image --acc')).toBe('--access');
    expect(complete('spindle pool-start --b')).toBe('--build');
  });
});

describe('completion of names', () => {
  it('of pools and volumes, in bash', async () => {
    const root = tempDir();
    const env = { SPINDLE_POOLS: root };
    const make = async (...args: string[]): Promise<void> => {
      expect(await spindle(args, { env })).toMatchObject({ code: 0 });
    };
    for (const name of ['images', 'idle one'])
      await make('pool-define-as', name, 'dir', '--target', join(root, name));
    await make('pool-start', 'images', '--build');
    for (const name of ['disk.img', 'disk two', "it's", 'other'])
      await make('vol-create-as', 'images', name, '1M', '--allocation', '0');
    const folder = join(root, 'bin');
    mkdirSync(folder);
    writeFileSync(join(folder, 'spindle'), `#!/bin/sh\nexec "${process.execPath}" "${MAIN}" "$@"\n`, {
      mode: 0o755,
    });
    const { stdout } = await spindle(['completion', 'bash']);
    const complete = (words: string, at = '${#COMP_WORDS[@]} - 1', more = {}): string => {
      const script = `${stdout}\nCOMP_WORDS=(${words}); COMP_CWORD=$((${at})); _spindle; printf '%s\\n' "\${COMPREPLY[@]}"`;
      const done = spawnSync('bash', ['-c', script], {
        encoding: 'utf8',
        cwd,
        env: { ...process.env, PATH: `${folder}:${process.env['PATH'] ?? ''}`, ...env, ...more },
      });
      expect({ words, stderr: done.stderr }).toEqual({ words, stderr: '' });
      return done.stdout.trim();
    };
    const all = 'idle\\ one\nimages';
    for (const words of [
      'pool-info',
      'pool info',
      'pool-start --build',
      'pool-info --pool',
      'vol-list',
      'vol list',
    ])
      expect(complete(`spindle ${words} ""`), words).toBe(all);
    expect(complete('spindle pool-info im')).toBe('images');
    expect(complete('spindle vol-info disk.img --pool im')).toBe('images');
    expect(complete('spindle vol-create-from images v.xml other --inputpool i')).toBe(all);
    // Volumes, where it is said in which pool: before, or behind.
    expect(complete('spindle vol-info --pool images disk')).toBe('disk\\ two\ndisk.img');
    expect(complete('spindle vol-info --pool=images ""')).toBe("disk\\ two\ndisk.img\nit\\'s\nother");
    expect(complete('spindle vol delete o --pool images', '3')).toBe('other');
    expect(complete(String.raw`spindle vol-info --pool images 'disk\ t'`)).toBe('disk\\ two');
    expect(complete('spindle vol-create-from images v.xml o')).toBe('other');
    expect(complete('spindle vol-create-as images new 1M --backing-vol o')).toBe('other');
    // Files and options, where those are.
    expect(complete('spindle vol-upload --pool images disk.img x')).toBe('x');
    expect(complete('spindle vol-info x')).toBe('x');
    expect(complete('spindle pool-define x')).toBe('x');
    expect(complete('spindle pool-info --q')).toBe('--quiet');
    expect(complete('spindle pool st')).toBe('start');
    // Whatever is wrong: nothing is offered, and nothing is said.
    expect(complete('spindle vol-info --pool nowhere ""')).toBe('');
    expect(complete('spindle vol-info --pool "idle one" ""')).toBe('');
    expect(complete('spindle pool-info ""', undefined, { SPINDLE_POOLS: '/dev/null' })).toBe('');
    writeFileSync(join(root, 'config', 'broken.xml'), '<pool');
    expect(complete('spindle pool-info i')).toBe(all);
  });
});

describe('words', () => {
  it('of an option list', () => {
    expect(parseOptionList('a=1,b')).toEqual([
      { name: 'a', value: '1' },
      { name: 'b', value: undefined },
    ]);
    expect(parseOptionList('a=x,,y=z,b=')).toEqual([
      { name: 'a', value: 'x,y=z' },
      { name: 'b', value: '' },
    ]);
    expect(parseOptionList('a=1,,')).toEqual([{ name: 'a', value: '1,' }]);
    expect(parseOptionList('a=1,,,b')).toEqual([
      { name: 'a', value: '1,' },
      { name: 'b', value: undefined },
    ]);
    for (const list of ['', ',', ',a=1', 'a=1,', ',,a=1', '=1'])
      expect(() => parseOptionList(list), list).toThrow();
  });

  it('that are close', () => {
    expect(closest('inof', ['info', 'map'])).toBe('info');
    expect(closest('snap', ['info', 'snapshot'])).toBe('snapshot');
    expect(closest('frobnicate', ['info', 'map'])).toBeUndefined();
  });
});
