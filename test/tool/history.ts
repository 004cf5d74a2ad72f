import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import { findSnapshot } from '../../src/format/qcow2/driver.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { openImageFile } from '../../src/op/open.ts';
import { qemuOptions, type GridPoint } from '../differential/grid.ts';
import { applyStep, firstDifference, Model, randomStep } from './model.ts';
import * as qemu from './qemu.ts';
import type { Random } from './random.ts';

/** How likely the rarer steps are. */
export interface Mix {
  readonly snapshots: number;
  readonly resize: number;
  /** Steps that qemu-img does on the image between ours. */
  readonly qemu: number;
}

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
  readonly log: string[] = [];
  image: Image;
  model: Model;
  snapshots: Kept[] = [];
  #names = 0;

  private constructor(
    dir: string,
    path: string,
    point: GridPoint,
    random: Random,
    image: Image,
    model: Model,
  ) {
    this.dir = dir;
    this.path = path;
    this.point = point;
    this.random = random;
    this.image = image;
    this.model = model;
  }

  /** A new image made by qemu, some of it compressed, with a backing file that is shorter, longer or as long. */
  static async make(dir: string, name: string, point: GridPoint, random: Random): Promise<History> {
    const path = join(dir, `${name}.qcow2`);
    const size = random.between(16, Math.min(2048, (point.clusterSize * 12) / 512)) * 512;
    const base = join(dir, `${name}.base`);
    if (point.backing !== 'none') {
      const baseSize = random.pick([size, Math.max(512, size - 8704), size + 65536]);
      await qemu.create(base, baseSize, { format: point.backing });
      await qemu.fill(base, [{ do: 'write', at: 0, length: baseSize, pattern: 0x77 }], {
        format: point.backing,
      });
    }
    const backing = point.backing === 'none' ? {} : { backing: { path: base, format: point.backing } };
    await qemu.create(path, size, { format: 'qcow2', options: qemuOptions(point), ...backing });
    const steps: qemu.Fill[] = [];
    if (point.preallocation === 'off') {
      for (let at = 0; at < size; at += point.clusterSize) {
        const length = Math.min(point.clusterSize, size - at);
        if (random.chance(0.4)) steps.push({ do: 'compress', at, length, pattern: random.between(1, 255) });
      }
    }
    if (steps.length > 0) await qemu.fill(path, steps);
    const image = await openImageFile(path, { format: 'qcow2', write: true });
    return new History(dir, path, point, random, image, new Model(await readAll(image)));
  }

  /** One random step. */
  async step(mix: Mix): Promise<void> {
    const { random } = this;
    const dice = random.u32() / 2 ** 32;
    if (dice < mix.snapshots) await this.#snapshotStep();
    else if (dice < mix.snapshots + mix.resize) await this.#resizeStep();
    else if (dice < mix.snapshots + mix.resize + mix.qemu) await this.#qemuStep();
    else {
      if (this.model.size < 512) return;
      const step = randomStep(random, this.model.size, this.point.clusterSize);
      this.log.push(JSON.stringify(step));
      await applyStep(this.image, this.model, step);
      if (step.do === 'reopen') await this.#reopen();
    }
  }

  async #reopen(between: () => Promise<void> = () => Promise.resolve()): Promise<void> {
    await this.image.close();
    await between();
    this.image = await openImageFile(this.path, { format: 'qcow2', write: true });
  }

  async #snapshotStep(): Promise<void> {
    const { random, image } = this;
    const { driver } = image;
    if (!(image instanceof DiskImage) || !(driver instanceof Qcow2WriteDriver))
      throw new Error('not a writer');
    const kept = this.snapshots.length === 0 ? undefined : random.pick(this.snapshots);
    const kind =
      kept === undefined || random.chance(0.4) ? 'create' : random.pick(['apply', 'delete'] as const);
    this.log.push(`${kind} ${kept?.id ?? ''}`);
    const change = <T>(work: (driver: Qcow2WriteDriver) => Promise<T>): Promise<T> =>
      image.alone(() => work(driver));
    try {
      if (kind === 'create') {
        const name = `s${String(this.#names++)}`;
        const id = await change((d) =>
          d.changeSnapshots((w) => createSnapshot(w, { name, date: new Date() })),
        );
        this.snapshots.push({ id, name, bytes: this.model.bytes.slice() });
      } else if (kept !== undefined) {
        const found = findSnapshot(driver.metadata.snapshots, kept.id);
        if (kind === 'apply') {
          await change((d) => d.changeSnapshots((w) => applySnapshot(w, found)));
          this.model = new Model(kept.bytes.slice());
        } else {
          await change((d) => d.changeSnapshots((w) => deleteSnapshot(w, found)));
          this.snapshots = this.snapshots.filter((one) => one !== kept);
        }
      }
    } catch (error) {
      if (!isSpindleError(error, 'LIMIT') || this.point.refcountBits > 4) throw error;
      this.log.push('(refcounts too narrow)');
    }
    expect(image.size).toBe(this.model.size);
  }

  async #resizeStep(): Promise<void> {
    const { random, point, image, model } = this;
    const most = Math.min(4096, (point.clusterSize * 24) / 512);
    const size = random.chance(0.3)
      ? Math.max(512, model.size + random.pick([-512, 512, 1024, -1024, point.clusterSize]))
      : random.between(1, most) * 512;
    const preallocation =
      size > model.size && random.chance(0.3) ? random.pick(['metadata', 'falloc', 'full'] as const) : 'off';
    this.log.push(`resize ${String(model.size)} -> ${String(size)} ${preallocation}`);
    try {
      await image.resize(size, { preallocation });
    } catch (error) {
      if (!isSpindleError(error, 'UNSUPPORTED') || point.version === 3) throw error;
      this.log.push('(refused)');
      return;
    }
    const bytes = new Uint8Array(size);
    bytes.set(model.bytes.subarray(0, size));
    this.model = new Model(bytes);
    expect(image.size).toBe(size);
  }

  async #qemuStep(): Promise<void> {
    const { random, path, point } = this;
    const kept = this.snapshots.length === 0 ? undefined : random.pick(this.snapshots);
    const kind =
      kept === undefined || random.chance(0.4) ? 'create' : random.pick(['apply', 'delete'] as const);
    // A cluster that holds several compressed streams has a reference from each, in each snapshot.
    if (point.refcountBits <= 4) return;
    this.log.push(`qemu ${kind} ${kept?.id ?? ''}`);
    await this.#reopen(async () => {
      await this.#clean();
      if (kind === 'create') {
        const name = `q${String(this.#names++)}`;
        await qemu.snapshot(path, 'create', name);
        const next = this.snapshots.reduce((largest, { id }) => Math.max(largest, Number(id)), 0) + 1;
        this.snapshots.push({ id: String(next), name, bytes: this.model.bytes.slice() });
      } else if (kept !== undefined) {
        await qemu.snapshot(path, kind, kept.name);
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
