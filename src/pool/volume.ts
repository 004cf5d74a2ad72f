import type { AllocationPolicy } from '../core/allocation.ts';
import { SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import { allocate, type Allocated } from '../op/allocate.ts';
import { downloadVolume, uploadVolume, wipeVolume, type TransferOptions } from './content.ts';
import type { Backend, Context } from './backend.ts';
import { refuseLink } from './backend/files.ts';
import type { Pool } from './pool.ts';
import { probeFile } from './probe.ts';
import { writeVolume, type VolumeFacts } from './volume-definition.ts';

/** How a volume is resized. */
export interface VolumeResize {
  /** `capacity` is added; with `shrink` taken away. */
  readonly delta?: boolean | undefined;
  readonly shrink?: boolean | undefined;
  /** Reserve all of the new capacity (raw). */
  readonly allocate?: boolean | undefined;
  /** Fail where the pool would promise more than so many times its capacity. */
  readonly maxOvercommit?: number | undefined;
  /** Told what there is to say about it. */
  onWarning?(message: string): void;
}

/** How a file is written into a volume. */
export interface VolumeUpload extends TransferOptions {
  /** Fail where the pool would promise more than so many times its capacity. */
  readonly maxOvercommit?: number | undefined;
  /** Told what there is to say about it. */
  onWarning?(message: string): void;
}

/** A volume of an active pool, as it was when it was looked up. */
export class Volume {
  readonly pool: Pool;
  readonly facts: VolumeFacts;

  constructor(pool: Pool, facts: VolumeFacts) {
    this.pool = pool;
    this.facts = facts;
  }

  /** Its name in the pool. */
  get name(): string {
    return this.facts.name;
  }

  /** libvirt's XML of it. */
  xml(): string {
    const { backing } = this.facts;
    const below = backing === undefined || backing.path.includes(':') ? null : probeFile(backing.path, '');
    return writeVolume(this.facts, below ?? undefined);
  }

  /** Removes it, and what it holds. @throws SpindleError VOLUME_NOT_FOUND, UNSUPPORTED, PERMISSION, IO */
  delete(): Promise<void> {
    return this.pool.changing('delete volumes of', async (context, backend) => {
      if (backend.deleteVolume === undefined) throw this.#cannot('delete');
      await backend.deleteVolume(context, await this.#now(context, backend));
    });
  }

  /**
   * Gives it another capacity; the new one in bytes.
   * @throws SpindleError BAD_OPTION (smaller without `shrink`, or than what is allocated), UNSUPPORTED, OVERCOMMIT,
   * NO_SPACE, IN_USE, VOLUME_NOT_FOUND
   */
  resize(capacity: number, options: VolumeResize = {}): Promise<number> {
    const { delta = false, shrink = false, allocate: whole = false } = options;
    return this.pool.changing('resize volumes of', async (context, backend) => {
      if (backend.resizeVolume === undefined) throw this.#cannot('resize');
      const facts = await this.#now(context, backend);
      const wanted = delta ? facts.capacity + (shrink ? -capacity : capacity) : capacity;
      const bad = (why: string): SpindleError =>
        new SpindleError('BAD_OPTION', `volume '${this.name}': ${why}`);
      if (wanted <= 0) throw bad('the new capacity must be larger than zero');
      if (wanted < facts.capacity && !shrink)
        throw bad(
          `its capacity is ${String(facts.capacity)}; to make it smaller, which loses what is cut off, use --shrink`,
        );
      // Of an image more may be allocated than its disk has: tables, too.
      if (wanted < facts.capacity && wanted < facts.allocation)
        throw bad(`${String(facts.allocation)} bytes of it are allocated; it cannot shrink below them`);
      if (wanted > facts.capacity && (!whole || options.maxOvercommit !== undefined))
        await this.pool.checkPromise(this.name, wanted - facts.capacity, options);
      const gate = this.pool.pools.gate();
      await backend.resizeVolume(context, facts, { capacity: wanted, shrink, allocate: whole, gate });
      return wanted;
    });
  }

  /** Writes over all that it holds. @throws SpindleError as wipeVolume */
  wipe(algorithm = 'zero', working: Working = {}): Promise<void> {
    return this.pool.working('wipe volumes of', () => wipeVolume(this.facts, algorithm, working));
  }

  /**
   * Writes a local file into it; the bytes. What it then promises more is looked at as for {@link resize}.
   * @throws SpindleError OVERCOMMIT, with nothing written; VOLUME_NOT_FOUND, and as uploadVolume
   */
  upload(path: string, options: VolumeUpload = {}): Promise<number> {
    return this.pool.working('write to volumes of', () =>
      uploadVolume(this.facts, path, options, (capacity, work) =>
        this.pool.changing('write to volumes of', async (context, backend) => {
          const more = capacity - (await this.#now(context, backend)).capacity;
          if (more > 0) await this.pool.checkPromise(this.name, more, options);
          await work();
        }),
      ),
    );
  }

  /** Writes a part of it to a local file; the bytes. @throws SpindleError as downloadVolume */
  download(path: string, options: TransferOptions = {}): Promise<number> {
    return downloadVolume(this.facts, path, options);
  }

  /** Makes it thin or thick where it is. @throws SpindleError as allocate */
  allocate(policy: AllocationPolicy, working: Working = {}): Promise<Allocated> {
    refuseLink(this.facts);
    const { path, format, type } = this.facts;
    const gate = this.pool.pools.gate();
    return this.pool.working('change volumes of', () =>
      allocate(path, { ...working, policy, format, gate, noFollow: type === 'file' }),
    );
  }

  /** What is there now, under the lock of the pool. @throws SpindleError VOLUME_NOT_FOUND when another command removed it */
  async #now(context: Context, backend: Backend): Promise<VolumeFacts> {
    const facts = await backend.volume(context, this.name);
    if (facts !== null) return facts;
    throw new SpindleError('VOLUME_NOT_FOUND', `volume '${this.name}' is not there any more`);
  }

  #cannot(what: string): SpindleError {
    return new SpindleError('UNSUPPORTED', `pools of type ${this.pool.type} cannot ${what} volumes`);
  }
}
