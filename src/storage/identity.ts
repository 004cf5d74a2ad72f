import { promises as fs } from 'node:fs';
import type { BigIntStats } from 'node:fs';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { errnoOf, hostError } from './errno.ts';

/** What makes a file or device the same however it is named: `dev:ino`, or `block:rdev` of a block device. */
export function identityOf(stats: BigIntStats): string {
  return stats.isBlockDevice()
    ? `block:${stats.rdev.toString()}`
    : `${stats.dev.toString()}:${stats.ino.toString()}`;
}

/**
 * The identity of what is at `path`; where nothing is yet, of the place itself, told apart from all files.
 * @throws SpindleError NOT_FOUND when there is no such directory, PERMISSION, IO
 */
export async function pathIdentity(path: string): Promise<string> {
  try {
    return identityOf(await fs.stat(path, { bigint: true }));
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw hostError(error, path, 'look at');
    return `path:${await realTarget(path)}`;
  }
}

/**
 * Where `path` leads through all symbolic links, also when nothing is there yet.
 * @throws SpindleError NOT_FOUND when there is no such directory, PERMISSION, IO
 */
export async function realTarget(path: string): Promise<string> {
  let target = path;
  try {
    // As many links as the kernel follows; a circle is left to fail below.
    for (let links = 0; links < 40; links++) {
      const link = await linkAt(target);
      if (link === undefined) break;
      // Not normalised: a `..` counts from where the links before it lead.
      target = isAbsolute(link) ? link : `${await fs.realpath(dirname(target))}/${link}`;
    }
    return join(await fs.realpath(dirname(target)), basename(target));
  } catch (error) {
    throw hostError(error, path, 'create');
  }
}

async function linkAt(path: string): Promise<string | undefined> {
  try {
    return await fs.readlink(path);
  } catch (error) {
    // EINVAL: no link. ENOENT: nothing there.
    if (errnoOf(error) === 'EINVAL' || errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
