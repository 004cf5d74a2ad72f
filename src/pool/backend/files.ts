import { constants, lstatSync, opendirSync, readdirSync, statSync } from 'node:fs';
import { chmod, chown, link, mkdir, open, rename, rmdir, statfs, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { alignUp } from '../../core/align.ts';
import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { reserveNew } from '../../core/allocation.ts';
import { allocate as makeThick } from '../../op/allocate.ts';
import { convert } from '../../op/convert.ts';
import { create, type Preallocation, type Qcow2Options } from '../../op/create.ts';
import { resize } from '../../op/resize.ts';
import { syncDirectory } from '../../storage/descriptor.ts';
import { errnoOf, hostError } from '../../storage/errno.ts';
import { openFile } from '../../storage/file.ts';
import { withLock } from '../lock.ts';
import type { Context, ResizeVolume, VolumeRequest, VolumeSource } from '../backend.ts';
import type { Permissions, PoolDefinition, PoolUsage } from '../definition.ts';
import { hasControls, isOwnFile } from '../names.ts';
import { isLink, probeFile } from '../probe.ts';
import { byName } from '../store.ts';
import type { VolumeDefinition, VolumeFacts } from '../volume-definition.ts';
import { jobLock } from '../locks.ts';
import { removeUnfinished, unfinishedPath } from './leftovers.ts';

/*
 * Volumes that are files of a directory: what dir, fs and netfs pools have in common.
 */

/** Mode of the directory of a pool, and of a volume, where nothing else is said: as libvirt has them. */
const POOL_MODE = 0o711;
const VOLUME_MODE = 0o600;

/** Name of the guard reserve. */
const GUARD = '.spindle-guard';

/** Files looked at before others of this process have a turn. */
const TURN = 512;

/** Makes the directory of a pool, and those above it; one that is there is kept. */
export async function buildDirectory({ target }: PoolDefinition): Promise<void> {
  const { mode, owner, group } = target.permissions ?? {};
  try {
    await mkdir(dirname(target.path), { recursive: true });
    const made = await mkdir(target.path, { mode: mode ?? POOL_MODE }).then(
      () => true,
      (error: unknown) => {
        if (errnoOf(error) === 'EEXIST' && statSync(target.path).isDirectory()) return false;
        throw error;
      },
    );
    if (owner !== undefined || group !== undefined)
      await chown(target.path, owner ?? process.geteuid?.() ?? 0, group ?? process.getegid?.() ?? 0);
    // Past the umask.
    if (made || mode !== undefined) await chmod(target.path, mode ?? POOL_MODE);
  } catch (error) {
    throw hostError(error, target.path, 'make the directory of the pool');
  }
}

/** Removes the directory of a pool, which must be empty but for what is spindle's own. */
export async function deleteDirectory({ target }: PoolDefinition): Promise<void> {
  try {
    const names = readdirSync(target.path);
    if (names.every(isOwnFile)) for (const name of names) await unlink(join(target.path, name));
    await rmdir(target.path);
  } catch (error) {
    if (errnoOf(error) === 'ENOTEMPTY' || errnoOf(error) === 'EEXIST')
      throw new SpindleError('EXISTS', 'the directory of the pool is not empty: delete its volumes first', {
        path: target.path,
      });
    throw hostError(error, target.path, 'remove the directory of the pool');
  }
}

/** Whether the directory of a pool is there. */
export function hasDirectory({ target }: PoolDefinition): boolean {
  try {
    return statSync(target.path).isDirectory();
  } catch {
    return false;
  }
}

/** @throws SpindleError POOL_GONE when the directory of a pool is not there */
export function needDirectory(pool: PoolDefinition): void {
  if (!hasDirectory(pool))
    throw new SpindleError('POOL_GONE', `the directory of pool '${pool.name}' is not there`, {
      path: pool.target.path,
    });
}

/** Removes what crashes left. */
export async function refreshFiles({ pool, home }: Context): Promise<void> {
  needDirectory(pool);
  try {
    const { path } = pool.target;
    await withLock(
      jobLock(home, pool.name),
      'exclusive',
      'volumes are being made',
      () => Promise.resolve(removeUnfinished(path, true)),
      0,
    ).catch((error: unknown) => {
      if (!isSpindleError(error, 'IN_USE')) throw error;
      return removeUnfinished(path, false);
    });
  } catch (error) {
    throw hostError(error, pool.target.path, 'list');
  }
}

/** The room of the file system that a pool is on. */
export async function filesUsage({ pool }: Context): Promise<PoolUsage> {
  needDirectory(pool);
  const { bsize, blocks, bfree } = await statfs(pool.target.path).catch((error: unknown) => {
    throw hostError(error, pool.target.path, 'ask for the room');
  });
  return { capacity: blocks * bsize, allocation: (blocks - bfree) * bsize, available: bfree * bsize };
}

/** Owner and mode of the directory. */
export function directoryPermissions({ pool }: Context): Promise<Permissions> {
  needDirectory(pool);
  const { mode, uid, gid } = statSync(pool.target.path);
  return Promise.resolve({
    mode: mode & 0o7777,
    owner: uid,
    group: gid,
    label: pool.target.permissions?.label,
  });
}

/** All volumes in the directory, in the order of their names. */
export async function listFiles({ pool }: Context): Promise<VolumeFacts[]> {
  needDirectory(pool);
  const found: VolumeFacts[] = [];
  try {
    const folder = opendirSync(pool.target.path, { bufferSize: 1024 });
    try {
      let seen = 0;
      for (let entry = folder.readSync(); entry !== null; entry = folder.readSync()) {
        if (++seen % TURN === 0) await setImmediate();
        const facts = isVolumeName(entry.name)
          ? probeFile(join(pool.target.path, entry.name), entry.name)
          : null;
        if (facts !== null) found.push(facts);
      }
    } finally {
      folder.closeSync();
    }
  } catch (error) {
    throw hostError(error, pool.target.path, 'list');
  }
  return found.sort((a, b) => byName(a.name, b.name));
}

/** One volume in the directory. */
export function findFile({ pool }: Context, name: string): Promise<VolumeFacts | null> {
  needDirectory(pool);
  if (!isVolumeName(name)) return Promise.resolve(null);
  return Promise.resolve(probeFile(join(pool.target.path, name), name));
}

function isVolumeName(name: string): boolean {
  return (
    name !== '' &&
    name !== '.' &&
    name !== '..' &&
    !name.includes('/') &&
    !isOwnFile(name) &&
    !hasControls(name)
  );
}

/** @throws SpindleError BAD_NAME for a volume that is a symbolic link: it could lead out of the pool */
export function refuseLink({ path, name, type }: VolumeFacts): void {
  if (type !== 'block' && isLink(path))
    throw new SpindleError(
      'BAD_NAME',
      `volume '${name}' is a symbolic link, which is not followed for writing`,
      { path },
    );
}

/** Makes a volume: under a name of its own, which it gives up for the real one when it is complete and durable. */
export async function createFile({ pool }: Context, request: VolumeRequest): Promise<void> {
  needDirectory(pool);
  const { volume } = request;
  const path = join(pool.target.path, volume.name);
  refuseTaken(path, volume.name);
  const unfinished = unfinishedPath(pool.target.path);
  try {
    await makeImage(unfinished, request, pool);
    await setPermissions(unfinished, volume.permissions);
    await request.exclusively(() => publish(unfinished, path, volume.name));
  } catch (error) {
    await unlink(unfinished).catch(() => undefined);
    if (error instanceof SpindleError && error.path === unfinished) error.path = path;
    if (error instanceof Error) error.message = error.message.replaceAll(unfinished, path);
    throw error;
  }
}

async function makeImage(path: string, request: VolumeRequest, pool: PoolDefinition): Promise<void> {
  const { volume, backing, gate, signal, onProgress } = request;
  const format = volume.format ?? 'raw';
  const capacity = volume.capacity;
  const noCow = volume.noCow ?? (pool.cow === false ? true : undefined);
  if (request.source !== undefined) return fillImage(path, request, request.source, noCow);
  if (format === 'raw') {
    if (capacity === undefined)
      throw new SpindleError('BAD_SIZE', `volume '${volume.name}' needs a capacity`);
    const allocation = request.policy === undefined ? (volume.allocation ?? capacity) : 0;
    if (allocation > capacity)
      throw new SpindleError('BAD_SIZE', `volume '${volume.name}' cannot be allocated beyond its capacity`);
    const whole = allocation === capacity && capacity > 0;
    const policy = request.policy ?? (whole ? 'thick-lazy' : 'thin');
    await create({ path, format, size: capacity, allocation: policy, gate, noCow, signal, onProgress });
    const part = !whole && allocation > 0;
    if (!part && capacity % 512 === 0) return;
    const storage = await openFile(path, { write: true, noFollow: true });
    try {
      if (part) await reserveNew(storage, 0, allocation, { signal });
      // Images have whole sectors; volumes any number of bytes.
      if (storage.size !== capacity) await storage.resize(capacity);
      await storage.flush();
    } finally {
      await storage.close();
    }
    return;
  }
  await create({
    path,
    format,
    size: capacity === undefined ? undefined : alignUp(capacity, 1024),
    allocation: request.policy,
    preallocation: request.policy === undefined ? preallocationOf(request) : undefined,
    gate,
    noCow,
    signal,
    onProgress,
    backing: backing === undefined ? undefined : { name: backing.path, format: backing.format },
    qcow2: qcow2Options(volume),
  });
}

function qcow2Options(volume: VolumeDefinition): Qcow2Options {
  return {
    ...(volume.compat === undefined
      ? {}
      : { version: volume.compat === '0.10' ? (2 as const) : (3 as const) }),
    ...(volume.clusterSize === undefined ? {} : { clusterSize: volume.clusterSize }),
    ...(volume.lazyRefcounts === undefined ? {} : { lazyRefcounts: volume.lazyRefcounts }),
    ...(volume.extendedL2 === undefined ? {} : { extendedL2: volume.extendedL2 }),
  };
}

/** An image with the disk of another volume, at least as large as that. */
async function fillImage(
  path: string,
  { volume, policy, backing, gate, preallocateMetadata, signal, onProgress }: VolumeRequest,
  source: VolumeSource,
  noCow: boolean | undefined,
): Promise<void> {
  const format = volume.format ?? 'raw';
  const { capacity, allocation } = volume;
  const whole =
    format === 'raw' && allocation !== undefined && capacity !== undefined && allocation >= capacity;
  const chosen = policy ?? (whole && !source.reflink ? 'thick-lazy' : undefined);
  const done = await convert(
    [{ path: source.path, format: source.format, gate }],
    {
      path,
      format,
      size: capacity === undefined ? undefined : alignUp(capacity, 512),
      allocation: chosen,
      preallocation: chosen === undefined && preallocateMetadata === true ? 'metadata' : undefined,
      gate,
      noCow,
      backing: backing === undefined ? undefined : { name: backing.path, format: backing.format },
      qcow2: format === 'qcow2' ? qcow2Options(volume) : undefined,
    },
    { signal, onProgress },
  );
  if (source.reflink && done.shared === 0 && done.written > 0)
    throw new SpindleError(
      'UNSUPPORTED',
      'the file system cannot share blocks (reflink); leave --reflink out',
      { path },
    );
}

/** As libvirt: the allocation of a qcow2 volume counts only where its tables are made at once. */
function preallocationOf({ volume, preallocateMetadata }: VolumeRequest): Preallocation {
  if (preallocateMetadata !== true) return 'off';
  const { capacity = 0, allocation = capacity } = volume;
  return allocation < capacity ? 'metadata' : 'falloc';
}

async function setPermissions(path: string, permissions: Permissions | undefined): Promise<void> {
  const { mode, owner, group } = permissions ?? {};
  try {
    // Of the file that is there now, not of what its name may lead to in a moment.
    const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      if (owner !== undefined || group !== undefined)
        await file.chown(owner ?? process.geteuid?.() ?? 0, group ?? process.getegid?.() ?? 0);
      await file.chmod(mode ?? VOLUME_MODE);
    } finally {
      await file.close();
    }
  } catch (error) {
    throw hostError(error, path, 'set the owner and mode');
  }
}

/** Gives a complete file its name, and never to the cost of one that is there. */
async function publish(unfinished: string, path: string, name: string): Promise<void> {
  try {
    await link(unfinished, path);
  } catch (error) {
    const code = errnoOf(error);
    if (code === 'EEXIST') throw taken(path, name);
    if (code !== 'EPERM' && code !== 'EOPNOTSUPP' && code !== 'ENOTSUP' && code !== 'ENOSYS')
      throw hostError(error, path, 'name the volume');
    // A file system without hard links (vfat): the lock of the pool keeps others of spindle away.
    refuseTaken(path, name);
    await rename(unfinished, path).catch((cause: unknown) => {
      throw hostError(cause, path, 'name the volume');
    });
    await syncDirectory(dirname(path));
    return;
  }
  await unlink(unfinished).catch(() => undefined);
  await syncDirectory(dirname(path));
}

function refuseTaken(path: string, name: string): void {
  try {
    lstatSync(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return;
    throw hostError(error, path, 'look for the volume');
  }
  throw taken(path, name);
}

function taken(path: string, name: string): SpindleError {
  return new SpindleError('EXISTS', `storage volume '${name}' exists already`, { path });
}

/** Removes a volume; one that is gone already is no failure. A symbolic link goes, not what it names. */
export async function deleteFile({ pool }: Context, { path, type }: VolumeFacts): Promise<void> {
  needDirectory(pool);
  try {
    if (type === 'dir' && !isLink(path)) await rmdir(path);
    else await unlink(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return;
    throw hostError(error, path, 'delete the volume');
  }
  await syncDirectory(pool.target.path);
}

/** Gives a volume another capacity. */
export async function resizeFile(_: Context, volume: VolumeFacts, request: ResizeVolume): Promise<void> {
  const { capacity, allocate, shrink, gate } = request;
  const { format, path, name } = volume;
  refuseLink(volume);
  if (format !== 'raw' && format !== 'qcow2')
    throw new SpindleError(
      'UNSUPPORTED',
      `volume '${name}' cannot be resized: it is of format ${format ?? 'unknown'}`,
    );
  if (allocate && format !== 'raw')
    throw new SpindleError(
      'UNSUPPORTED',
      `only raw volumes are allocated when resized; '${name}' is ${format}`,
    );
  // That of a volume without sectors of its own may be any number.
  const size = format === 'raw' ? capacity : alignUp(capacity, 512);
  await resize(path, size, {
    format,
    gate,
    shrink,
    noFollow: true,
    preallocation: allocate && size > volume.capacity ? 'falloc' : 'off',
  });
  if (!allocate) return;
  const storage = await openFile(path, { write: true, noFollow: true });
  try {
    await storage.reserve(0, size);
    await storage.flush();
    return;
  } catch (error) {
    if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
  } finally {
    await storage.close();
  }
  // The file system cannot reserve: zeroes are written where nothing is.
  await makeThick(path, { policy: 'thick-lazy', format: 'raw', gate, noFollow: true });
}

/** Bytes of the guard reserve. */
export function guardOf({ pool }: Context): Promise<number> {
  needDirectory(pool);
  try {
    return Promise.resolve(lstatSync(join(pool.target.path, GUARD)).blocks * 512);
  } catch {
    return Promise.resolve(0);
  }
}

/** Makes the guard reserve, in place of the one there is, or gives it back. */
export async function setGuardFile({ pool }: Context, bytes: number): Promise<void> {
  needDirectory(pool);
  const path = join(pool.target.path, GUARD);
  // Its blocks may be needed for the new one.
  await unlink(path).catch((error: unknown) => {
    if (errnoOf(error) !== 'ENOENT') throw hostError(error, path, 'give back the guard reserve');
  });
  if (bytes > 0) {
    const unfinished = unfinishedPath(pool.target.path);
    const storage = await openFile(unfinished, { create: 'exclusive' });
    try {
      await reserveNew(storage, 0, bytes);
      await storage.flush();
      await storage.close();
      await rename(unfinished, path);
    } catch (error) {
      await storage.close();
      await unlink(unfinished).catch(() => undefined);
      if (error instanceof SpindleError) error.path = path;
      if (error instanceof Error) error.message = error.message.replaceAll(unfinished, path);
      throw error;
    }
  }
  await syncDirectory(pool.target.path);
}
