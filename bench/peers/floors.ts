// npm run bench:peers -- --floors: what the work of a row takes with nothing around it, on this machine.
import * as fs from 'node:fs';
import { join } from 'node:path';
import { DiskImage } from '../../src/format/disk-image.ts';
import { native } from '../../src/native/binding.ts';
import { OperationKind } from '../../src/native/types.ts';
import { openImageFile } from '../../src/op/open.ts';
import { median, printColumns } from '../table.ts';
import { must } from './run.ts';
import { fragmentedDisk, seeded, vmDisk } from './sets.ts';

const KIB = 1024;
const MIB = 1024 ** 2;
const CLUSTER = 64 * KIB;

/** What is done, which may make `out`; not before `prepared` has ended. */
interface Floor {
  readonly row: string;
  readonly what: string;
  readonly cold?: boolean;
  work(out: string): void | Promise<void>;
}

/** Opens files for `work`. */
async function withFiles<T>(
  paths: readonly (readonly [path: string, flags: string | number])[],
  work: (...fds: number[]) => T | Promise<T>,
): Promise<T> {
  const fds = paths.map(([path, flags]) => fs.openSync(path, flags));
  try {
    return await work(...fds);
  } finally {
    for (const fd of fds) fs.closeSync(fd);
  }
}

/** The data runs of a file: start, end, start... */
async function runsOf(path: string): Promise<number[]> {
  return withFiles([[path, 'r']], async (fd) => {
    const { size } = fs.fstatSync(fd);
    const runs: number[] = [];
    for (;;) {
      const from = runs.at(-1) ?? 0;
      const more = await native().dataExtents(fd, from, size - from, 4096);
      runs.push(...more);
      if (more.length < 2 * 4096) return runs;
    }
  });
}

/** Copies runs by one call of the addon: packed one after the other, or each to where it was. */
async function copy(from: string, to: string, runs: readonly number[], packed: boolean): Promise<void> {
  const list: number[] = [];
  let end = 0;
  for (let i = 0; i < runs.length; i += 2) {
    const [start = 0, stop = 0] = runs.slice(i, i + 2);
    list.push(start, packed ? end : start, stop - start);
    end += Math.ceil((stop - start) / CLUSTER) * CLUSTER;
  }
  await withFiles(
    [
      [from, 'r'],
      [to, 'w'],
    ],
    async (source, target) => {
      if (!packed) fs.ftruncateSync(target, fs.fstatSync(source).size);
      await native().copyRuns(source, target, Float64Array.from(list), 0);
    },
  );
}

/** Decodes all compressed clusters of an image on two threads, to nowhere. */
async function decode(path: string): Promise<void> {
  const image = await openImageFile(path);
  if (!(image instanceof DiskImage)) throw new Error(`${path}: no image`);
  const { streams } = image.driver;
  if (streams === undefined) throw new Error(`${path}: nothing compressed`);
  const halves: number[][] = [[], []];
  for (let at = 0; at < image.size;) {
    const mapping = await image.driver.map(at, image.size - at);
    if (mapping.kind === 'compressed') {
      for (let part = at; part < at + mapping.length; part += CLUSTER) {
        const { offset, length } = await streams.place(part);
        const half = halves[(part / CLUSTER) % 2] ?? [];
        half.push(offset, 0, Math.min(CLUSTER, image.size - part), length, 0);
      }
    }
    at += mapping.length;
  }
  await withFiles(
    [
      [path, 'r'],
      ['/dev/null', 'w'],
    ],
    (source, nowhere) =>
      Promise.all(
        halves.map((half) =>
          native().expandPieces(source, nowhere, Float64Array.from(half), streams.packing, 0),
        ),
      ),
  );
  await image.close();
}

/** As many bytes as the tables of 1 TiB, durable. */
async function tables(out: string): Promise<void> {
  const bytes = native()
    .alignedBuffer(4 * MIB, 4096)
    .fill(1);
  await withFiles([[out, fs.constants.O_CREAT | fs.constants.O_WRONLY | fs.constants.O_DIRECT]], (fd) => {
    for (let at = 0; at < 160 * MIB; at += bytes.length) fs.writeSync(fd, bytes, 0, bytes.length, at);
    fs.fsyncSync(fd);
  });
}

/** 1,000 files as large as a new image, each written beside its name, made durable, renamed, and the name too. */
function files(out: string): void {
  fs.mkdirSync(out);
  const directory = fs.openSync(out, 'r');
  const block = new Uint8Array(CLUSTER);
  for (let index = 0; index < 1000; index++) {
    const part = join(out, `${String(index)}.part`);
    const fd = fs.openSync(part, 'wx');
    fs.writeSync(fd, block, 0, 512, 0);
    fs.writeSync(fd, block, 0, CLUSTER, 2 * CLUSTER);
    fs.fsyncSync(fd);
    fs.closeSync(fd);
    fs.renameSync(part, join(out, `${String(index)}.qcow2`));
    fs.fsyncSync(directory);
  }
  fs.closeSync(directory);
}

/** As row 13 asks for it, on a plain file and past the page cache, by the addon's own engine. */
async function direct(path: string, isWrite: boolean): Promise<void> {
  const next = seeded(1);
  const kind = isWrite ? OperationKind.write : OperationKind.read;
  const operations = Float64Array.from({ length: 40_000 * 3 }, (_, i) =>
    i % 3 === 0 ? next((1024 * MIB) / 4096) * 4096 : i % 3 === 1 ? 4096 : kind,
  );
  await withFiles([[path, fs.constants.O_RDWR | fs.constants.O_DIRECT]], (fd) =>
    native().runWorkload(fd, operations, { depth: 32, seed: 1 }),
  );
}

/** As row 13 asks for it, into the page cache, one after the other. */
async function cached(path: string): Promise<void> {
  const block = new Uint8Array(4096).fill(7);
  const next = seeded(1);
  await withFiles([[path, 'r+']], (fd) => {
    for (let index = 0; index < 250_000; index++)
      fs.writeSync(fd, block, 0, 4096, next((1024 * MIB) / 4096) * 4096);
  });
}

async function floorsFor(root: string, folder: string, seed: number): Promise<Floor[]> {
  const vm = vmDisk(folder, seed);
  const scattered = fragmentedDisk(folder, seed);
  const [runs, pieces] = [await runsOf(vm), await runsOf(scattered)];
  const plain = join(folder, 'requests.plain');
  if (!fs.existsSync(plain))
    must('dd', 'if=/dev/urandom', `of=${plain}`, 'bs=1M', 'count=1024', 'status=none');
  const main = join(root, 'dist', 'cli', 'main.cjs');
  const floors: Floor[] = [
    { row: '2, 4, 11', what: 'node -e 0', work: () => void must(process.execPath, '-e', '0') },
    {
      row: '2, 4, 11',
      what: 'spindle --version',
      work: () => void must(process.execPath, main, '--version'),
    },
    {
      row: '1, 11',
      what: 'copy the data of the disk to a file, in one call',
      work: (out) => copy(vm, out, runs, true),
    },
    { row: '1', what: 'the same, cold', cold: true, work: (out) => copy(vm, out, runs, true) },
    {
      row: '3',
      what: 'copy 40,000 pieces, a cluster each, in one call',
      work: (out) => copy(scattered, out, pieces, true),
    },
    {
      row: '3',
      what: 'copy 40,000 pieces to where they were, in one call',
      work: (out) => copy(scattered, out, pieces, false),
    },
    { row: '7', what: 'write 160 MiB, durable', work: tables },
    { row: '12', what: '1,000 files, each durable under its name', work: files },
    { row: '13', what: '250,000 writes of 4 KiB to the page cache', work: () => cached(plain) },
    { row: '13', what: '40,000 direct reads, 32 at a time', work: () => direct(plain, false) },
    { row: '13', what: '40,000 direct writes, 32 at a time', work: () => direct(plain, true) },
  ];
  for (const type of ['zlib', 'zstd']) {
    const packed = join(folder, `vm.${type}.qcow2`);
    if (!fs.existsSync(packed)) {
      must(
        'qemu-img',
        'convert',
        '-f',
        'raw',
        '-O',
        'qcow2',
        '-c',
        '-o',
        `compression_type=${type}`,
        vm,
        packed,
      );
    }
    floors.push({ row: '5', what: `decode ${type} on two threads, to nowhere`, work: () => decode(packed) });
  }
  return floors;
}

/** Times each `runs` times in turns, and prints the medians. */
export async function printFloors(root: string, folder: string, seed: number, runs: number): Promise<void> {
  if (native().kind !== 'addon') throw new Error('floors are those of the addon, which is not here');
  const out = join(folder, 'floor.out');
  const floors = await floorsFor(root, folder, seed);
  const taken = floors.map((): number[] => []);
  for (let run = 0; run < runs; run++) {
    for (const [index, floor] of floors.entries()) {
      fs.rmSync(out, { force: true, recursive: true });
      must('sync');
      if (floor.cold === true) fs.writeFileSync('/proc/sys/vm/drop_caches', '3');
      const start = performance.now();
      await floor.work(out);
      taken[index]?.push((performance.now() - start) / 1000);
    }
    process.stderr.write(`round ${String(run + 1)} of ${String(runs)}\n`);
  }
  fs.rmSync(out, { force: true, recursive: true });
  printColumns(
    ['row', 'what', 'median', 'least'],
    floors.map(({ row, what }, index) => {
      const all = taken[index] ?? [];
      return [row, what, `${median(all).toFixed(3)} s`, `${Math.min(...all).toFixed(3)} s`];
    }),
  );
}
