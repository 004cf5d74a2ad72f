// The ways to name an image: paths, file:, json: and lists of options; and what --untrusted opens.
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { parseSize } from '../../src/core/size.ts';
import { addonStatus } from '../../src/native/binding.ts';
import { imageName } from '../../src/op/image-name.ts';
import { builtCli, MAIN, spindle, type CliResult } from '../tool/cli.ts';
import { kindOf, KINDS, randomContent, SECRET_OBJECT } from '../tool/kinds.ts';
import * as qemu from '../tool/qemu.ts';
import { withRandom } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { shareOf } from '../tool/share.ts';

const MIB = 1024 ** 2;

let cwd = '';
let main = '';

beforeAll(async () => {
  await builtCli();
  main = join(tempDir(), 'qemu-img');
  symlinkSync(MAIN, main);
  cwd = tempDir();
  for (const [name, byte] of [
    ['base', 1],
    ['other', 2],
  ] as const) {
    writeFileSync(join(cwd, `${name}.raw`), Buffer.alloc(MIB, byte));
    await ours('convert', '-f', 'raw', '-O', 'qcow2', `${name}.raw`, `${name}.qcow2`);
  }
  await ours('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'top.qcow2');
  const parts = [Buffer.alloc(4096, 7), Buffer.alloc(65_536, 8), Buffer.alloc(8192, 9)];
  writeFileSync(join(cwd, 'parts.raw'), Buffer.concat(parts));
}, 120_000);

function ours(...args: string[]): Promise<CliResult> {
  return spindle(args, { cwd, main });
}

function theirs(...args: string[]): Promise<CliResult> {
  return qemu.qemuImg(args, { cwd, expect: 'any' });
}

/** Further options of `driver=qcow2,file.filename=base.qcow2`; a second entry says that we refuse them on purpose. */
const OPTIONS: readonly (readonly [option: string, strict?: true])[] = [
  ...['on', 'off', 'foo'].flatMap((value) =>
    ['cache.direct', 'cache.no-flush', 'read-only', 'force-share', 'lazy-refcounts', 'file.locking'].map(
      (name) => [`${name}=${value}`] as const,
    ),
  ),
  ...['unmap', 'on,discard=unmap', 'unmap,discard=unmap', 'foo'].map((v) => [`detect-zeroes=${v}`] as const),
  ...['unmap', 'on', 'off', 'ignore', 'foo'].map((value) => [`discard=${value}`] as const),
  ...['none', 'constant', 'cached', 'all', 'foo'].map((value) => [`overlap-check=${value}`] as const),
  ['overlap-check.template=all'],
  ['overlap-check.main-header=off'],
  ['overlap-check.foo=off'],
  ['overlap-check=cached,overlap-check.template=all'],
  ['cache-size=1M'],
  ['cache-size=1M,l2-cache-size=2M'],
  ['l2-cache-size=1M'],
  ['l2-cache-entry-size=4k'],
  ['l2-cache-entry-size=5'],
  ['refcount-cache-size=1M'],
  ['cache-clean-interval=5'],
  ['pass-discard-request=on'],
  ['pass-discard-other=maybe'],
  ['node-name=foo'],
  ['locking=on'],
  ['file.locking=auto'],
  ['file.aio=threads'],
  ['file.aio=foo'],
  ['file.driver=host_device'],
  ['file.driver=nbd'],
  ['file.driver=foo'],
  ['file.frob=1'],
  ['file.filename=absent'],
  ['file.pr-manager=x'],
  ['encrypt.key-secret=a', true],
  ['backing=node'],
  ['backing.driver=qcow2'],
  ['offset=0'],
  ['size=512'],
  ['filename=x'],
  ['frob=1'],
];

/** Whole names; `I` stands for --image-opts. */
const NAMES: readonly string[] = [
  'I filename=base.raw',
  'I base.raw',
  'I file.filename=top.qcow2',
  'I driver=file,filename=base.raw',
  'I driver=qcow2',
  'I driver=qcow2,file=node',
  'I driver=frob,file.filename=top.qcow2',
  'I driver=qcow2,file.filename=file:top.qcow2',
  'I driver=qcow2,file.filename=base.raw',
  'I driver=raw,file.filename=parts.raw,offset=4096,size=64k',
  'I driver=raw,file.filename=parts.raw,offset=4096',
  'I driver=raw,file.filename=parts.raw,offset=1000',
  'I driver=raw,file.filename=parts.raw,size=1000',
  'I driver=raw,file.filename=parts.raw,offset=64k,size=64k',
  'I driver=raw,file.filename=parts.raw,offset=100M',
  'I driver=raw,file.filename=parts.raw,offset=-1',
  'I driver=raw,file.driver=raw,file.file.filename=base.raw',
  'file:top.qcow2',
  'frob:top.qcow2',
  './frob:top.qcow2',
  'json:{',
  'json:[]',
  'json:"top.qcow2"',
  'json:{}',
  'json:{"driver":5}',
  'json:{"driver":"qcow2","file":"top.qcow2"}',
  'json:{"driver":"qcow2","file":null}',
  'json:{"driver":"qcow2","file":["a"]}',
  'json:{"file":{"filename":"top.qcow2"}}',
  'json:{"driver":"qcow2","file.filename":"top.qcow2"}',
  'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}',
  'json:{"driver":"qcow2","read-only":true,"cache":{"direct":false},"file":{"driver":"file","filename":"top.qcow2"}}',
  'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"backing":null}',
  'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"backing":"node"}',
  'json:{"driver":"qcow2","file.filename":"top.qcow2","backing":{"driver":"qcow2","file.filename":"other.qcow2"}}',
  'json:{"driver":"qcow2","file.filename":"top.qcow2","backing":{"driver":"raw","offset":4096,"file.filename":"parts.raw"}}',
  'json:{"driver":"qcow2","file.filename":"top.qcow2","backing":{"driver":"frob","file.filename":"other.qcow2"}}',
  'json:{"driver":"raw","offset":4096,"size":65536,"file":{"driver":"file","filename":"parts.raw"}}',
];

qemu.describeWithQemu('a name', () => {
  // Direct I/O needs the addon.
  const usable = OPTIONS.filter(([option]) => option !== 'cache.direct=on' || addonStatus().loaded);
  it.each(shareOf('options', usable).map(([option, strict]) => ({ option, strict })))(
    'with $option',
    async (one) => {
      const args = [
        'info',
        '--output=json',
        '--image-opts',
        `driver=qcow2,file.filename=base.qcow2,${one.option}`,
      ];
      const [mine, judged] = await Promise.all([ours(...args), theirs(...args)]);
      expect(mine.code, mine.stderr + judged.stderr).toBe(one.strict === true ? 1 : judged.code);
      if (mine.code !== 0) expect(mine.stderr).toMatch(/^qemu-img: .+\n$/);
      else expect(JSON.parse(mine.stdout)).toEqual(JSON.parse(judged.stdout));
    },
  );

  it.each(shareOf('names', NAMES))('%s', async (name) => {
    const words = name.startsWith('I ') ? ['--image-opts', name.slice(2)] : [name];
    for (const verb of [
      ['info', '--output=json'],
      ['map', '--output=json'],
      ['map'],
      ['measure', '-O', 'qcow2', '--output=json'],
    ]) {
      const [mine, judged] = await Promise.all([ours(...verb, ...words), theirs(...verb, ...words)]);
      // One of them ends qemu-img by an assertion.
      if (judged.code === 134) continue;
      expect(mine.code, `${verb.join(' ')}: ${mine.stderr}${judged.stderr}`).toBe(judged.code);
      if (name === 'I driver=file,filename=base.raw' || name.includes('file.driver=raw')) {
        // Nodes that add nothing to a raw file are not shown.
        if (verb[0] === 'info')
          expect(JSON.parse(mine.stdout)).toMatchObject({ format: 'raw', filename: 'base.raw' });
      } else if (mine.code !== 0) expect(mine.stderr).toMatch(/^qemu-img: .+\n$/);
      else expect(plain(mine.stdout), verb.join(' ')).toEqual(plain(judged.stdout));
    }
    const [mine, judged] = await Promise.all([
      ours('convert', ...words, 'mine'),
      theirs('convert', ...words, 'theirs'),
    ]);
    expect(mine.code, mine.stderr + judged.stderr).toBe(judged.code);
    if (mine.code === 0)
      expect(readFileSync(join(cwd, 'mine')).equals(readFileSync(join(cwd, 'theirs')))).toBe(true);
  });

  it.each(KINDS.map(({ name }) => name))('of an image that is %s', async (name) => {
    const kind = kindOf(name);
    const folder = tempDir();
    const path = join(folder, 'image');
    await withRandom(`names: ${name}`, (random) => kind.make(path, 4 * MIB, randomContent(random, 4 * MIB)));
    const key = kind.format === 'luks' ? 'key-secret' : 'encrypt.key-secret';
    const secret = kind.encrypted === true ? { [key]: 's' } : {};
    const object = kind.encrypted === true ? ['--object', SECRET_OBJECT] : [];
    const json = `json:${JSON.stringify({ driver: kind.format, file: { driver: 'file', filename: path }, ...secret })}`;
    const list = Object.entries({ driver: kind.format, 'file.filename': path, ...secret });
    const options = list.map((entry) => entry.join('=')).join(',');
    for (const words of [[json], ['--image-opts', options]]) {
      const judged = await theirs('map', '--output=json', ...object, ...words);
      const mine = await ours('map', '--output=json', ...object, ...words);
      expect({ code: mine.code, error: mine.stderr }).toEqual({ code: judged.code, error: '' });
      expect(JSON.parse(mine.stdout)).toEqual(JSON.parse(judged.stdout));
      const [out, other] = [join(folder, 'out'), join(folder, 'other')];
      expect((await ours('convert', ...object, ...words, out)).stderr).toBe('');
      expect((await theirs('convert', ...object, ...words, other)).stderr).toBe('');
      expect(readFileSync(out).equals(readFileSync(other))).toBe(true);
    }
  });
});

/** JSON as a value, with the names of parts of files too, whose keys qemu puts in an order of its own. */
function plain(text: string): unknown {
  if (!/^[[{]/.test(text)) return text;
  const value: unknown = JSON.parse(text);
  const own = value as { filename?: unknown };
  if (typeof own.filename !== 'string' || !own.filename.startsWith('json:')) return value;
  const described = JSON.parse(own.filename.slice(5)) as Record<string, unknown>;
  const { offset = 0, size } = described;
  const number = (one: unknown): number | undefined =>
    typeof one === 'string' ? parseSize(one) : (one as number | undefined);
  return { ...own, filename: { ...described, offset: number(offset), size: number(size) } };
}

/** Verbs that change `x`, an image below which nothing is, by every kind of name. */
const CHANGES: readonly (readonly string[])[] = [
  ['resize', 'NAME', '2M'],
  ['snapshot', '-c', 'one', 'NAME'],
  ['bitmap', '--add', 'NAME', 'b'],
  ['amend', '-o', 'lazy_refcounts=on', 'NAME'],
  ['bench', '-w', '-c', '4', '-d', '1', '--pattern', '5', 'NAME'],
  ['check', '-r', 'all', 'NAME'],
  ['rebase', '-u', '-b', 'base.qcow2', '-F', 'qcow2', 'NAME'],
];

describe('a verb that changes an image', () => {
  it.each(CHANGES.map((words) => ({ verb: words.join(' '), words })))('$verb', async ({ words }) => {
    const fresh = async (): Promise<void> => {
      expect((await ours('convert', '-f', 'raw', '-O', 'qcow2', 'base.raw', 'x')).stderr).toBe('');
    };
    const by = (name: string): string[] => words.map((word) => (word === 'NAME' ? name : word));
    const steadyInfo = async (): Promise<unknown> =>
      JSON.parse((await ours('info', '-U', '--output=json', 'x')).stdout, (key, value: unknown) =>
        /^(date|actual)/.test(key) ? 0 : value,
      );
    await fresh();
    expect((await ours(...by('x'))).stderr).toBe('');
    const expected = await steadyInfo();
    for (const args of [
      by('file:x'),
      by('json:{"driver":"qcow2","file":{"driver":"file","filename":"x"}}'),
      [words[0] ?? '', '--image-opts', ...by('driver=qcow2,file.filename=x').slice(1)],
      [words[0] ?? '', '--image-opts', ...by('driver=qcow2,file.filename=x,file.locking=off').slice(1)],
    ]) {
      await fresh();
      const done = await ours(...args);
      expect({ code: done.code, error: done.stderr }).toEqual({ code: 0, error: '' });
      expect(await steadyInfo()).toEqual(expected);
    }
    for (const option of ['read-only=on', 'force-share=on']) {
      await fresh();
      const before = readFileSync(join(cwd, 'x'));
      const list = by(`driver=qcow2,file.filename=x,${option}`).slice(1);
      expect((await ours(words[0] ?? '', '--image-opts', ...list)).code).toBe(1);
      expect(readFileSync(join(cwd, 'x')).equals(before)).toBe(true);
    }
  });

  it('changes only the part of a raw file that is named', async () => {
    const whole = readFileSync(join(cwd, 'parts.raw'));
    writeFileSync(join(cwd, 'w.raw'), whole);
    writeFileSync(join(cwd, 'new.raw'), Buffer.alloc(65_536, 5));
    const part = 'driver=raw,file.filename=w.raw,offset=4096,size=64k';
    const args = ['convert', '-n', '-f', 'raw', '--target-image-opts', 'new.raw', part];
    expect((await ours(...args)).stderr).toBe('');
    whole.fill(5, 4096, 4096 + 65_536);
    expect(readFileSync(join(cwd, 'w.raw')).equals(whole)).toBe(true);
    expect((await ours('resize', '--image-opts', part, '1M')).stderr).toMatch(/fixed size/);
    expect(readFileSync(join(cwd, 'w.raw')).equals(whole)).toBe(true);
    const open = 'driver=raw,file.filename=w.raw,offset=4096';
    expect((await ours('resize', '--image-opts', open, '1M')).code).toBe(0);
    const grown = Buffer.concat([whole, Buffer.alloc(4096 + MIB - whole.length)]);
    expect(readFileSync(join(cwd, 'w.raw')).equals(grown)).toBe(true);
  });

  it('refuses to copy a file onto a part of itself', async () => {
    const before = readFileSync(join(cwd, 'parts.raw'));
    const part = 'driver=raw,file.filename=parts.raw,offset=4096,size=64k';
    const done = await ours('convert', '-n', '-f', 'raw', '--target-image-opts', 'parts.raw', part);
    expect(done.code).toBe(1);
    expect((await ours('convert', '--image-opts', part, 'parts.raw')).code).toBe(1);
    expect(readFileSync(join(cwd, 'parts.raw')).equals(before)).toBe(true);
  });
});

describe('the name of a backing file in an image', () => {
  const DESCRIBED =
    'json:{"driver":"raw","offset":4096,"size":65536,"file":{"driver":"file","filename":"parts.raw"}}';

  it.each([
    ['file:other.raw', 'raw', 2],
    ['json:{"driver":"qcow2","file":{"driver":"file","filename":"other.qcow2"}}', 'qcow2', 2],
    [DESCRIBED, 'raw', 8],
  ] as const)('%s', async (name, format, byte) => {
    const made = await ours('create', '-q', '-f', 'qcow2', '-b', name, '-F', format, 'over');
    expect(made.stderr).toBe('');
    expect((await ours('convert', '-f', 'qcow2', 'over', 'out')).stderr).toBe('');
    expect(readFileSync(join(cwd, 'out')).every((one) => one === byte)).toBe(true);
    const chain = await ours('info', '--backing-chain', '--output=json', 'over');
    expect(chain.stderr).toBe('');
    if (qemu.qemuMissing() === undefined) {
      const judged = await theirs('info', '--backing-chain', '--output=json', 'over');
      const all = (text: string): unknown[] =>
        (JSON.parse(text) as object[]).map((one) => plain(JSON.stringify(one)));
      expect(all(chain.stdout)).toEqual(all(judged.stdout));
      expect((await theirs('compare', '-f', 'qcow2', '-F', 'raw', 'over', 'out')).code).toBe(0);
    }
  });

  it('stays in place through commit and rebase', async () => {
    const name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"low.qcow2"}}';
    await ours('convert', '-f', 'raw', '-O', 'qcow2', 'base.raw', 'low.qcow2');
    await ours('create', '-q', '-f', 'qcow2', '-b', name, '-F', 'qcow2', 'over');
    await ours('bench', '-w', '-c', '3', '--pattern', '9', 'over');
    await ours('convert', 'over', 'before.raw');
    expect((await ours('rebase', '-b', 'other.qcow2', '-F', 'qcow2', 'over')).stderr).toBe('');
    expect((await ours('rebase', '-b', name, '-F', 'qcow2', 'over')).stderr).toBe('');
    expect((await ours('compare', '-F', 'raw', 'over', 'before.raw')).code).toBe(0);
    expect((await ours('commit', '-b', 'low.qcow2', 'over')).stderr).toBe('');
    expect((await ours('compare', '-F', 'raw', 'low.qcow2', 'before.raw')).code).toBe(0);
  });

  it('may not lead back to the image', async () => {
    const name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"loop"}}';
    await ours('create', '-q', '-f', 'qcow2', 'loop', '1M');
    expect((await ours('rebase', '-u', '-b', name, '-F', 'qcow2', 'loop')).stderr).toMatch(
      /reads this image/,
    );
    const nested = `json:{"driver":"qcow2","file.filename":"over","backing":{"driver":"qcow2","file.filename":"loop"}}`;
    await ours('create', '-q', '-f', 'qcow2', '-u', '-b', nested, '-F', 'qcow2', 'loop', '1M');
    await ours('create', '-q', '-f', 'qcow2', 'over', '1M');
    const looped = await ours('map', 'loop');
    expect({ code: looped.code, told: /back each other/.test(looped.stderr) }).toEqual({
      code: 1,
      told: true,
    });
  });
});

describe('--untrusted', () => {
  const LINES: readonly (readonly [line: string, code: number])[] = [
    ['info top.qcow2', 0],
    ['info --backing-chain top.qcow2', 1],
    ['map top.qcow2', 1],
    ['map base.qcow2', 0],
    ['check top.qcow2', 0],
    ['convert top.qcow2 out', 1],
    ['convert base.qcow2 out', 0],
    ['compare top.qcow2 other.qcow2', 2],
    ['compare top.qcow2 base.qcow2', 0],
    ['measure top.qcow2', 1],
    ['dd if=top.qcow2 of=out', 1],
    ['bench -c 1 top.qcow2', 1],
    ['commit top.qcow2', 1],
    ['commit -b base.qcow2 top.qcow2', 0],
    ['rebase -b other.qcow2 -F qcow2 top.qcow2', 1],
    ['rebase -b base.qcow2 -F qcow2 top.qcow2', 0],
    ['resize top.qcow2 +1M', 1],
    ['snapshot -l top.qcow2', 0],
    ['snapshot -c one top.qcow2', 1],
    ['amend -o lazy_refcounts=on top.qcow2', 1],
    ['bitmap --add top.qcow2 b', 0],
    ['allocate --allocation thick-lazy data.qcow2', 1],
    ['allocate --allocation thin top.qcow2', 1],
    ['allocate --allocation thick-lazy base.qcow2', 0],
    ['convert --plan top.qcow2 out', 1],
    ['commit --plan top.qcow2', 1],
    ['commit --plan -b base.qcow2 top.qcow2', 0],
    ['rebase --plan -b other.qcow2 -F qcow2 top.qcow2', 1],
    ['create -f qcow2 -b top.qcow2 -F qcow2 out', 1],
    ['create -f qcow2 -b base.qcow2 -F qcow2 out', 0],
    ['convert -O qcow2 -B base.qcow2 -F qcow2 base.qcow2 out', 0],
    [
      'map json:{"driver":"qcow2","file.filename":"top.qcow2","backing":{"driver":"qcow2","file.filename":"other.qcow2"}}',
      0,
    ],
    ['map data.qcow2', 1],
    [
      'map json:{"driver":"qcow2","file.filename":"data.qcow2","data-file":{"driver":"file","filename":"data.raw"}}',
      0,
    ],
    ['map trap.qcow2', 1],
  ];

  it.each(LINES)('%s', async (line, code) => {
    const folder = tempDir();
    const own = (...args: string[]): Promise<CliResult> => spindle(args, { cwd: folder });
    for (const name of ['base.qcow2', 'other.qcow2', 'top.qcow2'])
      writeFileSync(join(folder, name), readFileSync(join(cwd, name)));
    await own('create', '-q', '-f', 'qcow2', '-o', 'data_file=data.raw', 'data.qcow2', '1M');
    // Its words name the file that the caller names, and one more that the caller does not.
    const trap = `json:{"driver":"qcow2","file.filename":"trap.qcow2","backing":{"driver":"raw","file.filename":"data.raw"}}`;
    await own('create', '-q', '-f', 'qcow2', '-u', '-b', trap, '-F', 'qcow2', 'trap.qcow2', '1M');
    const [verb = '', ...rest] = line.split(' ');
    const done = await own(verb, '--untrusted', ...rest);
    expect(done.code, done.stderr).toBe(code);
    if (code !== 0 && !line.includes('trap')) expect(done.stderr).toMatch(/is not opened: .*--untrusted/);
    if (code === 0 || line.includes('trap')) return;
    const trusted = await own(verb, ...rest);
    expect(trusted.stderr).toBe('');
    expect(trusted.code).toBe(verb === 'compare' ? 1 : 0);
  });
});

describe('a description', () => {
  it('says what it says', () => {
    expect(imageName('a')).toEqual({ path: 'a' });
    expect(imageName('file:a:b')).toEqual({ path: 'a:b' });
    expect(
      imageName(
        'json:{"driver":"qcow2","file":{"filename":"a","locking":"off"},"encrypt.key-secret":"s","backing":null}',
      ),
    ).toEqual({ path: 'a', unlocked: true, format: 'qcow2', backing: null, secret: 's' });
    for (const name of [
      'nbd:a',
      'json:{"driver":"nbd"}',
      'json:{"driver":"raw","file.filename":"a","frob":1}',
    ])
      expect(() => imageName(name), name).toThrow(/this version|local files/);
  });
});
