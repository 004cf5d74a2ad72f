// compare, dd, measure and bench on the command line: exit codes, output and options, side by side with qemu-img.
import { readFileSync, rmSync, symlinkSync, writeFileSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { addonHere } from '../native/help.ts';
import { builtCli, MAIN, spindle, type CliResult } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

let cwd = '';

beforeAll(async () => {
  await builtCli();
  cwd = tempDir();
  const bytes = Buffer.alloc(1024 ** 2);
  bytes.fill(7, 100_001, 170_000);
  writeFileSync(join(cwd, 'a.raw'), bytes);
  writeFileSync(join(cwd, 'same.raw'), bytes);
  bytes[100_700] = 8;
  writeFileSync(join(cwd, 'b.raw'), bytes);
  writeFileSync(join(cwd, 'long.raw'), Buffer.concat([readFileSync(join(cwd, 'a.raw')), Buffer.alloc(4096)]));
  writeFileSync(
    join(cwd, 'longer.raw'),
    Buffer.concat([readFileSync(join(cwd, 'a.raw')), Buffer.alloc(4096, 1)]),
  );
  writeFileSync(join(cwd, 'empty.raw'), '');
  await spindle(['convert', '-f', 'raw', '-O', 'qcow2', 'a.raw', 'a.qcow2'], { cwd });
  writeFileSync(join(cwd, 'key'), 'secret');
  const encrypted = ['-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.iter-time=10', '--secret-file', 'key'];
  await spindle(['create', '-q', ...encrypted, 'e.qcow2', '1M'], { cwd });
}, 120_000);

/** The same command line for both; `of=out` is a file of each. */
async function both(
  line: string,
): Promise<{ readonly ours: CliResult; readonly theirs: CliResult; readonly files: (Buffer | null)[] }> {
  const args = line.split(' ').filter((word) => word !== '');
  const out = join(cwd, 'out');
  const files: (Buffer | null)[] = [];
  const results: CliResult[] = [];
  for (const run of [() => qemu.qemuImg(args, { cwd, expect: 'any' }), () => spindle(args, { cwd })]) {
    rmSync(out, { force: true });
    results.push(await run());
    files.push(existsSync(out) ? readFileSync(out) : null);
  }
  const [theirs, ours] = results as [CliResult, CliResult];
  return { ours, theirs, files };
}

/** Past the page cache: that needs the addon. */
const DIRECT = / (-t|--cache)[ =](none|directsync)/;
const possible = (line: string): boolean => addonHere || !DIRECT.test(line);

/** Command lines, and the exit code where ours is another one than that of qemu-img. */
const COMPARE: readonly [line: string, ours?: number][] = [
  ['compare -f raw -F raw a.raw same.raw'],
  ['compare -f raw -F raw a.raw b.raw'],
  ['compare --a-format raw --b-format raw b.raw a.raw'],
  ['compare -q -f raw -F raw a.raw b.raw'],
  ['compare -f raw a.raw a.qcow2'],
  ['compare --force-share -f raw -F qcow2 a.raw a.qcow2'],
  ['compare --cache none -f raw a.raw a.qcow2'],
  ['compare -U --object secret,id=x,data=y a.qcow2 a.qcow2'],
  ['compare --strict -f raw -F raw a.raw b.raw'],
  ['compare -s -f raw a.raw a.qcow2'],
  ['compare -s -f raw -F raw a.raw long.raw'],
  ['compare -f raw -F raw a.raw long.raw'],
  ['compare -f raw -F raw long.raw a.raw'],
  ['compare -f raw -F raw a.raw longer.raw'],
  ['compare -f raw -F raw longer.raw b.raw'],
  ['compare -q -f raw -F raw a.raw longer.raw'],
  ['compare -f raw -F raw empty.raw empty.raw'],
  ['compare --image-opts driver=raw,file.filename=a.raw driver=qcow2,file.filename=a.qcow2'],
  ['compare a.raw absent'],
  ['compare absent a.raw'],
  ['compare -f qcow2 a.raw a.raw'],
  ['compare -f qcow2 a.raw a.qcow2'],
  ['compare e.qcow2 a.raw'],
  ['compare -T foo a.raw a.raw'],
  ['compare --image-opts -f raw a.raw a.raw'],
  // Exit code 1 says that disks differ, and nothing else.
  ['compare a.raw', 2],
  ['compare', 2],
  ['compare a.raw a.raw a.raw', 2],
  ['compare --frobnicate a.raw a.raw', 2],
];

qemu.describeWithQemu('compare, beside qemu-img', () => {
  const lines = COMPARE.filter(([line]) => possible(line));
  it.each(lines.map(([line, code]) => ({ line, code })))('$line', async ({ line, code }) => {
    const { ours, theirs } = await both(line);
    expect(ours.code, ours.stderr).toBe(code ?? theirs.code);
    if (ours.code === theirs.code) expect(ours.stdout).toBe(theirs.stdout);
    expect(ours.stderr.split('\n').length, 'one line at most').toBeLessThanOrEqual(2);
    expect(ours.stderr === '').toBe(ours.code <= 1);
  });
});

describe('compare', () => {
  it('as JSON', async () => {
    const { stdout, code } = await spindle(
      ['compare', '--output', 'json', '-f', 'raw', '-F', 'raw', 'a.raw', 'b.raw'],
      { cwd },
    );
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toEqual({
      ...{ identical: false, difference: 'content', offset: 100_700, sizes: [1024 ** 2, 1024 ** 2] },
      read: expect.any(Number) as number,
    });
    const same = await spindle(['compare', '--output=json', '-f', 'raw', 'a.raw', 'a.qcow2'], { cwd });
    expect(JSON.parse(same.stdout)).toMatchObject({ identical: true });
    const sizes = await spindle(
      ['compare', '-s', '--output=json', '-f', 'raw', '-F', 'raw', 'a.raw', 'long.raw'],
      { cwd },
    );
    expect(JSON.parse(sizes.stdout)).toMatchObject({ identical: false, difference: 'size' });
  });

  it('shows progress in both forms', async () => {
    const percent = await spindle(['compare', '-p', '-f', 'raw', 'a.raw', 'a.qcow2'], { cwd });
    expect(percent.stdout).toMatch(
      /^ {4}\(0\.00\/100%\)\r( {4}\(\d+\.\d\d\/100%\)\r)* {4}\(100\.00\/100%\)\rImages are identical\.\n\n$/,
    );
    const { stderr } = await spindle(['compare', '--progress', 'json', '-f', 'raw', 'a.raw', 'a.qcow2'], {
      cwd,
    });
    expect(JSON.parse(stderr.trim().split('\n').at(-1) ?? '')).toMatchObject({
      done: 1024 ** 2,
      total: 1024 ** 2,
    });
  });

  it('asks for the secret of an encrypted image', async () => {
    const { code } = await spindle(['compare', '--secret-file', 'key', 'e.qcow2', 'e.qcow2'], { cwd });
    expect(code).toBe(0);
    writeFileSync(join(cwd, 'wrong'), 'wrong');
    const wrong = await spindle(['compare', '--secret-file', 'wrong', 'e.qcow2', 'e.qcow2'], { cwd });
    expect(wrong).toMatchObject({ code: 2, stdout: '' });
  });

  it('exits with 0 for help', async () => {
    expect((await spindle(['compare', '--help'])).code).toBe(0);
  });
});

/** Command lines; the file that is made must be the same too where it is raw. */
const DD = [
  'dd -f raw if=a.raw of=out',
  'dd -f raw if=a.raw of=out bs=1M',
  'dd --format raw if=a.raw of=out bs=1000',
  'dd -f raw if=a.raw of=out bs=1000 count=3',
  'dd -f raw bs=1.5k count=70 skip=64 if=a.raw of=out',
  'dd -f raw bs=0x200 count=0x10 if=a.raw of=out',
  'dd -f raw bs=1b skip=1046001 if=a.raw of=out',
  'dd -f raw bs=64K count=2 skip=1 if=a.raw of=out -O raw',
  'dd if=a.qcow2 of=out --output-format raw',
  'dd -U -f qcow2 if=a.qcow2 of=out bs=2147483647',
  'dd --force-share --object secret,id=x,data=y if=a.qcow2 of=out count=2048',
  'dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=out bs=64k skip=2',
  'dd -f raw if=a.raw if=b.raw of=out bs=1k bs=2k',
  'dd -f raw if=a.raw of=out count=0',
  'dd -f raw if=a.raw of=out skip=2048',
  'dd -f raw if=a.raw of=out skip=2049',
  'dd -f raw if=a.raw of=out skip=10000000000000000',
  'dd -f raw if=a.raw of=out count=9223372036854775807',
  'dd -f raw if=a.raw of=out count=9223372036854775808',
  'dd -f raw if=a.raw of=out bs=0',
  'dd -f raw if=a.raw of=out bs=-1',
  'dd -f raw if=a.raw of=out bs=2G',
  'dd -f raw if=a.raw of=out bs=1kB',
  'dd -f raw if=a.raw of=out bs=',
  'dd -f raw if=a.raw of=out bs=x',
  'dd -f raw if=a.raw of=out count=-1',
  'dd -f raw if=a.raw of=out skip=-1',
  'dd -f raw if=a.raw of=out ibs=512',
  'dd -f raw if=a.raw of=out word',
  'dd -f raw if=a.raw',
  'dd -f raw of=out',
  'dd',
  'dd -f raw if= of=out',
  'dd -f raw if=absent of=out',
  'dd -f qcow2 if=a.raw of=out',
  'dd -f raw if=a.raw of=absent/out',
  'dd -f raw -O foo if=a.raw of=out',
  'dd -f raw -O luks if=a.raw of=out',
  'dd -f raw --image-opts if=driver=raw,file.filename=a.raw of=out',
  'dd --frobnicate if=a.raw of=out',
];

qemu.describeWithQemu('dd, beside qemu-img', () => {
  it.each(DD)('%s', async (line) => {
    const { ours, theirs, files } = await both(line);
    expect({ code: ours.code, stdout: ours.stdout }).toEqual({ code: theirs.code, stdout: '' });
    expect(ours.stderr === '').toBe(theirs.stderr === '');
    const [judged, made] = files;
    if (theirs.code === 0) expect(made?.equals(judged ?? Buffer.alloc(0))).toBe(true);
    else expect(made).toBeNull();
  });

  it('makes qcow2', async () => {
    const { code } = await spindle(
      ['dd', '-f', 'raw', '-O', 'qcow2', 'bs=4k', 'skip=3', 'if=a.raw', 'of=part.qcow2'],
      { cwd },
    );
    expect(code).toBe(0);
    await qemu.qemuImg(['dd', '-f', 'raw', 'bs=4k', 'skip=3', 'if=a.raw', 'of=part.raw'], { cwd });
    expect(
      await qemu.compare(
        { path: join(cwd, 'part.qcow2'), format: 'qcow2' },
        { path: join(cwd, 'part.raw'), format: 'raw' },
      ),
    ).toBe(true);
    expect((await qemu.check(join(cwd, 'part.qcow2'))).code).toBe(0);
  });
});

/** Command lines, and the exit code where ours is another one than that of qemu-img. */
const MEASURE: readonly [line: string, ours?: number][] = [
  ['measure --size 1G'],
  // Short spellings that newer ones have.
  ['measure -s 1000', 0],
  ['measure -O qcow2 --size 1G'],
  ['measure --target-format qcow2 --size=20G -o cluster_size=4k'],
  ['measure -O qcow2 -o cluster_size=2M -o refcount_bits=1,extended_l2=on --size 1T'],
  ['measure -O qcow2 -o preallocation=full --size 1G'],
  ['measure -O qcow2 -o backing_file=absent --size 1G'],
  ['measure -O qcow2 -o backing_fmt=raw --size 1G'],
  ['measure -O qcow2 -o size=2G --size 1G'],
  ['measure -O qcow2 -o data_file=absent/x --size 1G'],
  ['measure -O qcow2 -o nocow=on,extent_size_hint=8k --size 1G'],
  [
    'measure -O qcow2 --object secret,id=x,data=y -o encrypt.format=luks,encrypt.key-secret=x,encrypt.iter-time=10 --size 1G',
  ],
  ['measure -O luks --object secret,id=x,data=y -o key-secret=x,iter-time=10,cipher-alg=aes-128 --size 1G'],
  ['measure -O qcow2 -f raw a.raw'],
  ['measure -O qcow2 --format qcow2 a.qcow2'],
  ['measure -O qcow2 -U a.qcow2'],
  ['measure -O qcow2 --force-share --output human a.qcow2'],
  ['measure -O raw --output json a.qcow2'],
  ['measure -O qcow2 --image-opts driver=qcow2,file.filename=a.qcow2'],
  ['measure -O qcow2'],
  ['measure'],
  ['measure -o size=1G'],
  ['measure --size 1G a.raw'],
  ['measure a.raw a.raw'],
  ['measure -f raw --size 1G'],
  ['measure -l x --size 1G'],
  ['measure --image-opts --size 1G'],
  ['measure -O foo --size 1G'],
  ['measure -O vmdk --size 1G'],
  ['measure --size -1'],
  ['measure --size x'],
  ['measure --size 8E'],
  ['measure -O qcow2 -o frob=1 --size 1G'],
  ['measure -O qcow2 -o cluster_size=3k --size 1G'],
  ['measure -O qcow2 -o refcount_bits=3 --size 1G'],
  ['measure -O qcow2 -o cluster_size=512 --size 200G'],
  ['measure -O qcow2 -o extended_l2=on,cluster_size=4k --size 1G'],
  ['measure -O qcow2 -o preallocation=foo --size 1G'],
  ['measure -O qcow2 -o encrypt.format=luks,encrypt.key-secret=absent --size 1G'],
  ['measure absent'],
  ['measure -f qcow2 a.raw'],
  ['measure -l absent a.qcow2'],
  ['measure --output xml --size 1G'],
  ['measure -O qcow2 --options cluster_size=1M --size 1G'],
  // No passphrase is needed to count bytes.
  ['measure -O luks --size 1G', 0],
  ['measure -O raw e.qcow2', 0],
  // qemu-img create takes both spellings of a version.
  ['measure -O qcow2 -o compat=v3 --size 1G', 0],
];

qemu.describeWithQemu('measure, beside qemu-img', () => {
  it.each(MEASURE.map(([line, code]) => ({ line, code })))('$line', async ({ line, code }) => {
    const { ours, theirs } = await both(line);
    expect(ours.code, ours.stderr).toBe(code ?? theirs.code);
    if (code === undefined && ours.stdout.startsWith('{'))
      expect(JSON.parse(ours.stdout)).toEqual(JSON.parse(theirs.stdout));
    else if (code === undefined) expect(ours.stdout).toBe(theirs.stdout);
    expect(ours.stderr === '').toBe(ours.code === 0);
  });

  it('knows allocation policies', async () => {
    const judged = await qemu.qemuImg([
      'measure',
      '-O',
      'qcow2',
      '-o',
      'preallocation=falloc',
      '--size',
      '1G',
    ]);
    const { stdout } = await spindle([
      'measure',
      '-O',
      'qcow2',
      '--allocation',
      'thick-lazy',
      '--size',
      '1G',
    ]);
    expect(stdout).toBe(judged.stdout);
    expect((await spindle(['measure', '-O', 'qcow2', '-o', 'help'])).stdout).toContain('cluster_size=');
  });
});

/** Command lines on a copy of a.qcow2. */
const BENCH = [
  'bench -f qcow2 -c 10 x',
  'bench --count 10 --depth 3 --buffer-size 1k --step-size 3k --offset 5 x',
  'bench -c 0x10 -d 1 -s 100000 -S 1 -o 4k x',
  'bench -U -q -c 3 x',
  'bench --force-share -q -c 3 x',
  'bench -t none -c 3 x',
  'bench -n --cache none -c 3 -i native x',
  'bench --native -t directsync -c 3 x',
  'bench -i threads -c 3 x',
  'bench --aio=io_uring -c 3 x',
  'bench --image-opts -c 3 driver=qcow2,file.filename=x',
  'bench -c 3 --no-drain --pattern 3 x',
  'bench -w -c 10 --pattern 255 x',
  'bench --write -c 10 -d 4 --flush-interval 4 -t writethrough x',
  'bench -w -c 10 -d 4 --flush-interval=5 --no-drain x',
  'bench -c 3 --flush-interval 0 x',
  'bench -c 3 -S 0 x',
  'bench -c 1 -s 1M x',
  'bench -c 1 -s 2M x',
  'bench -c 11 -s 100000 x',
  'bench -c 3 -o 1M x',
  'bench -c 3 -f raw empty.raw',
  'bench -c 10 -d 4 --flush-interval 4 x',
  'bench -w -c 10 -d 4 --flush-interval 3 x',
  'bench -w --pattern 256 x',
  'bench -w --pattern -1 x',
  'bench -c 0 x',
  'bench -c 1k x',
  'bench -c -1 x',
  'bench -c 2147483648 x',
  'bench -d 0 x',
  'bench -s 0 x',
  'bench -s 2G x',
  'bench -S -1 x',
  'bench -o -1 x',
  'bench -n -c 3 x',
  'bench -i foo x',
  'bench -t foo x',
  'bench -U -w x',
  'bench -f raw --image-opts x',
  'bench absent',
  'bench x x',
  'bench',
];

qemu.describeWithQemu('bench, beside qemu-img', () => {
  it.each(BENCH.filter(possible))('%s', async (line) => {
    writeFileSync(join(cwd, 'x'), readFileSync(join(cwd, 'a.qcow2')));
    const args = line.split(' ');
    const theirs = await qemu.qemuImg(args, { cwd, expect: 'any' });
    const main = join(tempDir(), 'qemu-img');
    symlinkSync(MAIN, main);
    const ours = await spindle(args, { cwd, main });
    expect(ours.code, ours.stderr).toBe(theirs.code);
    expect(ours.stderr === '').toBe(ours.code === 0);
    const timeless = (text: string): string => text.replace(/\d+\.\d{3} seconds/, 'N seconds');
    // What cannot be done is refused before anything is said to be sent.
    expect(timeless(ours.stdout)).toBe(theirs.code === 0 ? timeless(theirs.stdout) : '');
  });
});

describe('bench', () => {
  it('says in its help that it writes', async () => {
    const { stdout } = await spindle(['bench', '--help']);
    expect(stdout).toMatch(/WRITES OVER THE DISK/);
  });

  it('as JSON, and with rates for people', async () => {
    const json = await spindle(['bench', '--output', 'json', '-c', '8', '-s', '512', 'a.qcow2'], { cwd });
    expect(JSON.parse(json.stdout)).toMatchObject({ requests: 8, bytes: 4096, flushes: 0 });
    const human = await spindle(['bench', '-c', '8', '-s', '512', 'a.qcow2'], { cwd });
    expect(human.stdout).toMatch(
      /^Sending 8 read .*\nRun completed in \d+\.\d{3} seconds\.\n\d+ requests and .*\/?a second\.\n$/,
    );
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('that is ended by %s closes the image: nothing leaks', async (signal, code) => {
    const folder = tempDir();
    await spindle(['create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', 'x', '1G'], { cwd: folder });
    const child = spawn(process.execPath, [MAIN, 'bench', '-w', '-c', '2000000000', '-S', '65536', 'x'], {
      cwd: folder,
    });
    const ended = new Promise((resolve) => child.once('close', resolve));
    const path = join(folder, 'x');
    for (let i = 0; i < 500 && readFileSync(path).length < 1024 ** 2; i++) await sleep(20);
    child.kill(signal);
    expect(await ended).toBe(code);
    const { code: clean, stdout } = await spindle(['check', '--output', 'json', 'x'], { cwd: folder });
    expect({ clean, stdout }).toMatchObject({ clean: 0 });
    expect((JSON.parse(stdout) as { 'allocated-clusters'?: number })['allocated-clusters']).toBeGreaterThan(
      0,
    );
  });
});
