import { createHash } from 'node:crypto';
import { expect } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { checkRange, ReadOnlyStorage, type Storage } from '../../src/core/storage.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Gate } from '../../src/format/gate.ts';
import type { Image } from '../../src/format/image.ts';
import { openImage } from '../../src/format/open.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { findSnapshot } from '../../src/format/qcow2/driver.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import { Layer } from '../../src/layer/layer.ts';
import { trace, type TraceLayer } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { applyStep, Model, patternOf, randomStep, type Step } from './model.ts';
import { changes, cutFiles } from './power-cut.ts';
import { Random } from './random.ts';
import { minimalCase, shrink } from './shrink.ts';

const SECTOR = 512;

/** The backing file of images that have one; longer than most of them. */
export const BASE = new Uint8Array(300 * 1024).fill(0xb5);

/** How the grown part of a disk is allocated. */
export type GrowMode = 'off' | 'metadata' | 'falloc' | 'full';

/** What can be done to an image besides {@link Step}. Sizes in bytes. */
export type WholeStep =
  | { readonly do: 'compress'; readonly at: number; readonly length: number; readonly seed: number }
  | { readonly do: 'snapshot' }
  | { readonly do: 'apply' | 'delete'; readonly id: string }
  | { readonly do: 'resize'; readonly size: number; readonly mode: GrowMode };

/** Everything that the guest and the snapshots held when something had just become durable. */
export interface Moment {
  /** Calls to the file until then. */
  readonly records: number;
  readonly bytes: Uint8Array;
  /** The disks that the snapshots hold, by id. */
  readonly snapshots: ReadonlyMap<string, Uint8Array>;
  /** Sectors that later steps touched: they may be as before, as written, or between. */
  readonly touched: Set<number>;
  /** Sectors that a shrink under way cuts off: as before, or zeroes. */
  readonly cut: Set<number>;
}

/** The gate that opens {@link BASE} whatever the name is. */
export const baseGate: Gate = () =>
  Promise.resolve({ storage: MemoryStorage.from(BASE, { readOnly: true }), name: 'base', id: 'base' });

async function openBase(options: Partial<Qcow2CreateOptions>): Promise<Image | null> {
  if (options.backing === undefined || options.backing === null) return null;
  return openImage(MemoryStorage.from(BASE, { readOnly: true }), { format: 'raw', codec: nodeCodec });
}

/** A file in memory: space can be reserved in it, which changes its length at most, and it stays when it is closed. */
export class MemoryFile extends Layer {
  async reserve(at: number, length: number, keepSize = false): Promise<void> {
    // A request like others, that can fail.
    await this.write(new Uint8Array(0), 0);
    if (!keepSize && at + length > this.size) await this.resize(at + length);
  }

  async writePhysicalZeroes(at: number, length: number): Promise<void> {
    if (at + length > this.size) await this.resize(at + length);
    await this.write(new Uint8Array(length), at);
  }

  override close(): Promise<void> {
    return Promise.resolve();
  }
}

/** How {@link Recorder.make} goes about it. */
export interface RecorderOptions {
  readonly size: number;
  readonly brokenOrder?: boolean;
  /** Puts a layer between the image and the recorded file. */
  readonly between?: (storage: Storage) => Storage;
}

/** Works on an image in memory, keeps every call that reaches its file, and what was promised when. */
export class Recorder {
  readonly options: Partial<Qcow2CreateOptions>;
  readonly storage: TraceLayer;
  readonly memory: MemoryStorage;
  readonly image: DiskImage;
  readonly driver: Qcow2WriteDriver;
  original: Uint8Array;
  model: Model;
  snapshots = new Map<string, Uint8Array>();
  moments: Moment[] = [];
  #names = 0;

  private constructor(
    options: Partial<Qcow2CreateOptions>,
    memory: MemoryStorage,
    storage: TraceLayer,
    driver: Qcow2WriteDriver,
    backing: Image | null,
    model: Model,
  ) {
    this.options = options;
    this.memory = memory;
    this.storage = storage;
    this.driver = driver;
    this.image = new DiskImage(driver, new MemoryFile(storage), backing);
    this.model = model;
    this.original = memory.toBytes();
  }

  /** A new image. */
  static async make(options: Partial<Qcow2CreateOptions>, how: RecorderOptions): Promise<Recorder> {
    const memory = new MemoryStorage();
    await createQcow2(memory, { ...QCOW2_DEFAULTS, ...options, size: how.size });
    const recorder = await Recorder.#open(options, memory, new Uint8Array(how.size), how);
    await recorder.image.read(recorder.model.bytes, 0);
    recorder.startHere();
    return recorder;
  }

  /** Another one on a copy of the file of this one, in which all is durable. */
  async again(between?: RecorderOptions['between']): Promise<Recorder> {
    const memory = MemoryStorage.from(this.memory.toBytes());
    const how = between === undefined ? {} : { between };
    const recorder = await Recorder.#open(this.options, memory, this.model.bytes.slice(), how);
    recorder.snapshots = new Map(this.snapshots);
    recorder.#names = this.#names;
    recorder.startHere();
    return recorder;
  }

  static async #open(
    options: Partial<Qcow2CreateOptions>,
    memory: MemoryStorage,
    bytes: Uint8Array,
    how: Omit<RecorderOptions, 'size'>,
  ): Promise<Recorder> {
    const storage = trace(memory, { keepBytes: true });
    const backing = await openBase(options);
    const used = how.between?.(storage) ?? new MemoryFile(storage);
    const driver = await Qcow2WriteDriver.open(used, await readMetadata(used, 'data'), null, nodeCodec, {
      backed: backing !== null,
      // One L2 table at a time.
      ...(options.refcountBits === 64 ? { atOnce: 0 } : {}),
      ...(how.brokenOrder === undefined ? {} : { brokenOrder: how.brokenOrder }),
    });
    return new Recorder(options, memory, storage, driver, backing, new Model(bytes));
  }

  /** After a step that failed: what it and others since the last moment touched is what the image says. */
  async adopt(): Promise<void> {
    const found = new Uint8Array(this.image.size);
    await this.image.read(found, 0);
    const last = this.moments[this.moments.length - 1];
    for (const sector of [...(last?.touched ?? []), ...(last?.cut ?? [])]) {
      const at = sector * SECTOR;
      if (at < this.model.size) this.model.bytes.set(found.subarray(at, at + SECTOR), at);
    }
  }

  /** Forgets what was recorded: the file as it is now is the original. Call it when all is durable. */
  startHere(): void {
    this.storage.take();
    this.original = this.memory.toBytes();
    this.moments = [];
    this.#promise();
  }

  #promise(): void {
    this.moments.push({
      records: this.storage.records.length,
      bytes: this.model.bytes.slice(),
      snapshots: new Map(this.snapshots),
      touched: new Set(),
      cut: new Set(),
    });
  }

  #touch(at: number, length: number): void {
    const last = this.moments[this.moments.length - 1];
    for (let sector = at / SECTOR; sector < (at + length) / SECTOR; sector++) last?.touched.add(sector);
  }

  /** Any step that is possible now. */
  random(random: Random, mix: { readonly snapshots: number; readonly resize: number }): Step | WholeStep {
    const { clusterSize } = this.driver.metadata.geometry;
    const dice = random.u32() / 2 ** 32;
    const ids = [...this.snapshots.keys()];
    if (dice < mix.snapshots) {
      if (ids.length === 0 || random.chance(0.4)) return { do: 'snapshot' };
      return { do: random.pick(['apply', 'delete'] as const), id: random.pick(ids) };
    }
    if (dice < mix.snapshots + mix.resize) {
      const size = random.between(1, Math.min(600, (clusterSize * 24) / SECTOR)) * SECTOR;
      const mode =
        size > this.model.size ? random.pick(['off', 'metadata', 'falloc', 'full'] as const) : 'off';
      return { do: 'resize', size, mode };
    }
    const { size } = this.model;
    if (random.chance(0.1) && size >= clusterSize) {
      const at = random.below(Math.floor(size / clusterSize)) * clusterSize;
      const most = Math.floor((size - at) / clusterSize);
      const length = random.between(1, Math.min(3, most)) * clusterSize;
      return { do: 'compress', at, length, seed: random.u32() };
    }
    return randomStep(random, size, clusterSize);
  }

  /** Does a step; what the format refuses (too narrow refcounts, version 2) changes nothing. False: it was refused. */
  async do(step: Step | WholeStep): Promise<boolean> {
    try {
      await this.#do(step);
      return true;
    } catch (error) {
      const narrow = (this.options.refcountBits ?? 16) <= 4 && isSpindleError(error, 'LIMIT');
      const version2 = this.options.version === 2 && isSpindleError(error, 'UNSUPPORTED');
      if (!narrow && !version2) throw error;
      return false;
    }
  }

  async #do(step: Step | WholeStep): Promise<void> {
    const { image, model } = this;
    switch (step.do) {
      case 'snapshot': {
        const name = `s${String(this.#names++)}`;
        const date = new Date(1_700_000_000_000);
        const id = await image.alone(() =>
          this.driver.changeSnapshots((whole) => createSnapshot(whole, { name, date })),
        );
        this.snapshots.set(id, model.bytes.slice());
        this.#promise();
        return;
      }
      case 'apply':
      case 'delete': {
        const found = findSnapshot(this.driver.metadata.snapshots, step.id);
        const work = step.do === 'apply' ? applySnapshot : deleteSnapshot;
        await image.alone(() => this.driver.changeSnapshots((whole) => work(whole, found)));
        if (step.do === 'apply') this.model = new Model((this.snapshots.get(step.id) ?? model.bytes).slice());
        else this.snapshots.delete(step.id);
        this.#promise();
        return;
      }
      case 'resize': {
        const last = this.moments[this.moments.length - 1];
        for (let sector = step.size / SECTOR; sector < model.size / SECTOR; sector++) last?.cut.add(sector);
        await image.resize(step.size, { preallocation: step.mode });
        const bytes = new Uint8Array(step.size);
        bytes.set(model.bytes.subarray(0, step.size));
        this.model = new Model(bytes);
        this.#promise();
        return;
      }
      case 'compress': {
        this.#touch(step.at, step.length);
        const bytes = patternOf(step.seed, step.length).fill(step.seed & 0xff, step.length / 4);
        await image.writeCompressed(bytes, step.at);
        model.bytes.set(bytes, step.at);
        return;
      }
      default:
        if ('at' in step && step.do !== 'read') this.#touch(step.at, step.length);
        await applyStep(image, model, step);
        if (step.do === 'flush' || step.do === 'reopen') this.#promise();
    }
  }

  /** Closes the image; all is durable then. */
  async close(): Promise<void> {
    await this.image.close();
    this.#promise();
  }

  /** What may be in a file that the power cut after `count` calls left. */
  possible(count: number): Moment[] {
    const index = this.moments.findLastIndex(({ records }) => records <= count);
    return this.moments.slice(index, index + 2);
  }
}

/** Random work on a new image, all of which follows from a seed. */
export interface RecordedWork {
  readonly options: Partial<Qcow2CreateOptions>;
  readonly seed: number;
  readonly steps: number;
  readonly mix: { readonly snapshots: number; readonly resize: number };
  readonly brokenOrder?: boolean;
}

/** What is possible of a list of steps, when some of those before may be missing. */
function isPossible(recorder: Recorder, step: Step | WholeStep): boolean {
  if (step.do === 'apply' || step.do === 'delete') return recorder.snapshots.has(step.id);
  return !('at' in step) || step.at + step.length <= recorder.model.size;
}

/** Does the work, or only `some` steps of it; `done` gets what was done. */
export async function recordWork(
  work: RecordedWork,
  done: (Step | WholeStep)[],
  some?: readonly (Step | WholeStep)[],
): Promise<Recorder> {
  const random = new Random(work.seed);
  const size = random.between(40, 500) * SECTOR;
  const { brokenOrder = false } = work;
  const recorder = await Recorder.make(work.options, { size, brokenOrder });
  for (let i = 0; i < (some?.length ?? work.steps); i++) {
    const step = some?.[i] ?? recorder.random(random, work.mix);
    if (!isPossible(recorder, step)) continue;
    done.push(step);
    await recorder.do(step);
  }
  await recorder.close();
  return recorder;
}

/** Cuts the power everywhere in random work. The error of work that fails has the few steps that do it. */
export async function expectSurvival(
  work: RecordedWork,
  seed: number,
  look?: (remains: Remains) => Promise<void>,
): Promise<void> {
  const done: (Step | WholeStep)[] = [];
  const failure = async (some?: readonly (Step | WholeStep)[]): Promise<string | null> => {
    try {
      const recorder = await recordWork(work, some === undefined ? done : [], some);
      return await firstFailure(recorder, new Random(work.seed), some === undefined ? look : undefined);
    } catch (error) {
      return String(error);
    }
  };
  const wrong = await failure();
  if (wrong === null) return;
  const few = await shrink(done, async (some) => (await failure(some)) !== null, 150);
  throw minimalCase(JSON.stringify(work), seed, few, done.length, wrong);
}

/** A disk and its snapshots, as they were read. */
export interface Seen {
  readonly bytes: Uint8Array;
  readonly snapshots: ReadonlyMap<string, Uint8Array>;
}

/** Reads from an array without a copy of it. */
class ArrayStorage extends ReadOnlyStorage {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    super();
    this.#bytes = bytes;
  }

  get size(): number {
    return this.#bytes.length;
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- a failure is a rejection, never a throw
  async read(into: Uint8Array, at: number): Promise<void> {
    checkRange(this.size, at, into.length);
    into.set(this.#bytes.subarray(at, at + into.length));
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Reads the disk and all snapshots of an image. */
export async function readSeen(file: Uint8Array): Promise<Seen> {
  const open = (snapshot?: string): Promise<Image> =>
    openImage(new ArrayStorage(file), { format: 'qcow2', codec: nodeCodec, gate: baseGate, snapshot });
  const whole = async (image: Image): Promise<Uint8Array> => {
    const bytes = new Uint8Array(image.size);
    await image.read(bytes, 0);
    await image.close();
    return bytes;
  };
  const snapshots = new Map<string, Uint8Array>();
  for (const { id } of (await readMetadata(new ArrayStorage(file), 'data')).snapshots)
    snapshots.set(id, await whole(await open(id)));
  return { bytes: await whole(await open()), snapshots };
}

const equal = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** What of a moment is not in what was seen; null when all is there. */
export function missing(seen: Seen, moment: Moment): string | null {
  if (seen.bytes.length !== moment.bytes.length) return `the disk has ${String(seen.bytes.length)} bytes`;
  const ids = [...seen.snapshots.keys()].join();
  if (ids !== [...moment.snapshots.keys()].join()) return `the snapshots are ${ids}`;
  for (let sector = 0; sector < seen.bytes.length / SECTOR; sector++) {
    if (moment.touched.has(sector)) continue;
    const found = seen.bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR);
    if (equal(found, moment.bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR))) continue;
    if (moment.cut.has(sector) && found.every((byte) => byte === 0)) continue;
    return `sector ${String(sector)} lost what was flushed`;
  }
  for (const [id, bytes] of moment.snapshots) {
    const found = seen.snapshots.get(id);
    if (found === undefined || !equal(found, bytes)) return `snapshot ${id} changed`;
  }
  return null;
}

/** What is wrong with a file that a power cut left, or null: check finds leaks at most, and one of the moments is all there. */
export async function judge(file: Uint8Array, possible: readonly Moment[]): Promise<string | null> {
  const storage = new ArrayStorage(file);
  const found = await checkImage(storage, await readMetadata(storage, 'check'));
  if (found.corruptions > 0 || found.checkErrors > 0) return JSON.stringify(found.problems.slice(0, 3));
  let seen: Seen;
  try {
    seen = await readSeen(file);
  } catch (error) {
    return `it cannot be read: ${String(error)}`;
  }
  const wrong = possible.map((moment) => missing(seen, moment));
  return wrong.includes(null) ? null : wrong.join('; or ');
}

/** A file that a power cut left, and what it may hold. */
export interface Remains {
  readonly count: number;
  readonly file: Uint8Array;
  readonly possible: readonly Moment[];
}

/** All files that a power cut at any call may leave: as they came, only what was flushed, and `samples` random mixtures. */
export function* remains(recorder: Recorder, random: Random, samples: number): Generator<Remains> {
  const { records } = recorder.storage;
  for (let count = 0; count <= records.length; count++) {
    const last = records[count - 1];
    // What reads changes nothing of what a cut leaves.
    if (last !== undefined && last.operation !== 'flush' && !changes(last)) continue;
    const possible = recorder.possible(count);
    for (const file of cutFiles(recorder.original, records, count, random, samples))
      yield { count, file, possible };
  }
}

/** The first thing that goes wrong when the power is cut at any call, or null. `look` may look closer at each file. */
export async function firstFailure(
  recorder: Recorder,
  random: Random,
  look?: (remains: Remains) => Promise<void>,
): Promise<string | null> {
  const { length } = recorder.storage.records;
  const known = new Set<string>();
  for (const one of remains(recorder, random, 2)) {
    // Many cuts leave the same.
    const which = String(recorder.moments.indexOf(one.possible[0]!));
    const key = `${which} ${createHash('sha1').update(one.file).digest('hex')}`;
    if (known.has(key)) continue;
    known.add(key);
    const wrong = await judge(one.file, one.possible);
    if (wrong !== null) return `after ${String(one.count)} of ${String(length)} calls: ${wrong}`;
    await look?.(one);
  }
  return null;
}

/** Opens a file that a power cut left for writing, and works on it: it must stay as sound as it was. */
export async function useAgain(file: Uint8Array, random: Random, steps = 6): Promise<void> {
  const memory = MemoryStorage.from(file);
  const before = await readSeen(file);
  const kept = new MemoryFile(memory);
  const image = await openImage(kept, { format: 'qcow2', codec: nodeCodec, gate: baseGate, write: true });
  const model = new Model(before.bytes.slice());
  const { clusterSize } = (await readMetadata(memory, 'data')).geometry;
  for (let i = 0; i < steps && model.size > 0; i++)
    await applyStep(image, model, randomStep(random, model.size, clusterSize));
  await image.close();
  const result = memory.toBytes();
  const moment = { records: 0, touched: new Set<number>(), cut: new Set<number>() };
  const expected: Moment = { ...moment, bytes: model.bytes, snapshots: before.snapshots };
  expect(await judge(result, [expected]), 'after more work on it').toBeNull();
}
