import type { AllocationPolicy } from '../core/allocation.ts';
import { isSpindleError, SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import type { Backend, BuildMode, Context } from './backend.ts';
import { BACKENDS } from './backends.ts';
import { writePool, type PoolDefinition, type PoolType, type PoolUsage } from './definition.ts';
import { withLock } from './lock.ts';
import { jobLock, poolLock, storeLock } from './locks.ts';
import { checkVolumeName } from './names.ts';
import { checkPromise, promisedBy, type Promised } from './overcommit.ts';
import type { Pools } from './pools.ts';
import { forecast, forgetSamples, readSamples, recordSample, type Forecast } from './samples.ts';
import { loadState, removeState, saveState, type ActivePool } from './state.ts';
import { isAutostarted, loadDefinition, removeDefinition, setAutostart } from './store.ts';
import type { VolumeDefinition, VolumeFacts } from './volume-definition.ts';
import { Volume } from './volume.ts';

/** What is known of a pool. */
export interface PoolInfo {
  readonly name: string;
  readonly uuid: string;
  readonly type: PoolType;
  readonly active: boolean;
  readonly persistent: boolean;
  readonly autostart: boolean;
  /** Only of an active pool. Bytes. */
  readonly usage: PoolUsage | null;
}

/** How a volume is made. */
export interface CreateVolumeOptions extends Working {
  readonly policy?: AllocationPolicy | undefined;
  readonly preallocateMetadata?: boolean | undefined;
  /** The most that the pool may promise, as a multiple of its capacity. */
  readonly maxOvercommit?: number | undefined;
  /** Share the blocks of the volume that is copied, or fail. */
  readonly reflink?: boolean | undefined;
  /** Told what is unwise. */
  onWarning?(message: string): void;
}

/** A pool that is defined, or active. What it is now is read at each call: other processes change it too. */
export class Pool {
  readonly pools: Pools;
  readonly name: string;
  readonly uuid: string;
  readonly type: PoolType;

  /** Use {@link Pools}, which finds and makes them. */
  constructor(pools: Pools, { name, uuid, type }: PoolDefinition) {
    this.pools = pools;
    this.name = name;
    this.uuid = uuid;
    this.type = type;
  }

  /** The definition that will count when the pool is started next; null for a transient pool. */
  definition(): PoolDefinition | null {
    return loadDefinition(this.pools.config, this.name);
  }

  /** What is active; null when the pool is not. */
  active(): ActivePool | null {
    return this.pools.activeOf(this.name);
  }

  /** All that is known of it; without `sizes` its usage is not asked for. @throws SpindleError POOL_GONE, TOOL_FAILED, TOOL_TIMEOUT for an active pool out of reach */
  async info({ sizes = true }: { sizes?: boolean } = {}): Promise<PoolInfo> {
    const [active, usage] = await this.#shared(async () => {
      const now = this.active();
      return [now, now === null || !sizes ? null : await this.#backend().usage(this.#context(now.pool))];
    });
    return {
      name: this.name,
      uuid: this.uuid,
      type: this.type,
      active: active !== null,
      persistent: this.definition() !== null,
      autostart: isAutostarted(this.pools.config, this.name),
      usage,
    };
  }

  /** libvirt's XML of it: as it is, or with `inactive` as it will be started next. */
  xml({ inactive = false }: { inactive?: boolean } = {}): Promise<string> {
    return this.#shared(async () => {
      const active = inactive ? null : this.active();
      if (active !== null) {
        const context = this.#context(active.pool);
        const usage = await this.#backend().usage(context);
        return writePool(active.pool, { usage, permissions: await this.#backend().permissions?.(context) });
      }
      const pool = this.definition() ?? this.active()?.pool;
      if (pool === undefined) throw this.#notFound();
      return writePool(pool);
    });
  }

  /** Prepares what the pool is made of. @throws SpindleError POOL_ACTIVE, and what the tools of its kind say */
  build(mode: BuildMode = 'plain'): Promise<void> {
    return this.#locked(async () => {
      this.#refuseActive('built');
      await this.#backend().build?.(this.#context(this.#needDefinition()), mode);
    });
  }

  /** Makes it active. What was begun is undone when it fails. @throws SpindleError POOL_ACTIVE, POOL_GONE, TOOL_FAILED... */
  start({ build }: { build?: BuildMode | undefined } = {}): Promise<void> {
    return this.#locked(async () => {
      this.#refuseActive('started');
      const pool = this.#needDefinition();
      if (build !== undefined) await this.#backend().build?.(this.#context(pool), build);
      await this.bringUp(pool, false);
    });
  }

  /** Starts a pool, under its lock. @internal */
  async bringUp(pool: PoolDefinition, transient: boolean): Promise<void> {
    const context = this.#context(pool);
    const backend = this.#backend();
    await backend.start(context);
    try {
      await backend.refresh(context);
      await saveState(this.pools.home, { pool, transient });
      await this.#sample(context);
    } catch (error) {
      await removeState(this.pools.home, this.name).catch(() => undefined);
      await backend.stop(context).catch(() => undefined);
      throw error;
    }
  }

  /** Makes it inactive; what it holds stays. @throws SpindleError POOL_INACTIVE, IN_USE (volumes are being made) */
  destroy(): Promise<void> {
    return this.#locked(async () => {
      const active = this.#needActive();
      await this.#idle(async () => {
        await removeState(this.pools.home, this.name);
        try {
          await this.#backend().stop(this.#context(active.pool));
        } catch (error) {
          // Busy, perhaps: it is as active as before.
          await saveState(this.pools.home, active);
          throw error;
        }
      });
    });
  }

  /**
   * Looks again at what is there, and removes what crashes left. A pool that cannot be reached becomes inactive.
   * @throws SpindleError POOL_INACTIVE, POOL_GONE, TOOL_FAILED, TOOL_TIMEOUT
   */
  refresh(): Promise<void> {
    return this.#locked(async () => {
      const context = this.#context(this.#needActive().pool);
      try {
        await this.#backend().refresh(context);
        await this.#sample(context, true);
      } catch (error) {
        await removeState(this.pools.home, this.name);
        await this.#backend()
          .stop(context)
          .catch(() => undefined);
        throw error;
      }
    });
  }

  /** Removes what the pool is made of: its directory, its volume group. @throws SpindleError POOL_ACTIVE, EXISTS (not empty) */
  delete(): Promise<void> {
    return this.#locked(async () => {
      this.#refuseActive('deleted');
      const backend = this.#backend();
      if (backend.delete === undefined)
        throw new SpindleError('UNSUPPORTED', `pools of type ${this.type} cannot be deleted, only undefined`);
      await backend.delete(this.#context(this.#needDefinition()));
    });
  }

  /** Forgets the definition. @throws SpindleError POOL_ACTIVE */
  undefine(): Promise<void> {
    return this.#locked(async () => {
      this.#refuseActive('undefined');
      this.#needDefinition();
      if (!(await removeDefinition(this.pools.config, this.name))) throw this.#notFound();
      await forgetSamples(this.pools.home, this.uuid);
    }, true);
  }

  /** Marks it to be started with the system, or takes the mark away. @throws SpindleError UNSUPPORTED for a transient pool */
  setAutostart(on: boolean): Promise<void> {
    return this.#locked(async () => {
      if (this.active()?.transient !== true) this.#needDefinition();
      else
        throw new SpindleError('UNSUPPORTED', `pool '${this.name}' has no definition that could be started`);
      await setAutostart(this.pools.config, this.name, on);
    }, true);
  }

  /** All volumes, by name. @throws SpindleError POOL_INACTIVE, POOL_GONE */
  volumes(): Promise<VolumeFacts[]> {
    return this.#reading((context, backend) => backend.volumes(context));
  }

  /** The volume of that name, key or path. @throws SpindleError VOLUME_NOT_FOUND, POOL_INACTIVE */
  async volume(wanted: string): Promise<Volume> {
    const facts = await this.#reading(async (context, backend) => {
      const named = await backend.volume(context, wanted);
      if (named !== null) return named;
      const prefix = `${context.pool.target.path}/`;
      if (wanted.startsWith(prefix)) return backend.volume(context, wanted.slice(prefix.length));
      return (
        (await backend.volumes(context)).find(({ key, path }) => key === wanted || path === wanted) ?? null
      );
    });
    if (facts !== null) return new Volume(this, facts);
    throw new SpindleError('VOLUME_NOT_FOUND', `pool '${this.name}' has no volume '${wanted}'`);
  }

  /** How much it has promised. Looks at all volumes. */
  async promised(usage: PoolUsage): Promise<Promised> {
    return promisedBy(await this.volumes(), usage);
  }

  /**
   * Makes a volume, of which nothing is seen before it is complete.
   * @throws SpindleError EXISTS, OVERCOMMIT, POOL_INACTIVE, UNSUPPORTED, NO_SPACE, ABORTED, and as create
   */
  createVolume(volume: VolumeDefinition, options: CreateVolumeOptions = {}): Promise<Volume> {
    return this.working('make volumes in', (context) => this.#create(context, volume, options));
  }

  /** {@link createVolume}, with the disk of another volume, and at least as large. */
  createVolumeFrom(
    volume: VolumeDefinition,
    source: Volume,
    options: CreateVolumeOptions = {},
  ): Promise<Volume> {
    const capacity = Math.max(volume.capacity ?? 0, source.facts.capacity);
    return this.working('make volumes in', (context) =>
      this.#create(context, { ...volume, capacity }, options, source),
    );
  }

  async #create(
    context: Context,
    volume: VolumeDefinition,
    options: CreateVolumeOptions,
    source?: Volume,
  ): Promise<Volume> {
    const backend = this.#backend();
    if (backend.createVolume === undefined)
      throw new SpindleError('UNSUPPORTED', `pools of type ${this.type} cannot make volumes`);
    checkVolumeName(volume.name);
    for (const size of [volume.capacity, volume.allocation])
      if (size !== undefined && (!Number.isSafeInteger(size) || size < 0))
        throw new SpindleError('BAD_SIZE', `${String(size)} bytes is no size of a volume`);
    const format = volume.format ?? 'raw';
    const known = format === 'raw' || format === 'qcow2';
    if (!known)
      throw new SpindleError('UNSUPPORTED', `spindle makes volumes of format raw and qcow2, not ${format}`);
    if (
      format === 'raw' &&
      (volume.backing !== undefined || options.preallocateMetadata === true) &&
      this.type !== 'logical'
    )
      throw new SpindleError(
        'BAD_OPTION',
        'raw volumes have neither a volume below them nor tables to make at once; use qcow2',
      );
    if (volume.backing !== undefined && options.preallocateMetadata === true)
      throw new SpindleError(
        'BAD_OPTION',
        'tables are not made at once for a volume with another one below it',
      );
    const backing = await this.#below(volume);
    const thick = options.policy !== undefined && options.policy !== 'thin';
    const all = options.policy === undefined && format === 'raw' && volume.allocation === undefined;
    const capacity =
      volume.capacity ??
      (backing === undefined ? 0 : ((await this.pools.probe(backing.path))?.capacity ?? 0));
    const { maxOvercommit } = options;
    if (!(thick || all) || maxOvercommit !== undefined)
      await this.checkPromise(volume.name, capacity, options);
    const from = source?.facts;
    await backend.createVolume(context, {
      volume,
      policy: options.policy,
      preallocateMetadata: options.preallocateMetadata,
      backing,
      source:
        from !== undefined
          ? { path: from.path, format: from.format ?? 'raw', reflink: options.reflink === true }
          : undefined,
      gate: this.pools.gate(),
      signal: options.signal,
      onProgress: options.onProgress,
      exclusively: (work) =>
        this.#locked(async () => {
          // Others may have promised something since.
          if (maxOvercommit !== undefined) await this.checkPromise(volume.name, capacity, { maxOvercommit });
          return work();
        }),
    });
    const made = await this.volume(volume.name);
    await this.#locked(() => this.#sample(context));
    return made;
  }

  /**
   * Whether the pool may promise so many bytes more to a volume; tells where it could not keep all of its promises.
   * @throws SpindleError OVERCOMMIT
   */
  async checkPromise(
    name: string,
    bytes: number,
    { maxOvercommit, onWarning }: Pick<CreateVolumeOptions, 'maxOvercommit' | 'onWarning'>,
  ): Promise<void> {
    const context = this.#context(this.#needActive().pool);
    const backend = this.#backend();
    const usage = await backend.usage(context);
    const now = promisedBy(await backend.volumes(context), usage);
    const warning = checkPromise(now, usage, bytes, name, maxOvercommit);
    if (warning !== undefined) onWarning?.(warning);
  }

  /** The volume below a new one: one of this pool by name, or one of any active pool by key or path. */
  async #below({ backing }: VolumeDefinition): Promise<{ path: string; format: string } | undefined> {
    if (backing === undefined) return undefined;
    const found = await this.volume(backing.path).catch((error: unknown) => {
      if (!isSpindleError(error, 'VOLUME_NOT_FOUND')) throw error;
      return this.pools.findVolume(backing.path);
    });
    const { path, format } = found.facts;
    return { path, format: backing.format ?? format ?? 'raw' };
  }

  /** Bytes of the guard reserve. */
  guard(): Promise<number> {
    return this.#reading(async (context, backend) => (await backend.guard?.(context)) ?? 0);
  }

  /** Makes a guard reserve of so many bytes in place of the one there is; 0 gives it back. @throws SpindleError NO_SPACE */
  setGuard(bytes: number): Promise<void> {
    return this.changing('keep a reserve in', async (context, backend) => {
      if (backend.setGuard === undefined)
        throw new SpindleError('UNSUPPORTED', `pools of type ${this.type} cannot keep a reserve`);
      await backend.setGuard(context, bytes);
    });
  }

  /** When it is full, as far as its past tells; how full it is now is recorded. */
  forecast(now = Date.now()): Promise<Forecast> {
    return this.changing('record', async (context, backend) => {
      const usage = await backend.usage(context);
      await recordSample(this.pools.home, this.uuid, usage, { time: now });
      return forecast(readSamples(this.pools.home, this.uuid), usage, now);
    });
  }

  /** A short change of an active pool, alone. @internal */
  changing<T>(what: string, work: (context: Context, backend: Backend) => Promise<T>): Promise<T> {
    return this.#locked(() => work(this.#context(this.#needActive(what).pool), this.#backend()));
  }

  /** Long work in an active pool, beside that of others; the pool cannot be stopped meanwhile. @internal */
  working<T>(what: string, work: (context: Context) => Promise<T>): Promise<T> {
    this.#refuseReadOnly();
    const busy = `pool '${this.name}' is being stopped or refreshed`;
    return withLock(jobLock(this.pools.home, this.name), 'shared', busy, () =>
      work(this.#context(this.#needActive(what).pool)),
    );
  }

  #reading<T>(work: (context: Context, backend: Backend) => Promise<T>): Promise<T> {
    return this.#shared(() => work(this.#context(this.#needActive().pool), this.#backend()));
  }

  /** A look at the pool, beside others who look; who changes it waits. */
  #shared<T>(work: () => Promise<T>): Promise<T> {
    const { home, patience, readOnly } = this.pools;
    if (readOnly) return work();
    const busy = `pool '${this.name}' is being changed by another command; try again when it is done`;
    return withLock(poolLock(home, this.name), 'shared', busy, work, patience);
  }

  #locked<T>(work: () => Promise<T>, definitions = false): Promise<T> {
    this.#refuseReadOnly();
    const { home, patience } = this.pools;
    const busy = `pool '${this.name}' is being changed by another command; try again when it is done`;
    const own = (): Promise<T> => withLock(poolLock(home, this.name), 'exclusive', busy, work, patience);
    if (!definitions) return own();
    return withLock(
      storeLock(home),
      'exclusive',
      'another command changes what pools there are',
      own,
      patience,
    );
  }

  #idle(work: () => Promise<void>): Promise<void> {
    const busy = `pool '${this.name}' cannot be stopped: volumes are being made or written in it`;
    return withLock(jobLock(this.pools.home, this.name), 'exclusive', busy, work, 0);
  }

  async #sample(context: Context, force = false): Promise<void> {
    const usage = await this.#backend().usage(context);
    await recordSample(this.pools.home, this.uuid, usage, { force });
  }

  #backend(): Backend {
    return BACKENDS[this.type];
  }

  #context(pool: PoolDefinition): Context {
    return { pool, home: this.pools.home };
  }

  #needDefinition(): PoolDefinition {
    const pool = this.definition();
    // Another one may have its name since: that is not what was asked for, nor perhaps of this kind.
    if (pool?.uuid !== this.uuid) throw this.#notFound();
    return pool;
  }

  #needActive(what?: string): ActivePool {
    const active = this.active();
    if (active?.pool.uuid === this.uuid) return active;
    this.#needDefinition();
    const why = what === undefined ? '' : `: start it to ${what} it`;
    throw new SpindleError('POOL_INACTIVE', `storage pool '${this.name}' is not active${why}`);
  }

  #refuseActive(what: string): void {
    if (loadState(this.pools.home, this.name) === null) return;
    const still = what === 'started' || what === 'built' ? 'already' : 'still';
    throw new SpindleError(
      'POOL_ACTIVE',
      `storage pool '${this.name}' is ${still} active, and cannot be ${what}`,
    );
  }

  #refuseReadOnly(): void {
    if (this.pools.readOnly)
      throw new SpindleError(
        'READ_ONLY',
        `pool '${this.name}' is libvirt's; take it over first (pool-define --libvirt)`,
      );
  }

  #notFound(): SpindleError {
    return new SpindleError('POOL_NOT_FOUND', `there is no storage pool '${this.name}'`);
  }
}
