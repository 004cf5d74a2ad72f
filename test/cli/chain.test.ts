// commit and rebase as commands, beside those of qemu-img.
import { symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';
import { addonHere } from '../native/help.ts';

beforeAll(builtCli, 120_000);

/** base.raw <- mid.qcow2 <- top.qcow2, each with something in it; and other.qcow2. */
async function chain(): Promise<string> {
  const cwd = tempDir();
  for (const args of [
    'create -q -f raw base.raw 1M',
    'create -q -f qcow2 -b base.raw -F raw mid.qcow2 2M',
    'create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 4M',
    'create -q -f qcow2 other.qcow2 3M',
  ])
    await qemu.qemuImg(args.split(' '), { cwd });
  await qemu.fill('base.raw', [{ do: 'write', at: 0, length: 2 ** 20, pattern: 1 }], { format: 'raw', cwd });
  await qemu.fill('mid.qcow2', [{ do: 'write', at: 65_536, length: 70_144, pattern: 2 }], { cwd });
  await qemu.fill('top.qcow2', [{ do: 'write', at: 2 ** 21, length: 65_536, pattern: 3 }], { cwd });
  await qemu.fill('other.qcow2', [{ do: 'write', at: 0, length: 65_536, pattern: 4 }], { cwd });
  return cwd;
}

/** What is compared after a command: the exit code, and what the images are then. */
async function outcome(code: number, cwd: string): Promise<unknown> {
  const images: unknown[] = [];
  for (const [name, format] of [
    ['base.raw', 'raw'],
    ['mid.qcow2', 'qcow2'],
    ['top.qcow2', 'qcow2'],
  ] as const) {
    const {
      'virtual-size': size,
      'backing-filename': backing,
      'backing-filename-format': of,
    } = (await qemu.info(name, { format, cwd })) as Record<string, unknown>;
    images.push({ name, size, backing, of });
  }
  // An image that backs itself is opened by nobody.
  const content = await qemu.contentHash('top.qcow2', 'scratch', { cwd }).catch(() => 'none');
  return { code, images, content };
}

/** What bypasses the page cache needs the addon. */
const DIRECT = / (none|directsync) /;

const ALL: readonly string[] = [
  'commit top.qcow2',
  'commit -f qcow2 -t none -p top.qcow2',
  'commit --format qcow2 --cache writethrough --quiet --drop top.qcow2',
  'commit -d -q top.qcow2',
  'commit -b base.raw top.qcow2',
  'commit --base ./mid.qcow2 --rate 100M --progress top.qcow2',
  'commit -r 1G -q --object secret,id=s,data=x --image-opts driver=qcow2,file.filename=top.qcow2',
  'commit -b other.qcow2 top.qcow2',
  'commit -b top.qcow2 top.qcow2',
  'commit -f raw base.raw',
  'commit absent.qcow2',
  'commit',
  'commit --absent top.qcow2',
  'commit -t absent top.qcow2',
  'rebase -b base.raw -F raw top.qcow2',
  'rebase -p -q -c -t none -T none -b other.qcow2 -F qcow2 top.qcow2',
  'rebase --format qcow2 --cache directsync --backing-cache unsafe --backing other.qcow2 --backing-format qcow2 --compress --quiet --progress top.qcow2',
  'rebase -U -b base.raw -F raw top.qcow2',
  'rebase --force-share --object secret,id=s,data=x --image-opts -b base.raw -F raw driver=qcow2,file.filename=top.qcow2',
  'rebase -b EMPTY top.qcow2',
  'rebase -b EMPTY -F raw top.qcow2',
  'rebase -u -b EMPTY top.qcow2',
  'rebase -u -b other.qcow2 -F qcow2 top.qcow2',
  'rebase --backing-unsafe -b gone.qcow2 -F qcow2 top.qcow2',
  'rebase -u -f qcow2 top.qcow2',
  'rebase -b base.raw top.qcow2',
  'rebase -u -b base.raw top.qcow2',
  'rebase top.qcow2',
  'rebase -b gone.qcow2 -F qcow2 top.qcow2',
  'rebase -b top.qcow2 -F qcow2 mid.qcow2',
  'rebase -b base.raw -F absent top.qcow2',
  'rebase -f raw -b EMPTY base.raw',
  'rebase -b base.raw -F raw absent.qcow2',
];
const COMMANDS = ALL.filter((command) => addonHere || !DIRECT.test(command));

const wordsOf = (command: string): string[] =>
  command.split(' ').map((word) => (word === 'EMPTY' ? '' : word));

qemu.describeWithQemu('called as qemu-img', () => {
  it.concurrent.each(COMMANDS)('%s', async (command) => {
    const [theirs, ours] = [await chain(), await chain()];
    const main = join(tempDir(), 'qemu-img');
    symlinkSync(MAIN, main);
    const judged = await qemu.qemuImg(wordsOf(command), { cwd: theirs, expect: 'any' });
    const done = await spindle(wordsOf(command), { cwd: ours, main });
    expect(await outcome(done.code, ours), done.stderr).toEqual(await outcome(judged.code, theirs));
    if (done.code === 0) {
      const last = (text: string): string => text.replace(/^[^]*\r/, '').trim();
      expect(last(done.stdout)).toBe(last(judged.stdout));
      expect(done.stderr).toBe('');
      expect(done.stdout.includes('\r')).toBe(judged.stdout.includes('\r'));
    } else {
      expect(done.stderr).toMatch(/^qemu-img: .*\n$/);
      expect(done.stdout).toBe('');
    }
  });
});

qemu.describeWithQemu('commit and rebase by their own name', () => {
  it('ask before they take a backing file away', async () => {
    const cwd = await chain();
    const refused = await spindle(['rebase', '-u', 'top.qcow2'], { cwd });
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr).toMatch(/^spindle: top\.qcow2: .*--force.*\n$/);
    expect(await qemu.info('top.qcow2', { cwd })).toMatchObject({ 'backing-filename': 'mid.qcow2' });
    expect(await spindle(['rebase', '-u', '--force', 'top.qcow2'], { cwd })).toEqual({
      code: 0,
      stdout: '',
      stderr: '',
    });
    expect(await qemu.info('top.qcow2', { cwd })).not.toHaveProperty('backing-filename');
  });

  it('tell progress in the form that is wanted', async () => {
    for (const [args, stdout, stderr] of [
      [['commit', '-p', 'top.qcow2'], /^( {4}\(\d+\.\d\d\/100%\)\r)+\nImage committed\.\n$/, /^$/],
      [['rebase', '-p', '-b', '', 'top.qcow2'], /^( {4}\(\d+\.\d\d\/100%\)\r)+\n$/, /^$/],
      [
        ['rebase', '--progress', 'json', '-b', '', 'top.qcow2'],
        /^$/,
        /^(\{"done":\d+,"total":4194304,"bytesPerSecond":\d+\}\n)+$/,
      ],
      [['commit', '--progress=json', '-q', 'top.qcow2'], /^$/, /^$/],
    ] as const) {
      const done = await spindle(args, { cwd: await chain() });
      expect(done.code).toBe(0);
      expect(done.stdout).toMatch(stdout);
      expect(done.stderr).toMatch(stderr);
    }
  });

  it('warn of images that a commit past them spoils', async () => {
    const cwd = await chain();
    const done = await spindle(['commit', '-b', 'base.raw', 'top.qcow2'], { cwd });
    expect(done).toMatchObject({ code: 0, stdout: 'Image committed.\n' });
    expect(done.stderr).toMatch(/^spindle: top\.qcow2: warning: .*mid\.qcow2.*\n$/);
  });

  it('say in one line what is wrong', async () => {
    const cwd = await chain();
    writeFileSync(join(cwd, 'junk'), 'junk');
    for (const [args, about] of [
      ['commit -U top.qcow2', /-U/],
      ['commit -b other.qcow2 top.qcow2', /other\.qcow2.*mid\.qcow2, base\.raw/],
      ['commit junk', /no backing file/],
      ['rebase -b other.qcow2 top.qcow2', /-F/],
      ['rebase top.qcow2', /-b/],
      ['rebase -b top.qcow2 -F qcow2 top.qcow2', /reads this image/],
      ['rebase -b gone -F raw top.qcow2', /gone/],
      ['rebase -b nbd:unix:x -F raw top.qcow2', /local files/],
    ] as const) {
      const { code, stdout, stderr } = await spindle(args.split(' '), { cwd });
      expect([code, stdout]).toEqual([1, '']);
      expect(stderr).toMatch(/^spindle: [^\n]+\n$/);
      expect(stderr).toMatch(about);
    }
  });
});

describe('the help', () => {
  it.each(['commit', 'rebase'])('of %s has examples', async (verb) => {
    const { stdout, code } = await spindle([verb, '--help']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/Examples:\n {2}spindle/);
  });
});
