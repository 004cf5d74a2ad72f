import { join } from 'node:path';
import { SpindleError } from '../core/errors.ts';
import { removeWhole, writeWhole } from './atomic.ts';
import { poolElement, poolOf, type PoolDefinition } from './definition.ts';
import type { PoolHome } from './home.ts';
import { definedNames, readIfThere } from './store.ts';
import { childOf, element, parseXml, writeXml } from './xml.ts';

/*
 * What is active: NAME.xml in the runtime directory, as libvirt has it, with the run of the system that it belongs to.
 * It is written when a pool has been started and removed before it is stopped, each in one step.
 */

/** An active pool. */
export interface ActivePool {
  /** As it was when it was started: a definition may have been changed since. */
  readonly pool: PoolDefinition;
  /** It has no definition, and is gone when it is stopped. */
  readonly transient: boolean;
}

const pathOf = ({ run }: PoolHome, name: string): string => join(run, `${name}.xml`);

/** What is active under that name; null where nothing is, or was before the system was started again. */
export function loadState(home: PoolHome, name: string): ActivePool | null {
  const path = pathOf(home, name);
  const text = readIfThere(path);
  if (text === null) return null;
  const root = parseXml(text, path);
  if (root.attributes['boot'] !== home.bootId) return null;
  const pool = childOf(root, 'pool');
  if (root.name !== 'poolstate' || pool === undefined)
    throw new SpindleError('BAD_XML', `${path}: no state of a pool`);
  return { pool: poolOf(pool, path), transient: root.attributes['transient'] === 'yes' };
}

/** The names of all that may be active. */
export function stateNames({ run }: PoolHome): string[] {
  return definedNames(run);
}

/** Notes that a pool is active. */
export async function saveState(home: PoolHome, { pool, transient }: ActivePool): Promise<void> {
  const state = element('poolstate', { boot: home.bootId, transient: transient ? 'yes' : 'no' }, [
    poolElement(pool),
  ]);
  await writeWhole(pathOf(home, pool.name), writeXml(state));
}

/** Notes that a pool is not active. */
export async function removeState(home: PoolHome, name: string): Promise<void> {
  await removeWhole(pathOf(home, name));
}

/** What libvirt has active under that name, from the file in its runtime directory. */
export function loadLibvirtState(run: string, config: string, name: string): ActivePool | null {
  const path = join(run, `${name}.xml`);
  const text = readIfThere(path);
  if (text === null) return null;
  const pool = childOf(parseXml(text, path), 'pool');
  if (pool === undefined) throw new SpindleError('BAD_XML', `${path}: no state of a pool`);
  return { pool: poolOf(pool, path), transient: readIfThere(join(config, `${name}.xml`)) === null };
}
