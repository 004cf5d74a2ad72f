// What must not be written to is refused with the reason before the first byte changes: every operation that writes,
// on every image that it may not change.
import { spawn } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { builtCli, MAIN, spindle, type CliResult } from '../tool/cli.ts';
import { createEncrypted, PASSPHRASE } from '../tool/encrypted.ts';
import * as qemu from '../tool/qemu.ts';
import { sha256 } from '../tool/repair-cuts.ts';
import { tempDir } from '../tool/temp.ts';

let images = '';
const SECRET = ['--object', `secret,id=s,data=${PASSPHRASE}`];

/** Opens an image for writing with the library, in a process of its own; says the error as the command line does. */
const OPEN = `
const { openImageFile, secretOf } = await import(process.argv[1]);
try {
  const image = await openImageFile(process.argv[2], { write: true, secret: process.argv[3] === '' ? undefined : secretOf(process.argv[3]) });
  await image.close();
} catch (error) {
  console.error('spindle: ' + error.path + ': ' + error.message);
  process.exitCode = 1;
}`;

function open(file: string, secret: string, cwd: string, uid: number | undefined): Promise<CliResult> {
  const index = pathToFileURL(join(MAIN, '..', '..', 'index.js')).href;
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--input-type=module', '-e', OPEN, index, file, secret], {
      cwd,
      ...(uid === undefined ? {} : { uid, gid: uid }),
    });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', reject);
    child.on('close', (code) => {
      resolve({ stdout: '', stderr, code: code ?? -1 });
    });
  });
}

/** All that writes. `secret`: also given the passphrase. */
const OPERATIONS = {
  'open for writing': [],
  'resize larger': ['resize', 'FILE', '+1M'],
  'resize smaller': ['resize', '--shrink', 'FILE', '-64k'],
  'resize to part of a cluster': ['resize', '--shrink', 'FILE', '100k'],
  'resize with preallocation': ['resize', '--preallocation', 'full', 'FILE', '+1M'],
  'snapshot -c': ['snapshot', '-c', 'new', 'FILE'],
  'snapshot -a': ['snapshot', '-a', 'one', 'FILE'],
  'snapshot -d': ['snapshot', '-d', 'one', 'FILE'],
  'check -r leaks': ['check', '-r', 'leaks', 'FILE'],
  'check -r all': ['check', '-r', 'all', '--journal', 'undo', 'FILE'],
  'key add': ['key', 'add', '--iter-time', '10', ...SECRET, '--new-secret-file', 'key', 'FILE'],
  'key change': ['key', 'change', '--iter-time', '10', ...SECRET, '--new-secret-file', 'key', 'FILE'],
  'key remove': ['key', 'remove', '--slot', '0', '--force', 'FILE'],
} as const satisfies Record<string, readonly string[]>;
type Operation = keyof typeof OPERATIONS;

const ALL = Object.keys(OPERATIONS) as Operation[];
const CHANGES = ALL.filter((one) => !one.startsWith('check') && !one.startsWith('key'));
const KEYS = ALL.filter((one) => one.startsWith('key'));
const SNAPSHOTS = ALL.filter((one) => one.startsWith('snapshot'));
const REPAIRS = ALL.filter((one) => one.startsWith('check'));

interface State {
  readonly what: string;
  readonly image: string;
  /** Makes it so, in a directory of its own; what it returns ends it. */
  readonly prepare?: (path: string) => (() => Promise<void>) | Promise<() => Promise<void>>;
  readonly operations: readonly Operation[];
  readonly says: RegExp;
  readonly uid?: number;
  readonly secret?: string;
  readonly exit?: number;
}

const done = (): Promise<void> => Promise.resolve();
/** Sets header bits; and an autoclear bit that nobody knows, which may not be cleared either. */
const bits =
  (incompatible: number) =>
  (path: string): (() => Promise<void>) => {
    const bytes = readFileSync(path);
    bytes.writeUInt32BE((bytes.readUInt32BE(76) | incompatible) >>> 0, 76);
    bytes.writeUInt32BE((bytes.readUInt32BE(92) | 0x20) >>> 0, 92);
    writeFileSync(path, bytes);
    return done;
  };

/** Holds the image open with qemu-io. */
const held =
  (flags: readonly string[], format: string, secret: boolean) =>
  async (path: string): Promise<() => Promise<void>> => {
    const image = secret
      ? [...SECRET, '--image-opts', `driver=qcow2,encrypt.key-secret=s,file.filename=${path}`]
      : ['-f', format, path];
    const holder = spawn('qemu-io', [...flags, ...image], { stdio: ['pipe', 'pipe', 'inherit'] });
    holder.stdin.write('length\n');
    await new Promise<void>((resolve) => holder.stdout.once('data', () => resolve()));
    return () =>
      new Promise((resolve) => {
        holder.once('close', () => resolve());
        holder.stdin.end('quit\n');
      });
  };

const STATES: readonly State[] = [
  {
    what: 'a file that may only be read',
    ...{ image: 'luks.qcow2', operations: ALL, uid: 65_534, says: /permission denied/ },
    prepare: (path) => {
      chmodSync(path, 0o444);
      return done;
    },
  },
  {
    what: 'an image marked corrupt',
    ...{ image: 'luks.qcow2', operations: [...CHANGES, ...KEYS], says: /marked corrupt/, prepare: bits(2) },
  },
  {
    what: 'a dirty image of another program',
    ...{ image: 'plain.qcow2', operations: CHANGES, says: /repair it first/, prepare: bits(1) },
  },
  {
    what: 'an image with a feature that nobody knows',
    ...{
      image: 'luks.qcow2',
      operations: ALL,
      says: /features that spindle does not know/,
      prepare: bits(1 << 9),
    },
  },
  {
    what: 'an image that another process writes to',
    ...{
      image: 'luks.qcow2',
      operations: ALL,
      says: /in use|another process|locked/i,
      prepare: held([], 'qcow2', true),
    },
  },
  {
    what: 'an image that another process reads',
    ...{ image: 'plain.qcow2', operations: [...CHANGES, ...REPAIRS], says: /in use|another process|locked/i },
    prepare: held(['-r'], 'qcow2', false),
  },
  {
    // What changes tables alone needs no secret; a tail that is cut off has to be zeroes, encrypted ones.
    what: 'an encrypted image without its secret',
    ...{ image: 'luks.qcow2', operations: ['resize to part of a cluster'], secret: '' },
    says: /encrypted and no secret/,
  },
  {
    what: 'an encrypted image with another secret',
    ...{ image: 'luks.qcow2', operations: CHANGES, secret: 'wrong', says: /opens none of the key slots/ },
  },
  {
    what: 'an image with a data file',
    ...{ image: 'data.qcow2', operations: SNAPSHOTS, says: /external data file|no snapshot/ },
  },
  { what: 'a raw image', image: 'disk.raw', operations: SNAPSHOTS, says: /raw images have no snapshots/ },
  { what: 'a raw image', image: 'disk.raw', operations: KEYS, says: /raw image has no key slots/ },
  {
    what: 'a raw image',
    ...{ image: 'disk.raw', operations: REPAIRS, says: /only qcow2 images have tables/, exit: 63 },
  },
  {
    what: 'an image that is not encrypted',
    image: 'plain.qcow2',
    operations: KEYS,
    says: /has no key slots/,
  },
  { what: 'a LUKS volume', image: 'disk.luks', operations: SNAPSHOTS, says: /luks images have no snapshots/ },
  {
    what: 'a LUKS volume',
    ...{ image: 'disk.luks', operations: REPAIRS, says: /only qcow2 images have tables/, exit: 63 },
  },
];

/** Names, times and contents of all files of a directory. */
function look(folder: string): unknown {
  return readdirSync(folder)
    .sort()
    .map((name) => {
      const { mtimeMs, size } = statSync(join(folder, name));
      return { name, mtimeMs, size, hash: sha256(readFileSync(join(folder, name))) };
    });
}

qemu.describeWithQemu('refused before the first byte changes', () => {
  beforeAll(async () => {
    await builtCli();
    images = tempDir();
    const path = (name: string): string => join(images, name);
    await qemu.create(path('plain.qcow2'), '1M');
    await qemu.fill(path('plain.qcow2'), [{ do: 'write', at: 0, length: 200_000, pattern: 5 }]);
    await qemu.snapshot(path('plain.qcow2'), 'create', 'one');
    await createEncrypted(path('luks.qcow2'), 1024 ** 2, 'qcow2', { format: 'luks', 'iter-time': '10' });
    const encrypted = [
      '--image-opts',
      `driver=qcow2,encrypt.key-secret=s,file.filename=${path('luks.qcow2')}`,
    ];
    await qemu.qemuIo(['-c', 'write -P 5 0 200k', ...SECRET, ...encrypted]);
    await qemu.qemuImg([
      ...['snapshot', '-q', '-c', 'one', ...SECRET, '--image-opts'],
      `driver=qcow2,encrypt.key-secret=s,file.filename=${path('luks.qcow2')}`,
    ]);
    await createEncrypted(path('disk.luks'), 1024 ** 2, 'luks', { 'iter-time': '10' });
    await qemu.create(path('disk.raw'), '1M', { format: 'raw' });
    writeFileSync(path('key'), 'another');
    const data = path('data.img');
    await qemu.create(path('data.qcow2'), '1M', { options: { data_file: data, data_file_raw: 'off' } });
  }, 120_000);

  const grid = STATES.flatMap((state) =>
    state.operations.map((operation) => ({ what: state.what, operation, state })),
  ).filter(({ state }) => state.uid === undefined || process.getuid?.() === 0);

  it.each(grid)('$what: $operation', async ({ operation, state }) => {
    const folder = join(tempDir(), 'work');
    mkdirSync(folder);
    for (const name of [state.image, 'key', 'data.img']) copyFileSync(join(images, name), join(folder, name));
    // As the user that may only read.
    if (state.uid !== undefined) for (const one of [folder, join(folder, '..')]) chmodSync(one, 0o755);
    const release = (await state.prepare?.(join(folder, state.image))) ?? done;
    try {
      const before = look(folder);
      const passphrase = state.secret ?? PASSPHRASE;
      const args = OPERATIONS[operation].map((word) => (word === 'FILE' ? state.image : word));
      const secret =
        args.includes('--object') || passphrase === '' || operation === 'key remove'
          ? []
          : ['--object', `secret,id=s,data=${passphrase}`];
      const { uid } = state;
      const result =
        operation === 'open for writing'
          ? await open(state.image, passphrase, folder, uid)
          : await spindle([args[0] ?? '', ...secret, ...args.slice(1)], {
              cwd: folder,
              ...(uid === undefined ? {} : { uid }),
            });
      expect(result).toMatchObject({ code: state.exit ?? 1, stdout: '' });
      expect(result.stderr).toMatch(state.says);
      expect(result.stderr).toMatch(
        new RegExp(`^spindle: [^\\n]*${state.image.replace('.', '\\.')}[^\\n]*\\n$`),
      );
      expect(look(folder)).toEqual(before);
    } finally {
      await release();
    }
  });
});

describe('operations that exclude each other', () => {
  beforeAll(builtCli, 120_000);

  const CASES: readonly (readonly [args: string, says: RegExp])[] = [
    ['resize --shrink x 1000', /multiple of 512|512/],
    ['resize --shrink --preallocation full x 64k', /preallocation is for growing/],
    ['resize x 64k', /--shrink/],
    ['resize -U x 4M', /-U is for looking/],
    ['snapshot -c a -d b x', /choose one/],
    ['snapshot -U -c a x', /-U is for looking/],
    ['snapshot -d nobody x', /no snapshot 'nobody'/],
    ['check --dry-run x', /goes with --repair/],
    ['check --journal new x', /goes with --repair/],
    ['check -r all --dry-run --journal new x', /exclude each other/],
    ['check -r all --undo key x', /exclude each other/],
    ['check -r all --journal key x', /exists/],
    ['check --undo key x', /no journal/],
    ['check -r all -U x', /nobody else may use/],
  ];
  it.each(CASES)('%s', async (args, says) => {
    const folder = tempDir();
    await spindle(['create', '-q', '-f', 'qcow2', 'x', '1M'], { cwd: folder });
    writeFileSync(join(folder, 'key'), 'precious');
    const before = look(folder);
    const result = await spindle(args.split(' '), { cwd: folder });
    expect(result).toMatchObject({ code: 1, stdout: '' });
    expect(result.stderr).toMatch(says);
    expect(look(folder)).toEqual(before);
  });
});
