import { link, mkdir, open, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Random } from './random.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

/** How much of each kind a tree holds; {@link growTree} has a default of a little more than 1 GB. */
export interface TreeShape {
  /** Files of bytes that do not compress, `bulk` bytes each. */
  readonly random: number;
  /** Files that compress as logs and sources do, `bulk` bytes each. */
  readonly text: number;
  /** Bytes. */
  readonly bulk: number;
  /** Files of 0 to 12 KiB. */
  readonly small: number;
  /** Files that are mostly holes. */
  readonly sparse: number;
  /** Directories in one another. */
  readonly depth: number;
}

const SHAPE: TreeShape = { random: 8, text: 8, bulk: 64 * MIB, small: 4000, sparse: 3, depth: 40 };

/**
 * Fills `folder` with files as a disk has them: large ones that compress well and badly, one of written zeroes, mostly
 * empty ones, many small ones, deep directories, symbolic links (also long and dangling ones) and hard links. The same
 * random numbers give the same tree. Gives the bytes of data written.
 */
export async function growTree(folder: string, random: Random, shape: TreeShape = SHAPE): Promise<number> {
  let total = 0;
  const noise = random.bytes(shape.bulk);
  const text = textOf(random, 8 * MIB, shape.bulk);
  await mkdir(join(folder, 'bulk'));
  for (let i = 0; i < shape.random; i++)
    total += await writeTurned(join(folder, 'bulk', `noise-${String(i)}`), noise, random);
  for (let i = 0; i < shape.text; i++)
    total += await writeTurned(join(folder, 'bulk', `text-${String(i)}.log`), text, random);
  await writeFile(join(folder, 'bulk', 'zeroes'), new Uint8Array(16 * MIB));
  for (let i = 0; i < shape.sparse; i++)
    total += await writeSparse(join(folder, `sparse-${String(i)}`), noise, random);
  total += await writeSmall(folder, noise, text, random, shape.small);
  await dig(folder, shape.depth);
  return total + 16 * MIB;
}

const WORDS = [
  'error',
  'warning',
  'disk',
  'GET /index.html',
  '200',
  'cluster',
  'the',
  'of',
  'libvirtd',
  'started',
  '=>',
];

/** Lines of words and numbers: `period` bytes of them, over and over up to `length`. */
function textOf(random: Random, period: number, length: number): Uint8Array {
  const lines: string[] = [];
  for (let size = 0; size < period;) {
    const words = Array.from({ length: random.between(3, 12) }, () => random.pick(WORDS));
    const line = `${String(random.u32())} ${words.join(' ')} [${String(random.below(5000))}]\n`;
    lines.push(line);
    size += line.length;
  }
  const part = Buffer.from(lines.join('')).subarray(0, period);
  const text = new Uint8Array(length);
  for (let at = 0; at < length; at += part.length)
    text.set(part.subarray(0, Math.min(part.length, length - at)), at);
  return text;
}

/** Writes `content` turned by a random distance, so that no two files are equal block by block. */
async function writeTurned(path: string, content: Uint8Array, random: Random): Promise<number> {
  const cut = random.below(content.length);
  await writeFile(path, [content.subarray(cut), content.subarray(0, cut)]);
  return content.length;
}

/** A file of 300 MiB with a piece of data every few MiB. */
async function writeSparse(path: string, noise: Uint8Array, random: Random): Promise<number> {
  const size = 300 * MIB + random.below(4096);
  let total = 0;
  const file = await open(path, 'w');
  try {
    for (let at = random.below(MIB); at < size - 200 * KIB; at += random.between(1, 8 * MIB)) {
      const length = random.between(1, 100 * KIB);
      await file.write(noise, random.below(noise.length - length), length, at);
      total += length;
    }
    await file.truncate(size);
  } finally {
    await file.close();
  }
  return total;
}

async function writeSmall(
  folder: string,
  noise: Uint8Array,
  text: Uint8Array,
  random: Random,
  count: number,
): Promise<number> {
  let total = 0;
  const perFolder = 100;
  for (let first = 0; first < count; first += perFolder) {
    const inside = join(folder, `small-${String(first)}`);
    await mkdir(inside);
    for (let i = first; i < Math.min(count, first + perFolder); i++) {
      const from = random.chance(0.7) ? text : noise;
      const start = random.below(from.length - 12 * KIB);
      const content = from.subarray(start, start + random.below(12 * KIB));
      await writeFile(join(inside, `file-${String(i)}`), content);
      total += content.length;
      if (i % 20 === 0) await link(join(inside, `file-${String(i)}`), join(inside, `hard-${String(i)}`));
      if (i % 25 === 0) await symlink(`file-${String(i)}`, join(inside, `soft-${String(i)}`));
    }
  }
  return total;
}

async function dig(folder: string, depth: number): Promise<void> {
  let inside = folder;
  for (let level = 0; level < depth; level++) {
    inside = join(inside, `level-${String(level)}`);
    await mkdir(inside);
    await writeFile(join(inside, 'here'), `level ${String(level)}\n`);
  }
  await symlink('nowhere', join(inside, 'dangling'));
  // Longer than what fits in an inode: a block of its own.
  await symlink(`${'../'.repeat(depth)}bulk/${'x'.repeat(100)}`, join(inside, 'long'));
  await link(join(folder, 'bulk', 'zeroes'), join(inside, 'zeroes'));
}
