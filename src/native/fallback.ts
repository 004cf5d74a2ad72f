import {
  close,
  constants,
  fstat,
  fstatSync,
  open,
  readFileSync,
  realpathSync,
  statfsSync,
  write,
} from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { isZero } from '../core/bytes.ts';
import { SpindleError } from '../core/errors.ts';
import {
  checkBatch,
  checkBuffer,
  checkBytes,
  checkDescriptor,
  checkPacking,
  checkPieces,
  checkPairs,
  checkRanges,
  checkRuns,
  checkSpan,
  checkWhole,
  checkWorkload,
} from './arguments.ts';
import { nodeError, systemError, type Subject } from './errno.ts';
import { extentSizeHint, setExtentSizeHint, setNoCow } from './flags.ts';
import { GIVEN_FILE, runProgram, type Program } from './program.ts';
import type { DeviceInfo, FallocateMode, FiemapExtent, Native } from './types.ts';

/*
 * The twins run system programs on a descriptor that they are handed, and otherwise use what Node has. The kernel's
 * /proc tells what a descriptor may do; where there is none, the system call itself decides.
 */

/** The TypeScript twins of the addon: slower, same bytes. */
export const twins: Native = {
  kind: 'twin',
  fallocate,
  writeZeroes,
  dataExtents,
  fiemap,
  cloneRuns(source, target, runs) {
    checkRuns(source, target, runs);
    return Promise.reject(new SpindleError('UNSUPPORTED', 'sharing blocks of files needs the addon'));
  },
  async runWorkload(fd, operations, options) {
    checkWorkload(fd, operations, options.depth, options.seed, options.limit ?? 0);
    const { runWorkload } = await import('./workload.ts');
    return runWorkload(fd, operations, options, fallocate);
  },
  async runBatch(fd, write, ranges, memory) {
    checkBatch(fd, ranges, memory);
    const { runBatch } = await import('./transfer.ts');
    return runBatch(fd, write, ranges, memory);
  },
  readCached(fd, into, offset) {
    checkSpan(fd, offset, into.length);
    return -1;
  },
  zeroUnits,
  deviceInfo,
  deviceDiscard: (fd, offset, length) => onDevice(DISCARD, [], { fd, offset, length }),
  deviceZeroOut: (fd, offset, length) => onDevice(ZERO_OUT, ['-z'], { fd, offset, length }),
  setNoCow,
  extentSizeHint,
  setExtentSizeHint,
  alignedBuffer,
  lockBytes,
  unlockBytes: checkBytes,
  findLocked,
  async copyRuns(source, target, runs, skip) {
    checkRuns(source, target, runs, skip);
    const { copyRuns } = await import('./transfer.ts');
    return copyRuns(source, target, runs, skip);
  },
  async compareRuns(first, second, pairs) {
    checkPairs(first, second, pairs);
    const { compareRuns } = await import('./transfer.ts');
    return compareRuns(first, second, pairs);
  },
  async zeroRanges(fd, ranges, unit) {
    checkRanges(fd, ranges, unit);
    const { zeroRanges } = await import('./transfer.ts');
    return zeroRanges(fd, ranges, unit);
  },
  async expandPieces(source, target, pieces, packing, skip) {
    checkPieces(source, target, pieces, packing, skip);
    const { expandPieces } = await import('./packed.ts');
    return expandPieces(source, target, pieces, packing, skip);
  },
  async packRanges(fd, ranges, packing, level) {
    checkPacking(fd, ranges, packing, level);
    const { packRanges } = await import('./packed.ts');
    return packRanges(fd, ranges, packing, level);
  },
  async inflate(source, into) {
    const { inflateRaw } = await import('./deflate.ts');
    await inflateRaw(source, into);
  },
  async deflateRaw(source, level, limit) {
    const { deflateRaw } = await import('./deflate.ts');
    return deflateRaw(source, level, limit);
  },
  async zstdDecompress(source, into) {
    const { decompressFrames } = await import('./zstd.ts');
    decompressFrames(source, into);
  },
  async zstdCompress(source, level, limit) {
    const { compressFrame } = await import('./zstd-encoder.ts');
    return compressFrame(source, level, limit);
  },
};

/** A range of bytes of a descriptor. */
interface Span extends Subject {
  readonly fd: number;
  readonly offset: number;
  readonly length: number;
}

const FALLOCATE: Program = { name: 'fallocate', package: 'util-linux', call: 'fallocate' };
const DISCARD: Program = { name: 'blkdiscard', package: 'util-linux', call: 'ioctl BLKDISCARD' };
const ZERO_OUT: Program = { name: 'blkdiscard', package: 'util-linux', call: 'ioctl BLKZEROOUT' };
const FILEFRAG: Program = { name: 'filefrag', package: 'e2fsprogs', call: 'ioctl FIEMAP' };

const MODE_FLAGS: Readonly<Record<FallocateMode, readonly string[]>> = {
  reserve: [],
  'reserve-keep-size': ['-n'],
  punch: ['-p', '-n'],
  'zero-range': ['-z', '-n'],
};

async function fallocate(fd: number, mode: FallocateMode, offset: number, length: number): Promise<void> {
  checkSpan(fd, offset, length);
  if (length === 0) return;
  const span = { fd, mode, offset, length };
  needWritable(span, 'fallocate');
  await runProgram(FALLOCATE, [...MODE_FLAGS[mode], ...rangeFlags(span), GIVEN_FILE], span);
}

function rangeFlags(span: Span): string[] {
  return ['-o', String(span.offset), '-l', String(span.length)];
}

const ZEROES = 4 * 1024 * 1024;

async function writeZeroes(fd: number, offset: number, length: number): ReturnType<Native['writeZeroes']> {
  checkSpan(fd, offset, length);
  const span = { fd, offset, length };
  const flags = needWritable(span, 'pwrite');
  const zeroes = new Uint8Array(Math.min(length, ZEROES));
  try {
    // A write to an O_APPEND descriptor appends, and an O_DIRECT one refuses this buffer: both need one of their own.
    const own = (flags & (constants.O_APPEND | ((constants as { O_DIRECT?: number }).O_DIRECT ?? 0))) !== 0;
    const target = own ? await promisify(open)(`/proc/self/fd/${String(fd)}`, constants.O_WRONLY) : fd;
    try {
      for (let done = 0; done < length;) {
        done += await writeAt(target, zeroes, Math.min(zeroes.length, length - done), offset + done);
      }
    } finally {
      if (own) await promisify(close)(target);
    }
  } catch (error) {
    throw nodeError(error, 'pwrite', span);
  }
  return { way: 'buffered', written: length };
}

function writeAt(fd: number, from: Uint8Array, length: number, at: number): Promise<number> {
  return new Promise((resolve, reject) => {
    write(fd, from, 0, length, at, (error, written) => {
      if (error === null && written > 0) resolve(written);
      else reject(error ?? systemError('EIO', 'pwrite', { fd, offset: at, length }));
    });
  });
}

/** What is used of fs-ext; it has no types of its own. */
interface FsExt {
  seek(fd: number, at: number, whence: number, done: (error: Error | null, found: number) => void): void;
}

let fsExt: FsExt | null | undefined;

function loadFsExt(): FsExt | null {
  try {
    return createRequire(import.meta.url)('fs-ext') as FsExt;
  } catch {
    return null;
  }
}

const SEEK_END = 2;
// Linux and FreeBSD number them so, macOS the other way round; what else there is refuses them, and all is data.
const [SEEK_DATA, SEEK_HOLE] = process.platform === 'darwin' ? [4, 3] : [3, 4];

async function dataExtents(fd: number, offset: number, length: number, limit: number): Promise<number[]> {
  checkSpan(fd, offset, length);
  checkWhole('limit', limit, 1);
  const span = { fd, offset, length };
  const ext = (fsExt ??= loadFsExt());
  if (ext === null) return allData(await sizeOf(span), span);
  const seek = (at: number, whence: number): Promise<number | undefined> =>
    new Promise((resolve, reject) => {
      ext.seek(fd, at, whence, (error, found) => {
        if (!error) resolve(found);
        else if ((error as NodeJS.ErrnoException).code === 'ENXIO') resolve(undefined);
        else reject(error);
      });
    });
  const runs: number[] = [];
  const end = offset + length;
  try {
    for (let at = offset; at < end && runs.length < limit * 2;) {
      const start = await seek(at, SEEK_DATA);
      if (start === undefined || start >= end) break;
      const stop = await seek(start, SEEK_HOLE);
      if (stop === undefined) break;
      // A file that changes meanwhile may answer anything; progress is what counts.
      if (stop <= start) {
        at = start + 1;
        continue;
      }
      at = Math.min(stop, end);
      runs.push(start, at);
    }
    return runs;
  } catch (error) {
    // A device, or a file system that cannot tell.
    const cannot = (error as NodeJS.ErrnoException).code === 'EINVAL' && runs.length === 0;
    if (!cannot) throw nodeError(error, 'lseek', span);
    return allData((await seek(0, SEEK_END)) ?? 0, span);
  }
}

function allData(size: number, span: Span): number[] {
  return span.offset < Math.min(size, span.offset + span.length)
    ? [span.offset, Math.min(size, span.offset + span.length)]
    : [];
}

async function sizeOf(span: Span): Promise<number> {
  try {
    const stat = await promisify(fstat)(span.fd);
    return stat.isBlockDevice() ? (await deviceInfo(span.fd)).size : stat.size;
  } catch (error) {
    throw nodeError(error, 'lseek', span);
  }
}

/** Number, first and last logical byte, first physical one, length (0 where delayed), perhaps what was expected, flags. */
const EXTENT_LINE = /^\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.\s*\d+:\s*\d+:(?:\s*\d+:)?\s*([a-z_,]*)\s*$/;
const NOT_PLAIN = ['encoded', 'data_encrypted', 'not_aligned', 'inline', 'tail_packed'];

async function fiemap(
  fd: number,
  offset: number,
  length: number,
  limit: number,
  sync: boolean,
): Promise<FiemapExtent[]> {
  checkSpan(fd, offset, length);
  checkWhole('limit', limit, 1);
  const span = { fd, offset, length };
  if (length === 0) return [];
  if (!statOf(span).isFile()) throw systemError('ENOTTY', FILEFRAG.call, span);
  const extents: FiemapExtent[] = [];
  // The unit is one byte: block sizes differ, and inline data is shorter than any.
  await runProgram(FILEFRAG, ['-v', '-b1', ...(sync ? ['-s'] : []), GIVEN_FILE], span, (line) => {
    const extent = clip(parseExtent(line), offset, offset + length);
    if (extent !== undefined) extents.push(extent);
    return extents.length < limit;
  });
  return extents;
}

function parseExtent(line: string): FiemapExtent | undefined {
  const [, logical, last, physical, words = ''] = EXTENT_LINE.exec(line) ?? [];
  if (logical === undefined) return undefined;
  const flags = words.split(',');
  return {
    logical: Number(logical),
    physical: flags.includes('unknown_loc') ? 0 : Number(physical),
    length: Number(last) - Number(logical) + 1,
    unwritten: flags.includes('unwritten'),
    shared: flags.includes('shared'),
    delayed: flags.includes('delalloc'),
    encoded: NOT_PLAIN.some((name) => flags.includes(name)),
  };
}

function clip(extent: FiemapExtent | undefined, from: number, to: number): FiemapExtent | undefined {
  if (extent === undefined) return undefined;
  const logical = Math.max(extent.logical, from);
  const end = Math.min(extent.logical + extent.length, to);
  if (logical >= end) return undefined;
  const physical = extent.physical === 0 ? 0 : extent.physical + (logical - extent.logical);
  return { ...extent, logical, physical, length: end - logical };
}

function zeroUnits(buffer: Uint8Array, granularity: number): Uint8Array {
  checkWhole('granularity', granularity, 1);
  const units = new Uint8Array(Math.ceil(buffer.length / granularity));
  // Small units: a look at each byte beats a view of each unit.
  if (granularity < 64) {
    units.fill(1);
    for (let at = 0; at < buffer.length; at++) {
      if (buffer[at] !== 0) units[Math.floor(at / granularity)] = 0;
    }
    return units;
  }
  for (let index = 0; index < units.length; index++) {
    const unit = buffer.subarray(index * granularity, (index + 1) * granularity);
    units[index] = (unit.length < 4 ? unit.every((byte) => byte === 0) : isZero(unit)) ? 1 : 0;
  }
  return units;
}

// async: what it throws must reject.
// eslint-disable-next-line @typescript-eslint/require-await
async function deviceInfo(fd: number): Promise<DeviceInfo> {
  checkDescriptor(fd);
  const call = 'ioctl BLKGETSIZE64';
  try {
    const stat = fstatSync(fd, { bigint: true });
    if (!stat.isBlockDevice()) throw systemError('ENOTTY', call, { fd });
    // The kernel's 64-bit numbering: 12 + 20 bits of major, 8 + 24 bits of minor.
    const major = ((stat.rdev >> 8n) & 0xfffn) | ((stat.rdev >> 32n) & 0xffff_f000n);
    const minor = (stat.rdev & 0xffn) | ((stat.rdev >> 12n) & 0xffff_ff00n);
    const folder = realpathSync(`/sys/dev/block/${String(major)}:${String(minor)}`);
    return {
      size: numberIn(join(folder, 'size')) * 512,
      logicalSector: queueNumber(folder, 'logical_block_size'),
      physicalSector: queueNumber(folder, 'physical_block_size'),
    };
  } catch (error) {
    throw nodeError(error, call, { fd });
  }
}

function numberIn(path: string): number {
  return Number(readFileSync(path, 'utf8'));
}

/** A partition has no queue of its own; that of its disk counts. */
function queueNumber(folder: string, name: string): number {
  try {
    return numberIn(join(folder, 'queue', name));
  } catch {
    return numberIn(join(folder, '..', 'queue', name));
  }
}

async function onDevice(program: Program, flags: readonly string[], span: Span): Promise<void> {
  checkSpan(span.fd, span.offset, span.length);
  if (span.length === 0) return;
  if (!statOf(span).isBlockDevice()) throw systemError('ENOTTY', program.call, span);
  needWritable(span, program.call);
  // The program would shorten a range that passes the end; the kernel refuses it.
  const { size } = await deviceInfo(span.fd);
  if (span.offset + span.length > size) throw systemError('EINVAL', program.call, span);
  // -f: this descriptor is the caller's claim on the device; the program is not to look for another.
  await runProgram(program, [...flags, '-f', ...rangeFlags(span), GIVEN_FILE], span);
}

function statOf(span: Span): ReturnType<typeof fstatSync> {
  try {
    return fstatSync(span.fd);
  } catch (error) {
    throw nodeError(error, 'fcntl', span);
  }
}

function alignedBuffer(size: number, alignment: number): Uint8Array {
  checkBuffer(size, alignment);
  throw new SpindleError('UNSUPPORTED', 'aligned buffers, and so direct I/O, need the addon');
}

function lockBytes(fd: number, bytes: readonly number[]): void {
  checkBytes(fd, bytes);
  throw new SpindleError('UNSUPPORTED', 'locking bytes of a file needs the addon');
}

/** File systems whose files bear another device number in /proc/locks than in fstat: btrfs and overlayfs. */
const OTHER_DEVICE = [0x9123_683e, 0x794c_7630];

function findLocked(fd: number, bytes: readonly number[]): number {
  checkBytes(fd, bytes);
  const call = 'fcntl F_OFD_GETLK';
  try {
    const stat = fstatSync(fd, { bigint: true });
    const anyDevice = OTHER_DEVICE.includes(statfsSync(`/proc/self/fd/${String(fd)}`).type);
    const major = ((stat.dev >> 8n) & 0xfffn) | ((stat.dev >> 32n) & 0xffff_f000n);
    const minor = (stat.dev & 0xffn) | ((stat.dev >> 12n) & 0xffff_ff00n);
    const device = `${major.toString(16).padStart(2, '0')}:${minor.toString(16).padStart(2, '0')}`;
    const held = parseLocks(readFileSync('/proc/locks', 'utf8')).filter(
      (lock) => lock.inode === String(stat.ino) && (anyDevice || lock.device === device),
    );
    return bytes.find((byte) => held.some((lock) => byte >= lock.start && byte <= lock.end)) ?? -1;
  } catch (error) {
    throw nodeError(error, call, { fd });
  }
}

/** A byte-range lock as /proc/locks lists it; `end` is its last byte. */
export interface HeldLock {
  readonly device: string;
  readonly inode: string;
  readonly start: number;
  readonly end: number;
}

/** Byte-range locks (OFD and POSIX) in the text of /proc/locks. Waiting ones and whole-file flocks are left out. */
export function parseLocks(text: string): HeldLock[] {
  const line = /^\d+: (?:OFDLCK|POSIX) +\S+ +\S+ +-?\d+ ([0-9a-f]+:[0-9a-f]+):(\d+) (\d+) (\d+|EOF)$/;
  const locks: HeldLock[] = [];
  for (const row of text.split('\n')) {
    const [, device = '', inode = '', start = '', end = ''] = line.exec(row.trim()) ?? [];
    if (device === '') continue;
    locks.push({ device, inode, start: Number(start), end: end === 'EOF' ? Infinity : Number(end) });
  }
  return locks;
}

/** Refuses a descriptor that cannot be written, as the system call would. Its status flags (0 where unknown). */
function needWritable(span: Span, call: string): number {
  const flags = descriptorFlags(span);
  if (flags !== undefined && (flags & 3) === constants.O_RDONLY) throw systemError('EBADF', call, span);
  return flags ?? 0;
}

/** Status flags of a descriptor; undefined where there is no /proc. @throws IO when it is not open */
function descriptorFlags(span: Span): number | undefined {
  statOf(span);
  try {
    const [, flags] =
      /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${String(span.fd)}`, 'utf8')) ?? [];
    return flags === undefined ? undefined : Number.parseInt(flags, 8);
  } catch {
    return undefined;
  }
}
