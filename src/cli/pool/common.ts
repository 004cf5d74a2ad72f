import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { hostError } from '../../storage/errno.ts';
import { Pools, type Pool, type Volume, type BuildMode } from '../../pool/index.ts';
import { readText } from '../../pool/xml.ts';
import type { Given, Param } from './spec.ts';

/** Arguments that many verbs have. */
export const POOL: Param = { name: 'pool', place: 'needed', does: 'name or UUID of the pool' };
/** The volume, where --pool says in which pool. */
export const VOL: Param = {
  name: 'vol',
  place: 'needed',
  does: 'name (with --pool), key or path of the volume',
};
/** --pool. */
export const IN_POOL: Param = { name: 'pool', value: 'POOL', does: 'the pool that the volume is in' };
/** --libvirt. */
export const LIBVIRT: Param = {
  name: 'libvirt',
  kind: 'flag',
  does: 'look at the pools of libvirt, which stay as they are',
};
/** --overwrite and --no-overwrite. */
export const OVERWRITE: readonly Param[] = [
  { name: 'overwrite', kind: 'flag', does: 'build over whatever the source holds' },
  { name: 'no-overwrite', kind: 'flag', does: 'do not build where the source holds something' },
];

/** The most that a pool may promise: for what makes or grows volumes. */
export const MAX_OVERCOMMIT: Param = {
  name: 'max-overcommit',
  place: 'named',
  kind: 'number',
  value: 'RATIO',
  does: 'fail where the pool would promise more than so many times its capacity',
};

/** The pools that a command is about. */
export function poolsOf(given: Given): Pools {
  return new Pools({
    libvirt: given.flag('libvirt'),
    onBad: (error) => given.warn(error.path ?? 'a definition', error.message),
  });
}

/** The pool that a command is about. */
export function poolOf(given: Given, name = 'pool'): Pool {
  return poolsOf(given).find(given.need(name));
}

/** The volume that a command is about. */
export async function volumeOf(given: Given, name = 'vol', pool = 'pool'): Promise<Volume> {
  const pools = poolsOf(given);
  const inside = given.text(pool);
  return inside === undefined
    ? pools.findVolume(given.need(name))
    : pools.find(inside).volume(given.need(name));
}

/** How to build, from --overwrite and --no-overwrite. @throws SpindleError BAD_OPTION for both */
export function buildMode(given: Given): BuildMode {
  const overwrite = given.flag('overwrite');
  const keep = given.flag('no-overwrite');
  if (overwrite && keep)
    throw new SpindleError('BAD_OPTION', '--overwrite and --no-overwrite exclude each other');
  return overwrite ? 'overwrite' : keep ? 'no-overwrite' : 'plain';
}

/** The text of a description, which may come from a pipe. @throws SpindleError BAD_XML (too long), NOT_FOUND, PERMISSION, IO */
export function readDescription(path: string): string {
  try {
    return readText(path);
  } catch (error) {
    throw isSpindleError(error) ? error : hostError(error, path, 'read');
  }
}
