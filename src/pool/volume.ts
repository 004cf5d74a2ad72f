import type { AllocationPolicy } from '../core/allocation.ts';
import { SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import { allocate, type Allocated } from '../op/allocate.ts';
import { downloadVolume, uploadVolume, wipeVolume, type TransferOptions } from './content.ts';
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

  /** Removes it, and what it holds. @throws SpindleError UNSUPPORTED, PERMISSION, IO */
  delete(): Promise<void> {
    return this.pool.changing('delete volumes of', async (context, backend) => {
      if (backend.deleteVolume === undefined) throw this.#cannot('delete');
      await backend.deleteVolume(context, this.facts);
    });
  }

  /**
   * Gives it another capacity; the new one in bytes.
   * @throws SpindleError BAD_OPTION (smaller without `shrink`, or than what is allocated), UNSUPPORTED, OVERCOMMIT,
   * NO_SPACE, IN_USE
   */
  resize(capacity: number, options: VolumeResize = {}): Promise<number> {
    const { delta = false, shrink = false, allocate: whole = false } = options;
    return this.pool.changing('resize volumes of', async (context, backend) => {
      if (backend.resizeVolume === undefined) throw this.#cannot('resize');
      const facts = (await backend.volume(context, this.name)) ?? this.facts;
      const wanted = delta ? facts.capacity + (shrink ? -capacity : capacity) : capacity;
      const bad = (why: string): SpindleError =>
        new SpindleError('BAD_OPTION', `volume '${this.name}': ${why}`);
      if (wanted <= 0) throw bad('the new capacity must be larger than zero');
      if (wanted < facts.capacity && !shrink)
        throw bad(
          `its capacity is ${String(facts.capacity)}; to make it smaller, which loses what is cut off, use --shrink`,
        );
      if (wanted < facts.allocation)
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

  /** Writes a local file into it; the bytes. @throws SpindleError as uploadVolume */
  upload(path: string, options: TransferOptions = {}): Promise<number> {
    return this.pool.working('write to volumes of', () => uploadVolume(this.facts, path, options));
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

  #cannot(what: string): SpindleError {
    return new SpindleError('UNSUPPORTED', `pools of type ${this.pool.type} cannot ${what} volumes`);
  }
}
