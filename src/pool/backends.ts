import type { Backend, Discover } from './backend.ts';
import { dirBackend } from './backend/dir.ts';
import { fsBackend } from './backend/fs.ts';
import { findTargets, iscsiBackend } from './backend/iscsi.ts';
import { findGroups, logicalBackend } from './backend/logical.ts';
import { findExports, netfsBackend } from './backend/netfs.ts';
import type { PoolType } from './definition.ts';

/** What makes each kind of pool. */
export const BACKENDS: Readonly<Record<PoolType, Backend>> = {
  dir: dirBackend,
  fs: fsBackend,
  netfs: netfsBackend,
  logical: logicalBackend,
  iscsi: iscsiBackend,
};

/** How sources of each kind are found. */
export const DISCOVERIES: Readonly<Partial<Record<PoolType, Discover>>> = {
  netfs: findExports,
  logical: findGroups,
  iscsi: findTargets,
};
