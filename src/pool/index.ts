/**
 * Storage pools and volumes, without libvirt and beside it.
 * @module
 */
export { Pools, type PoolsOptions, type Started } from './pools.ts';
export { Pool, type CreateVolumeOptions, type PoolInfo } from './pool.ts';
export { Volume, type VolumeResize, type VolumeUpload } from './volume.ts';
export type { BuildMode, Discovery } from './backend.ts';
export { WIPE_ALGORITHMS, type TransferOptions } from './content.ts';
export { poolHome, type PoolHome } from './home.ts';
export {
  parsePool,
  POOL_TYPES,
  writePool,
  type Permissions,
  type PoolDefinition,
  type PoolSource,
  type PoolType,
  type PoolUsage,
  type SourceAuth,
  type SourceHost,
} from './definition.ts';
export {
  parseVolume,
  writeVolumeDefinition,
  type Timestamps,
  type VolumeDefinition,
  type VolumeFacts,
  type VolumeType,
} from './volume-definition.ts';
export type { ActivePool } from './state.ts';
export { promisedBy, type Promised } from './overcommit.ts';
export type { Forecast } from './samples.ts';
