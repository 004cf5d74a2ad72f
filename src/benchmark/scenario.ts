import { OperationKind } from '../native/types.ts';
import { seeded, shuffled } from './random.ts';

/** Requests that are measured together. */
export interface Step {
  readonly name:
    'first' | 'rewrite' | 'before' | 'fill' | 'after' | 'rest' | 'sequential' | 'discard' | 'again';
  readonly depth: number;
  readonly operations: Float64Array;
  /** The time counts the fdatasync that follows; else it follows unmeasured. */
  readonly counted?: boolean;
}

/** What is done on a fresh image. */
export interface Scenario {
  readonly id: string;
  readonly title: string;
  /** Images at once. */
  readonly images: number;
  readonly steps: (size: number, scale: Scale, seed: number) => readonly Step[];
}

/** How many requests a preset makes. */
export interface Scale {
  readonly shallow: number;
  readonly deep: number;
  readonly images: number;
  /** Bytes from which one block is taken, at least {@link UNIT}: no two first writes fall into one cluster. */
  readonly unit: number;
}

/** The default size of a cluster. */
export const UNIT = 65536;
const BLOCK = 4096;
const LARGE = 1024 ** 2;

type Request = readonly [offset: number, length: number];

function pack(requests: readonly Request[], kind: number): Float64Array {
  return Float64Array.from(requests.flatMap(([offset, length]) => [offset, length, kind]));
}

/** Blocks at random, each in a unit of its own, in an order of the seed. */
function scattered(size: number, { unit }: Scale, count: number, seed: number): Request[] {
  const random = seeded(seed);
  const units = Array.from({ length: Math.floor(size / unit) }, (_, at) => at * unit);
  return shuffled(units, random)
    .slice(0, count)
    .map((at) => [at + Math.floor(random() * (unit / BLOCK)) * BLOCK, BLOCK]);
}

/** The starts of the units that requests lie in. */
function unitsOf(requests: readonly Request[], { unit }: Scale): number[] {
  return requests.map(([at]) => Math.floor(at / unit) * unit);
}

/** All blocks of the disk in random order, at most `count`. */
function everywhere(size: number, count: number, seed: number): Request[] {
  const blocks = Array.from({ length: Math.floor(size / BLOCK) }, (_, block) => block * BLOCK);
  return shuffled(blocks, seeded(seed))
    .slice(0, count)
    .map((at) => [at, BLOCK]);
}

function inOrder(size: number): Request[] {
  return Array.from({ length: Math.floor(size / LARGE) }, (_, at) => [at * LARGE, LARGE]);
}

const { read, write, writeSync, punch } = OperationKind;

/** Writes to all of a disk. */
export function filling(size: number): Float64Array {
  return pack(inOrder(size), write);
}

function firstAndAgain(id: string, title: string, depth: number, kind: number): Scenario {
  return {
    ...{ id, title, images: 1 },
    steps: (size, scale, seed) => {
      const count = depth === 1 ? scale.shallow : scale.deep;
      const operations = pack(scattered(size, scale, count, seed), kind);
      return [
        { name: 'first', depth, operations },
        { name: 'rewrite', depth, operations },
      ];
    },
  };
}

/** All scenarios, in the order in which results are shown. */
export const SCENARIOS: readonly Scenario[] = [
  { id: 'create', title: 'create, and wait until the device is quiet', images: 1, steps: () => [] },
  firstAndAgain('random-sync', '4 KiB random, depth 1, fdatasync after each', 1, writeSync),
  firstAndAgain('random', '4 KiB random, depth 1', 1, write),
  firstAndAgain('random-deep-sync', '4 KiB random, depth 32, fdatasync after each', 32, writeSync),
  firstAndAgain('random-deep', '4 KiB random, depth 32', 32, write),
  {
    ...{ id: 'sequential', title: '1 MiB in order, and a final fdatasync', images: 1 },
    steps: (size) => {
      const operations = filling(size);
      return [
        { name: 'first', depth: 1, operations, counted: true },
        { name: 'rewrite', depth: 1, operations, counted: true },
      ];
    },
  },
  {
    ...{ id: 'read', title: '4 KiB random reads before and after the first write', images: 1 },
    steps: (size, scale, seed) => {
      const where = scattered(size, scale, scale.shallow, seed);
      return [
        { name: 'before', depth: 1, operations: pack(where, read) },
        { name: 'fill', depth: 8, operations: pack(where, write) },
        { name: 'after', depth: 1, operations: pack(where, read) },
      ];
    },
  },
  {
    ...{
      id: 'partial',
      title: 'a part of a cluster, then another part of it, fdatasync after each',
      images: 1,
    },
    steps: (size, scale, seed) => {
      const units = unitsOf(scattered(size, scale, scale.shallow, seed), scale);
      return [
        {
          name: 'first',
          depth: 1,
          operations: pack(
            units.map((at) => [at + 24576, 16384]),
            writeSync,
          ),
        },
        {
          name: 'rest',
          depth: 1,
          operations: pack(
            units.map((at) => [at, 24576]),
            writeSync,
          ),
        },
      ];
    },
  },
  {
    ...{ id: 'fragmented', title: 'read 1 MiB in order after a random fill', images: 1 },
    steps: (size, { deep }, seed) => [
      { name: 'fill', depth: 32, operations: pack(everywhere(size, deep * 4, seed), write) },
      { name: 'sequential', depth: 1, operations: pack(inOrder(size), read) },
    ],
  },
  {
    ...{ id: 'discard', title: 'write, discard, write again, fdatasync after each write', images: 1 },
    steps: (size, scale, seed) => {
      const where = scattered(size, scale, scale.shallow, seed);
      const units = unitsOf(where, scale).map((at): Request => [at, scale.unit]);
      return [
        { name: 'first', depth: 1, operations: pack(where, writeSync) },
        { name: 'discard', depth: 1, operations: pack(units, punch) },
        { name: 'again', depth: 1, operations: pack(where, writeSync) },
      ];
    },
  },
  {
    ...{ id: 'together', title: 'several images at once, 4 KiB random, fdatasync after each', images: 4 },
    // As many requests over all images as one image gets elsewhere: on some file systems each flush waits for all others.
    steps: (size, scale, seed) => {
      const count = Math.ceil(scale.shallow / scale.images);
      const operations = pack(scattered(size, scale, count, seed), writeSync);
      return [
        { name: 'first', depth: 1, operations },
        { name: 'rewrite', depth: 1, operations },
      ];
    },
  },
];
