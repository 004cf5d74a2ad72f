import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { viewOf } from '../core/bytes.ts';
import { SpindleError } from '../core/errors.ts';
import {
  checkBatch,
  checkBuffer,
  checkBytes,
  checkDeflate,
  checkCompression,
  checkDescriptor,
  checkExtentSizeHint,
  checkPacking,
  checkPieces,
  checkPairs,
  checkRanges,
  checkRuns,
  checkSpan,
  checkWhole,
  checkWorkload,
} from './arguments.ts';
import { errorName, systemError, type Subject } from './errno.ts';
import { twins } from './fallback.ts';
import type { FallocateMode, FiemapExtent, Native, PackedClusters, ZeroReport } from './types.ts';

/** What `native/src/glue.rs` exports. Failures are errors with the message `ERRNO:<number>:<call>`. */
interface Addon {
  fallocate(fd: number, mode: number, offset: number, length: number): Promise<void>;
  writeZeroes(fd: number, offset: number, length: number): Promise<Float64Array>;
  dataExtents(fd: number, offset: number, length: number, limit: number): Promise<Float64Array>;
  fiemap(fd: number, offset: number, length: number, limit: number, sync: boolean): Promise<Float64Array>;
  cloneRuns(source: number, target: number, runs: Float64Array): Promise<void>;
  copyRuns(source: number, target: number, runs: Float64Array, skip: number): Promise<number>;
  compareRuns(first: number, second: number, pairs: Float64Array): Promise<number>;
  zeroRanges(fd: number, ranges: Float64Array, unit: number): Promise<Uint8Array>;
  expandPieces(
    source: number,
    target: number,
    pieces: Float64Array,
    zstd: boolean,
    size: number,
    skip: number,
  ): Promise<number>;
  packRanges(
    fd: number,
    ranges: Float64Array,
    zstd: boolean,
    size: number,
    level: number,
  ): Promise<Uint8Array>;
  runWorkload(
    fd: number,
    operations: Float64Array,
    depth: number,
    seed: number,
    limit: number,
    threads: boolean,
  ): Promise<Float64Array>;
  readCached(fd: number, into: Uint8Array, offset: number): number;
  runBatch(
    fd: number,
    write: boolean,
    ranges: Float64Array,
    memory: Uint8Array,
    ring: boolean,
  ): Promise<number[]>;
  zeroUnits(buffer: Uint8Array, granularity: number): Uint8Array;
  deviceInfo(fd: number): Promise<Float64Array>;
  deviceDiscard(fd: number, offset: number, length: number): Promise<void>;
  deviceZeroOut(fd: number, offset: number, length: number): Promise<void>;
  setNoCow(fd: number): Promise<boolean>;
  extentSizeHint(fd: number): Promise<number>;
  setExtentSizeHint(fd: number, bytes: number): Promise<void>;
  alignedBuffer(size: number, alignment: number): Uint8Array;
  lockBytes(fd: number, bytes: readonly number[]): void;
  unlockBytes(fd: number, bytes: readonly number[]): void;
  findLocked(fd: number, bytes: readonly number[]): number;
  inflate(source: Uint8Array, into: Uint8Array): Promise<void>;
  deflateRaw(source: Uint8Array, level: number, limit: number): Promise<Uint8Array | null>;
  zstdDecompress(source: Uint8Array, into: Uint8Array): Promise<void>;
  zstdCompress(source: Uint8Array, level: number, limit: number): Promise<Uint8Array | null>;
}

/** Whether the addon is in use, where it is, and why it is not. */
export interface AddonStatus {
  readonly loaded: boolean;
  readonly path?: string;
  readonly reason?: string;
}

let state: { readonly native: Native; readonly status: AddonStatus } | undefined;

/** The addon where it loads, else the TypeScript twins. Decided at the first call; never throws. */
export function native(): Native {
  return (state ??= load()).native;
}

/** Whether {@link native} is the addon, and if it is not, why. */
export function addonStatus(): AddonStatus {
  return (state ??= load()).status;
}

function load(): { native: Native; status: AddonStatus } {
  if (process.env['SPINDLE_ADDON'] === 'off') return without('switched off by SPINDLE_ADDON=off');
  const reasons: string[] = [];
  for (const path of candidates()) {
    try {
      const addon = createRequire(import.meta.url)(path) as Addon;
      return { native: wrap(addon), status: { loaded: true, path } };
    } catch (error) {
      reasons.push(
        `${path}: ${error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error)}`,
      );
    }
  }
  if (reasons.length > 0) return without(reasons.join('; '));
  return without(`no addon was built for ${process.platform}-${process.arch} (npm run build:native)`);
}

function without(reason: string): { native: Native; status: AddonStatus } {
  return { native: twins, status: { loaded: false, reason } };
}

/**
 * Addon files of this platform, such as `spindle.linux-x64-gnu.node`. Which C library this is costs more to find out
 * than to try. The folder is two up from `src/native`, `dist/native` and `dist/cli`, and three from `dist/cli/command`.
 */
function candidates(): string[] {
  const prefix = `spindle.${process.platform}-${process.arch}`;
  for (const folder of ['../../native/', '../../../native/']) {
    const path = fileURLToPath(new URL(folder, import.meta.url));
    try {
      const names = readdirSync(path).filter((name) => name.startsWith(prefix) && name.endsWith('.node'));
      if (names.length > 0) return names.sort().map((name) => path + name);
    } catch {
      // No such folder: no addon there.
    }
  }
  return [];
}

const MODES: Readonly<Record<FallocateMode, number>> = {
  reserve: 0,
  'reserve-keep-size': 1,
  punch: 2,
  'zero-range': 3,
};

const WAYS: readonly ZeroReport['way'][] = ['offload', 'direct', 'buffered'];

function wrap(addon: Addon): Native {
  return {
    kind: 'addon',

    async fallocate(fd, mode, offset, length) {
      checkSpan(fd, offset, length);
      await settle(addon.fallocate(fd, MODES[mode], offset, length), { fd, mode, offset, length });
    },

    async writeZeroes(fd, offset, length) {
      checkSpan(fd, offset, length);
      const [way = 2, written = 0] = await settle(addon.writeZeroes(fd, offset, length), {
        fd,
        offset,
        length,
      });
      return { way: WAYS[way] ?? 'buffered', written };
    },

    async dataExtents(fd, offset, length, limit) {
      checkSpan(fd, offset, length);
      checkWhole('limit', limit, 1);
      return Array.from(await settle(addon.dataExtents(fd, offset, length, limit), { fd, offset, length }));
    },

    async fiemap(fd, offset, length, limit, sync) {
      checkSpan(fd, offset, length);
      checkWhole('limit', limit, 1);
      const packed = await settle(addon.fiemap(fd, offset, length, limit, sync), { fd, offset, length });
      return unpack(packed);
    },

    async cloneRuns(source, target, runs) {
      checkRuns(source, target, runs);
      return settle(
        now(() => addon.cloneRuns(source, target, runs), { fd: target }),
        { fd: target },
      );
    },

    async copyRuns(source, target, runs, skip) {
      checkRuns(source, target, runs, skip);
      return settle(
        now(() => addon.copyRuns(source, target, runs, skip), { fd: target }),
        { fd: target },
      );
    },

    async compareRuns(first, second, pairs) {
      checkPairs(first, second, pairs);
      return settle(
        now(() => addon.compareRuns(first, second, pairs), {}),
        {},
      );
    },

    async zeroRanges(fd, ranges, unit) {
      checkRanges(fd, ranges, unit);
      return settle(
        now(() => addon.zeroRanges(fd, ranges, unit), { fd }),
        { fd },
      );
    },

    async expandPieces(source, target, pieces, packing, skip) {
      checkPieces(source, target, pieces, packing, skip);
      const { type, clusterSize } = packing;
      const subject = { fd: target, codec: type };
      const zstd = type === 'zstd';
      const work = now(() => addon.expandPieces(source, target, pieces, zstd, clusterSize, skip), subject);
      return settle(work, subject);
    },

    async packRanges(fd, ranges, packing, level) {
      checkPacking(fd, ranges, packing, level);
      const { type, clusterSize } = packing;
      const work = now(() => addon.packRanges(fd, ranges, type === 'zstd', clusterSize, level), { fd });
      return splitClusters(await settle(work, { fd }), ranges, clusterSize);
    },

    async runWorkload(fd, operations, { depth, seed, limit = 0, threads = false }) {
      checkWorkload(fd, operations, depth, seed, limit);
      const work = now(() => addon.runWorkload(fd, operations, depth, seed, limit, threads), { fd });
      const found = await settle(work, { fd });
      const [engine, refused = 0, elapsed = 0] = found;
      const every = (first: number): Float64Array =>
        found.filter((_, index) => index > 2 && index % 2 === first);
      return {
        engine: engine === 0 ? 'io_uring' : 'threads',
        ...(refused === 0 ? {} : { refused: errorName(refused) }),
        elapsed,
        latencies: every(1),
        finishes: every(0),
      };
    },

    async runBatch(fd, write, ranges, memory, together) {
      checkBatch(fd, ranges, memory);
      const work = now(() => addon.runBatch(fd, write, ranges, memory, together), { fd });
      return settle(work, { fd });
    },

    readCached(fd, into, offset) {
      checkSpan(fd, offset, into.length);
      return now(() => addon.readCached(fd, into, offset), { fd, offset, length: into.length });
    },

    zeroUnits(buffer, granularity) {
      checkWhole('granularity', granularity, 1);
      return addon.zeroUnits(buffer, granularity);
    },

    async deviceInfo(fd) {
      checkDescriptor(fd);
      const [size = 0, logicalSector = 0, physicalSector = 0] = await settle(addon.deviceInfo(fd), { fd });
      return { size, logicalSector, physicalSector };
    },

    async deviceDiscard(fd, offset, length) {
      checkSpan(fd, offset, length);
      await settle(addon.deviceDiscard(fd, offset, length), { fd, offset, length });
    },

    async deviceZeroOut(fd, offset, length) {
      checkSpan(fd, offset, length);
      await settle(addon.deviceZeroOut(fd, offset, length), { fd, offset, length });
    },

    async setNoCow(fd) {
      checkDescriptor(fd);
      return settle(addon.setNoCow(fd), { fd });
    },

    async extentSizeHint(fd) {
      checkDescriptor(fd);
      return settle(addon.extentSizeHint(fd), { fd });
    },

    async setExtentSizeHint(fd, bytes) {
      checkExtentSizeHint(fd, bytes);
      await settle(addon.setExtentSizeHint(fd, bytes), { fd });
    },

    alignedBuffer(size, alignment) {
      checkBuffer(size, alignment);
      return now(() => addon.alignedBuffer(size, alignment), { length: size });
    },

    lockBytes(fd, bytes) {
      checkBytes(fd, bytes);
      now(() => addon.lockBytes(fd, bytes), { fd });
    },

    unlockBytes(fd, bytes) {
      checkBytes(fd, bytes);
      now(() => addon.unlockBytes(fd, bytes), { fd });
    },

    findLocked(fd, bytes) {
      checkBytes(fd, bytes);
      return now(() => addon.findLocked(fd, bytes), { fd });
    },

    async inflate(source, into) {
      if (into.length > 0) await settle(addon.inflate(source, into), { codec: 'deflate' });
    },

    async deflateRaw(source, level, limit) {
      checkDeflate(level, limit);
      return settle(addon.deflateRaw(source, level, limit), {});
    },

    async zstdDecompress(source, into) {
      if (into.length > 0) await settle(addon.zstdDecompress(source, into), { codec: 'zstd' });
    },

    async zstdCompress(source, level, limit) {
      checkCompression(level, limit);
      return settle(addon.zstdCompress(source, level, limit), {});
    },
  };
}

/** Extents from the four numbers that the addon packs each into. */
function unpack(packed: Float64Array): FiemapExtent[] {
  const extents: FiemapExtent[] = [];
  for (let at = 0; at + 4 <= packed.length; at += 4) {
    const [logical = 0, physical = 0, length = 0, kind = 0] = packed.subarray(at, at + 4);
    extents.push({
      logical,
      physical,
      length,
      unwritten: (kind & 1) !== 0,
      shared: (kind & 2) !== 0,
      delayed: (kind & 4) !== 0,
      encoded: (kind & 8) !== 0,
    });
  }
  return extents;
}

/** What `packRanges` gives: the lengths of all streams, 4 bytes each, and then these. */
function splitClusters(packed: Uint8Array, ranges: Float64Array, clusterSize: number): PackedClusters {
  let count = 0;
  for (let range = 1; range < ranges.length; range += 2)
    count += Math.ceil((ranges[range] ?? 0) / clusterSize);
  const view = viewOf(packed);
  const lengths = Uint32Array.from({ length: count }, (_, index) => view.getUint32(index * 4, true));
  return { lengths, streams: packed.subarray(count * 4) };
}

async function settle<T>(work: Promise<T>, subject: Subject): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw translate(error, subject);
  }
}

function now<T>(work: () => T, subject: Subject): T {
  try {
    return work();
  } catch (error) {
    throw translate(error, subject);
  }
}

function translate(error: unknown, subject: Subject): unknown {
  const message = error instanceof Error ? error.message : '';
  const [, errno, call = ''] = /^ERRNO:(\d+):(.*)$/.exec(message) ?? [];
  if (errno !== undefined) return systemError(Number(errno), call, subject);
  const [, damage] = /^BAD_COMPRESSED:(.*)$/.exec(message) ?? [];
  return damage === undefined
    ? error
    : new SpindleError('BAD_COMPRESSED', `${subject.codec ?? 'codec'}: ${damage}`);
}
