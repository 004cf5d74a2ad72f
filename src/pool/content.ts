import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { randomFill } from 'node:crypto';
import { promisify } from 'node:util';
import { isSpindleError, SpindleError } from '../core/errors.ts';
import { stopIfAborted, type Working } from '../core/working.ts';
import { native } from '../native/binding.ts';
import { identityIfAny } from '../op/create-guard.ts';
import { hostError } from '../storage/errno.ts';
import { openFile, type FileStorage } from '../storage/file.ts';
import { lockImage } from '../storage/lock.ts';
import { probeFile } from './probe.ts';
import type { VolumeFacts } from './volume-definition.ts';
import { refuseLink } from './backend/files.ts';

/*
 * The bytes of a volume as they lie in its file or device: wiped, taken in and given out. Of a qcow2 volume that is the
 * image, not the disk in it.
 */

/** Bytes moved between two looks at the signal. */
const STEP = 16 * 1024 * 1024;

type Pass = 'random' | readonly number[];

const R = 'random' as const;
const each = (...values: number[]): Pass[] => values.map((value) => [value]);

/** What each algorithm writes, pass after pass: random bytes, or a pattern that is repeated. */
export const WIPES: Readonly<Record<string, readonly Pass[]>> = {
  zero: [],
  nnsa: [R, R, [0]],
  dod: [R, [0], [0xff]],
  bsi: each(0xff, 0xfe, 0xfd, 0xfb, 0xf7, 0xef, 0xdf, 0xbf, 0x7f),
  gutmann: [
    ...[R, R, R, R],
    ...each(0x55, 0xaa),
    ...[
      [0x92, 0x49, 0x24],
      [0x49, 0x24, 0x92],
      [0x24, 0x92, 0x49],
    ],
    ...Array.from({ length: 16 }, (_, digit): Pass => [digit * 0x11]),
    ...[
      [0x92, 0x49, 0x24],
      [0x49, 0x24, 0x92],
      [0x24, 0x92, 0x49],
    ],
    ...[
      [0x6d, 0xb6, 0xdb],
      [0xb6, 0xdb, 0x6d],
      [0xdb, 0x6d, 0xb6],
    ],
    ...[R, R, R, R],
  ],
  schneier: [[0], [0xff], R, R, R, R, R],
  pfitzner7: Array.from({ length: 7 }, () => R),
  pfitzner33: Array.from({ length: 33 }, () => R),
  random: [R],
  trim: [],
};

/** Passes after which what was written is read back and compared. */
const VERIFIED = new Set(['nnsa', 'dod']);

/** The algorithms of wiping. */
export const WIPE_ALGORITHMS: readonly string[] = Object.keys(WIPES);

async function openVolume(volume: VolumeFacts): Promise<FileStorage> {
  refuseLink(volume);
  if (volume.type === 'dir')
    throw new SpindleError('UNSUPPORTED', `volume '${volume.name}' is a directory`, { path: volume.path });
  // In a directory, the name may have become a link since; nodes of devices are links by nature.
  const storage = await openFile(volume.path, { write: true, noFollow: volume.type === 'file' });
  try {
    await lockImage(storage, 'write');
    return storage;
  } catch (error) {
    await storage.close();
    throw error;
  }
}

/**
 * Writes over a volume, so that what it held is gone: with zeroes (a sparse file becomes one hole), or as the algorithm
 * says. `trim` makes the file system or device forget it.
 * @throws SpindleError BAD_OPTION, UNSUPPORTED, IN_USE, ABORTED, IO, and as openFile
 */
export async function wipeVolume(volume: VolumeFacts, algorithm: string, working: Working): Promise<void> {
  const passes = WIPES[algorithm];
  if (passes === undefined)
    throw new SpindleError(
      'BAD_OPTION',
      `the algorithms of wiping are ${WIPE_ALGORITHMS.join(', ')}, not '${algorithm}'`,
    );
  const storage = await openVolume(volume);
  try {
    const { size } = storage;
    if (algorithm === 'trim') await trim(storage);
    else if (algorithm === 'zero') {
      const sparse = !storage.isDevice && volume.allocation < size;
      if (!(sparse && (await becameHole(storage))))
        await eachStep(size, working, 0, 1, (at, length) => storage.writePhysicalZeroes(at, length));
    } else {
      const count = passes.length + (VERIFIED.has(algorithm) ? 1 : 0);
      for (const [index, pass] of passes.entries()) await writePass(storage, pass, working, index, count);
      const last = passes.at(-1);
      if (count > passes.length && last !== undefined && last !== R)
        await verify(storage, last, working, count);
    }
    await storage.flush();
  } finally {
    await storage.close();
  }
}

/** Makes one hole of a file; whether its file system can. The size stays at every moment: others may look. */
async function becameHole(storage: FileStorage): Promise<boolean> {
  try {
    if (storage.size > 0) await storage.punch(0, storage.size);
    return true;
  } catch (error) {
    if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
    return false;
  }
}

async function trim(storage: FileStorage): Promise<void> {
  if (!storage.can.discard)
    throw new SpindleError('UNSUPPORTED', 'neither its file system nor its device can forget what it holds', {
      path: storage.path,
    });
  await storage.discard(0, storage.size);
}

async function eachStep(
  size: number,
  { signal, onProgress }: Working,
  pass: number,
  passes: number,
  work: (at: number, length: number) => Promise<unknown>,
): Promise<void> {
  for (let at = 0; at < size; at += STEP) {
    stopIfAborted(signal);
    const length = Math.min(STEP, size - at);
    await work(at, length);
    onProgress?.(pass * size + at + length, passes * size);
  }
}

/** The pattern from `at` on, as it lies in the whole. */
function filled(pattern: readonly number[], at: number, length: number): Uint8Array {
  const turned = pattern.map((_, index) => pattern[(at + index) % pattern.length] ?? 0);
  return Buffer.alloc(length, Uint8Array.from(turned));
}

async function writePass(
  storage: FileStorage,
  pass: Pass,
  working: Working,
  index: number,
  count: number,
): Promise<void> {
  await eachStep(storage.size, working, index, count, async (at, length) => {
    const bytes = pass === R ? await promisify(randomFill)(new Uint8Array(length)) : filled(pass, at, length);
    await storage.write(bytes as Uint8Array, at);
  });
  // The next pass must not replace this one in memory only.
  await storage.flush();
}

async function verify(
  storage: FileStorage,
  pattern: readonly number[],
  working: Working,
  count: number,
): Promise<void> {
  const found = new Uint8Array(STEP);
  await eachStep(storage.size, working, count - 1, count, async (at, length) => {
    const part = found.subarray(0, length);
    await storage.read(part, at);
    if (Buffer.compare(part, filled(pattern, at, length)) !== 0)
      throw new SpindleError('IO', `what was written at ${String(at)} does not read back`, {
        path: storage.path,
      });
  });
}

/** Bytes at the start of an image in which it tells its format, and how large its disk is. */
const TELLING = 4096;

/**
 * Asks for a volume to promise `capacity` bytes from now on, and does `work`, after which it shows that it does; or
 * fails, with nothing done.
 */
export type Promising = (capacity: number, work: () => Promise<void>) => Promise<void>;

/** Which part is moved, and how. Bytes. */
export interface TransferOptions extends Working {
  /** From where on in the volume. Default: 0. */
  readonly offset?: number | undefined;
  /** At most so many. Default: to the end. */
  readonly length?: number | undefined;
  /** Holes stay holes. */
  readonly sparse?: boolean | undefined;
}

/**
 * Writes a file into a volume at an offset; the volume grows where it is a file and must, and never gets shorter. With
 * `sparse`, holes of the file become holes. `promising` is asked before a file grows, or becomes an image of another size.
 * @throws SpindleError BAD_OPTION (the file is longer than `length`), NO_SPACE (a device that is too small), IN_USE,
 * ABORTED, and as openFile; what was written before stays
 */
export async function uploadVolume(
  volume: VolumeFacts,
  path: string,
  options: TransferOptions,
  promising: Promising = (_, work) => work(),
): Promise<number> {
  const { offset = 0, sparse = false } = options;
  const source = await openFile(path);
  try {
    const { size } = source;
    if (options.length !== undefined && options.length !== 0 && size > options.length)
      throw new SpindleError(
        'BAD_OPTION',
        `it has ${String(size)} bytes, more than the ${String(options.length)} that were allowed; nothing was written`,
        { path },
      );
    const target = await openVolume(volume);
    try {
      if (target.identity === source.identity)
        throw new SpindleError('BAD_OPTION', 'the file is the volume itself', { path });
      const end = offset + size;
      if (end > target.size) {
        if (target.isDevice)
          throw new SpindleError(
            'NO_SPACE',
            `the volume ends at ${String(target.size)}, the file would at ${String(end)}`,
            {
              path: volume.path,
            },
          );
      }
      const move = (length: number): Promise<void> =>
        moveRuns(source, 0, target, offset, length, { ...options, sparse }, true);
      if (!target.isDevice) {
        // An image that is written from the start on brings the size of its disk with it; of a raw one that is its own.
        const image = offset > 0 || size === 0 ? volume : probeFile(path, volume.name);
        const raw = image === null || image.format === 'raw';
        const capacity = raw ? Math.max(end, target.size) : image.capacity;
        await promising(capacity, async () => {
          if (end > target.size) await target.resize(end);
          if (!raw && offset === 0) await move(Math.min(size, TELLING));
        });
      }
      await move(size);
      await target.flush();
    } finally {
      await target.close();
    }
    return size;
  } finally {
    await source.close();
  }
}

/**
 * Writes a part of a volume to a file, which is made or emptied first.
 * @throws SpindleError BAD_OPTION (the file is the volume), ABORTED, NO_SPACE, and as openFile
 */
export async function downloadVolume(
  volume: VolumeFacts,
  path: string,
  options: TransferOptions,
): Promise<number> {
  const { offset = 0, sparse = false } = options;
  if (volume.type === 'dir')
    throw new SpindleError('UNSUPPORTED', `volume '${volume.name}' is a directory`, { path: volume.path });
  const source = await openFile(volume.path);
  try {
    // Before it is emptied: it may be the volume itself, under whatever name.
    if ((await identityIfAny(path)) === source.identity)
      throw new SpindleError('BAD_OPTION', 'the file is the volume itself', { path });
    const flags = constants.O_CREAT | constants.O_TRUNC | constants.O_WRONLY;
    await open(path, flags, 0o644).then(
      (made) => made.close(),
      (error: unknown) => {
        throw hostError(error, path, 'create');
      },
    );
    const target = await openFile(path, { write: true });
    try {
      const length = Math.max(
        0,
        Math.min(
          source.size - offset,
          options.length === undefined || options.length === 0 ? Infinity : options.length,
        ),
      );
      if (!target.isDevice) await target.resize(length);
      await moveRuns(source, offset, target, 0, length, { ...options, sparse }, target.isDevice);
      await target.flush();
      return length;
    } finally {
      await target.close();
    }
  } finally {
    await source.close();
  }
}

/** Copies a part of one file to another. `clear`: the target holds something, so that holes must be made in it. */
async function moveRuns(
  source: FileStorage,
  from: number,
  target: FileStorage,
  to: number,
  length: number,
  { sparse = false, signal, onProgress }: TransferOptions,
  clear: boolean,
): Promise<void> {
  for (let done = 0; done < length;) {
    stopIfAborted(signal);
    const step = Math.min(STEP, length - done);
    const runs =
      sparse && !source.isDevice
        ? await native().dataExtents(source.fd, from + done, step, 4096)
        : [from + done, from + done + step];
    // More than was asked for may follow the last run that was told.
    const reach = runs.length >= 8192 ? (runs.at(-1) ?? 0) - from : done + step;
    const moves: number[] = [];
    let at = from + done;
    for (let index = 0; index < runs.length; index += 2) {
      const [start = 0, end = 0] = runs.slice(index, index + 2);
      if (clear && start > at) await target.zero(to + at - from, start - at);
      moves.push(start, to + start - from, end - start);
      at = end;
    }
    if (clear && from + reach > at) await target.zero(to + at - from, from + reach - at);
    if (moves.length > 0)
      await native().copyRuns(source.fd, target.fd, Float64Array.from(moves), sparse && !clear ? 4096 : 0);
    done = reach;
    onProgress?.(done, length);
  }
}
