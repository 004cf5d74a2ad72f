// Names, paths and descriptions that are meant to lead out of a pool, or to wear out who reads them.
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { parsePool } from '../../src/pool/definition.ts';
import { parseVolume } from '../../src/pool/volume-definition.ts';
import { parseXml, writeXml, element } from '../../src/pool/xml.ts';
import { placed } from '../../src/cli/pool/spec.ts';
import { formatScaled, parseScaled } from '../../src/pool/scaled.ts';
import type { Volume } from '../../src/pool/index.ts';
import { builtCli } from '../tool/cli.ts';
import { Random, seedOf } from '../tool/random.ts';
import { activePool, newBench, outcomes } from './help.ts';

function codeOf(work: () => unknown): string {
  try {
    work();
    return 'ok';
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    return error.code;
  }
}

const pool = (name: string, path = '/srv/p', more = ''): string =>
  `<pool type='dir'><name>${name}</name>${more}<target><path>${path}</path></target></pool>`;

describe('descriptions', () => {
  const secret = '/etc/hostname';
  const bombs: Record<string, string> = {
    'an external entity': `<!DOCTYPE pool [<!ENTITY x SYSTEM "file://${secret}">]>${pool('&x;')}`,
    'an external document type': `<!DOCTYPE pool SYSTEM "file://${secret}">${pool('a')}`,
    'a parameter entity': `<!DOCTYPE pool [<!ENTITY % x SYSTEM "file://${secret}"> %x;]>${pool('a')}`,
    'entities of entities': `<!DOCTYPE p [<!ENTITY a "aaaaaaaaaa">${'bcdefghij'
      .split('')
      .map((name, index) => `<!ENTITY ${name} "${`&${'abcdefghi'.charAt(index)};`.repeat(10)}">`)
      .join('')}]>${pool('&j;')}`,
    'a document type in small letters': `<!doctype pool>${pool('a')}`,
    'an entity that nobody declared': pool('&x;'),
    'elements without an end': '<pool>',
    'no element': 'pool',
    nothing: '',
    'two roots': pool('a') + pool('b'),
    'elements very deep': '<a>'.repeat(10_000) + '</a>'.repeat(10_000),
    'an attribute twice': "<pool type='dir' type='fs'><name>a</name></pool>",
    'a prefix that nobody declared': pool('a', '/p', '<x:y/>'),
    'too much text': pool('a', `/${'p'.repeat(300_000)}`),
    'very many elements': pool('a', '/p', '<x/>'.repeat(20_000)),
    'another element': '<volume/>',
    'no name': '<pool type="dir"><target><path>/p</path></target></pool>',
    'no type': '<pool><name>a</name><target><path>/p</path></target></pool>',
    'no target': '<pool type="dir"><name>a</name></pool>',
    'a mode that is none': pool('a', '/p</path><permissions><mode>rwx</mode></permissions><path>'),
  };
  it.each(Object.entries(bombs))('with %s are refused', (_, text) => {
    // What explodes takes minutes, or all memory: the test would not end.
    expect(codeOf(() => parsePool(text))).toBe('BAD_XML');
  });

  it('that are too long are not read to their end', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    // Far more than there is memory for.
    const large = join(bench.root, 'large.xml');
    writeFileSync(large, '<pool>');
    truncateSync(large, 1024 ** 4);
    const long = /large\.xml: longer than 262144 bytes/;
    for (const args of [
      ['pool-define', large],
      ['pool-create', large],
      ['vol-create', 'p', large],
      ['vol-create-from', 'p', large, 'x'],
    ]) {
      const { code, stderr } = await bench.cli(...args);
      expect({ args, code }).toEqual({ args, code: 1 });
      expect(stderr).toMatch(long);
    }
    // Also those that lie among the definitions, and are passed over.
    mkdirSync(bench.home.config, { recursive: true });
    writeFileSync(join(bench.home.config, 'large.xml'), '');
    truncateSync(join(bench.home.config, 'large.xml'), 1024 ** 4);
    const list = await bench.cli('pool-list', '--all', '--name');
    expect({ code: list.code, names: list.stdout }).toEqual({ code: 0, names: 'p\n\n' });
    expect(list.stderr).toMatch(long);
    expect((await bench.cli('pool-start', 'large')).stderr).toMatch(long);
    // What has no end is read no further either.
    expect((await bench.cli('pool-define', '/dev/zero')).stderr).toMatch(/longer than 262144 bytes/);
  });

  it('of random bytes and broken pieces never do more than be refused', () => {
    const piece = fc.constantFrom(
      '<',
      '>',
      '/',
      'pool',
      'name',
      "'",
      '"',
      '&',
      ';',
      '<![CDATA[',
      ']]>',
      '<!--',
      '-->',
      '=',
      ' ',
      'a',
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 60 }), (pieces) => {
        expect(['ok', 'BAD_XML', 'BAD_NAME', 'UNSUPPORTED']).toContain(
          codeOf(() => parsePool(pieces.join(''))),
        );
      }),
      { numRuns: 2000, seed: 20_240_601 },
    );
  });

  it('say again what was said, whatever the text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 30 }), (text) => {
        fc.pre(!/[\u0000-\u0008\u000b-\u001f\ufffe\uffff\ud800-\udfff]/.test(text));
        const again = parseXml(writeXml(element('a', { b: text }, text)), 'it');
        expect(again.text).toBe(text.replaceAll('\r', '\n').trim());
      }),
      { seed: 20_240_602 },
    );
  });

  it('hold nothing that XML cannot, whatever a name inside an image says', () => {
    const again = parseXml(writeXml(element('a', { b: '\u0001<&"' }, 'x\u0000\ud800\uffff]]>')), 'it');
    expect([again.text, again.attributes['b']]).toEqual(['x\ufffd\ufffd\ufffd]]>', '\ufffd<&"']);
  });

  it('of pools may not be of kinds that are not known', () => {
    expect(codeOf(() => parsePool("<pool type='rbd'><name>a</name></pool>"))).toBe('UNSUPPORTED');
  });
});

const BAD_NAMES = [
  '../x',
  '..',
  '.',
  'a/b',
  '/etc/passwd',
  'a\nb',
  'a\u0007',
  '-rf',
  '--help',
  '',
  ' ',
  'x'.repeat(300),
  'a\u2028b',
];

describe('names', () => {
  it.each(BAD_NAMES)('%j is none for a pool or a volume', async (name) => {
    const bench = newBench();
    const held = await activePool(bench);
    expect(await outcomes([held.createVolume({ name, capacity: 512 })])).toEqual(['BAD_NAME']);
    expect(codeOf(() => bench.pools.find(name))).toBe('BAD_NAME');
    expect(readdirSync(bench.at('p'))).toEqual([]);
  });

  it('from descriptions are looked at as well', () => {
    expect(codeOf(() => parsePool(pool('../../etc/cron.d/x')))).toBe('BAD_NAME');
    expect(codeOf(() => parsePool(pool('a', 'relative/path')))).toBe('BAD_NAME');
    expect(codeOf(() => parsePool(pool('a', '/srv/../etc')))).toBe('BAD_NAME');
    expect(codeOf(() => parsePool(pool('a', '/')))).toBe('BAD_NAME');
    expect(codeOf(() => parseVolume('<volume><name>../x</name><capacity>1</capacity></volume>'))).toBe(
      'BAD_NAME',
    );
    expect(
      codeOf(() => parseVolume('<volume><name>&#10;x&#10;y</name><capacity>1</capacity></volume>')),
    ).toBe('BAD_NAME');
    const netfs = (host: string, dir: string): string =>
      `<pool type='netfs'><name>n</name><source><host name='${host}'/><dir path='${dir}'/></source><target><path>/m</path></target></pool>`;
    expect(codeOf(() => parsePool(netfs('nas', '/export')))).toBe('ok');
    expect(codeOf(() => parsePool(netfs('-oProxyCommand', '/export')))).toBe('BAD_NAME');
    expect(codeOf(() => parsePool(netfs('nas', '../export')))).toBe('BAD_NAME');
    const iscsi = (target: string): string =>
      `<pool type='iscsi'><name>n</name><source><host name='h'/><device path='${target}'/></source><target><path>/dev/disk/by-path</path></target></pool>`;
    expect(codeOf(() => parsePool(iscsi('iqn.2024-01.lab:t1')))).toBe('ok');
    expect(codeOf(() => parsePool(iscsi('../../sda')))).toBe('BAD_NAME');
    expect(codeOf(() => parsePool("<pool type='logical'><source><name>-y</name></source></pool>"))).toBe(
      'BAD_NAME',
    );
    expect(
      codeOf(() => parsePool("<pool type='logical'><name>n</name><source><name>a/b</name></source></pool>")),
    ).toBe('BAD_NAME');
  });
});

describe('the command line', () => {
  beforeAll(builtCli);

  it('refuses such names, and makes nothing', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    for (const name of BAD_NAMES.filter((one) => one !== '')) {
      const { code, stderr } = await bench.cli(
        'vol-create-as',
        '--pool',
        'p',
        `--name=${name}`,
        '--capacity',
        '1M',
      );
      expect({ name, code, lines: stderr.split('\n').length }).toEqual({ name, code: 1, lines: 2 });
      expect(
        (await bench.cli('pool-define-as', `--name=${name}`, '--type', 'dir', '--target', '/x')).code,
      ).toBe(1);
    }
    expect(readdirSync(bench.at('p'))).toEqual([]);
    expect(readdirSync(bench.root).sort()).toEqual(['pools', 'run', 'state']);
    expect(readdirSync(join(bench.root, 'pools'))).toEqual(['p']);
  });

  it('puts words in their places', () => {
    const params = [
      { name: 'vol', place: 'needed', does: '' },
      { name: 'capacity', place: 'needed', does: '' },
      { name: 'pool', does: '' },
      { name: 'shrink', kind: 'flag', does: '' },
      { name: 'policy', place: 'named', does: '' },
    ] as const;
    expect(placed(params, ['v', '1M', 'p'])).toEqual(['--pool=p', '--', 'v', '1M']);
    expect(placed(params, ['--pool', 'p', '--shrink', 'v', '-1M'])).toEqual([
      '--pool=p',
      '--shrink',
      '--',
      'v',
      '-1M',
    ]);
    expect(placed(params, ['--capacity=1M', 'v', '--', '--pool'])).toEqual([
      '--pool=--pool',
      '--',
      'v',
      '1M',
    ]);
    expect(placed(params, ['v', '1M', '-', 'more'])).toEqual(['--', 'v', '1M', 'more']);
    expect(placed(params, ['v', '--vol'])).toEqual(['--vol', '--', 'v']);
  });
});

describe('symbolic links in a pool', () => {
  it('are not followed for writing, and only themselves deleted', async () => {
    const bench = newBench();
    const held = await activePool(bench);
    const outside = join(bench.root, 'outside');
    writeFileSync(outside, 'precious'.repeat(200));
    symlinkSync(outside, join(bench.at('p'), 'link'));
    symlinkSync('/nowhere/at/all', join(bench.at('p'), 'dangling'));
    expect((await held.volumes()).map(({ name }) => name)).toEqual(['link']);
    const link = await held.volume('link');
    const source = join(bench.root, 'source');
    writeFileSync(source, 'evil');
    expect(
      await outcomes([
        link.resize(5000),
        link.wipe(),
        link.wipe('random'),
        link.upload(source),
        Promise.resolve().then(() => link.allocate('thick-lazy')),
        held.createVolume({ name: 'link', capacity: 512 }),
        held.createVolume({ name: 'dangling', capacity: 512 }),
      ]),
    ).toEqual(['BAD_NAME', 'BAD_NAME', 'BAD_NAME', 'BAD_NAME', 'BAD_NAME', 'EXISTS', 'EXISTS']);
    await link.delete();
    expect(readFileSync(outside, 'utf8')).toBe('precious'.repeat(200));
    expect(lstatSync(join(bench.at('p'), 'dangling')).isSymbolicLink()).toBe(true);
    expect(existsSync('/nowhere')).toBe(false);
  });

  it('that is put in the place of a volume while a verb runs is not written through', async () => {
    const bench = newBench();
    const held = await activePool(bench);
    const outside = join(bench.root, 'outside');
    const precious = Buffer.alloc(8192, 'precious');
    writeFileSync(outside, precious, { mode: 0o600 });
    const source = join(bench.root, 'source');
    writeFileSync(source, 'evil');
    const path = join(bench.at('p'), 'v');
    const random = new Random(seedOf('links swapped in'));
    console.log(`seed ${String(random.seed)}`);
    const verbs: ((volume: Volume) => Promise<unknown>)[] = [
      (volume) => volume.resize(16384),
      (volume) => volume.resize(16384, { allocate: true }),
      (volume) => volume.wipe(),
      (volume) => volume.wipe('random'),
      (volume) => volume.upload(source),
      (volume) => volume.allocate('thick-eager'),
      (volume) => volume.delete(),
      () => held.createVolume({ name: 'v', capacity: 4096 }),
    ];
    let refused = 0;
    for (let round = 0; round < 240; round++) {
      rmSync(path, { force: true });
      await held.createVolume({ name: 'v', capacity: 8192 });
      const volume = await held.volume('v');
      const work = outcomes([Promise.resolve(verbs[round % verbs.length]?.(volume))]);
      // Between any two steps of the verb, the stranger has a turn.
      for (let turns = random.between(0, 12); turns > 0; turns--) await setImmediate();
      rmSync(path, { force: true });
      symlinkSync(outside, path);
      const [code] = await work;
      if (code === 'BAD_NAME') refused++;
      expect({ round, whole: readFileSync(outside).equals(precious) }).toEqual({ round, whole: true });
      expect({ round, mode: lstatSync(outside).mode & 0o777 }).toEqual({ round, mode: 0o600 });
    }
    expect(refused).toBeGreaterThan(0);
  });
});

describe('images in a pool', () => {
  it('do not make spindle read files outside of active pools', async () => {
    const bench = newBench();
    const held = await activePool(bench);
    const outside = join(bench.root, 'outside');
    writeFileSync(outside, Buffer.alloc(65536, 'secret'));
    await bench.ok('create', '-q', '-f', 'qcow2', '-b', outside, '-F', 'raw', join(bench.at('p'), 'evil'));
    const evil = await held.volume('evil');
    expect(evil.facts.backing).toEqual({ path: outside, format: 'raw' });
    expect(
      await outcomes([
        held.createVolumeFrom({ name: 'copy', capacity: undefined }, evil),
        held.createVolume({
          name: 'top',
          capacity: 65536,
          format: 'qcow2',
          backing: { path: 'evil', format: 'qcow2' },
        }),
        held.createVolume({
          name: 'top',
          capacity: 65536,
          format: 'qcow2',
          backing: { path: outside, format: 'raw' },
        }),
        held.createVolume({
          name: 'top',
          capacity: 512,
          format: 'qcow2',
          backing: { path: '../../outside' },
        }),
      ]),
    ).toEqual(['BACKING_DENIED', 'BACKING_DENIED', 'VOLUME_NOT_FOUND', 'VOLUME_NOT_FOUND']);
    expect(readdirSync(bench.at('p'))).toEqual(['evil']);
  });

  it('that are damaged are listed all the same', async () => {
    const bench = newBench();
    const held = await activePool(bench);
    const magic = Buffer.from([0x51, 0x46, 0x49, 0xfb]);
    writeFileSync(join(bench.at('p'), 'short'), magic);
    writeFileSync(
      join(bench.at('p'), 'version'),
      Buffer.concat([magic, Buffer.from([0, 0, 0, 9]), Buffer.alloc(1000, 0xff)]),
    );
    writeFileSync(
      join(bench.at('p'), 'noise'),
      Buffer.concat([magic, Buffer.from([0, 0, 0, 3]), Buffer.alloc(5000, 0xff)]),
    );
    mkdirSync(join(bench.at('p'), 'folder'));
    writeFileSync(join(bench.at('p'), 'line\nbreak'), '');
    expect((await held.volumes()).map(({ name, type }) => [name, type])).toEqual([
      ['folder', 'dir'],
      ['noise', 'file'],
      ['short', 'file'],
      ['version', 'file'],
    ]);
  });
});

describe('sizes', () => {
  it('are those of virsh', () => {
    const good: [string, number][] = [
      ['0', 0],
      ['512', 512],
      ['512B', 512],
      ['1k', 1024],
      ['1KiB', 1024],
      ['1KB', 1000],
      ['10G', 10 * 1024 ** 3],
      ['10gb', 10e9],
      ['2TiB', 2 * 1024 ** 4],
    ];
    for (const [text, bytes] of good) expect([text, parseScaled(text)]).toEqual([text, bytes]);
    for (const text of ['', '1.5G', '-1', 'G', '1X', '1GiBs', '0x10', '9P9', '9E'])
      expect([text, codeOf(() => parseScaled(text))]).toEqual([text, 'BAD_SIZE']);
    expect([0, 1023, 1024, 10 * 1024 ** 3, 1.5 * 1024 ** 5].map(formatScaled)).toEqual([
      ...['0.00 B', '1023.00 B', '1.00 KiB', '10.00 GiB', '1.50 PiB'],
    ]);
  });
});
