import { isSpindleError, SpindleError } from '../core/errors.ts';
import type { Gate } from '../format/gate.ts';
import type { BuildMode, Discovery } from './backend.ts';
import { BACKENDS, DISCOVERIES } from './backends.ts';
import {
  checkDefinition,
  writePool,
  type PoolDefinition,
  type PoolSource,
  type PoolType,
} from './definition.ts';
import { libvirtHome, poolHome, type PoolHome } from './home.ts';
import { withLock } from './lock.ts';
import { poolLock, storeLock } from './locks.ts';
import { checkPoolName } from './names.ts';
import { poolGate } from './pool-gate.ts';
import { Pool } from './pool.ts';
import { probeFile } from './probe.ts';
import { loadLibvirtState, loadState, removeState, stateNames, type ActivePool } from './state.ts';
import { byName, isAutostarted, loadAll, loadDefinition, refuseConflict, saveDefinition } from './store.ts';
import type { VolumeFacts } from './volume-definition.ts';
import type { Volume } from './volume.ts';

/** Which pools. */
export interface PoolsOptions {
  /** Where they are kept. Default: {@link poolHome}. */
  readonly home?: PoolHome | undefined;
  /** Those of libvirt, for looking only. */
  readonly libvirt?: boolean | undefined;
  /** Milliseconds to wait for other commands. */
  readonly patience?: number | undefined;
  /** Told of definitions that cannot be read, and are passed over. */
  readonly onBad?: (error: SpindleError) => void;
}

/** What became of a pool that was to be started. */
export interface Started {
  readonly name: string;
  /** Null: it is active. */
  readonly error: SpindleError | null;
}

/** All pools of the system, or of a user. */
export class Pools {
  readonly home: PoolHome;
  /** The directory of definitions. */
  readonly config: string;
  /** Nothing can be changed: these are the pools of libvirt. */
  readonly readOnly: boolean;
  readonly patience: number | undefined;
  readonly #onBad: (error: SpindleError) => void;
  readonly #libvirtRun: string | null;

  constructor({ home, libvirt = false, patience, onBad }: PoolsOptions = {}) {
    this.home = home ?? poolHome();
    this.readOnly = libvirt;
    this.config = libvirt ? libvirtHome().config : this.home.config;
    this.#libvirtRun = libvirt ? libvirtHome().run : null;
    this.patience = patience;
    this.#onBad = onBad ?? (() => undefined);
  }

  /** What is active under that name; null where nothing is. */
  activeOf(name: string): ActivePool | null {
    return this.#libvirtRun === null
      ? loadState(this.home, name)
      : loadLibvirtState(this.#libvirtRun, this.config, name);
  }

  /** All pools that are defined or active, by name. */
  all(): Pool[] {
    const known = new Map(this.#definitions().map((pool) => [pool.name, pool]));
    for (const name of stateNames({ ...this.home, run: this.#libvirtRun ?? this.home.run })) {
      if (known.has(name)) continue;
      const active = this.#quietly(() => this.activeOf(name));
      if (active !== null) known.set(name, active.pool);
    }
    return [...known.values()].sort((a, b) => byName(a.name, b.name)).map((pool) => new Pool(this, pool));
  }

  /** The pool of that UUID or name. @throws SpindleError POOL_NOT_FOUND, BAD_NAME, BAD_XML */
  find(wanted: string): Pool {
    if (/^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i.test(wanted)) {
      const found = this.all().find(({ uuid }) => uuid === wanted.toLowerCase());
      if (found !== undefined) return found;
    }
    const name = checkPoolName(wanted);
    const pool = loadDefinition(this.config, name) ?? this.activeOf(name)?.pool;
    if (pool !== undefined) return new Pool(this, pool);
    throw new SpindleError('POOL_NOT_FOUND', `there is no storage pool '${wanted}'`);
  }

  /**
   * Defines a pool, or defines it anew: one of the same name and UUID is replaced, which counts when it is started next.
   * With `instead`, only where that is still the definition.
   * @throws SpindleError EXISTS (another pool stands against it), IN_USE (the definition is not `instead` any more),
   * BAD_XML, BAD_NAME, UNSUPPORTED, PERMISSION
   */
  define(
    definition: PoolDefinition,
    { instead }: { instead?: PoolDefinition | undefined } = {},
  ): Promise<Pool> {
    const pool = checkDefinition(definition);
    return this.#changing(pool.name, async () => {
      if (instead !== undefined) {
        const now = loadDefinition(this.config, pool.name);
        if (now === null || writePool(now) !== writePool(instead))
          throw new SpindleError(
            'IN_USE',
            `another command changed the definition of pool '${pool.name}' meanwhile; nothing was changed`,
          );
      }
      refuseConflict(pool, this.#others(pool));
      await saveDefinition(this.config, pool);
      return new Pool(this, pool);
    });
  }

  /** Makes and starts a pool that has no definition, and is gone when it is stopped. @throws SpindleError as define and Pool.start */
  create(definition: PoolDefinition, { build }: { build?: BuildMode | undefined } = {}): Promise<Pool> {
    const given = checkDefinition(definition);
    return this.#changing(given.name, async () => {
      const defined = loadDefinition(this.config, given.name);
      refuseConflict(given, this.#others(given));
      if (this.activeOf(given.name) !== null)
        throw new SpindleError('POOL_ACTIVE', `storage pool '${given.name}' is already active`);
      const pool = new Pool(this, given);
      const context = { pool: given, home: this.home };
      if (build !== undefined) await BACKENDS[given.type].build?.(context, build);
      await pool.bringUp(given, defined === null);
      return pool;
    });
  }

  /** The volume of that key or path, in any active pool. @throws SpindleError VOLUME_NOT_FOUND */
  async findVolume(wanted: string): Promise<Volume> {
    for (const pool of this.all()) {
      if (this.#quietly(() => pool.active()) === null) continue;
      try {
        const volume = await pool.volume(wanted);
        // By name alone a volume is found in its own pool only.
        if (volume.facts.key === wanted || volume.facts.path === wanted) return volume;
      } catch (error) {
        if (!isSpindleError(error)) throw error;
      }
    }
    throw new SpindleError(
      'VOLUME_NOT_FOUND',
      `no active pool has a volume of the key or path '${wanted}'; to find it by name, say --pool`,
    );
  }

  /** Starts all pools that are marked for it and are not active. */
  async startAutostarted(): Promise<Started[]> {
    const started: Started[] = [];
    for (const pool of this.all()) {
      if (!isAutostarted(this.config, pool.name)) continue;
      try {
        if (pool.active() === null) await pool.start();
        started.push({ name: pool.name, error: null });
      } catch (error) {
        if (!isSpindleError(error)) throw error;
        if (error.code !== 'POOL_ACTIVE') started.push({ name: pool.name, error });
      }
    }
    return started;
  }

  /** Finds what pools of a kind could be made of. @throws SpindleError UNSUPPORTED, BAD_OPTION, TOOL_MISSING, TOOL_FAILED */
  sources(type: PoolType, asked: Discovery = {}): Promise<Partial<PoolSource>[]> {
    const discover = DISCOVERIES[type];
    if (discover === undefined)
      throw new SpindleError('UNSUPPORTED', `sources of pools of type '${type}' cannot be searched for`);
    return discover(asked);
  }

  /** Lets images of volumes refer to what lies in active pools, and to nothing else. */
  gate(): Gate {
    const folders = this.all().flatMap((pool) => this.#quietly(() => pool.active())?.pool.target.path ?? []);
    return poolGate(folders);
  }

  /** What a file is; null where it cannot be told. */
  probe(path: string): Promise<VolumeFacts | null> {
    return Promise.resolve(probeFile(path, ''));
  }

  /** Forgets that a pool is active, whatever its file says: for one that cannot be read. */
  forget(name: string): Promise<void> {
    return removeState(this.home, checkPoolName(name));
  }

  #definitions(): PoolDefinition[] {
    return loadAll(this.config, this.#onBad);
  }

  /** All definitions and active pools that a new one may stand against. */
  #others(pool: PoolDefinition): PoolDefinition[] {
    const active = stateNames(this.home).flatMap(
      (name) => this.#quietly(() => this.activeOf(name))?.pool ?? [],
    );
    const defined = this.#definitions();
    return [
      ...defined,
      ...active.filter(({ name }) => name === pool.name || !defined.some((one) => one.name === name)),
    ];
  }

  #quietly<T>(look: () => T): T | null {
    try {
      return look();
    } catch (error) {
      if (!isSpindleError(error)) throw error;
      this.#onBad(error);
      return null;
    }
  }

  #changing<T>(name: string, work: () => Promise<T>): Promise<T> {
    if (this.readOnly) throw new SpindleError('READ_ONLY', 'what libvirt has is looked at only');
    const busy = 'another command changes what pools there are; try again when it is done';
    return withLock(
      storeLock(this.home),
      'exclusive',
      busy,
      () => withLock(poolLock(this.home, name), 'exclusive', busy, work, this.patience),
      this.patience,
    );
  }
}
