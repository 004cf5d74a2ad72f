import { readdirSync, rmSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { stopIfAborted } from '../../core/working.ts';
import { checkFile } from '../../op/check-file.ts';
import { openFile } from '../../storage/file.ts';
import { mountOf } from '../../storage/mount.ts';
import { seeded, seedOf, shuffled } from '../random.ts';
import { DEFAULT_SUBJECTS, makeImage, subjectsOf, type Subject } from '../subject.ts';
import { takeAll } from './ballast.ts';
import { withStore, type Fresh, type StoreRequest } from './store.ts';
import { failureOf, UNIT, Volume, type Failure, type Kept } from './volume.ts';

/** What came of one kind of work on a store that runs out: how much was tried and done, and the first failure. */
export interface Outcome {
  readonly tried: number;
  readonly done: number;
  readonly failure: Failure | null;
}

/** What one policy did. */
export interface DrillRow {
  readonly subject: string;
  readonly format: Subject['format'];
  /** Bytes that were free, and that the volumes were to hold together. */
  readonly free: number;
  readonly promised: number;
  /** Volumes that were asked for and made. */
  readonly create: Outcome;
  /** Names of files that a failed creation left. */
  readonly left: readonly string[];
  /** Bytes of first writes over all volumes; `done` is what was accepted before the first failure of all. */
  readonly first: Outcome;
  /** Units; on a store that gives nothing any more: written blocks again, blocks under tables that are not there yet. */
  readonly rewrite: Outcome;
  readonly growth: Outcome;
  /** Rewrites of a thick-eager raw volume that shares the store. */
  readonly neighbour: Outcome;
  /** All that was accepted, read back from the store. */
  readonly kept: Kept;
  readonly neighbourKept: Kept;
  /** Sums over the qcow2 images; null: there is nothing to check. */
  readonly check: { readonly corruptions: number; readonly leaks: number; readonly errors: number } | null;
  /** Writes that had failed, asked again when there was room. */
  readonly after: Outcome;
}

/** Everything that a drill found. */
export interface Drill {
  readonly kind: 'spindle bench drill';
  readonly version: 1;
  readonly started: string;
  readonly seconds: number;
  readonly seed: number;
  /** A file system made for this, or a directory that was named. */
  readonly made: boolean;
  readonly fileSystem: string;
  readonly mountOptions: readonly string[];
  readonly kernel: string;
  /** Past the page cache. */
  readonly direct: boolean;
  /** Bytes. */
  readonly clusterSize: number;
  readonly rows: readonly DrillRow[];
}

/** What is drilled. The hook lets tests spoil it. */
export interface DrillOptions extends StoreRequest {
  readonly subjects?: readonly string[] | undefined;
  readonly seed?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onSubject?: (done: number, total: number, subject: string | undefined) => void;
  readonly beforeVerify?: ((folder: string, subject: Subject) => Promise<void>) | undefined;
}

const MIB = 1024 ** 2;

/** Volumes of a policy, and the part of the store that each may hold: more than there is. */
const VOLUMES = 4;
const PART = 0.4;

/** Part of a volume that first writes go to; what is behind it is for tables that must grow. */
const NEAR = 0.75;

/** Clusters of the images: so small that small disks have many tables. */
const CLUSTER = 4096;

/** Writes to a volume after which they are made durable, and blocks that are written again. */
const FLUSH_EVERY = 16;
const REWRITES = 24;

/** Bytes of the volume beside those that are drilled, and of a file that is removed to make room again. */
const NEIGHBOUR = 2 * MIB;
const SPARE = 6 * MIB;

/**
 * Promises more than a small store holds with each policy, writes until it is used up, and tells what failed when and
 * what is still there. The store is empty again afterwards, and gone where it was made for this.
 * @throws SpindleError as {@link withStore}; BAD_OPTION for subjects; ABORTED
 */
export async function drill(options: DrillOptions): Promise<Drill> {
  const { signal, onSubject } = options;
  const seed = options.seed ?? Math.floor(Math.random() * 2 ** 31);
  const subjects = drilled(options.subjects ?? [...DEFAULT_SUBJECTS, 'qcow2-metadata']);
  const started = new Date().toISOString();
  const begin = performance.now();
  return withStore(options, async (store) => {
    const rows: DrillRow[] = [];
    let direct = true;
    let mountOptions: readonly string[] = [];
    for (const [index, subject] of subjects.entries()) {
      onSubject?.(index, subjects.length, subject.id);
      try {
        stopIfAborted(signal);
        rows.push(
          await store.fresh(async (fresh) => {
            direct = await takesDirect(fresh.folder);
            mountOptions = mountOf(fresh.folder)?.options ?? [];
            return new Run(subject, fresh, { ...options, seed: seedOf(seed, subject.id), direct }).all();
          }),
        );
      } catch (error) {
        // A tool that was told to end fails in its own words.
        stopIfAborted(signal);
        throw error;
      }
    }
    onSubject?.(subjects.length, subjects.length, undefined);
    return {
      ...{ kind: 'spindle bench drill', version: 1, started, seconds: (performance.now() - begin) / 1000 },
      ...{ seed, made: store.isMade, fileSystem: store.fileSystem, mountOptions, kernel: release() },
      ...{ direct, clusterSize: CLUSTER, rows },
    };
  });
}

function drilled(names: readonly string[]): Subject[] {
  const subjects = subjectsOf(names).filter(({ control }) => !control);
  const overlay = subjects.find((subject) => subject.overlay);
  if (overlay !== undefined)
    throw new SpindleError('BAD_OPTION', `the drill has no backing files: leave ${overlay.id} out`);
  return subjects.map((subject) =>
    subject.format === 'qcow2' ? { clusterSize: CLUSTER, ...subject } : subject,
  );
}

async function takesDirect(folder: string): Promise<boolean> {
  const path = join(folder, 'probe');
  await makeImage(path, { id: '', format: 'raw', policy: 'thin', control: false, overlay: false }, MIB, '');
  try {
    await (await openFile(path, { write: true, direct: true })).close();
    return true;
  } catch (error) {
    if (isSpindleError(error, 'UNSUPPORTED')) return false;
    throw error;
  } finally {
    rmSync(path);
  }
}

/** The options, with what was found out. */
type RunOptions = DrillOptions & { readonly seed: number; readonly direct: boolean };

/** One policy on an empty store. */
class Run {
  readonly #subject: Subject;
  readonly #fresh: Fresh;
  readonly #options: RunOptions;
  readonly #volumes: Volume[] = [];
  readonly #size: number;
  readonly #random: () => number;

  constructor(subject: Subject, fresh: Fresh, options: RunOptions) {
    this.#subject = subject;
    this.#fresh = fresh;
    this.#options = options;
    this.#size = Math.max(Math.floor((fresh.free * PART) / MIB), 4) * MIB;
    this.#random = seeded(options.seed);
  }

  async all(): Promise<DrillRow> {
    const { folder, free, settle } = this.#fresh;
    const { beforeVerify, signal } = this.#options;
    const raw = { id: '', format: 'raw', policy: 'thick-eager', control: false, overlay: false } as const;
    const neighbour = this.#volume('neighbour.raw', 'raw');
    const spare = join(folder, 'spare.raw');
    await makeImage(neighbour.path, raw, NEIGHBOUR, '', signal);
    await makeImage(spare, raw, SPARE, '', signal);
    const every = Array.from({ length: NEIGHBOUR / UNIT }, (_, unit) => unit);
    try {
      await neighbour.open();
      const filled = await this.#each([neighbour], () => every);
      if (filled.failure !== null)
        throw new SpindleError('NO_SPACE', 'the store did not take the first 2 MiB of the drill', {
          path: folder,
        });
      const { create, left } = await this.#create();
      for (const volume of this.#volumes) await volume.open();
      const first = await this.#fill();
      const ballast = join(folder, 'ballast');
      takeAll(ballast);
      const rewrite = await this.#each(this.#volumes, (volume) =>
        shuffled(volume.written(), this.#random).slice(0, REWRITES),
      );
      const growth = await this.#each(this.#volumes, () => [
        Math.ceil((this.#size * NEAR) / UNIT),
        this.#size / UNIT - 1,
      ]);
      const shared = await this.#each([neighbour], () => every);
      await this.#close([...this.#volumes, neighbour]);
      await settle();
      await beforeVerify?.(folder, this.#subject);
      const kept = sum(await Promise.all(this.#volumes.map((volume) => volume.verify())));
      const neighbourKept = await neighbour.verify();
      const check = await this.#check();
      rmSync(ballast);
      rmSync(spare);
      await settle();
      const after = await this.#goOn();
      return {
        ...{ subject: this.#subject.id, format: this.#subject.format, free, promised: VOLUMES * this.#size },
        ...{ create, left, first, rewrite, growth, neighbour: shared, kept, neighbourKept, check, after },
      };
    } finally {
      await this.#close([...this.#volumes, neighbour]);
    }
  }

  #volume(name: string, format: string): Volume {
    const { folder } = this.#fresh;
    const { seed, direct } = this.#options;
    return new Volume(join(folder, name), format, { folder, seed, direct });
  }

  async #create(): Promise<Pick<DrillRow, 'create' | 'left'>> {
    const { folder } = this.#fresh;
    const { format } = this.#subject;
    let failure: Failure | null = null;
    const left = new Set<string>();
    for (let number = 1; number <= VOLUMES; number++) {
      const volume = this.#volume(`${String(number)}.${format}`, format);
      const before = new Set(readdirSync(folder));
      try {
        await makeImage(volume.path, this.#subject, this.#size, '', this.#options.signal);
        this.#volumes.push(volume);
      } catch (error) {
        failure ??= failureOf('create', error);
        for (const name of readdirSync(folder)) if (!before.has(name)) left.add(name);
      }
    }
    return { create: { tried: VOLUMES, done: this.#volumes.length, failure }, left: [...left] };
  }

  /** First writes to all volumes in turns, in an order by chance; a volume that failed is left alone. */
  async #fill(): Promise<Outcome> {
    const near = Math.ceil((this.#size * NEAR) / UNIT);
    const orders = this.#volumes.map(() =>
      shuffled(
        Array.from({ length: near }, (_, unit) => unit),
        this.#random,
      ),
    );
    let [done, failure]: [number, Failure | null] = [0, null];
    for (let turn = 0; turn < near; turn++) {
      for (const [at, volume] of this.#volumes.entries()) {
        stopIfAborted(this.#options.signal);
        const unit = orders[at]?.[turn];
        if (unit === undefined || volume.failed !== undefined) continue;
        let failed = await volume.write(unit);
        if (failed === null && (turn % FLUSH_EVERY === FLUSH_EVERY - 1 || turn === near - 1))
          failed = await volume.flush();
        if (failed !== null) {
          volume.failed = { unit, failure: failed };
          failure ??= failed;
        } else if (failure === null) done += UNIT;
      }
    }
    for (const volume of this.#volumes) failure ??= await volume.flush();
    return { tried: near * UNIT * this.#volumes.length, done, failure };
  }

  /** Writes units of volumes, each made durable, and goes on after failures. */
  async #each(volumes: readonly Volume[], units: (volume: Volume) => readonly number[]): Promise<Outcome> {
    let [tried, done, failure]: [number, number, Failure | null] = [0, 0, null];
    for (const volume of volumes) {
      for (const unit of units(volume)) {
        stopIfAborted(this.#options.signal);
        tried++;
        const failed = (await volume.write(unit)) ?? (await volume.flush());
        failure ??= failed;
        if (failed === null) done++;
      }
    }
    return { tried, done, failure };
  }

  async #check(): Promise<DrillRow['check']> {
    if (this.#subject.format !== 'qcow2') return null;
    let [corruptions, leaks, errors] = [0, 0, 0];
    for (const { path } of this.#volumes) {
      try {
        const found = await checkFile(path, { format: 'qcow2' });
        corruptions += found.corruptions;
        leaks += found.leaks;
        errors += found.checkErrors;
      } catch (error) {
        failureOf('open', error);
        errors++;
      }
    }
    return { corruptions, leaks, errors };
  }

  /** What failed is asked again, now that there is room for at least that. */
  async #goOn(): Promise<Outcome> {
    const stuck = this.#volumes.filter(({ failed }) => failed !== undefined);
    let [done, failure]: [number, Failure | null] = [0, null];
    for (const volume of stuck) {
      const failed =
        (await volume.open()) ??
        (await volume.write(volume.failed?.unit ?? 0)) ??
        (await volume.flush()) ??
        (await volume.close());
      failure ??= failed;
      if (failed === null && (await volume.verify()).lost === 0) done++;
    }
    return { tried: stuck.length, done, failure };
  }

  async #close(volumes: readonly Volume[]): Promise<void> {
    for (const volume of volumes) await volume.close();
  }
}

function sum(all: readonly Kept[]): Kept {
  return all.reduce((total, { units, lost }) => ({ units: total.units + units, lost: total.lost + lost }), {
    units: 0,
    lost: 0,
  });
}
