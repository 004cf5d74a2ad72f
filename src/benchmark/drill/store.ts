import { execFileSync } from 'node:child_process';
import { mkdirSync, realpathSync, rmSync, statfsSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { SpindleError } from '../../core/errors.ts';
import { formatSize } from '../../core/size.ts';
import { mountOf } from '../../storage/mount.ts';
import { runTool } from '../../storage/tool.ts';
import { inScratch } from '../study.ts';

/** File systems that the drill can make. */
export const DRILL_FILE_SYSTEMS = ['ext4', 'xfs', 'btrfs'] as const;
/** One of them. */
export type DrillFileSystem = (typeof DRILL_FILE_SYSTEMS)[number];

const MIB = 1024 ** 2;

/** How each is made: bytes, about the least that mkfs agrees to, and arguments. No part of ext4 is kept for root. */
const MADE: Readonly<Record<DrillFileSystem, readonly [bytes: number, ...args: string[]]>> = {
  ext4: [96 * MIB, '-q', '-F', '-m', '0'],
  xfs: [320 * MIB, '-q', '-f'],
  btrfs: [192 * MIB, '-q', '-f'],
};

/** Free bytes over which a store that somebody names is not filled: it is none that was made for this. */
const MOST = 1024 * MIB;
const LEAST = 24 * MIB;

/** Milliseconds for mkfs, mount and umount. */
const TOOL_TIME = 60_000;

/** Where the drill is done. */
export interface StoreRequest {
  /** On it the small file system is made, in a file. */
  readonly folder: string;
  readonly fileSystem?: DrillFileSystem | undefined;
  /** A small store to be filled instead, and that it may be. */
  readonly store?: string | undefined;
  readonly fill?: boolean | undefined;
}

/** A store that is empty but for what `work` puts there. */
export interface Fresh {
  readonly folder: string;
  /** Bytes. */
  readonly free: number;
  /** Takes what the kernel remembers of the store away, where it is ours to mount again; no file may be open. */
  readonly settle: () => Promise<void>;
}

/** A store that may be filled. */
export interface DrillStore {
  readonly isMade: boolean;
  readonly fileSystem: string;
  /** Runs work with the store empty; nothing of it is there afterwards. */
  fresh<T>(work: (fresh: Fresh) => Promise<T>): Promise<T>;
}

/**
 * Runs work with a store to be filled; all that was made is unmounted and removed afterwards, also when the process is told to exit.
 * @throws SpindleError BAD_OPTION, NOT_FOUND, NO_SPACE, UNSUPPORTED with what to do instead, TOOL_MISSING, TOOL_FAILED, TOOL_TIMEOUT
 */
export function withStore<T>(request: StoreRequest, work: (store: DrillStore) => Promise<T>): Promise<T> {
  return request.store === undefined ? withMade(request, work) : withNamed(request.store, request, work);
}

async function withMade<T>(
  { folder, fileSystem = 'ext4' }: StoreRequest,
  work: (store: DrillStore) => Promise<T>,
): Promise<T> {
  const instead = 'name a small store of its own with --drill-store DIR --fill-store';
  if (process.platform !== 'linux' || process.getuid?.() !== 0)
    throw new SpindleError(
      'UNSUPPORTED',
      `only root can make and mount a small file system for the drill; ${instead}`,
    );
  aDirectory(folder);
  const [bytes, ...args] = MADE[fileSystem];
  const free = freeOf(folder);
  if (free < bytes + LEAST)
    throw new SpindleError(
      'NO_SPACE',
      `the drill takes up to ${formatSize(bytes)}, and ${formatSize(free)} are free; nothing was done`,
      { path: folder },
    );
  return inScratch(realpathSync(folder), async (scratch) => {
    const image = join(scratch, 'store.img');
    const point = join(scratch, 'store');
    mkdirSync(point);
    const mount = async (): Promise<void> => {
      try {
        await runTool('mount', ['-t', fileSystem, '-o', 'loop', '--', image, point], { timeout: TOOL_TIME });
      } catch (cause) {
        if (cause instanceof SpindleError && cause.code === 'TOOL_FAILED')
          throw new SpindleError(
            'UNSUPPORTED',
            `a small ${fileSystem} for the drill cannot be mounted here (${cause.message}); ${instead}`,
            { cause },
          );
        throw cause;
      }
    };
    const last = (): void => {
      unmountNow(point);
    };
    // Before the scratch directory goes, so that nothing is removed inside of the mount.
    process.prependListener('exit', last);
    try {
      return await work({
        ...{ isMade: true, fileSystem },
        fresh: async (use) => {
          writeFileSync(image, '');
          truncateSync(image, bytes);
          await runTool(`mkfs.${fileSystem}`, [...args, image], { timeout: TOOL_TIME });
          try {
            await mount();
            const inside = join(point, 'drill');
            mkdirSync(inside);
            const settle = async (): Promise<void> => {
              await unmount(point);
              await mount();
            };
            return await use({ folder: inside, free: freeOf(inside), settle });
          } finally {
            await unmount(point);
          }
        },
      });
    } finally {
      await unmount(point);
      process.off('exit', last);
    }
  });
}

/** Also where a mount was cut short: what counts is whether something is mounted. */
async function unmount(point: string): Promise<void> {
  if (!isMounted(point)) return;
  const { code } = await runTool('umount', ['--', point], { timeout: TOOL_TIME, expect: [0, 1, 32] });
  if (code !== 0 && isMounted(point)) await runTool('umount', ['-l', '--', point], { timeout: TOOL_TIME });
}

function unmountNow(point: string): void {
  if (isMounted(point)) execFileSync('umount', ['-l', '--', point], { stdio: 'ignore', timeout: TOOL_TIME });
}

function isMounted(point: string): boolean {
  const stats = statSync(point, { throwIfNoEntry: false });
  return stats !== undefined && stats.dev !== statSync(dirname(point)).dev;
}

async function withNamed<T>(
  store: string,
  { fill, fileSystem }: StoreRequest,
  work: (store: DrillStore) => Promise<T>,
): Promise<T> {
  aDirectory(store);
  const bad = (message: string, code: 'BAD_OPTION' | 'NO_SPACE' = 'BAD_OPTION'): SpindleError =>
    new SpindleError(code, message, { path: store });
  if (fileSystem !== undefined) throw bad('a store that is there has its file system; leave --drill-fs out');
  if (statSync(store).dev === statSync('/').dev)
    throw bad('this is on the root file system, which must not be filled; name a small store of its own');
  const free = freeOf(store);
  if (free > MOST)
    throw bad(
      `${formatSize(free)} are free, which is more than the ${formatSize(MOST)} that the drill fills; name a small store of its own`,
    );
  if (free < LEAST)
    throw bad(`${formatSize(free)} are free, and the drill needs at least ${formatSize(LEAST)}`, 'NO_SPACE');
  if (fill !== true)
    throw bad(
      'the drill fills this store to its last byte, which anything else that writes there will feel; --fill-store agrees to that',
    );
  return inScratch(realpathSync(store), (scratch) =>
    work({
      ...{ isMade: false, fileSystem: mountOf(scratch)?.type ?? 'unknown' },
      fresh: async (use) => {
        await spaceIsBack(store, free);
        const inside = join(scratch, 'drill');
        mkdirSync(inside);
        try {
          return await use({ folder: inside, free: freeOf(inside), settle: () => Promise.resolve() });
        } finally {
          rmSync(inside, { recursive: true, force: true });
        }
      },
    }),
  );
}

/** Milliseconds for a file system to give back what was removed, as some do later. */
const BACK = 10_000;

async function spaceIsBack(store: string, free: number): Promise<void> {
  const start = performance.now();
  while (freeOf(store) < free * 0.9 && performance.now() - start < BACK)
    await new Promise((resolve) => setTimeout(resolve, 100));
}

function aDirectory(path: string): void {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) return;
  throw new SpindleError('NOT_FOUND', 'the drill needs a directory', { path });
}

/** Bytes that are free to anybody. */
function freeOf(path: string): number {
  const { bavail, bsize } = statfsSync(path);
  return bavail * bsize;
}
