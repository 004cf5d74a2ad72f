import { writeFileSync } from 'node:fs';
import { PASSPHRASE } from './encrypted.ts';
import * as qemu from './qemu.ts';
import type { Random } from './random.ts';

/** A piece of a disk: bytes of one value; 0 are zeroes, said so where the format can. */
export interface Content {
  readonly at: number;
  readonly length: number;
  readonly pattern: number;
}

/** A way to keep a disk; qemu makes it. */
export interface Kind {
  readonly name: string;
  readonly format: 'raw' | 'qcow2' | 'luks';
  readonly encrypted?: boolean;
  /** Makes an image of `size` bytes in `path`, and what else it needs beside it. The disk depends on the pieces only. */
  make(path: string, size: number, pieces: readonly Content[]): Promise<void>;
}

/** Random pieces of whole sectors, some of them zeroes over data. */
export function randomContent(random: Random, size: number, count = 20): Content[] {
  return Array.from({ length: count }, () => {
    const at = random.below(size / 512) * 512;
    const length = Math.min(size - at, random.pick([512, 4096, 65_536, 700_416]));
    return { at, length, pattern: random.chance(0.25) ? 0 : random.between(1, 255) };
  });
}

/** The arguments by which qemu opens an image of this kind: for `qemu-img` and `qemu-io`. */
export function sourceArgs(kind: Kind, path: string): string[] {
  if (kind.encrypted !== true) return ['-f', kind.format, path];
  return ['--object', SECRET_OBJECT, '--image-opts', imageOpts(kind, path)];
}

/** The `--object` that holds the passphrase of encrypted kinds. */
export const SECRET_OBJECT = `secret,id=s,data=${PASSPHRASE}`;

/** The image as `--image-opts` names it. */
export function imageOpts(kind: Kind, path: string): string {
  const key =
    kind.encrypted !== true ? '' : kind.format === 'luks' ? ',key-secret=s' : ',encrypt.key-secret=s';
  return `driver=${kind.format},file.filename=${path}${key}`;
}

function steps(pieces: readonly Content[]): qemu.Fill[] {
  return pieces.map(({ at, length, pattern }) =>
    pattern === 0 ? { do: 'zero', at, length } : { do: 'write', at, length, pattern },
  );
}

function qcow2(name: string, options: Record<string, string | number> = {}): Kind {
  return {
    name,
    format: 'qcow2',
    async make(path, size, pieces) {
      const own = Object.entries(options).map(([key, value]): [string, string | number] => [
        key,
        key === 'data_file' ? `${path}.${String(value)}` : value,
      ]);
      await qemu.create(path, size, { options: Object.fromEntries(own) });
      await qemu.fill(path, steps(pieces));
    },
  };
}

function converted(name: string, more: readonly string[]): Kind {
  return {
    name,
    format: 'qcow2',
    async make(path, size, pieces) {
      const raw = `${path}.plain`;
      await qemu.create(raw, size, { format: 'raw' });
      await qemu.fill(raw, steps(pieces), { format: 'raw' });
      await qemu.convert(raw, path, { format: 'raw', to: 'qcow2', more });
    },
  };
}

async function makeEncrypted(
  format: string,
  path: string,
  size: number,
  pieces: readonly Content[],
): Promise<void> {
  const list =
    format === 'luks'
      ? 'key-secret=s,iter-time=10'
      : 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10';
  await qemu.qemuImg([
    'create',
    '-q',
    '--object',
    SECRET_OBJECT,
    '-f',
    format,
    '-o',
    list,
    path,
    String(size),
  ]);
  // A new volume of LUKS alone holds noise.
  const all = format === 'luks' ? [{ at: 0, length: size, pattern: 0 }, ...pieces] : pieces;
  const commands = all.flatMap(({ at, length, pattern }) => [
    '-c',
    `write -P ${String(pattern)} ${String(at)} ${String(length)}`,
  ]);
  const key = format === 'luks' ? 'key-secret=s' : 'encrypt.key-secret=s';
  await qemu.qemuIo([
    ...commands,
    '--object',
    SECRET_OBJECT,
    '--image-opts',
    `driver=${format},file.filename=${path},${key}`,
  ]);
}

/** All kinds. */
export const KINDS: readonly Kind[] = [
  {
    name: 'raw',
    format: 'raw',
    async make(path, size, pieces) {
      await qemu.create(path, size, { format: 'raw' });
      await qemu.fill(path, steps(pieces), { format: 'raw' });
    },
  },
  {
    name: 'raw without holes',
    format: 'raw',
    make(path, size, pieces) {
      const bytes = Buffer.alloc(size);
      for (const { at, length, pattern } of pieces) bytes.fill(pattern, at, at + length);
      writeFileSync(path, bytes);
      return Promise.resolve();
    },
  },
  qcow2('qcow2'),
  qcow2('qcow2, small clusters', { cluster_size: 512 }),
  qcow2('qcow2, large clusters', { cluster_size: '2M' }),
  qcow2('version 2', { compat: '0.10' }),
  qcow2('extended L2', { extended_l2: 'on', cluster_size: '128k' }),
  qcow2('external data file', { data_file: 'data' }),
  qcow2('preallocated tables', { preallocation: 'metadata' }),
  converted('compressed', ['-c']),
  converted('compressed with zstd', ['-c', '-o', 'compression_type=zstd,cluster_size=16k']),
  {
    name: 'overlay on a shorter base',
    format: 'qcow2',
    async make(path, size, pieces) {
      const base = { path: `${path}.base`, format: 'raw' };
      const half = Math.floor(pieces.length / 2);
      const small = Math.floor(size / 1024) * 512;
      await qemu.create(base.path, small, { format: 'raw' });
      const below = pieces
        .slice(0, half)
        .filter(({ at }) => at < small)
        .map((piece) => ({ ...piece, length: Math.min(piece.length, small - piece.at) }));
      await qemu.fill(base.path, steps(below), { format: 'raw' });
      await qemu.create(path, size, { backing: base });
      // What the base could not hold is put on top first, in the order in which it came.
      const cut = pieces.slice(0, half).flatMap(({ at, length, pattern }) => {
        const start = Math.max(at, small);
        return start < at + length ? [{ at: start, length: at + length - start, pattern }] : [];
      });
      await qemu.fill(path, steps([...cut, ...pieces.slice(half)]));
    },
  },
  {
    name: 'with a snapshot',
    format: 'qcow2',
    async make(path, size, pieces) {
      const half = Math.floor(pieces.length / 2);
      await qemu.create(path, size);
      await qemu.fill(path, steps(pieces.slice(0, half)));
      await qemu.snapshot(path, 'create', 'before');
      await qemu.fill(path, steps(pieces.slice(half)));
    },
  },
  {
    name: 'encrypted',
    format: 'qcow2',
    encrypted: true,
    make: (path, size, pieces) => makeEncrypted('qcow2', path, size, pieces),
  },
  {
    name: 'luks',
    format: 'luks',
    encrypted: true,
    make: (path, size, pieces) => makeEncrypted('luks', path, size, pieces),
  },
];

/** The kind of that name. */
export function kindOf(name: string): Kind {
  const found = KINDS.find((kind) => kind.name === name);
  if (found === undefined) throw new Error(`no kind '${name}'`);
  return found;
}
