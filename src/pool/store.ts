import { lstatSync, readdirSync, readlinkSync, realpathSync } from 'node:fs';
import { symlink, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { SpindleError, isSpindleError } from '../core/errors.ts';
import { syncDirectory } from '../storage/descriptor.ts';
import { errnoOf, hostError } from '../storage/errno.ts';
import { ownDirectory, removeWhole, writeWhole } from './atomic.ts';
import { parsePool, writePool, type PoolDefinition } from './definition.ts';
import { readText } from './xml.ts';

/*
 * Definitions, as libvirt keeps them: NAME.xml, and a symbolic link of that name in `autostart`. Changes are made under
 * the lock of the store; reading needs none, as files change as a whole.
 */

const HEADING = (name: string): string => `<!--
Written by spindle and replaced as a whole. Change it with: spindle pool-edit ${name.replaceAll('--', '- -')}
-->

`;

/** The names of all definitions in a directory, sorted as virsh does: letters of either case together. */
export function definedNames(config: string): string[] {
  try {
    return readdirSync(config)
      .filter((name) => name.endsWith('.xml') && !name.startsWith('.'))
      .map((name) => name.slice(0, -'.xml'.length))
      .sort(byName);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw hostError(error, config, 'list');
  }
}

/** Orders names as virsh does: letters of either case together. */
export function byName(a: string, b: string): number {
  const [left, right] = [a.toLowerCase(), b.toLowerCase()];
  return left < right ? -1 : left > right ? 1 : a < b ? -1 : a > b ? 1 : 0;
}

/**
 * The definition of that name; null where there is none.
 * @throws SpindleError BAD_XML, also where the file is named otherwise than the pool in it; PERMISSION, IO
 */
export function loadDefinition(config: string, name: string): PoolDefinition | null {
  const path = join(config, `${name}.xml`);
  const text = readIfThere(path);
  if (text === null) return null;
  const pool = parsePool(text, path);
  if (pool.name !== name)
    throw new SpindleError('BAD_XML', `${path}: holds the pool '${pool.name}': the names must be the same`);
  return pool;
}

/** All definitions that can be read; `onBad` is told why one cannot. */
export function loadAll(
  config: string,
  onBad: (error: SpindleError) => void = () => undefined,
): PoolDefinition[] {
  return definedNames(config).flatMap((name) => {
    try {
      return loadDefinition(config, name) ?? [];
    } catch (error) {
      if (!isSpindleError(error)) throw error;
      onBad(error);
      return [];
    }
  });
}

/** Text of a description; null where it is not there. @throws SpindleError BAD_XML (too long), PERMISSION, IO */
export function readIfThere(path: string): string | null {
  try {
    return readText(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return null;
    throw isSpindleError(error) ? error : hostError(error, path, 'read');
  }
}

/** Writes a definition, in place of one of its name. */
export async function saveDefinition(config: string, pool: PoolDefinition): Promise<void> {
  await writeWhole(join(config, `${pool.name}.xml`), HEADING(pool.name) + writePool(pool));
}

/** Removes a definition and its autostart link; whether it was there. The link goes first: none may point nowhere. */
export async function removeDefinition(config: string, name: string): Promise<boolean> {
  await setAutostart(config, name, false);
  return removeWhole(join(config, `${name}.xml`));
}

/** Whether a pool is marked to be started with the system: its link leads to its definition. */
export function isAutostarted(config: string, name: string): boolean {
  try {
    const link = join(config, 'autostart', `${name}.xml`);
    return (
      lstatSync(link).isSymbolicLink() && realpathSync(link) === realpathSync(join(config, `${name}.xml`))
    );
  } catch {
    return false;
  }
}

/** Marks a pool, or takes the mark away. */
export async function setAutostart(config: string, name: string, on: boolean): Promise<void> {
  const folder = join(config, 'autostart');
  const link = join(folder, `${name}.xml`);
  const target = join(config, `${name}.xml`);
  if (on) {
    await ownDirectory(folder);
    try {
      if (readlinkSync(link) === target) return;
    } catch {
      // It is to be made.
    }
  }
  try {
    await unlink(link);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw hostError(error, link, 'remove');
    if (!on) return;
  }
  try {
    if (on) await symlink(target, link);
  } catch (error) {
    throw hostError(error, link, 'make the link');
  }
  await syncDirectory(folder);
}

/**
 * Refuses a pool that others stand against: of its name but another UUID, of its UUID but another name, or with the same
 * source.
 * @throws SpindleError EXISTS
 */
export function refuseConflict(pool: PoolDefinition, others: readonly PoolDefinition[]): void {
  for (const other of others) {
    if (other.name === pool.name && other.uuid === pool.uuid) continue;
    if (other.name === pool.name)
      throw new SpindleError('EXISTS', `pool '${pool.name}' exists already, with uuid ${other.uuid}`);
    if (other.uuid === pool.uuid)
      throw new SpindleError('EXISTS', `the uuid ${pool.uuid} belongs to pool '${other.name}' already`);
    if (sameSource(pool, other))
      throw new SpindleError(
        'EXISTS',
        `the source of pool '${pool.name}' is that of pool '${other.name}' already`,
      );
  }
}

function sameSource(one: PoolDefinition, other: PoolDefinition): boolean {
  const shared = (): boolean => one.source.devices.some((device) => other.source.devices.includes(device));
  if (one.type !== other.type) {
    // Two kinds of pools on one directory would list, and delete, each other's volumes.
    return isDirectory(one) && isDirectory(other) && one.target.path === other.target.path;
  }
  switch (one.type) {
    case 'dir':
      return one.target.path === other.target.path;
    case 'netfs':
      return (
        one.target.path === other.target.path ||
        (one.source.hosts[0]?.name === other.source.hosts[0]?.name && one.source.dir === other.source.dir)
      );
    case 'fs':
      return one.target.path === other.target.path || shared();
    case 'logical':
      return one.source.name === other.source.name || shared();
    case 'iscsi':
      return shared() && one.source.initiator === other.source.initiator;
  }
}

function isDirectory({ type }: PoolDefinition): boolean {
  return type === 'dir' || type === 'fs' || type === 'netfs';
}
