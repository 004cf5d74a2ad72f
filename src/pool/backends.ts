import type { Backend, Discover } from './backend.ts';
import { dirBackend } from './backend/dir.ts';
import { fsBackend } from './backend/fs.ts';
import { findExports, netfsBackend } from './backend/netfs.ts';
import type { PoolType } from './definition.ts';

/** What makes each kind of pool. */
export const BACKENDS: Readonly<Partial<Record<PoolType, Backend>>> = {
  dir: dirBackend,
  fs: fsBackend,
  netfs: netfsBackend,
};

/** How sources of each kind are found. */
export const DISCOVERIES: Readonly<Partial<Record<PoolType, Discover>>> = {
  netfs: findExports,
};
