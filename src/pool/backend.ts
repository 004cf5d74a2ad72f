import type { AllocationPolicy } from '../core/allocation.ts';
import type { Working } from '../core/working.ts';
import type { Gate } from '../format/gate.ts';
import type { Permissions, PoolDefinition, PoolSource, PoolUsage } from './definition.ts';
import type { PoolHome } from './home.ts';
import type { VolumeDefinition, VolumeFacts } from './volume-definition.ts';

/** What a build does about a source that holds something already: refuse, write over it, or look at nothing. */
export type BuildMode = 'no-overwrite' | 'overwrite' | 'plain';

/** How a volume is made. */
export interface VolumeRequest extends Working {
  readonly volume: VolumeDefinition;
  /** When the host gives space; default: as libvirt does, from the allocation. */
  readonly policy?: AllocationPolicy | undefined;
  /** qcow2: the tables are made at once. */
  readonly preallocateMetadata?: boolean | undefined;
  /** The volume below, with its path and format known. */
  readonly backing?: { readonly path: string; readonly format: string } | undefined;
  /** The disk to fill it with. */
  readonly source?: VolumeSource | undefined;
  /** What is opened for images that refer to others. */
  readonly gate: Gate;
  /** Called for the moment in which the volume takes its name: nobody else changes names of the pool then. */
  exclusively<T>(work: () => Promise<T>): Promise<T>;
}

/** A volume that is copied. */
export interface VolumeSource {
  readonly path: string;
  readonly format: string;
  /** Share its blocks, or fail. */
  readonly reflink: boolean;
}

/** How a volume is given another size. */
export interface ResizeVolume {
  /** Bytes. */
  readonly capacity: number;
  readonly allocate: boolean;
  readonly shrink: boolean;
  readonly gate: Gate;
}

/** What a backend works with: the definition, and where spindle keeps things. */
export interface Context {
  readonly pool: PoolDefinition;
  readonly home: PoolHome;
}

/**
 * What makes a kind of pool. All methods are called under the lock of the pool; those that are left out cannot be done
 * with that kind.
 */
export interface Backend {
  /** Prepares the source, which may destroy what it held. */
  build?(context: Context, mode: BuildMode): Promise<void>;
  /** Makes the volumes reachable. Fails with nothing changed. */
  start(context: Context): Promise<void>;
  stop(context: Context): Promise<void>;
  /** Undoes build. */
  delete?(context: Context): Promise<void>;
  /** Whether the pool is reachable now. Always answers, in bounded time. */
  check(context: Context): Promise<boolean>;
  /** Looks again at what is there, and removes what crashes left. */
  refresh(context: Context): Promise<void>;
  usage(context: Context): Promise<PoolUsage>;
  /** What the target is like, where it has owner and mode. */
  permissions?(context: Context): Promise<Permissions>;
  /** All volumes, by name. */
  volumes(context: Context): Promise<VolumeFacts[]>;
  /** One volume; null where there is none of that name. */
  volume(context: Context, name: string): Promise<VolumeFacts | null>;
  createVolume?(context: Context, request: VolumeRequest): Promise<void>;
  deleteVolume?(context: Context, volume: VolumeFacts): Promise<void>;
  resizeVolume?(context: Context, volume: VolumeFacts, request: ResizeVolume): Promise<void>;
  /** Makes, replaces (`bytes`) or removes (0) the reserve that is given back in an emergency. */
  setGuard?(context: Context, bytes: number): Promise<void>;
  /** Bytes of the reserve. */
  guard?(context: Context): Promise<number>;
}

/** What a search for sources may be told. */
export interface Discovery {
  readonly host?: string | undefined;
  readonly port?: number | undefined;
  readonly initiator?: string | undefined;
}

/** Finds sources of a kind. @throws SpindleError BAD_OPTION, TOOL_MISSING, TOOL_FAILED, TOOL_TIMEOUT */
export type Discover = (asked: Discovery) => Promise<Partial<PoolSource>[]>;
