import { closeSync, copyFileSync, existsSync, ftruncateSync, openSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { buildSync } from 'esbuild';
import type { Job } from './job.ts';
import type { LoopMount } from './mount.ts';
import { must, type Program } from './run.ts';
import { fragmentedDisk, rootDisk, vmDisk } from './sets.ts';

/** Where the data sets are, and what they are made from. */
export interface Place {
  /** The checkout, whose `dist` is built. */
  readonly root: string;
  /** Where data sets and outputs lie; its file system is what is measured. */
  readonly folder: string;
  readonly seed: number;
}

/** Makes the jobs of some rows, and the data sets that they need. */
type Maker = (place: Place, mount: (kind: LoopMount['kind'], gib: number) => string) => Job[];

/** Jobs that need the same things. */
export interface Group {
  readonly rows: readonly number[];
  readonly jobs: Maker;
}

const KIB = 1024;
const MIB = 1024 ** 2;

function spindle({ root }: Place, name: string, ...words: readonly string[]): Program {
  return { name, words: [process.execPath, join(root, 'dist', 'cli', 'main.cjs'), ...words] };
}

function qemuImg(name: string, ...words: readonly string[]): Program {
  return { name: `qemu-img ${name}`.trim(), words: ['qemu-img', ...words] };
}

/** A copy of a raw disk in another form, made by the judge once. */
function made(path: string, from: string, ...words: readonly string[]): string {
  if (existsSync(path)) return path;
  must('qemu-img', 'convert', ...words, from, `${path}.part`);
  must('mv', `${path}.part`, path);
  return path;
}

interface ConvertJob {
  readonly row: number;
  readonly what: string;
  readonly bar: number;
  readonly from: string;
  readonly formats: readonly [source: string, target: string];
  readonly folder: string;
  /** Sets of words for the rivals; ours gets those of `words` only. */
  readonly rivals: readonly (readonly string[])[];
  readonly words?: readonly string[];
  readonly cold?: boolean;
  /** How much larger than the rival's the result may be. */
  readonly larger?: number;
}

const FASTEST: readonly (readonly string[])[] = [[], ['-W', '-m', '16'], ['-C']];

/** Ours and theirs on files of their own, which must hold the same, and ours be no larger on the host. */
function converting(place: Place, job: ConvertJob): Job {
  const { from, formats, folder, words = [], larger = 1.02 } = job;
  const [source, target] = formats;
  const outputs = [join(folder, 'ours.out'), join(folder, 'theirs.out')] as const;
  const args = (out: string, more: readonly string[]): string[] => [
    ...['convert', '-f', source, '-O', target, ...words, ...more, from, out],
  ];
  let size = 0;
  return {
    ...job,
    ours: spindle(place, 'spindle', ...args(outputs[0], [])),
    rivals: job.rivals.map((more) => qemuImg(more.join(' '), ...args(outputs[1], more))),
    outputs,
    check(whose) {
      const out = outputs[whose === 'ours' ? 0 : 1];
      must('qemu-img', 'compare', '-f', source, '-F', target, from, out);
      if (target === 'qcow2') must('qemu-img', 'check', '-q', out);
      must('sync', out);
      const { blocks } = statSync(out);
      if (whose === 'ours') size = blocks * 512;
      else if (job.row !== 2 && size > blocks * 512 * larger + MIB)
        throw new Error(`${job.what}: ours takes ${String(size)} bytes, theirs ${String(blocks * 512)}`);
    },
  };
}

/** Rows 1, 3, 5, 6: conversion between plain files. */
const conversions: Maker = (place) => {
  const { folder, seed } = place;
  const vm = vmDisk(folder, seed);
  const vmQcow2 = made(join(folder, 'vm.qcow2'), vm, '-f', 'raw', '-O', 'qcow2');
  const root = rootDisk(folder);
  const jobs: Job[] = [];
  const add = (job: Omit<ConvertJob, 'folder'>): void => {
    jobs.push(converting(place, { ...job, folder }));
  };
  for (const cold of process.getuid?.() === 0 ? [false, true] : [false]) {
    const state = cold ? ', cold' : '';
    const both = { row: 1, bar: 0.9, rivals: FASTEST, cold };
    add({ ...both, what: `raw -> qcow2${state}`, from: vm, formats: ['raw', 'qcow2'] });
    add({ ...both, what: `qcow2 -> raw${state}`, from: vmQcow2, formats: ['qcow2', 'raw'] });
  }
  add({
    row: 1,
    bar: 0.9,
    rivals: FASTEST,
    what: 'root raw -> qcow2',
    from: root,
    formats: ['raw', 'qcow2'],
  });
  const scattered = fragmentedDisk(folder, seed);
  const scatteredQcow2 = made(join(folder, 'fragmented.qcow2'), scattered, '-f', 'raw', '-O', 'qcow2');
  const third = { row: 3, bar: 0.4, rivals: FASTEST };
  add({ ...third, what: 'fragmented raw -> qcow2', from: scattered, formats: ['raw', 'qcow2'] });
  add({ ...third, what: 'fragmented qcow2 -> raw', from: scatteredQcow2, formats: ['qcow2', 'raw'] });
  const parallel = FASTEST.slice(0, 2);
  for (const [type, decode, encode] of [
    ['zlib', 0.45, 0.4],
    ['zstd', 0.7, 0.6],
  ] as const) {
    const words = ['-c', '-o', `compression_type=${type}`];
    for (const [set, raw] of [
      ['', vm],
      ['root ', root],
    ] as const) {
      const packed = made(
        join(folder, `${set === '' ? 'vm' : 'root'}.${type}.qcow2`),
        raw,
        ...['-f', 'raw', '-O', 'qcow2', ...words],
      );
      add({
        ...{ row: 5, bar: decode, rivals: parallel, formats: ['qcow2', 'raw'] },
        ...{ what: `${set}${type} qcow2 -> raw`, from: packed },
      });
      add({
        ...{ row: 6, bar: encode, rivals: parallel, formats: ['raw', 'qcow2'] },
        ...{ what: `${set}raw -> ${type} qcow2`, from: raw, words },
      });
    }
  }
  return jobs;
};

/** Row 2: file systems that share blocks. */
const sharing: Maker = (place, mount) =>
  (['xfs', 'btrfs'] as const).flatMap((kind) => {
    const folder = mount(kind, 12);
    const vm = join(folder, 'vm.raw');
    if (!existsSync(vm)) must('cp', '--sparse=always', vmDisk(place.folder, place.seed), vm);
    const vmQcow2 = made(join(folder, 'vm.qcow2'), vm, '-f', 'raw', '-O', 'qcow2');
    const row = { row: 2, bar: 1.0, rivals: [['-C']], folder };
    return [
      converting(place, { ...row, what: `raw -> qcow2, ${kind}`, from: vm, formats: ['raw', 'qcow2'] }),
      converting(place, { ...row, what: `qcow2 -> raw, ${kind}`, from: vmQcow2, formats: ['qcow2', 'raw'] }),
    ];
  });

/** Row 4: nothing but its size. */
const empty: Maker = (place) => {
  const { folder } = place;
  const from = join(folder, 'empty.qcow2');
  if (!existsSync(from)) must('qemu-img', 'create', '-q', '-f', 'qcow2', from, '8T');
  const whole = converting(place, {
    ...{ row: 4, what: 'empty 8 TiB qcow2 -> qcow2', bar: 1.0, from, formats: ['qcow2', 'qcow2'] },
    ...{ folder, rivals: [[], ['-W', '-m', '16']] },
  });
  const onto = converting(place, {
    ...{ row: 4, what: 'empty 8 TiB onto an existing one (-n)', bar: 0.1, from, formats: ['qcow2', 'qcow2'] },
    ...{ folder, words: ['-n'], rivals: [[], ['-W', '-m', '16']] },
  });
  const before = (): void => {
    for (const path of onto.outputs) copyFileSync(from, path);
  };
  return [whole, { ...onto, before }];
};

/** Rows 7 and 8: new images that are more than thin. */
const creating: Maker = (place, mount) => {
  const { folder } = place;
  const jobs: Job[] = [];
  const create = (
    where: string,
    size: string,
    format: string,
    options: string,
    job: Pick<Job, 'row' | 'what' | 'bar'>,
    rivals?: (out: string) => Program[],
  ): void => {
    const outputs = [join(where, 'ours.new'), join(where, 'theirs.new')] as const;
    const args = (out: string): string[] => ['create', '-f', format, '-o', options, out, size];
    let blocks = 0;
    jobs.push({
      ...job,
      ours: spindle(place, 'spindle', ...args(outputs[0])),
      rivals: rivals?.(outputs[1]) ?? [qemuImg('', ...args(outputs[1]))],
      outputs,
      check(whose) {
        if (whose === 'ours') {
          if (format === 'qcow2') must('qemu-img', 'check', '-q', outputs[0]);
          ({ blocks } = statSync(outputs[0]));
        } else if (blocks < statSync(outputs[1]).blocks * 0.999)
          throw new Error(`${job.what}: ours has fewer blocks than the rival's`);
      },
    });
  };
  create(folder, '1T', 'qcow2', 'preallocation=metadata', {
    ...{ row: 7, what: 'create 1 TiB, metadata', bar: 0.1 },
  });
  create(mount('xfs', 1300), '1T', 'qcow2', 'preallocation=falloc', {
    ...{ row: 7, what: 'create 1 TiB, falloc (XFS)', bar: 0.5 },
  });
  const floor = (out: string): Program[] => [
    {
      name: 'dd, direct',
      words: ['dd', 'if=/dev/zero', `of=${out}`, 'bs=4M', 'count=512', 'oflag=direct', 'conv=fsync'],
    },
  ];
  for (const format of ['raw', 'qcow2']) {
    const what = `thick-eager 2 GiB ${format}`;
    create(folder, '2G', format, 'preallocation=full', { row: 8, what, bar: 1.05 }, floor);
    create(folder, '2G', format, 'preallocation=full', { row: 8, what, bar: 0.8 });
  }
  return jobs;
};

/** Rows 9, 10 and 11: looking, and moving data within a chain. */
const chains: Maker = (place) => {
  const { folder, seed } = place;
  const vm = vmDisk(folder, seed);
  const vmQcow2 = made(join(folder, 'vm.qcow2'), vm, '-f', 'raw', '-O', 'qcow2');
  const mapped = join(folder, 'mapped.qcow2');
  if (!existsSync(mapped))
    must('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', mapped, '1T');
  const both = (row: number, what: string, bar: number, words: readonly string[]): Job => ({
    ...{ row, what, bar, outputs: [] },
    ours: spindle(place, 'spindle', ...words),
    rivals: [qemuImg('', ...words)],
  });
  const equal = (job: Job, reads: (text: string) => unknown): Job => ({
    ...job,
    check(whose) {
      if (whose === 'ours') return;
      const [ours, theirs] = [job.ours, job.rivals[0] as Program].map(({ words }) => reads(must(...words)));
      if (JSON.stringify(ours) !== JSON.stringify(theirs)) throw new Error(`${job.what}: two answers`);
    },
  });
  return [
    both(9, 'compare raw with qcow2', 0.9, ['compare', '-f', 'raw', '-F', 'qcow2', vm, vmQcow2]),
    both(10, 'check of 1 TiB', 0.8, ['check', '-f', 'qcow2', mapped]),
    equal(both(10, 'map of 1 TiB', 0.3, ['map', '-f', 'qcow2', '--output=json', mapped]), (text) =>
      JSON.parse(text),
    ),
    equal(both(11, 'measure', 0.9, ['measure', '-f', 'raw', '-O', 'qcow2', vm]), (text) => text),
    rebasing(place, vmQcow2),
    committing(place, vmQcow2),
  ];
};

/** A safe rebase to a base that differs in 200 pieces of 1 MiB. */
function rebasing(place: Place, base: string): Job {
  const { folder } = place;
  const other = join(folder, 'other.qcow2');
  if (!existsSync(other)) {
    copyFileSync(base, `${other}.part`);
    const commands = Array.from(
      { length: 200 },
      (_, piece) => `write -q -P ${String(1 + piece)} ${String(piece * 80)}M 1M`,
    );
    must('qemu-io', '-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), `${other}.part`);
    must('mv', `${other}.part`, other);
  }
  const outputs = [join(folder, 'ours.top'), join(folder, 'theirs.top')] as const;
  const words = (out: string): string[] => ['rebase', '-f', 'qcow2', '-b', other, '-F', 'qcow2', out];
  return {
    ...{ row: 11, what: 'rebase, safe', bar: 0.9, outputs },
    ours: spindle(place, 'spindle', ...words(outputs[0])),
    rivals: [qemuImg('', ...words(outputs[1]))],
    before() {
      for (const out of outputs)
        must('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', out);
    },
    check(whose) {
      if (whose === 'ours') must('qemu-img', 'compare', base, outputs[0]);
    },
  };
}

/** An overlay that holds all data, into an empty base; `-d` leaves the overlay as it is. */
function committing(place: Place, data: string): Job {
  const { folder } = place;
  const [bases, tops] = ['base', 'over'].map((name) =>
    ['ours', 'theirs'].map((whose) => join(folder, `${whose}.${name}`)),
  ) as [[string, string], [string, string]];
  const newBase = (path: string): void => {
    must('qemu-img', 'create', '-q', '-f', 'qcow2', path, '16G');
  };
  for (const [which, top] of tops.entries()) {
    if (existsSync(top)) continue;
    copyFileSync(data, `${top}.part`);
    newBase(bases[which] as string);
    must(
      'qemu-img',
      'rebase',
      '-u',
      '-f',
      'qcow2',
      '-b',
      bases[which] as string,
      '-F',
      'qcow2',
      `${top}.part`,
    );
    must('mv', `${top}.part`, top);
  }
  const words = (top: string): string[] => ['commit', '-q', '-d', '-f', 'qcow2', top];
  return {
    ...{ row: 11, what: 'commit', bar: 0.9, outputs: bases },
    ours: spindle(place, 'spindle', ...words(tops[0])),
    rivals: [qemuImg('', ...words(tops[1]))],
    before() {
      for (const base of bases) newBase(base);
    },
    check(whose) {
      const base = bases[whose === 'ours' ? 0 : 1];
      must('qemu-img', 'compare', data, base);
      must('qemu-img', 'check', '-q', base);
    },
  };
}

/** Row 12: many images from one process. */
const many: Maker = (place) => {
  const { root, folder } = place;
  // As JavaScript: what it takes to load TypeScript is no part of the work.
  const script = join(root, '.cache', 'many.mjs');
  buildSync({ entryPoints: [join(root, 'bench', 'peers', 'many.ts')], outfile: script, format: 'esm' });
  const program = (name: string, what: string, lanes = 1): Program => ({
    name: lanes === 1 ? name : `${name}, ${String(lanes)} at a time`,
    words: [process.execPath, script, name, what, folder, join(root, 'dist', 'index.js'), String(lanes)],
  });
  const outputs = [join(folder, 'many')];
  return [
    {
      ...{ row: 12, what: 'create 1,000 images, one by one', bar: 0.1, outputs },
      ...{ ours: program('spindle', 'create'), rivals: [program('qemu-img', 'create')] },
    },
    {
      ...{ row: 12, what: 'create 1,000 images, many at a time', bar: 0.1, outputs },
      ours: program('spindle', 'create', 32),
      // More processes gain nothing on a few processors.
      rivals: [program('qemu-img', 'create', 8), program('qemu-img', 'create', 16)],
    },
    {
      ...{ row: 12, what: 'info on 1,000 images', bar: 0.1, outputs: [] },
      ...{ ours: program('spindle', 'info'), rivals: [program('qemu-img', 'info')] },
    },
  ];
};

/** How both say what the requests took, from the first to the last: "inside the library" leaves out the start. */
const OWN_SECONDS = /completed in ([\d.]+) seconds/;

/** Row 13: small requests in any order, 32 at a time. */
const requests: Maker = (place) => {
  const { folder, seed } = place;
  const path = join(folder, 'requests.qcow2');
  if (!existsSync(path)) {
    const raw = join(folder, 'requests.raw');
    const fd = openSync(raw, 'w');
    ftruncateSync(fd, 1024 * MIB);
    closeSync(fd);
    must('qemu-io', '-f', 'raw', '-c', `write -q -P ${String(1 + (seed % 200))} 0 1G`, raw);
    made(path, raw, '-f', 'raw', '-O', 'qcow2');
    rmSync(raw);
  }
  // An odd number of blocks: all of the disk is visited, each time far from the last.
  const step = 104_729 * 4 * KIB;
  return (['writeback', 'none'] as const).flatMap((cache) =>
    (['read', 'write'] as const).map((way): Job => {
      const count = cache === 'none' ? 40_000 : 250_000;
      const words = [
        ...[
          'bench',
          '-f',
          'qcow2',
          '-t',
          cache,
          '-c',
          String(count),
          '-d',
          '32',
          '-s',
          '4k',
          '-S',
          String(step),
        ],
        ...(way === 'write' ? ['-w', '--pattern=7'] : []),
      ];
      const ways = cache === 'none' ? [[], ['-n'], ['-i', 'io_uring']] : [[], ['-i', 'io_uring']];
      return {
        ...{
          row: 13,
          what: `4k random ${way}, ${cache === 'none' ? 'O_DIRECT' : 'cached'}`,
          bar: 1.0,
          outputs: [],
        },
        ours: { ...spindle(place, 'spindle', ...words, path), says: OWN_SECONDS },
        rivals: ways.map((more) => ({
          ...qemuImg(more.join(' '), ...words, ...more, path),
          says: OWN_SECONDS,
        })),
      };
    }),
  );
};

/** All of it, by what they need. */
export const GROUPS: readonly Group[] = [
  { rows: [1, 3, 5, 6], jobs: conversions },
  { rows: [2], jobs: sharing },
  { rows: [4], jobs: empty },
  { rows: [7, 8], jobs: creating },
  { rows: [9, 10, 11], jobs: chains },
  { rows: [12], jobs: many },
  { rows: [13], jobs: requests },
];
