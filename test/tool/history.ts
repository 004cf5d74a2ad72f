import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import { findSnapshot } from '../../src/format/qcow2/driver.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import { changeBitmap, type BitmapAction } from '../../src/op/bitmaps.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { openImageFile } from '../../src/op/open.ts';
import { describePoint, gridPoints, inParallel, qemuOptions, type GridPoint } from '../differential/grid.ts';
import { BitmapModel, listed, ourRanges, qemuRanges } from './bitmaps.ts';
import { applyStep, firstDifference, Model, patternOf, randomStep, type Step } from './model.ts';
import * as qemu from './qemu.ts';
import { Random } from './random.ts';
import { failing, minimalCase, shrink } from './shrink.ts';

/** How likely the rarer steps are. */
export interface Mix {
  readonly snapshots: number;
  readonly resize: number;
  /** Steps that qemu-img does on the image between ours. */
  readonly qemu: number;
  /** Changes of bitmaps, by us or by qemu; default none. */
  readonly bitmaps?: number;
  /** Compressed writes; default none. */
  readonly compress?: number;
}

/** One thing done to an image: a {@link Step}, or something with the whole of it. Sizes in bytes. */
export type Plan =
  | Step
  | {
      /** By us, or by qemu-img. */
      readonly do: 'snapshot' | 'qemu';
      readonly what: 'create' | 'apply' | 'delete';
      readonly name: string;
    }
  | {
      readonly do: 'resize';
      readonly size: number;
      readonly mode: 'off' | 'metadata' | 'falloc' | 'full';
    }
  | {
      /** By us, or by qemu-img. */
      readonly do: 'bitmap' | 'qemu-bitmap';
      readonly name: string;
      readonly actions: readonly BitmapAction[];
    }
  | {
      readonly do: 'compress';
      readonly at: number;
      readonly length: number;
      /** Of a pattern that does not compress; without one it does. */
      readonly seed?: number;
    };

interface Kept {
  readonly id: string;
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** An image with snapshots beside plain arrays that say what it must hold. */
export class History {
  readonly dir: string;
  readonly path: string;
  readonly point: GridPoint;
  readonly random: Random;
  image: Image;
  model: Model;
  snapshots: Kept[] = [];
  bitmaps: BitmapModel[] = [];
  /** Sectors that the disk has at most. */
  readonly most: number;
  /** What the guest's steps go through. */
  plant: (image: Image) => Image = (image) => image;
  #names = 0;

  private constructor(
    dir: string,
    path: string,
    point: GridPoint,
    random: Random,
    image: Image,
    model: Model,
    most: number,
  ) {
    this.most = most;
    this.dir = dir;
    this.path = path;
    this.point = point;
    this.random = random;
    this.image = image;
    this.model = model;
  }

  /** A new image made by qemu, some of it compressed, with a backing file that is shorter, longer or as long. */
  static async make(
    dir: string,
    name: string,
    point: GridPoint,
    random: Random,
    most = Math.min(4096, (point.clusterSize * 24) / 512),
  ): Promise<History> {
    const path = join(dir, `${name}.qcow2`);
    const size = random.between(16, most / 2) * 512;
    const base = join(dir, `${name}.base`);
    if (point.backing !== 'none') {
      const baseSize = random.pick([size, Math.max(512, size - 8704), size + 65536]);
      await qemu.create(base, baseSize, { format: point.backing });
      await qemu.fill(base, [{ do: 'write', at: 0, length: baseSize, pattern: 0x77 }], {
        format: point.backing,
      });
    }
    const backing = point.backing === 'none' ? {} : { backing: { path: base, format: point.backing } };
    const late = point.version === 3 && random.chance(0.3) ? { lazy_refcounts: 'on' } : {};
    await qemu.create(path, size, {
      format: 'qcow2',
      options: { ...qemuOptions(point), ...late },
      ...backing,
    });
    const steps: qemu.Fill[] = [];
    if (point.preallocation === 'off') {
      for (let at = 0; at < size; at += point.clusterSize) {
        const length = Math.min(point.clusterSize, size - at);
        if (random.chance(0.4)) steps.push({ do: 'compress', at, length, pattern: random.between(1, 255) });
      }
    }
    if (steps.length > 0) await qemu.fill(path, steps);
    const image = await openImageFile(path, { format: 'qcow2', write: true });
    return new History(dir, path, point, random, image, new Model(await readAll(image)), most);
  }

  /** A random step that is possible now. */
  next(mix: Mix): Plan {
    const { random, model, point, snapshots } = this;
    const dice = random.u32() / 2 ** 32;
    const change = (): 'create' | 'apply' | 'delete' =>
      snapshots.length === 0 || random.chance(0.4) ? 'create' : random.pick(['apply', 'delete'] as const);
    const named = (prefix: string, what: 'create' | 'apply' | 'delete'): string =>
      what === 'create' ? `${prefix}${String(this.#names++)}` : random.pick(snapshots).name;
    let bound = mix.snapshots;
    if (dice < bound) {
      const what = change();
      return { do: 'snapshot', what, name: named('s', what) };
    }
    if (dice < (bound += mix.resize)) {
      const size = random.chance(0.3)
        ? Math.max(512, model.size + random.pick([-512, 512, 1024, -1024, point.clusterSize]))
        : random.between(1, this.most) * 512;
      const mode = random.chance(0.3) ? random.pick(['metadata', 'falloc', 'full'] as const) : 'off';
      return { do: 'resize', size, mode };
    }
    if (dice < (bound += mix.qemu)) {
      const what = change();
      return { do: 'qemu', what, name: named('q', what) };
    }
    if (point.version === 3 && dice < (bound += mix.bitmaps ?? 0)) return this.#nextBitmap();
    if (dice < bound + (mix.compress ?? 0)) {
      const at = random.below(Math.ceil(model.size / point.clusterSize)) * point.clusterSize;
      const length = Math.min(model.size - at, point.clusterSize * random.between(1, 3));
      return { do: 'compress', at, length, ...(random.chance(0.3) && { seed: random.u32() }) };
    }
    return randomStep(random, Math.max(512, model.size), point.clusterSize);
  }

  #nextBitmap(): Plan {
    const { random, bitmaps } = this;
    const by = random.chance(0.3) ? 'qemu-bitmap' : 'bitmap';
    if (bitmaps.length === 0 || (bitmaps.length < 5 && random.chance(0.4))) {
      const granularity = random.pick([512, 1024, 4096, 16384, 65536, 1048576]);
      return { do: by, name: `b${String(this.#names++)}`, actions: [{ do: 'add', granularity }] };
    }
    const { name } = random.pick(bitmaps);
    const source = random.pick(bitmaps).name;
    const actions = Array.from({ length: random.between(1, 3) }, (): BitmapAction =>
      random.pick([
        { do: 'clear' },
        { do: 'disable' },
        { do: 'enable' },
        { do: 'merge', source },
        { do: 'merge', source },
      ] as const),
    );
    // One that cannot be done: then nothing is.
    if (random.chance(0.15))
      return { do: 'bitmap', name, actions: [...actions, { do: 'merge', source: 'none' }] };
    if (random.chance(0.15)) actions.push({ do: 'remove' });
    return { do: by, name, actions };
  }

  /** Does a step; one that is not possible, because others before it were left out, does nothing. */
  async run(plan: Plan): Promise<void> {
    const { model } = this;
    if ('at' in plan && plan.at + plan.length > model.size) return;
    switch (plan.do) {
      case 'snapshot':
        return this.#snapshotStep(plan.what, plan.name);
      case 'qemu':
        return this.#qemuStep(plan.what, plan.name);
      case 'resize':
        return this.#resizeStep(plan.size, plan.size > model.size ? plan.mode : 'off');
      case 'bitmap':
      case 'qemu-bitmap':
        return this.#reopen(() => this.#bitmapStep(plan.name, plan.actions, plan.do === 'qemu-bitmap'));
      case 'compress': {
        const { at, length, seed } = plan;
        const bytes = seed === undefined ? new Uint8Array(length).fill(0xc5) : patternOf(seed, length);
        await (this.image as DiskImage).writeCompressed(bytes, at);
        model.bytes.set(bytes, at);
        this.#mark(at, length);
        return;
      }
      default:
        await applyStep(this.plant(this.image), model, plan);
        if (plan.do !== 'read' && 'at' in plan) this.#mark(plan.at, plan.length);
        if (plan.do === 'reopen') await this.#reopen();
    }
  }

  async #reopen(between: () => Promise<void> = () => Promise.resolve()): Promise<void> {
    await this.image.close();
    await between();
    this.image = await openImageFile(this.path, { format: 'qcow2', write: true });
  }

  #mark(at: number, length: number): void {
    for (const bitmap of this.bitmaps) if (bitmap.enabled) bitmap.mark(at, length);
  }

  /** Changes a bitmap while the image is closed. */
  async #bitmapStep(name: string, actions: readonly BitmapAction[], byQemu: boolean): Promise<void> {
    const { path } = this;
    const known = (one: string): boolean => this.bitmaps.some((bitmap) => bitmap.name === one);
    const [first] = actions;
    if (first?.do === 'add' ? known(name) : !known(name)) return;
    if (actions.some((action) => action.do === 'merge' && !known(action.source))) {
      await expect(changeBitmap(path, name, actions)).rejects.toMatchObject({ code: 'BITMAP_NOT_FOUND' });
      return;
    }
    if (!byQemu) await changeBitmap(path, name, actions);
    else {
      const words = actions.flatMap((action) => {
        if (action.do === 'merge') return ['--merge', action.source];
        if (action.do === 'add') return ['--add', '-g', String(action.granularity)];
        return [`--${action.do}`];
      });
      await qemu.bitmap(path, name, words);
    }
    for (const action of actions) {
      const bitmap = this.bitmaps.find((one) => one.name === name);
      if (action.do === 'add')
        this.bitmaps.push(new BitmapModel(name, action.granularity ?? 65536, this.model.size));
      else if (action.do === 'remove') this.bitmaps = this.bitmaps.filter((one) => one !== bitmap);
      else if (action.do === 'clear') bitmap?.bits.fill(0);
      else if (action.do === 'merge') {
        const source = this.bitmaps.find((one) => one.name === action.source);
        if (source !== undefined) bitmap?.merge(source);
      } else if (bitmap !== undefined) bitmap.enabled = action.do === 'enable';
    }
  }

  async #snapshotStep(kind: 'create' | 'apply' | 'delete', name: string): Promise<void> {
    const { image } = this;
    const { driver } = image;
    if (!(image instanceof DiskImage) || !(driver instanceof Qcow2WriteDriver))
      throw new Error('not a writer');
    const kept = this.snapshots.find((one) => one.name === name);
    if (kept === undefined && kind !== 'create') return;
    const change = <T>(work: (driver: Qcow2WriteDriver) => Promise<T>): Promise<T> =>
      image.alone(() => work(driver));
    try {
      if (kept === undefined) {
        const id = await change((d) =>
          d.changeSnapshots((w) => createSnapshot(w, { name, date: new Date() })),
        );
        this.snapshots.push({ id, name, bytes: this.model.bytes.slice() });
      } else {
        const found = findSnapshot(driver.metadata.snapshots, kept.id);
        if (kind === 'apply') {
          await change((d) => d.changeSnapshots((w) => applySnapshot(w, found)));
          const before = this.model.bytes;
          this.model = new Model(kept.bytes.slice());
          await this.#adopt(before);
        } else {
          await change((d) => d.changeSnapshots((w) => deleteSnapshot(w, found)));
          this.snapshots = this.snapshots.filter((one) => one !== kept);
        }
      }
    } catch (error) {
      // Refcounts may be too narrow.
      if (!isSpindleError(error, 'LIMIT') || this.point.refcountBits > 8) throw error;
    }
    expect(image.size).toBe(this.model.size);
  }

  /**
   * After the disk has become another one: enabled bitmaps must have it in them where the two differ, and may have it
   * where the two lie in different places; disabled ones say what they said.
   */
  async #adopt(before: Uint8Array): Promise<void> {
    const { bytes } = this.model;
    await this.#reopen(async () => {
      for (const bitmap of this.bitmaps) {
        bitmap.resize(bytes.length);
        if (!bitmap.enabled) continue;
        const found = new BitmapModel('', bitmap.granularity, bytes.length);
        for (const range of (await ourRanges(this.path, bitmap.name)).split(' ')) {
          const [at, length] = range.split('+').map(Number);
          if (at !== undefined && length !== undefined) found.mark(at, length);
        }
        for (let at = 0; at < bytes.length; at += 512) {
          const sector = bytes.subarray(at, at + 512);
          if (at >= before.length || Buffer.compare(sector, before.subarray(at, at + 512)) !== 0)
            bitmap.mark(at, 512);
        }
        bitmap.bits.forEach((bit, index) => {
          if (bit !== 0) expect(found.bits[index], `bit ${String(index)} of ${bitmap.name}`).toBe(1);
        });
        bitmap.bits = found.bits;
      }
    });
  }

  async #resizeStep(size: number, preallocation: 'off' | 'metadata' | 'falloc' | 'full'): Promise<void> {
    const { point, image, model } = this;
    try {
      await image.resize(size, { preallocation });
    } catch (error) {
      if (!isSpindleError(error, 'UNSUPPORTED') || point.version === 3) throw error;
      return;
    }
    for (const bitmap of this.bitmaps) {
      // What is cut off is a change to the granule that stays in part.
      if (bitmap.enabled && size < model.size) bitmap.mark(size, model.size - size);
      bitmap.resize(size);
      if (bitmap.enabled) bitmap.mark(model.size, size - model.size);
    }
    const bytes = new Uint8Array(size);
    bytes.set(model.bytes.subarray(0, size));
    this.model = new Model(bytes);
    expect(image.size).toBe(size);
  }

  async #qemuStep(kind: 'create' | 'apply' | 'delete', name: string): Promise<void> {
    const { path, point } = this;
    const kept = this.snapshots.find((one) => one.name === name);
    if (kept === undefined && kind !== 'create') return;
    // A cluster that holds several compressed streams has a reference from each, in each snapshot.
    if (point.refcountBits <= 8) return;
    // qemu does not apply snapshots to images with bitmaps.
    if (kind === 'apply' && this.bitmaps.length > 0) return;
    await this.#reopen(async () => {
      await this.#clean();
      if (kept === undefined) {
        await qemu.snapshot(path, 'create', name);
        const next = this.snapshots.reduce((largest, { id }) => Math.max(largest, Number(id)), 0) + 1;
        this.snapshots.push({ id: String(next), name, bytes: this.model.bytes.slice() });
      } else if (kind !== 'create') {
        await qemu.snapshot(path, kind, name);
        if (kind === 'apply') this.model = new Model(kept.bytes.slice());
        else this.snapshots = this.snapshots.filter((one) => one !== kept);
      }
    });
  }

  async #clean(): Promise<void> {
    expect((await checkFile(this.path, { format: 'qcow2' })).problems).toEqual([]);
    const judged = await qemu.check(this.path);
    expect(judged.code, judged.stderr + JSON.stringify(judged.json)).toBe(0);
  }

  /** Closes the image and lets everybody judge it. */
  async judge(): Promise<void> {
    const { path, model } = this;
    const difference = firstDifference(await readAll(this.image), model.bytes);
    expect(difference, 'first byte that differs').toBe(-1);
    await this.image.close();
    await this.#clean();
    await this.#judgeBitmaps();
    const raw = `${path}.raw`;
    writeFileSync(raw, model.bytes);
    expect(
      await qemu.compare({ path, format: 'qcow2' }, { path: raw, format: 'raw' }, { strict: false }),
    ).toBe(true);
    for (const { id, bytes } of this.snapshots) {
      const ours = await openImageFile(path, { format: 'qcow2', snapshot: id });
      try {
        const seen = await readAll(ours);
        expect(seen.length, `size of snapshot ${id}`).toBe(bytes.length);
        expect(firstDifference(seen, bytes), `snapshot ${id}`).toBe(-1);
      } finally {
        await ours.close();
      }
      // qemu gives a snapshot the size that the disk has now.
      writeFileSync(raw, bytes.subarray(0, model.size));
      const converted = `${path}.snapshot`;
      await qemu.convert(path, converted, { more: ['-l', `snapshot.id=${id}`] });
      if (bytes.length >= model.size) {
        expect(await qemu.compare({ path: converted, format: 'raw' }, { path: raw, format: 'raw' }), id).toBe(
          true,
        );
      }
    }
    for (const suffix of ['', '.raw', '.snapshot']) rmSync(path + suffix, { force: true });
  }

  async #judgeBitmaps(): Promise<void> {
    const { path, model, bitmaps } = this;
    const expected = bitmaps.map((bitmap) => bitmap.ranges(model.size));
    expect((await listed(path)).map(({ name, granularity, flags }) => [name, granularity, flags])).toEqual(
      bitmaps.map(({ name, granularity, enabled }) => [name, granularity, enabled ? ['auto'] : []]),
    );
    const names = bitmaps.map(({ name }) => name);
    expect(await Promise.all(names.map((name) => ourRanges(path, name)))).toEqual(expected);
    expect(await qemuRanges(path, names)).toEqual(expected);
  }

  /** Closes what is open. */
  async close(): Promise<void> {
    await this.image.close().catch(() => undefined);
  }
}

/** All bytes of the disk. */
export async function readAll(image: Image): Promise<Uint8Array> {
  const bytes = new Uint8Array(image.size);
  await image.read(bytes, 0);
  return bytes;
}

/** Random histories, each of which follows from its seed. */
export interface Histories {
  readonly dir: string;
  readonly seed: number;
  readonly sequences: number;
  readonly steps: number;
  readonly mixes: readonly Mix[];
  /** The image that a history begins with, and how many sectors its disk has at most; default any of the grid. */
  readonly start?: (random: Random) => { readonly point: GridPoint; readonly most?: number };
  /** Puts something between the steps and the image: a bug, for instance. */
  readonly plant?: (image: Image) => Image;
}

/** Runs random histories; the error of one that fails has the few steps that do it. */
export async function runHistories(histories: Histories): Promise<void> {
  const { dir, seed, sequences, steps, mixes, plant = (image) => image } = histories;
  const points = gridPoints().filter(({ clusterSize }) => clusterSize <= 65536);
  const start: NonNullable<Histories['start']> =
    histories.start ?? ((random) => ({ point: random.pick(points) }));
  const random = new Random(seed);
  const cases = Array.from({ length: sequences }, (_, index) => ({ index, seed: random.u32() }));
  await inParallel(cases, 3, async ({ index, seed: own }) => {
    const { point, most } = start(new Random(own + 1));
    const mix = new Random(own + 2).pick(mixes);
    const done: Plan[] = [];
    const run = async (some?: readonly Plan[]): Promise<void> => {
      const history = await History.make(dir, String(index), point, new Random(own), most);
      try {
        history.plant = plant;
        for (let i = 0; i < (some?.length ?? steps); i++) {
          const plan = some?.[i] ?? history.next(mix);
          if (some === undefined) done.push(plan);
          await history.run(plan);
        }
        await history.judge();
      } finally {
        await history.close();
      }
    };
    try {
      await run();
    } catch (error) {
      const few = await shrink(done, (some) => failing(() => run(some)), 150);
      throw minimalCase(`${describePoint(point)}, sequence ${String(index)}`, seed, few, done.length, error);
    }
  });
}
