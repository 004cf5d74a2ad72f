import { join } from 'node:path';
import type { PoolHome } from './home.ts';

/*
 * Three locks, always taken in this order. The store: what is defined. The pool: changes of it and of the names in it. The
 * jobs: held by all who make or fill a volume, which takes long and must not keep others from the pool.
 */

/** The lock of all definitions. */
export function storeLock({ run }: PoolHome): string {
  return join(run, '.locks', 'store');
}

/** The lock of a pool. */
export function poolLock({ run }: PoolHome, name: string): string {
  return join(run, '.locks', `pool-${name}`);
}

/** The lock of the long work in a pool. */
export function jobLock({ run }: PoolHome, name: string): string {
  return join(run, '.locks', `jobs-${name}`);
}
