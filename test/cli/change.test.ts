// The verbs that change images: exit codes, output and results, next to those of qemu-img on a copy of the same image.
import { spawn } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { builtCli, MAIN, spindle, type CliResult } from '../tool/cli.ts';
import { encryptedSource, openEncrypted } from '../tool/encrypted.ts';
import { FIXTURES } from '../tool/fixtures.ts';
import * as qemu from '../tool/qemu.ts';
import { sha256 } from '../tool/repair-cuts.ts';
import { tempDir } from '../tool/temp.ts';

/** Spindle under the name of qemu-img, which prints nothing of its own. */
let main = '';

beforeAll(async () => {
  await builtCli();
  main = join(tempDir(), 'qemu-img');
  symlinkSync(MAIN, main);
}, 120_000);

/** Two directories with the same files. */
function twins(files: Readonly<Record<string, string>>): { ours: string; theirs: string } {
  const folder = tempDir();
  const [ours, theirs] = [join(folder, 'ours'), join(folder, 'theirs')];
  for (const one of [ours, theirs]) {
    mkdirSync(one);
    for (const [name, from] of Object.entries(files)) copyFileSync(from, join(one, name));
  }
  return { ours, theirs };
}

/** Runs both; the exit codes must be equal, and what is printed unless that is said to differ. */
async function both(
  args: readonly string[],
  { ours, theirs }: { ours: string; theirs: string },
): Promise<{ mine: CliResult; judge: qemu.RunResult }> {
  const judge = await qemu.qemuImg(args, { cwd: theirs, expect: 'any' });
  const mine = await spindle(args, { cwd: ours, main });
  expect(mine.code, `${args.join(' ')}: ${mine.stderr} | ${judge.stderr}`).toBe(judge.code);
  if (mine.code === 1) expect(mine.stderr).toMatch(/^qemu-img: [^\n]+\n$/);
  return { mine, judge };
}

const CHECK = join(FIXTURES, 'check');

qemu.describeWithQemu('check -r like qemu-img', () => {
  /** Those of which both leave the same behind; the others are compared where repair is tested. */
  const SAME = {
    leaks: [
      'clean',
      'leak',
      'leak-past-end',
      'refcount-high-data',
      'copied-missing-l1',
      'dirty',
      'snapshot-leaked',
    ],
    all: [
      'leak',
      'refcount-zero-data',
      'refcount-zero-l1',
      'shared-l2',
      'refblock-twice',
      'reftable-empty',
    ].concat(['snapshot-low', 'snapshot-extra-short', 'dirty', 'bitmap-low', 'compressed-low']),
  };
  const grid = (['leaks', 'all'] as const).flatMap((mode) =>
    SAME[mode].map((name) => ({ file: `${name}.qcow2`, mode })),
  );

  it.each(grid)('$file $mode: exit code and counts', async ({ file, mode }) => {
    const at = twins({ [file]: join(CHECK, file) });
    const { mine, judge } = await both(['check', '-r', mode, '--output', 'json', file], at);
    expect(mine.stderr).toBe('');
    const [counted, wanted] = [mine.stdout, judge.stdout].map(
      (text) => JSON.parse(text) as Record<string, unknown>,
    );
    // Where new tables go, and what counts as one corruption when it is mended, is each program's own.
    for (const key of ['check-errors', 'corruptions', 'leaks', 'allocated-clusters', 'total-clusters'])
      expect(counted?.[key], key).toEqual(wanted?.[key]);
    for (const key of Object.keys(counted ?? {}))
      expect(
        Object.keys(wanted ?? {}).concat('corruptions-fixed', 'leaks-fixed', 'fragmented-clusters'),
      ).toContain(key);
    expect((await both(['check', file], at)).mine.code).toBe(judge.code);
  });

  it('says in words what was repaired, as scripts read it', async () => {
    const at = twins({ x: join(CHECK, 'leak.qcow2') });
    const { mine, judge } = await both(['check', '-r', 'leaks', 'x'], at);
    const words =
      /The following inconsistencies were found and repaired:\n\n {4}\d+ leaked clusters\n {4}\d+ corruptions\n\nDouble checking the fixed image now...\nNo errors were found on the image.\n/;
    expect(judge.stdout).toMatch(words);
    expect(mine.stdout).toMatch(words);
    expect((await both(['check', '-q', '-r', 'all', 'x'], at)).mine).toMatchObject({ code: 0, stdout: '' });
  });

  it('of what has no checks, and of what cannot be opened', async () => {
    const folder = tempDir();
    await qemu.create(join(folder, 'raw'), '1M', { format: 'raw' });
    writeFileSync(join(folder, 'text'), 'no image'.repeat(100));
    const at = twins({ raw: join(folder, 'raw'), text: join(folder, 'text') });
    expect((await both(['check', '-r', 'all', 'raw'], at)).mine.code).toBe(63);
    expect((await both(['check', '-r', 'all', '-f', 'qcow2', 'text'], at)).mine.code).toBe(1);
    expect((await both(['check', '-r', 'all', 'absent'], at)).mine.code).toBe(1);
    expect((await both(['check', '-r', 'some', 'raw'], at)).mine.code).toBe(1);
  });
});

describe('check -r', () => {
  const staged = (file: string): string => {
    const cwd = tempDir();
    copyFileSync(join(CHECK, file), join(cwd, 'x'));
    return cwd;
  };

  it('plans, repairs, and takes back', async () => {
    const cwd = staged('snapshot-l1-beyond-eof.qcow2');
    const hash = (): string => sha256(readFileSync(join(cwd, 'x')));
    const before = hash();
    const plan = await spindle(['check', '-r', 'all', '--dry-run', 'x'], { cwd });
    expect(plan).toMatchObject({ code: 2, stderr: '' });
    expect(plan.stdout).toMatch(/^Change: 0x3c header: [0-9a-f]{24} -> 0{24}: no snapshot can be read$/m);
    expect(plan.stdout).toMatch(/^Step 1: let the header say that there are no snapshots\.$/m);
    expect(plan.stdout).toMatch(
      /^Would be dropped: snapshot 1 \(id 1, 'one'\): its L1 table .* past the end/m,
    );
    expect(plan.stdout).toMatch(
      /changes are planned; nothing was changed\.\nA check would find no errors then\.\n$/,
    );
    const json = JSON.parse(
      (await spindle(['check', '-r', 'all', '--dry-run', '--output', 'json', 'x'], { cwd })).stdout,
    ) as Record<string, unknown>;
    expect(json).toMatchObject({
      corruptions: 1,
      'after-repair': { corruptions: 0, leaks: 0, 'check-errors': 0 },
      'dropped-snapshots': [expect.stringContaining("'one'")],
    });
    expect(json['planned-changes']).toHaveLength(plan.stdout.match(/^Change: /gm)?.length ?? 0);
    expect(hash()).toBe(before);

    const done = await spindle(['check', '-r', 'all', '--journal', 'undo', 'x'], { cwd });
    expect(done).toMatchObject({ code: 0, stderr: '' });
    expect(done.stdout).toMatch(/^Dropped: snapshot 1/m);
    expect(done.stdout).toMatch(/'check --undo undo' takes the repair back/);
    expect(hash()).not.toBe(before);
    const undone = await spindle(['check', '--undo', 'undo', 'x'], { cwd });
    expect(undone).toMatchObject({ code: 0, stderr: '' });
    expect(undone.stdout).toMatch(/changes were taken back/);
    expect(hash()).toBe(before);
    const again = await spindle(['check', '--undo', 'undo', '--output', 'json', 'x'], { cwd });
    expect(JSON.parse(again.stdout)).toMatchObject({ filename: 'x' });
  });

  it('keeps no journal that is not needed, and says so when nothing is to do', async () => {
    const cwd = staged('clean.qcow2');
    const done = await spindle(['check', '-r', 'all', '--journal', 'undo', 'x'], { cwd });
    expect(done).toMatchObject({ code: 0, stderr: '' });
    expect(done.stdout).toMatch(/^Nothing was changed\./);
    expect(done.stdout).not.toMatch(/takes the repair back/);
    expect(existsSync(join(cwd, 'undo'))).toBe(false);
  });

  it('says what stays wrong, and exits with what a check finds then', async () => {
    const cwd = staged('data-unaligned.qcow2');
    const done = await spindle(['check', '-r', 'all', 'x'], { cwd });
    expect(done.code).toBe(2);
    expect(done.stdout).toMatch(/^Not repaired: /m);
    const dirty = staged('dirty-stale.qcow2');
    const leaks = await spindle(['check', '-r', 'leaks', '--output', 'json', 'x'], { cwd: dirty });
    expect(leaks.code).toBe(2);
    expect(JSON.parse(leaks.stdout)).toHaveProperty('not-repaired');
  });

  it.each([['check'], ['check', '-r', 'all']])('tells how far it is: %s %s %s', async (...args) => {
    const cwd = staged('shared-data.qcow2');
    const { stderr, stdout } = await spindle([...args, '--progress', 'json', 'x'], { cwd });
    const lines = stderr.trim().split('\n');
    for (const line of lines)
      expect(Object.keys(JSON.parse(line) as object)).toEqual(['done', 'total', 'bytesPerSecond']);
    expect(stdout).toContain('Image end offset');
    const quiet = await spindle([...args, '-q', '--progress', 'json', 'x'], { cwd });
    expect(quiet).toMatchObject({ stdout: '', stderr: '' });
  });
});

qemu.describeWithQemu('resize like qemu-img', () => {
  const CASES: readonly string[] = [
    ...[
      'disk 2M',
      'disk +1M',
      'disk +0',
      'disk 1.5M',
      'disk 0x200000',
      'disk 1000',
      'disk -64k',
      'disk 512k',
    ],
    ...[
      '--shrink disk -64k',
      '--shrink disk 512k',
      '--shrink disk 0',
      '--shrink disk -1M',
      '--shrink disk -2M',
    ],
    ...['-q disk 2M', '-f qcow2 disk 2M', '-f raw disk 2M', 'disk 2X', 'disk', 'absent 2M', 'disk 2M 3M'],
    ...['--preallocation metadata disk 2M', '--preallocation falloc disk 2M', '--preallocation full disk 2M'],
    ...[
      '--preallocation half disk 2M',
      '--shrink --preallocation full disk 512k',
      'raw 2M',
      '-f raw raw +1M',
    ],
    ...['-f raw raw 1001', '-f raw --shrink raw 1001', '-f raw --preallocation falloc raw 2M'],
    ...[
      '-f raw --preallocation full raw 2M',
      '-f raw --preallocation metadata raw 2M',
      '-f raw -q raw 1537k',
    ],
    ...[
      '--image-opts driver=qcow2,file.filename=disk 2M',
      '-f qcow2 raw 2M',
      'snapped 2M',
      '--shrink snapped 256k',
    ],
  ];
  /** What qemu lets pass. */
  const STRICTER: Readonly<Record<string, string>> = {
    '-f raw disk 2M': 'the file that qemu makes longer is no sound image any more; ours does it, too',
  };

  it.each(CASES)('%s', async (line) => {
    const folder = tempDir();
    await qemu.create(join(folder, 'disk'), '1M');
    await qemu.fill(join(folder, 'disk'), [{ do: 'write', at: 0, length: 900_000, pattern: 3 }]);
    await qemu.create(join(folder, 'raw'), '1M', { format: 'raw' });
    copyFileSync(join(folder, 'disk'), join(folder, 'snapped'));
    await qemu.snapshot(join(folder, 'snapped'), 'create', 'one');
    const at = twins({
      ...{ disk: join(folder, 'disk'), raw: join(folder, 'raw'), snapped: join(folder, 'snapped') },
    });
    const { mine, judge } = await both(['resize', ...line.split(' ')], at);
    expect(mine.stdout).toBe(judge.stdout);
    for (const name of ['disk', 'snapped', 'raw']) {
      const [ours, theirs] = [join(at.ours, name), join(at.theirs, name)];
      const format = name === 'raw' ? 'raw' : 'qcow2';
      const sizeOf = async (path: string): Promise<unknown> =>
        ((await qemu.info(path, { format })) as { 'virtual-size': number })['virtual-size'];
      expect(await sizeOf(ours), name).toBe(await sizeOf(theirs));
      if (format === 'qcow2' && !(line in STRICTER)) expect((await qemu.check(ours)).code).toBe(0);
      if (format === 'raw') expect(statSync(ours).size).toBe(statSync(theirs).size);
      if (mine.code !== 0) expect(sha256(readFileSync(ours))).toBe(sha256(readFileSync(join(folder, name))));
    }
    // Both warn where the format was only guessed to be raw.
    expect(/warning/i.test(mine.stderr)).toBe(line === 'raw 2M');
  });
});

qemu.describeWithQemu('snapshot like qemu-img', () => {
  const CASES: readonly (readonly string[])[] = [
    ...[
      ['-c', 'new'],
      ['-c', 'two'],
      ['-c', 'with blank, comma'],
      ['-a', 'one'],
      ['-a', '2'],
      ['-a', 'none'],
    ],
    ...[['-d', 'one'], ['-d', 'none'], ['-d', '2'], ['-l'], [], ['-c', 'a', '-d', 'b'], ['-l', '-c', 'a']],
    ...[
      ['-q', '-c', 'new'],
      ['-U', '-l'],
      ['-U', '-c', 'new'],
      ['-f', 'qcow2', '-c', 'new'],
      ['-f', 'raw', '-l'],
    ],
    ...[['-f', 'raw', '-c', 'x']],
  ];
  it.each(CASES.map((args) => ({ args, line: args.join(' ') })))('snapshot $line', async ({ args }) => {
    const folder = tempDir();
    const disk = join(folder, 'disk');
    await qemu.create(disk, '1M');
    for (const [index, name] of ['one', 'two', 'one'].entries()) {
      await qemu.fill(disk, [{ do: 'write', at: 0, length: 100_000, pattern: index + 1 }]);
      await qemu.snapshot(disk, 'create', name);
    }
    await qemu.fill(disk, [{ do: 'write', at: 0, length: 100_000, pattern: 9 }]);
    const at = twins({ disk });
    const { mine, judge } = await both(['snapshot', ...args, 'disk'], at);
    // Ours leaves the disk's clock and names as they are; the list is the same to the letter.
    expect(mine.stdout).toBe(judge.stdout);
    const look = async (path: string): Promise<unknown> => [
      ((await qemu.info(path)) as { snapshots: { id: string; name: string }[] }).snapshots.map(
        ({ id, name }) => `${id} ${name}`,
      ),
      await qemu.contentHash(path, join(folder, 'scratch')),
    ];
    expect(await look(join(at.ours, 'disk'))).toEqual(await look(join(at.theirs, 'disk')));
    expect((await qemu.check(join(at.ours, 'disk'))).code).toBe(0);
    if (mine.code !== 0) expect(sha256(readFileSync(join(at.ours, 'disk')))).toBe(sha256(readFileSync(disk)));
  });

  it('goes by id as well under its own name, and wants names to be clear', async () => {
    const cwd = tempDir();
    const disk = join(cwd, 'disk');
    await qemu.create(disk, '1M');
    for (const name of ['one', 'one', 'two']) await qemu.snapshot(disk, 'create', name);
    const unclear = await spindle(['snapshot', '-d', 'one', 'disk'], { cwd });
    expect(unclear).toMatchObject({ code: 1, stdout: '' });
    expect(unclear.stderr).toMatch(/several snapshots are named 'one'.*1, 2/);
    expect(await spindle(['snapshot', '-d', '1', 'disk'], { cwd })).toEqual({
      code: 0,
      stdout: '',
      stderr: '',
    });
    expect((await spindle(['snapshot', '-d', 'one', 'disk'], { cwd })).code).toBe(0);
    expect((await spindle(['snapshot', 'disk'], { cwd })).stdout).toMatch(/^3 +two/m);
  });
});

qemu.describeWithQemu('create with encryption, like qemu-img', () => {
  const QUICK = 'encrypt.iter-time=10,';
  // Each cipher, mode and hash by itself is compared in the tests of encryption.
  const LISTS: readonly string[] = [
    `${QUICK}encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256`,
    `${QUICK}encrypt.cipher-mode=ctr,encrypt.ivgen-alg=plain,encrypt.hash-alg=sha512`,
    `${QUICK}cluster_size=4k,extended_l2=off,refcount_bits=8`,
    `${QUICK}extended_l2=on,lazy_refcounts=on,compression_type=zstd,preallocation=metadata`,
    `${QUICK}compat=0.10`,
    ...['encrypt.cipher-alg=des', 'encrypt.cipher-alg=', 'encrypt.hash-alg=crc32', 'encrypt.iter-time=x'],
    ...['encrypt.cipher-mode=xtc', 'encrypt.ivgen-alg=none', 'encrypt.iter-time=-1'],
  ];
  it.each(LISTS)('%s', async (list) => {
    const at = twins({});
    const format = 'encrypt.format=luks,encrypt.key-secret=s';
    const args = [
      'create',
      '--object',
      'secret,id=s,data=spindle',
      '-f',
      'qcow2',
      '-o',
      `${format},${list}`,
      'x',
      '1M',
    ];
    const { mine, judge } = await both(args, at);
    expect(mine.stdout).toBe(mine.code === 0 ? judge.stdout : '');
    if (mine.code !== 0) {
      expect(existsSync(join(at.ours, 'x'))).toBe(false);
      return;
    }
    const path = join(at.ours, 'x');
    await qemu.qemuIo(['-c', 'write -P 7 0 64k', ...encryptedSource(path, 'qcow2')]);
    const image = await openEncrypted(path);
    const sector = new Uint8Array(512);
    await image.read(sector, 1024);
    await image.close();
    expect(sector.every((byte) => byte === 7)).toBe(true);
    const kinds = await Promise.all(
      [path, join(at.theirs, 'x')].map(async (one) => {
        const found = (await qemu.info(one)) as {
          'format-specific': { data: { encrypt: Record<string, unknown> } };
        };
        const { uuid, slots, ...rest } = found['format-specific'].data.encrypt;
        delete rest['master-key-iters'];
        return { rest, described: typeof uuid === 'string' && Array.isArray(slots) };
      }),
    );
    expect(kinds[0]).toEqual(kinds[1]);
  });
});

qemu.describeWithQemu('Ctrl-C', () => {
  const BIG = 3 * 1024 ** 3;

  it.each([
    { what: 'resize', args: ['resize', '--preallocation', 'full', 'disk', '+3G'] },
    { what: 'check -r', args: ['check', '-r', 'all', '--journal', 'undo', 'disk'] },
    { what: 'snapshot -d', args: ['snapshot', '-d', 'one', 'disk'] },
  ])('in the middle of $what leaves a sound image', { timeout: 300_000 }, async ({ what, args }) => {
    const cwd = tempDir();
    const disk = join(cwd, 'disk');
    // Small clusters, and many tables: enough work to be stopped in.
    await qemu.create(disk, '64M', { options: { cluster_size: 4096 } });
    await qemu.fill(disk, [{ do: 'write', at: 0, length: 32 * 1024 ** 2, pattern: 5 }]);
    await qemu.snapshot(disk, 'create', 'one');
    if (what === 'check -r') {
      const bytes = readFileSync(disk);
      const table = Number(bytes.readBigUInt64BE(48));
      bytes.fill(0, table, table + 8);
      writeFileSync(disk, bytes);
    }
    const before = await qemu.contentHash(disk, join(cwd, 'scratch'));
    let stopped = 0;
    for (const wait of [20, 150, 300, 600]) {
      const child = spawn(process.execPath, [MAIN, ...args], { cwd, stdio: 'ignore' });
      const ended = new Promise<{ code: number | null; signal: string | null }>((resolve) =>
        child.once('close', (code, signal) => resolve({ code, signal })),
      );
      await sleep(wait);
      child.kill('SIGINT');
      const { code, signal } = await ended;
      if (code === 0) break;
      expect(signal === 'SIGINT' || code === 130 || code === 1, `${String(code)} ${String(signal)}`).toBe(
        true,
      );
      stopped++;
      // A repair that was stopped is begun again; its journal belongs to the first one.
      const verdict = await qemu.check(disk);
      if (what !== 'check -r') expect([0, 3], JSON.stringify(verdict.json)).toContain(verdict.code);
      expect((await spindle(['check', '-r', 'leaks', 'disk'], { cwd })).stderr).toBe('');
      if (existsSync(join(cwd, 'undo'))) break;
    }
    expect(stopped).toBeGreaterThan(0);
    const size = ((await qemu.info(disk)) as { 'virtual-size': number })['virtual-size'];
    if (what === 'resize' && size > 64 * 1024 ** 2) expect(size).toBe(BIG + 64 * 1024 ** 2);
    else expect(await qemu.contentHash(disk, join(cwd, 'scratch'))).toBe(before);
    await spindle(['check', '-r', 'all', 'disk'], { cwd });
    expect((await qemu.check(disk)).code).toBe(0);
  });
});
