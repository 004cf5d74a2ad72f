/** Every kind of image in a folder of its own, named by relative paths, and command lines for all of them. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { createEncrypted } from './encrypted.ts';
import { KINDS, SECRET_OBJECT, imageOpts, kindOf, sourceArgs, type Content, type Kind } from './kinds.ts';
import * as qemu from './qemu.ts';
import { randomContent } from './kinds.ts';
import { Random } from './random.ts';
import { tempDir } from './temp.ts';

const MIB = 1024 ** 2;

/** Size of the disks: no whole number of clusters or pages. */
export const DISK = 3 * MIB + 1536;

function fills(pieces: readonly Content[]): qemu.Fill[] {
  return pieces.map(({ at, length, pattern }) => ({ do: 'write', at, length, pattern }));
}

function made(name: string, options: Record<string, string>, more: (path: string) => Promise<void>): Kind {
  return {
    name,
    format: 'qcow2',
    async make(path, size, pieces) {
      await qemu.create(path, size, { options });
      await qemu.fill(path, fills(pieces));
      await more(path);
    },
  };
}

/** The kinds of the library's tests, and some that the verbs tell apart. */
export const EVERY_KIND: readonly Kind[] = [
  ...KINDS,
  {
    name: 'raw external data file',
    format: 'qcow2',
    async make(path, size, pieces) {
      await qemu.create(path, size, { options: { data_file: `${path}.rawdata`, data_file_raw: 'on' } });
      await qemu.fill(path, fills(pieces));
    },
  },
  {
    name: 'encrypted with AES',
    format: 'qcow2',
    encrypted: true,
    async make(path, size, pieces) {
      await createEncrypted(path, size, 'qcow2', { format: 'aes' });
      await qemu.fill(path, fills(pieces), { source: sourceArgs(this, path) });
    },
  },
  made('with bitmaps', {}, async (path) => {
    await qemu.bitmap(path, 'one', ['--add', '-g', '4k']);
    await qemu.bitmap(path, 'two', ['--add', '--disable']);
    await qemu.fill(path, [{ do: 'write', at: MIB, length: 70_000 * 2, pattern: 77 }]);
  }),
  made('lazy refcounts of one bit', { lazy_refcounts: 'on', refcount_bits: '1' }, () => Promise.resolve()),
  made('extended L2, zstd and a snapshot', { extended_l2: 'on', compression_type: 'zstd' }, async (path) => {
    await qemu.snapshot(path, 'create', 'before');
    await qemu.fill(path, [{ do: 'write', at: 4096, length: 131_072, pattern: 9 }]);
  }),
  {
    name: 'encrypted with a snapshot',
    format: 'qcow2',
    encrypted: true,
    async make(path, size, pieces) {
      await kindOf('encrypted').make(path, size, pieces);
      const source = sourceArgs(this, path);
      await qemu.qemuImg(['snapshot', '-c', 'before', ...source]);
      await qemu.fill(path, [{ do: 'write', at: 4096, length: 100 * 512, pattern: 9 }], { source });
    },
  },
  {
    name: 'overlay on qcow2',
    format: 'qcow2',
    async make(path, size, pieces) {
      const base = { path: `${path}.base`, format: 'qcow2' };
      await qemu.create(base.path, size);
      await qemu.fill(base.path, fills(pieces));
      await qemu.create(path, undefined, { backing: base });
      await qemu.fill(path, [
        { do: 'write', at: 65_536, length: 70_144, pattern: 5 },
        { do: 'zero', at: 2 * MIB, length: 65_536 },
      ]);
    },
  },
];

/** The backing file `d` of another image, for `-b`: by name, or with what says where its key is. */
function backing(kind: Kind): string[] {
  if (kind.encrypted !== true) return ['-b', 'd', '-F', kind.format];
  const key = kind.format === 'luks' ? { 'key-secret': 's' } : { 'encrypt.key-secret': 's' };
  const name = { driver: kind.format, ...key, file: { driver: 'file', filename: 'd' } };
  return ['--object', SECRET_OBJECT, '-F', kind.format, '-b', `json:${JSON.stringify(name)}`];
}

/**
 * A folder with the image `d`; `top`, an overlay on it; `r.raw`, which is equal to `d`; `other.raw`, which is not; and
 * `zero.raw`. All names in it are relative.
 */
export async function studio(kind: Kind): Promise<string> {
  const cwd = tempDir();
  const path = join(cwd, 'd');
  await kind.make(path, DISK, randomContent(new Random(7), DISK, 14));
  const names = readdirSync(cwd);
  for (const name of names.filter((one) => /data$/.test(one)))
    await qemu.qemuImg(['amend', '-f', 'qcow2', '-o', `data_file=${name}`, 'd'], { cwd });
  if (names.includes('d.base')) {
    const format = kind.name === 'overlay on qcow2' ? 'qcow2' : 'raw';
    await qemu.qemuImg(['rebase', '-u', '-b', 'd.base', '-F', format, 'd'], { cwd });
  }
  await qemu.qemuImg(['convert', ...sourceArgs(kind, 'd'), 'r.raw'], { cwd });
  await qemu.create('other.raw', DISK, { format: 'raw', cwd });
  await qemu.create('zero.raw', DISK, { format: 'raw', cwd });
  await qemu.fill('other.raw', [{ do: 'write', at: MIB, length: 65_536, pattern: 3 }], {
    format: 'raw',
    cwd,
  });
  await qemu.qemuImg(['create', '-q', '-f', 'qcow2', ...backing(kind), 'top'], { cwd });
  await qemu.fill(
    'top',
    [
      { do: 'write', at: 196_608, length: 65_536, pattern: 8 },
      { do: 'zero', at: MIB, length: 65_536 },
    ],
    { cwd, source: words(kind, '@top') },
  );
  return cwd;
}

/** A copy of a folder; holes stay holes. */
export function copyOf(folder: string): string {
  const copy = tempDir();
  execFileSync('cp', ['-a', `${folder}/.`, copy]);
  return copy;
}

/**
 * The arguments of a line. `@` is the image with what it is opened by, `@top` the overlay likewise; `+NAME` is another
 * raw image beside it, `&d` the image once more; `^` the image as a backing file; `if@` the source of dd; `$` the
 * secret, where the image has none with it.
 */
export function words(kind: Kind, line: string): string[] {
  const encrypted = kind.encrypted === true;
  const object = ['--object', SECRET_OBJECT];
  return line.split(' ').flatMap((word) => {
    if (word === '@') return sourceArgs(kind, 'd');
    if (word === '@top') return [...(encrypted ? object : []), '-f', 'qcow2', 'top'];
    if (word === '&d') return [encrypted ? imageOpts(kind, 'd') : 'd'];
    if (word === '^') return backing(kind);
    if (word === '$') return encrypted ? [] : object;
    if (word === 'if@') {
      const args = sourceArgs(kind, 'd');
      return [...args.slice(0, -1), `if=${args.at(-1) ?? ''}`];
    }
    if (!word.startsWith('+') || !word.endsWith('.raw')) return [word];
    const name = word.slice(1);
    return encrypted ? [`driver=raw,file.filename=${name}`] : ['-F', 'raw', name];
  });
}

/** How the judge opens what a file turned out to be. */
function asFound(path: string): { opts: string; format: string } {
  const head = readFileSync(path).subarray(0, 36);
  const magic = head.subarray(0, 4).toString('latin1');
  const format = magic === 'QFI\u00fb' ? 'qcow2' : magic === 'LUKS' ? 'luks' : 'raw';
  const encrypted = format === 'luks' || (format === 'qcow2' && head.readUInt32BE(32) !== 0);
  const found = { name: '', format, encrypted, make: () => Promise.resolve() } as const;
  return { opts: imageOpts(found, path), format };
}

/** Without names, times, and what depends on where clusters are. */
function lasting(text: string): unknown {
  const dropped = ['filename', 'children', 'actual-size', 'full-backing-filename', 'date-sec', 'date-nsec'];
  // Salts, times of hashing and where a key slot is are chosen anew each time.
  dropped.push('uuid', 'master-key-iters', 'iters', 'vm-state-size');
  return JSON.parse(text, (key: string, value: unknown) => (dropped.includes(key) ? undefined : value));
}

/** Expects that two folders hold the same disks, and that qemu-img finds nothing wrong with ours. */
export async function expectSameResult(ours: string, theirs: string): Promise<void> {
  expect(readdirSync(ours).sort()).toEqual(readdirSync(theirs).sort());
  for (const name of readdirSync(ours)) {
    const [mine, other] = [join(ours, name), join(theirs, name)];
    if (readFileSync(mine).equals(readFileSync(other))) continue;
    // Where things are in a data file that is not raw is for its image to say.
    if (name.endsWith('.data')) continue;
    const [a, b] = [asFound(mine), asFound(other)];
    expect(a.format, name).toBe(b.format);
    // A key to decrypt with where the image says that it needs one; the backing files of both are ours.
    const options = { cwd: ours, expect: 'any' } as const;
    const object = ['--object', SECRET_OBJECT];
    const { code, stdout, stderr } = await qemu.qemuImg(
      ['compare', ...object, '--image-opts', a.opts, b.opts],
      options,
    );
    expect(code, `${name}: ${stdout}${stderr}`).toBe(0);
    // The file of ours is as long as the disk, that of qemu-img as its clusters.
    if (a.format === 'raw' && !name.endsWith('.rawdata'))
      expect(statSync(mine).size, name).toBe(statSync(other).size);
    if (a.format === 'raw') continue;
    if (a.format === 'qcow2') {
      const checked = await qemu.qemuImg(['check', ...object, '--image-opts', a.opts], options);
      expect(checked.code, `${name}: ${checked.stdout}${checked.stderr}`).toBe(0);
    }
    const [one, two] = await Promise.all(
      [a, b].map(({ opts }) =>
        qemu.qemuImg(['info', '--output=json', ...object, '--image-opts', opts], options),
      ),
    );
    expect(lasting(one?.stdout ?? ''), name).toEqual(lasting(two?.stdout ?? ''));
  }
}
