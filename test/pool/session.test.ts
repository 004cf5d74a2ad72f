// The session that spindle comes from, word by word, and each verb's answers: facts, labels, columns, exit codes.
import {
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { POOL_VERBS } from '../../src/cli/pool/pool-verbs.ts';
import { VOL_VERBS } from '../../src/cli/pool/vol-verbs.ts';
import { create } from '../../src/op/create.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { activePool, newBench, outcomes, type Bench } from './help.ts';

beforeAll(builtCli);

/** The value behind a label. */
function value(text: string, label: string): string | undefined {
  return new RegExp(`^${label}:\\s+(.*)$`, 'm').exec(text)?.[1];
}

describe('a session on a directory pool', () => {
  it('goes as with virsh', async () => {
    const bench = newBench();
    const target = bench.at('guest_images');
    expect(await bench.ok('pool-define-as', 'guest_images', 'dir', '-', '-', '-', '-', target)).toBe(
      'Pool guest_images defined\n\n',
    );
    expect(await bench.ok('pool-list', '--all')).toBe(
      ` Name           State      Autostart\n${'-'.repeat(15 + 11 + 12)}\n guest_images   inactive   no\n\n`,
    );
    expect(await bench.ok('pool-list')).toBe(` Name   State   Autostart\n${'-'.repeat(27)}\n\n`);
    expect(existsSync(target)).toBe(false);
    expect(await bench.ok('pool-start', '--build', 'guest_images')).toBe('Pool guest_images started\n\n');
    expect(statSync(target).mode & 0o7777).toBe(0o711);
    expect(await bench.ok('pool-autostart', 'guest_images')).toBe(
      'Pool guest_images marked as autostarted\n\n',
    );
    const info = await bench.ok('pool-info', 'guest_images');
    expect(
      info
        .split('\n')
        .slice(0, 8)
        .map((line) => line.replace(/:.*/, '')),
    ).toEqual([
      ...['Name', 'UUID', 'State', 'Persistent', 'Autostart', 'Capacity', 'Allocation', 'Available'],
    ]);
    expect(info).toMatch(/^Name: {11}guest_images\n/);
    expect([value(info, 'State'), value(info, 'Persistent'), value(info, 'Autostart')]).toEqual([
      'running',
      'yes',
      'yes',
    ]);
    expect(value(info, 'Capacity')).toMatch(/^\d+\.\d\d [KMGTP]iB$/);
    expect(value(info, 'UUID')).toBe((await bench.ok('pool-uuid', 'guest_images')).trim());

    expect(await bench.ok('vol-create-as', 'guest_images', 'disk.img', '8M')).toBe(
      'Vol disk.img created\n\n',
    );
    expect(await bench.ok('vol-create-as', 'guest_images', 'disk.qcow2', '1G', '--format', 'qcow2')).toBe(
      'Vol disk.qcow2 created\n\n',
    );
    expect(await bench.ok('vol-list', 'guest_images')).toBe(
      [
        ` Name         Path`,
        '-'.repeat(13 + `${target}/disk.qcow2`.length + 3),
        ` disk.img     ${target}/disk.img`,
        ` disk.qcow2   ${target}/disk.qcow2`,
        '\n',
      ].join('\n'),
    );
    expect(await bench.ok('vol-info', 'disk.img', '--pool', 'guest_images')).toBe(
      'Name:           disk.img\nType:           file\nCapacity:       8.00 MiB\nAllocation:     8.00 MiB\n\n',
    );
    const qcow2 = await bench.ok('vol-info', 'disk.qcow2', 'guest_images', '--bytes');
    expect([value(qcow2, 'Type'), value(qcow2, 'Capacity')]).toEqual(['file', '1073741824 bytes']);
    expect(await bench.ok('pool-destroy', 'guest_images')).toBe('Pool guest_images destroyed\n\n');
    expect(await bench.ok('pool-undefine', 'guest_images')).toBe('Pool guest_images has been undefined\n\n');
    expect(existsSync(join(target, 'disk.img'))).toBe(true);
    expect((await bench.cli('pool-info', 'guest_images')).code).toBe(1);
  });

  it('takes arguments by name too, and as two words', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', '--name', 'p', '--type', 'dir', '--target', bench.at('p'), '--build');
    await bench.ok('vol', 'create-as', '--pool', 'p', '--name=v', '--capacity', '1M', '--allocation', '0');
    expect((await bench.ok('vol', 'info', '--vol', 'v', '--pool', 'p')).split('\n')[3]).toBe(
      'Allocation:     0.00 B',
    );
    expect((await bench.ok('pool', 'list', '--name')).trim()).toBe('p');
    expect(value(await bench.ok('pool', 'info', 'p'), 'Persistent')).toBe('no');
    await bench.ok('pool-destroy', 'p');
    // A transient pool is gone when it is stopped.
    expect((await bench.cli('pool-info', 'p')).stderr).toMatch(/no storage pool 'p'/);
  });

  it('says what is not so in one line, with exit code 1', async () => {
    const bench = newBench();
    await bench.ok('pool-define-as', 'p', 'dir', '--target', bench.at('p'));
    const wrong: [RegExp, ...string[]][] = [
      [/not active/, 'pool-destroy', 'p'],
      [/not active/, 'pool-refresh', 'p'],
      [/not active/, 'vol-list', 'p'],
      [/not active/, 'vol-create-as', 'p', 'v', '1M'],
      [/is not there/, 'pool-start', 'p'],
      [/exists already, with uuid/, 'pool-define-as', 'p', 'dir', '--target', '/elsewhere'],
      [/is that of pool 'p'/, 'pool-define-as', 'q', 'dir', '--target', `${bench.at('p')}/`],
      [/no pool type 'foo'/, 'pool-define-as', 'q', 'foo', '--target', '/x'],
      [/no storage pool/, 'pool-start', 'nothing'],
      [/malformed size/, 'vol-create-as', 'p', 'v', '1.5G'],
      [/too many arguments/, 'pool-destroy', 'p', 'q'],
      [/unknown option/, 'pool-destroy', 'p', '--force'],
      [/cannot be searched for/, 'find-storage-pool-sources-as', 'dir'],
    ];
    for (const [message, ...args] of wrong) {
      const { code, stdout, stderr } = await bench.cli(...args);
      expect({ args, code, stdout, lines: stderr.trim().split('\n').length }).toEqual({
        args,
        code: 1,
        stdout: '',
        lines: 1,
      });
      expect(stderr).toMatch(message);
    }
    await bench.ok('pool-start', 'p', '--build');
    for (const [message, verb] of [
      [/already active/, 'pool-start'],
      [/already active/, 'pool-build'],
      [/still active/, 'pool-delete'],
      [/still active/, 'pool-undefine'],
    ] as const) {
      const { code, stderr } = await bench.cli(verb, 'p');
      expect({ verb, code }).toEqual({ verb, code: 1 });
      expect(stderr).toMatch(message);
    }
  });

  it('redefines an active pool for its next start', async () => {
    const bench = newBench();
    await bench.ok('pool-define-as', 'p', 'dir', '--target', bench.at('p'));
    await bench.ok('pool-start', 'p', '--build');
    const file = join(bench.root, 'new.xml');
    writeFileSync(
      file,
      (await bench.ok('pool-dumpxml', 'p', '--inactive')).replace(bench.at('p'), bench.at('moved')),
    );
    await bench.ok('pool-define', file);
    expect(await bench.ok('pool-dumpxml', 'p')).toContain(`<path>${bench.at('p')}</path>`);
    expect(await bench.ok('pool-dumpxml', 'p', '--inactive')).toContain(`<path>${bench.at('moved')}</path>`);
    await bench.ok('pool-destroy', 'p');
    expect(await bench.ok('pool-dumpxml', 'p')).toContain(`<path>${bench.at('moved')}</path>`);
  });

  it('edits with the editor that is set', async () => {
    const bench = newBench();
    await bench.ok('pool-define-as', 'p', 'dir', '--target', bench.at('p'));
    const editor = join(bench.root, 'editor');
    writeFileSync(editor, `#!/bin/sh\nsed -i "s,${bench.at('p')},${bench.at('other')}," "$1"\n`, {
      mode: 0o755,
    });
    const env = { SPINDLE_POOLS: bench.root, VISUAL: editor };
    expect((await spindle(['pool-edit', 'p'], { env })).stdout).toBe('Pool p XML configuration edited.\n\n');
    expect((await spindle(['pool-edit', 'p'], { env })).stdout).toBe(
      'Pool p XML configuration not changed.\n\n',
    );
    expect(await bench.ok('pool-dumpxml', 'p')).toContain(bench.at('other'));
    writeFileSync(editor, `#!/bin/sh\nsed -i "s,<name>p,<name>q," "$1"\n`);
    expect((await spindle(['pool-edit', 'p'], { env })).stderr).toMatch(/cannot be edited/);
  });

  it('is cleared by a reboot, and comes back by autostart', async () => {
    const bench = newBench();
    for (const name of ['a', 'b']) {
      await bench.ok('pool-define-as', name, 'dir', '--target', bench.at(name));
      await bench.ok('pool-start', name, '--build');
    }
    await bench.ok('pool-autostart', 'b');
    const state = join(bench.root, 'run', 'b.xml');
    for (const name of ['a', 'b']) {
      const path = join(bench.root, 'run', `${name}.xml`);
      writeFileSync(path, readFileSync(path, 'utf8').replace(bench.home.bootId, 'another-run-of-the-system'));
    }
    expect(existsSync(state)).toBe(true);
    expect((await bench.ok('pool-list', '--name')).trim()).toBe('');
    expect(await bench.ok('pool-start', '--autostarted')).toBe('Pools started: b\n\n');
    expect((await bench.ok('pool-list', '--name')).trim()).toBe('b');
    expect(await bench.ok('pool-autostart', '--unit')).toContain('spindle pool-start --autostarted');
    await bench.ok('pool-autostart', 'b', '--disable');
    expect(value(await bench.ok('pool-info', 'b'), 'Autostart')).toBe('no');
  });
});

describe('volumes', () => {
  let bench: Bench;
  beforeAll(async () => {
    bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
  });
  const allocation = async (name: string): Promise<number> =>
    (JSON.parse(await bench.ok('vol-info', name, 'p', '--output', 'json')) as { allocation: number })
      .allocation;

  it('are allocated as asked', async () => {
    const M = 1024 ** 2;
    const cases: [string, number, ...string[]][] = [
      ['all', 4 * M],
      ['none', 0, '--allocation', '0'],
      ['part', M, '--allocation', '1MiB'],
      ['thin', 0, '--allocation-policy', 'thin'],
      ['lazy', 4 * M, '--allocation-policy', 'thick-lazy'],
      ['eager', 4 * M, '--allocation-policy', 'thick-eager'],
    ];
    for (const [name, bytes, ...args] of cases) {
      await bench.ok('vol-create-as', 'p', name, '4M', ...args);
      expect({ name, bytes: await allocation(name) }).toEqual({ name, bytes });
    }
    expect(await bench.ok('info', join(bench.at('p'), 'eager'))).toMatch(/eager/);
    await bench.ok('vol-allocate', 'none', 'thick-lazy', 'p');
    expect(await allocation('none')).toBe(4 * M);
  });

  it('are resized up, by a difference, and down', async () => {
    const capacity = async (): Promise<string | undefined> =>
      value(await bench.ok('vol-info', 'r', 'p', '--bytes'), 'Capacity');
    await bench.ok('vol-create-as', 'p', 'r', '1M', '--allocation', '0');
    expect(await bench.ok('vol-resize', 'r', '2M', 'p')).toBe(
      "Size of volume 'r' successfully changed to 2M\n\n",
    );
    await bench.ok('vol-resize', 'r', '1M', '--delta', '--pool', 'p');
    expect(await capacity()).toBe('3145728 bytes');
    expect((await bench.cli('vol-resize', 'r', '1M', '--pool', 'p')).stderr).toMatch(/--shrink/);
    expect((await bench.cli('vol-resize', 'r', '-1M', '--pool', 'p')).stderr).toMatch(/--shrink/);
    expect(await bench.ok('vol-resize', 'r', '-1M', '--shrink', '--pool', 'p')).toMatch(/changed by 1M/);
    expect(await capacity()).toBe('2097152 bytes');
    await bench.ok('vol-resize', 'r', '2M', '--allocate', '--pool', 'p');
    expect(await allocation('r')).toBe(2 * 1024 ** 2);
    expect((await bench.cli('vol-resize', 'r', '1M', '--shrink', '--pool', 'p')).stderr).toMatch(
      /are allocated/,
    );
  });

  it('take in and give out bytes', async () => {
    const source = join(bench.root, 'source');
    const bytes = Buffer.alloc(300_000, 'spindle ');
    writeFileSync(source, bytes);
    await bench.ok('vol-create-as', 'p', 'u', '1M', '--allocation', '0');
    await bench.ok('vol-upload', 'u', source, 'p', '--offset', '4096');
    const copy = join(bench.root, 'copy');
    expect(await bench.ok('vol-download', 'u', copy, 'p', '--sparse')).toBe('');
    const got = readFileSync(copy);
    expect(got.length).toBe(1024 ** 2);
    expect(got.subarray(4096, 4096 + bytes.length).equals(bytes)).toBe(true);
    expect(got.subarray(0, 4096).every((byte) => byte === 0)).toBe(true);
    await bench.ok('vol-download', 'u', copy, 'p', '--offset', '4096', '--length', '8');
    expect(readFileSync(copy, 'utf8')).toBe('spindle ');
    await bench.ok('vol-download', 'u', copy, 'p', '--offset', '9000000');
    expect(statSync(copy).size).toBe(0);
    // Nothing is written of a file that is too long, and a volume never gets shorter.
    expect((await bench.cli('vol-upload', 'u', source, 'p', '--length', '10')).stderr).toMatch(
      /nothing was written/,
    );
    await bench.ok('vol-upload', 'u', source, 'p', '--sparse');
    expect(statSync(join(bench.at('p'), 'u')).size).toBe(1024 ** 2);
  });

  it('are not emptied by being given out to, or taken in from, themselves', async () => {
    const path = join(bench.at('p'), 'own');
    const other = join(bench.root, 'own link');
    writeFileSync(path, Buffer.alloc(70_000, 'only copy'));
    linkSync(path, other);
    for (const name of [path, other])
      for (const verb of ['vol-download', 'vol-upload']) {
        const { code, stderr } = await bench.cli(verb, 'own', name, 'p');
        expect(stderr).toMatch(/is the volume itself/);
        expect(code).toBe(1);
        expect(readFileSync(path).equals(Buffer.alloc(70_000, 'only copy'))).toBe(true);
      }
  });

  it.each(Object.entries({ zero: 0, dod: 0xff, nnsa: 0, bsi: 0x7f, random: null, pfitzner7: null }))(
    'are wiped with %s',
    async (algorithm, last) => {
      const path = join(bench.at('p'), algorithm);
      writeFileSync(path, Buffer.alloc(70_000, 'secret'));
      await bench.ok('vol-wipe', algorithm, 'p', '--algorithm', algorithm);
      const now = readFileSync(path);
      expect(now.length).toBe(70_000);
      expect(now.includes('secret')).toBe(false);
      if (last !== null) expect(now.every((byte) => byte === last)).toBe(true);
    },
  );

  it('are cloned, made from others, and laid on others', async () => {
    await bench.ok('vol-create-as', 'p', 'base', '1M');
    writeFileSync(join(bench.at('p'), 'base'), Buffer.alloc(1024 ** 2, 'x'));
    await bench.ok('vol-clone', 'base', 'clone', '--pool', 'p');
    await bench.ok(
      'vol-create-as',
      'p',
      'top',
      '1M',
      '--format',
      'qcow2',
      '--backing-vol',
      'base',
      '--backing-vol-format',
      'raw',
    );
    await bench.ok('vol-clone', 'top', 'top2', '--pool', 'p');
    const xml = join(bench.root, 'v.xml');
    writeFileSync(
      xml,
      '<volume><name>from</name><capacity unit="MiB">2</capacity><target><format type="qcow2"/></target></volume>',
    );
    expect(await bench.ok('vol-create-from', 'p', xml, 'base', '--inputpool', 'p')).toBe(
      'Vol from created from input vol base\n\n',
    );
    for (const name of ['clone', 'top', 'top2'])
      expect((await bench.cli('compare', join(bench.at('p'), name), join(bench.at('p'), 'base'))).code).toBe(
        0,
      );
    expect(await bench.ok('vol-dumpxml', 'top2', 'p')).toContain(
      `<path>${join(bench.at('p'), 'base')}</path>`,
    );
    expect(value(await bench.ok('vol-info', 'from', 'p'), 'Capacity')).toBe('2.00 MiB');
  });
});

describe('a pool', () => {
  it('tells what it has promised, and refuses what passes the limit', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    const told = async (): Promise<{ promised: number; ratio: number; capacity: number }> =>
      JSON.parse(await bench.ok('pool-info', 'p', '--output', 'json')) as never;
    await bench.ok('vol-create-as', 'p', 'small', '1M', '--allocation', '0');
    expect((await told()).promised).toBe(1024 ** 2);
    const { stderr } = await bench.cli(
      'vol-create-as',
      'p',
      'huge',
      '1P',
      '--format',
      'qcow2',
      '--output',
      'json',
    );
    expect(stderr).toMatch(/warning: .*promises/);
    const { promised, ratio, capacity } = await told();
    expect(promised).toBe(1024 ** 5 + 1024 ** 2);
    expect(ratio).toBeCloseTo(promised / capacity, 9);
    const refused = await bench.cli(
      'vol-create-as',
      'p',
      'more',
      '1M',
      '--allocation',
      '0',
      '--max-overcommit',
      '1.5',
    );
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/more than the 1\.50/);
    expect(existsSync(join(bench.at('p'), 'more'))).toBe(false);
    const larger = await bench.cli('vol-resize', 'small', '2M', '--max-overcommit', '1.5', '--pool', 'p');
    expect(larger.code).toBe(1);
    expect(larger.stderr).toMatch(/more than the 1\.50/);
    expect(value(await bench.ok('vol-info', 'small', '--bytes', '--pool', 'p'), 'Capacity')).toMatch(
      /^1048576/,
    );
    expect((await bench.cli('vol-resize', 'small', '2M', '--pool', 'p')).stderr).toMatch(/promises/);
  });

  it('promises no more than the limit, however many ask at once', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    const { capacity } = JSON.parse(await bench.ok('pool-info', 'p', '--output', 'json')) as {
      capacity: number;
    };
    const third = String(Math.ceil(capacity / 3));
    const made = await Promise.all(
      Array.from({ length: 6 }, (_, number) =>
        bench.cli(
          'vol-create-as',
          'p',
          `v${String(number)}`,
          third,
          '--format',
          'qcow2',
          '--max-overcommit',
          '0.8',
        ),
      ),
    );
    expect(made.filter(({ code }) => code === 0)).toHaveLength(2);
    for (const { code, stderr } of made) if (code !== 0) expect(stderr).toMatch(/more than the 0\.80/);
    const { ratio } = JSON.parse(await bench.ok('pool-info', 'p', '--output', 'json')) as { ratio: number };
    expect(ratio).toBeLessThanOrEqual(0.8);
  });

  it('refuses or warns whatever raises a promise: made, copied or grown', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    await bench.ok('vol-create-as', 'p', 'base', '1M', '--format', 'qcow2');
    const xml = join(bench.root, 'v.xml');
    writeFileSync(
      xml,
      '<volume><name>x</name><capacity>1048576</capacity><target><format type="qcow2"/></target></volume>',
    );
    const image = join(bench.root, 'image');
    await bench.ok('create', '-q', '-f', 'qcow2', image, '1G');
    const larger = join(bench.root, 'larger');
    writeFileSync(larger, Buffer.alloc(2 * 1024 ** 2));
    await bench.ok('vol-create-as', 'p', 'raw', '1M', '--allocation', '0');
    const raising: string[][] = [
      ['vol-create', 'p', xml],
      ['vol-create-as', 'p', 'x', '1M', '--format', 'qcow2'],
      ['vol-create-as', 'p', 'x', '1M'],
      ['vol-create-from', 'p', xml, 'base', '--inputpool', 'p'],
      ['vol-clone', 'base', 'x', '--pool', 'p'],
      ['vol-resize', 'base', '2M', '--pool', 'p'],
      ['vol-resize', 'base', '1M', '--delta', '--pool', 'p'],
      ['vol-upload', 'base', image, '--pool', 'p'],
      ['vol-upload', 'raw', image, '--pool', 'p'],
      ['vol-upload', 'raw', larger, '--pool', 'p'],
      ['vol-upload', 'raw', larger, '--pool', 'p', '--offset', '512'],
    ];
    for (const args of raising) {
      const { code, stderr } = await bench.cli(...args, '--max-overcommit', '0.0000000001');
      expect({ args, code }).toEqual({ args, code: 1 });
      expect(stderr, args.join(' ')).toMatch(/that --max-overcommit allows/);
    }
    const volumes = JSON.parse(await bench.ok('vol-list', 'p', '--output', 'json')) as {
      name: string;
      capacity: number;
    }[];
    expect(volumes.map(({ name, capacity }) => [name, capacity])).toEqual([
      ['base', 1024 ** 2],
      ['raw', 1024 ** 2],
    ]);
    // What asks for no more is never refused; what asks for more is told, and done.
    const half = ['vol-upload', 'raw', larger, '--pool', 'p', '--length', '0', '--offset', '0'];
    truncateSync(larger, 512 * 1024);
    await bench.ok(...half, '--max-overcommit', '0.0000000001');
    await bench.ok('vol-resize', 'base', '1M', '--pool', 'p', '--max-overcommit', '0.0000000001');
    const grown = await bench.cli('vol-resize', 'base', '1P', '--pool', 'p');
    expect(grown.stderr).toMatch(/warning: .*promises/);
    expect(grown.code).toBe(0);
  });

  it('keeps within the limit when several are made at once', async () => {
    const bench = newBench();
    const pool = await activePool(bench);
    const { usage } = await pool.info();
    const capacity = Math.floor((usage?.capacity ?? 0) / 512 / 2) * 512;
    const made = await outcomes(
      ['a', 'b', 'c', 'd'].map((name) =>
        pool.createVolume({ name, capacity, allocation: 0 }, { policy: 'thin', maxOvercommit: 1 }),
      ),
    );
    expect(made.filter((code) => code === 'ok').length).toBe(2);
    expect(made.filter((code) => code === 'OVERCOMMIT').length).toBe(2);
    expect((await pool.volumes()).length).toBe(2);
  });

  it('keeps within the limit when several are filled with images of large disks at once', async () => {
    const bench = newBench();
    const pool = await activePool(bench);
    const { usage } = await pool.info();
    const image = join(bench.root, 'image');
    const size = Math.floor((usage?.capacity ?? 0) / 512 / 2) * 512 - 1024 ** 2;
    await create({ path: image, format: 'qcow2', size });
    const names = ['a', 'b', 'c', 'd'];
    for (const name of names) await pool.createVolume({ name, capacity: 65536, allocation: 0 });
    const volumes = await Promise.all(names.map((name) => pool.volume(name)));
    const codes = await outcomes(volumes.map((volume) => volume.upload(image, { maxOvercommit: 1 })));
    expect(codes.sort()).toEqual(['OVERCOMMIT', 'OVERCOMMIT', 'ok', 'ok']);
    expect((await pool.volumes()).map(({ capacity }) => capacity).sort((a, b) => a - b)).toEqual([
      ...[65536, 65536, size, size],
    ]);
  });

  it('grows a volume of which more is allocated than its disk has', async () => {
    const bench = newBench();
    const pool = await activePool(bench);
    const made = await pool.createVolume({ name: 'v', capacity: 65536, format: 'qcow2' });
    await made.allocate('thick-lazy');
    const { allocation } = (await pool.volume('v')).facts;
    expect(allocation).toBeGreaterThan(131072);
    expect(await made.resize(131072)).toBe(131072);
    expect(await outcomes([made.resize(65536, { shrink: true }), made.resize(65536)])).toEqual([
      ...['BAD_OPTION', 'BAD_OPTION'],
    ]);
  });

  it('does not take an edited definition in place of one that changed meanwhile', async () => {
    const bench = newBench();
    await bench.ok('pool-define-as', 'p', 'dir', '--target', bench.at('p'));
    const editor = join(bench.root, 'editor');
    const other = join(bench.root, 'other.xml');
    writeFileSync(other, (await bench.ok('pool-dumpxml', 'p')).replace(bench.at('p'), bench.at('other')));
    // While the editor is open, another command defines the pool anew.
    writeFileSync(
      editor,
      `#!/bin/sh
sed -i 's,</path>,-edited</path>,' "$1"
"${process.execPath}" "${MAIN}" pool-define "${other}"
`,
      { mode: 0o755 },
    );
    const { code, stderr } = await spindle(['pool-edit', 'p'], {
      env: { SPINDLE_POOLS: bench.root, VISUAL: editor },
    });
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: "spindle: another command changed the definition of pool 'p' meanwhile; nothing was changed\n",
    });
    expect(bench.pools.find('p').definition()?.target.path).toBe(bench.at('other'));
  });

  it('that took the name of another meanwhile is not what a command was about', async () => {
    const bench = newBench();
    const first = await activePool(bench);
    await first.destroy();
    await first.undefine();
    const second = await activePool(bench);
    expect(await outcomes([first.destroy(), first.refresh(), first.volumes(), first.start()])).toEqual([
      ...['POOL_NOT_FOUND', 'POOL_NOT_FOUND', 'POOL_NOT_FOUND', 'POOL_ACTIVE'],
    ]);
    await second.destroy();
    expect(await outcomes([first.delete(), first.build(), first.undefine()])).toEqual([
      ...['POOL_NOT_FOUND', 'POOL_NOT_FOUND', 'POOL_NOT_FOUND'],
    ]);
    expect(existsSync(bench.at('p'))).toBe(true);
  });

  it('keeps a reserve that is no volume, and gives it back', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    await bench.ok('pool-guard', 'p', '3M');
    expect(value(await bench.ok('pool-info', 'p', '--bytes'), 'Guard')).toBe('3145728');
    expect(JSON.parse(await bench.ok('vol-list', 'p', '--output', 'json'))).toEqual([]);
    await bench.ok('pool-guard', 'p', '--release');
    expect(await bench.ok('pool-guard', 'p')).toMatch(/^0 bytes/);
    expect((await bench.cli('pool-guard', 'p', '1P')).code).toBe(1);
    expect(await bench.ok('pool-guard', 'p')).toMatch(/^0 bytes/);
  });

  it('is listed as what it is when it is out of reach', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'gone', 'dir', '--target', bench.at('gone'), '--build');
    await bench.ok('pool-define-as', 'marked', 'dir', '--target', bench.at('marked'));
    await bench.ok('pool-start', 'marked', '--build');
    await bench.ok('pool-autostart', 'marked');
    for (const name of ['gone', 'marked']) rmSync(bench.at(name), { recursive: true });
    for (const [flag, names] of [
      ['--transient', 'gone\n\n'],
      ['--persistent', 'marked\n\n'],
      ['--autostart', 'marked\n\n'],
      ['--no-autostart', 'gone\n\n'],
    ] as const) {
      const { code, stdout, stderr } = await bench.cli('pool-list', '--name', flag);
      expect({ flag, code, stdout }).toEqual({ flag, code: 0, stdout: names });
      expect(stderr).toMatch(/warning: /);
    }
  });

  it('is told when it was removed while active', async () => {
    const bench = newBench();
    await bench.ok('pool-define-as', 'p', 'dir', '--target', bench.at('p'));
    await bench.ok('pool-start', 'p', '--build');
    rmSync(bench.at('p'), { recursive: true });
    for (const args of [
      ['vol-list', 'p'],
      ['pool-info', 'p'],
      ['vol-create-as', 'p', 'v', '1M'],
    ]) {
      const { code, stderr } = await bench.cli(...args);
      expect({ args, code }).toEqual({ args, code: 1 });
      expect(stderr).toMatch(/the directory of pool 'p' is not there/);
    }
    expect((await bench.cli('pool-list', '--details')).stdout).toMatch(/^ p /m);
    // As with libvirt, a refresh that fails stops the pool.
    expect((await bench.cli('pool-refresh', 'p')).code).toBe(1);
    expect(value(await bench.ok('pool-info', 'p'), 'State')).toBe('inactive');
  });

  it('of libvirt is looked at, left alone, and taken over', async () => {
    const bench = newBench();
    const theirs = join(bench.root, 'libvirt');
    const images = bench.at('theirs');
    mkdirSync(join(theirs, 'config'), { recursive: true });
    mkdirSync(join(theirs, 'run'));
    mkdirSync(images);
    writeFileSync(join(images, 'disk'), 'x'.repeat(512));
    const xml = `<pool type='dir'><name>theirs</name><uuid>11111111-2222-3333-4444-555555555555</uuid><target><path>${images}</path></target></pool>`;
    writeFileSync(join(theirs, 'config', 'theirs.xml'), xml);
    writeFileSync(join(theirs, 'run', 'theirs.xml'), `<poolstate>${xml}</poolstate>`);
    expect((await bench.ok('pool-list', '--libvirt', '--name')).trim()).toBe('theirs');
    expect((await bench.ok('pool-list', '--all', '--name')).trim()).toBe('');
    expect(await bench.ok('vol-list', 'theirs', '--libvirt')).toContain(join(images, 'disk'));
    expect((await bench.cli('pool-destroy', 'theirs', '--libvirt')).code).toBe(1);
    expect((await bench.cli('vol-delete', 'disk', '--pool', 'theirs')).code).toBe(1);
    expect(await bench.ok('pool-define', 'theirs', '--libvirt')).toBe('Pool theirs defined from libvirt\n\n');
    await bench.ok('pool-start', 'theirs');
    expect(value(await bench.ok('pool-info', 'theirs'), 'UUID')).toBe('11111111-2222-3333-4444-555555555555');
    expect(readFileSync(join(theirs, 'config', 'theirs.xml'), 'utf8')).toBe(xml);
  });
});

describe('every verb', () => {
  const verbs = { ...POOL_VERBS, ...VOL_VERBS };

  it('of the issue is there', () => {
    const pool =
      'define define-as create create-as build start autostart list info refresh destroy delete undefine edit dumpxml name uuid';
    const vol =
      'create create-as create-from clone list info path key name pool dumpxml delete resize wipe upload download';
    const expected = [
      ...pool.split(' ').map((word) => `pool-${word}`),
      ...vol.split(' ').map((word) => `vol-${word}`),
      ...['find-storage-pool-sources', 'find-storage-pool-sources-as', 'pool-forecast', 'pool-guard'],
    ];
    expect(expected.filter((name) => !Object.hasOwn(verbs, name))).toEqual([]);
  });

  it.each(Object.keys(verbs))('%s has help with examples, and JSON', async (name) => {
    const { stdout, code } = await spindle([name, '--help']);
    expect(code).toBe(0);
    expect(stdout).toMatch(new RegExp(`^Usage: spindle ${name} `));
    expect(stdout).toContain('--output <FORM>');
    expect(stdout.split(`\n  spindle ${name} `).length).toBeGreaterThan(2);
    expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(120);
    const group = name.startsWith('vol-') ? 'vol' : 'pool';
    expect((await spindle([group, name.replace(new RegExp(`^${group}-`), ''), '--help'])).stdout).toBe(
      stdout,
    );
  });
});
