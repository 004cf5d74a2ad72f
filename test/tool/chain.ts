import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import * as qemu from './qemu.ts';
import type { Random } from './random.ts';

/** A layer of a backing chain. Sizes in bytes. */
export interface ChainLayer {
  readonly format: 'raw' | 'qcow2';
  readonly size: number;
  readonly options?: Readonly<Record<string, string | number>>;
  /** Some of its clusters are compressed; bytes of a cluster. */
  readonly compressed?: number;
  /** It has an internal snapshot, made between the writes. */
  readonly snapshot?: boolean;
  /** It has two persistent bitmaps, one of which records. */
  readonly bitmaps?: boolean;
}

/** Names of the layers, from the bottom up: `0.img`, `1.img`... All names in them are relative. */
export const layerName = (index: number): string => `${String(index)}.img`;

/** Random work of a guest. */
function steps(random: Random, { size, compressed = 0 }: ChainLayer, count: number): qemu.Fill[] {
  const all: qemu.Fill[] = [];
  for (let at = 0; compressed > 0 && at < size; at += compressed) {
    if (random.chance(0.3))
      all.push({
        do: 'compress',
        at,
        length: Math.min(size - at, compressed),
        pattern: random.between(1, 255),
      });
  }
  for (let i = 0; i < count; i++) {
    const at = random.below(size / 512) * 512;
    const length = Math.min(size - at, random.pick([512, 4096, 65_536, 300_032]));
    const kind = random.below(7);
    if (kind < 4) all.push({ do: 'write', at, length, pattern: random.below(256) });
    else if (kind < 6) all.push({ do: 'zero', at, length, unmap: random.chance(0.5) });
    else all.push({ do: 'discard', at, length });
  }
  return all;
}

/** Makes a chain in `dir` with qemu, each layer on the one before, and works on each of them. */
export async function makeChain(dir: string, layers: readonly ChainLayer[], random: Random): Promise<void> {
  mkdirSync(dir, { recursive: true });
  for (const [index, layer] of layers.entries()) {
    const { format, size, options = {} } = layer;
    const below = layers[index - 1];
    await qemu.create(layerName(index), size, {
      ...{ format, options, cwd: dir },
      ...(below === undefined ? {} : { backing: { path: layerName(index - 1), format: below.format } }),
    });
    if (size === 0) continue;
    await qemu.fill(layerName(index), steps(random, layer, 8), { format, cwd: dir });
    if (layer.bitmaps === true) {
      await qemu.bitmap(layerName(index), 'records', ['--add', '-g', '64k'], { cwd: dir });
      await qemu.bitmap(layerName(index), 'rests', ['--add', '--disable', '-g', '4k'], { cwd: dir });
      await qemu.fill(layerName(index), steps(random, { ...layer, compressed: 0 }, 3), { format, cwd: dir });
    }
    if (layer.snapshot !== true) continue;
    await qemu.snapshot(layerName(index), 'create', 'before', { cwd: dir });
    await qemu.fill(layerName(index), steps(random, { ...layer, compressed: 0 }, 8), { format, cwd: dir });
  }
}

/** A copy of all files of a chain, holes and all. */
export async function copyChain(from: string, to: string): Promise<void> {
  await qemu.run('cp', ['-r', '--sparse=always', from, to]);
}

/** What `qemu-img map` says of the top layer alone, without places: runs of one kind joined. */
export async function topKinds(path: string, options: qemu.ImageOptions = {}): Promise<string[]> {
  const runs: { start: number; end: number; kind: string }[] = [];
  for (const { start, length, depth, present, zero, data, compressed } of await qemu.map(path, options)) {
    if (depth > 0 || !present) continue;
    const kind = data ? (compressed ? 'compressed' : 'data') : zero ? 'zero' : 'reserved';
    const last = runs[runs.length - 1];
    if (last?.kind === kind && last.end === start) last.end = start + length;
    else runs.push({ start, end: start + length, kind });
  }
  return runs.map(({ start, end, kind }) => `${String(start)}-${String(end)} ${kind}`);
}

/** The ranges of the disk that the top layer holds, as data or zeroes, by `qemu-img map`. */
export async function topRanges(path: string, options: qemu.ImageOptions = {}): Promise<string[]> {
  const runs: [start: number, end: number][] = [];
  for (const { start, length, depth, present } of await qemu.map(path, options)) {
    if (depth > 0 || !present) continue;
    const last = runs[runs.length - 1];
    if (last?.[1] === start) last[1] = start + length;
    else runs.push([start, start + length]);
  }
  return runs.map(([start, end]) => `${String(start)}-${String(end)}`);
}

/** The path of a layer. */
export const layerPath = (dir: string, index: number): string => join(dir, layerName(index));
