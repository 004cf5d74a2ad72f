import { closeSync, constants, openSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SpindleError } from '../core/errors.ts';
import { errnoOf, hostError } from '../storage/errno.ts';
import { ownDirectory } from './atomic.ts';

/** What is used of fs-ext; it has no types of its own. */
interface FsExt {
  readonly flockSync: (fd: number, how: 'shnb' | 'exnb' | 'un') => void;
}

let fsExt: FsExt | undefined;

function loaded(): FsExt {
  try {
    return (fsExt ??= createRequire(import.meta.url)('fs-ext') as FsExt);
  } catch (error) {
    throw new SpindleError(
      'UNSUPPORTED',
      'pools need the package fs-ext for their locks: npm install fs-ext',
      {
        cause: error,
      },
    );
  }
}

/** How a lock is taken: `shared` among readers, or `exclusive`. */
export type LockMode = 'shared' | 'exclusive';

/** Milliseconds that a lock is waited for, unless told. */
const PATIENCE = 120_000;

/**
 * Does `work` while the file at `path` is locked with flock(2). The kernel drops the lock when the process ends, however
 * it does; the file itself stays. Waits for others, at most `patience` milliseconds (0: not at all).
 * @throws SpindleError IN_USE with `busy` as its message, UNSUPPORTED, PERMISSION, and what `work` throws
 */
export async function withLock<T>(
  path: string,
  mode: LockMode,
  busy: string,
  work: () => Promise<T>,
  patience = PATIENCE,
): Promise<T> {
  const { flockSync } = loaded();
  let fd: number;
  try {
    await ownDirectory(dirname(path));
    fd = openSync(path, constants.O_CREAT | constants.O_RDWR | constants.O_NOFOLLOW, 0o600);
  } catch (error) {
    const told = hostError(error, path, 'open the lock');
    // Who may not change anything here may still look.
    if (mode === 'shared' && (told.code === 'PERMISSION' || told.code === 'READ_ONLY')) return work();
    throw told;
  }
  try {
    const end = Date.now() + patience;
    for (let wait = 1; ; wait = Math.min(wait * 2, 50)) {
      try {
        flockSync(fd, mode === 'shared' ? 'shnb' : 'exnb');
        break;
      } catch (error) {
        const name = errnoOf(error);
        if (name !== 'EAGAIN' && name !== 'EWOULDBLOCK') throw hostError(error, path, 'lock');
        if (Date.now() >= end) throw new SpindleError('IN_USE', busy);
      }
      await sleep(wait + Math.random() * wait);
    }
    return await work();
  } finally {
    // Unlocked by name: a child of this process may hold the descriptor too, until it runs its program.
    try {
      flockSync(fd, 'un');
    } finally {
      closeSync(fd);
    }
  }
}
