import { describe, expect, it } from 'vitest';
import { bytesOf } from '../../src/core/bytes.ts';
import type { Storage } from '../../src/core/storage.ts';
import { LUKS_DEFAULTS } from '../../src/format/crypto/cipher-spec.ts';
import { addSlot, eraseSlots, readLuksPlace } from '../../src/format/crypto/luks-slots.ts';
import { findKey } from '../../src/format/crypto/luks-key.ts';
import { openImage } from '../../src/format/open.ts';
import { createLuks } from '../../src/format/luks/create.ts';
import { createQcow2, QCOW2_DEFAULTS } from '../../src/format/qcow2/create.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { fault, type FaultLayer, type FaultOperation } from '../../src/layer/fault.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { nodeCrypto } from '../../src/native/crypto.ts';
import { repair } from '../../src/op/repair.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { Model } from '../tool/model.ts';
import { KINDS, OPERATIONS, prepared, type Operation } from '../tool/operations.ts';
import { Random, seedOf } from '../tool/random.ts';
import { judge, MemoryFile, missing, readSeen, type Moment, type Recorder } from '../tool/recorded.ts';
import { SHARE } from '../tool/share.ts';

/** What can find no space: some file systems say so at the flush only. */
const TAKING: readonly FaultOperation[] = ['write', 'zero', 'resize', 'flush'];

/** A full disk, from the n-th request that may need space on: for good, or once. */
interface Full {
  readonly after: number;
  readonly times?: number;
}

/** How many requests pass, when nothing is in the way. */
class Counter extends MemoryFile {
  requests = 0;

  override write(from: Uint8Array, at: number): Promise<void> {
    this.requests++;
    return this.next.write(from, at);
  }

  override zero(...args: Parameters<Storage['zero']>): Promise<void> {
    this.requests++;
    return this.next.zero(...args);
  }

  override resize(size: number): Promise<void> {
    this.requests++;
    return this.next.resize(size);
  }

  override flush(): Promise<void> {
    this.requests++;
    return this.next.flush();
  }
}

/** Every n-th request for which a disk is full: for good, and only for that one request; in a share one of the two. */
function* fullDisks(requests: number): Generator<Full> {
  for (let after = 0; after < requests; after++) {
    if (SHARE === 1 || after % 2 === 0) yield { after };
    if (SHARE === 1 || after % 2 === 1) yield { after, times: 1 };
  }
}

/** Runs `work` on a full disk; what it fails with must be that. True when it did not notice. */
async function onFull(
  disk: FaultLayer,
  full: Full,
  work: () => Promise<unknown>,
  context: string,
): Promise<boolean> {
  disk.inject({ on: TAKING, code: 'NO_SPACE', ...full });
  try {
    await work();
    return true;
  } catch (error) {
    expect(error, context).toMatchObject({ code: 'NO_SPACE' });
    return false;
  } finally {
    disk.heal();
  }
}

/** An operation that can be gone on with after a failure. */
class Attempt {
  readonly #operation: Operation;
  readonly #recorder: Recorder;
  readonly #seed: number;
  #operated = false;

  constructor(operation: Operation, recorder: Recorder, seed: number) {
    this.#operation = operation;
    this.#recorder = recorder;
    this.#seed = seed;
  }

  /** The operation, and a flush after it. */
  async run(): Promise<boolean> {
    if (!this.#operated && !(await this.#operation(this.#recorder, new Random(this.#seed)))) return false;
    this.#operated = true;
    await this.#recorder.do({ do: 'flush' });
    return true;
  }

  /** After a failure: does what is not done yet. What failed at the very end may be done: `next` is what is there then. */
  async finish(next: Moment): Promise<void> {
    const { driver, image, model, snapshots } = this.#recorder;
    await this.#recorder.adopt();
    const ids = driver.metadata.snapshots.map(({ id }) => id);
    const changed = ids.join() !== [...snapshots.keys()].join() || image.size !== model.size;
    if (!this.#operated && changed) {
      this.#recorder.snapshots = new Map(next.snapshots);
      this.#recorder.model = new Model(next.bytes.slice());
      // Of several snapshots that are deleted, some may be left.
      this.#operated = driver.metadata.snapshots.length === 0 || !this.#operation.name.includes('both');
    }
    await this.run();
  }
}

describe.each(Object.entries(OPERATIONS))('no space at any request of: %s', (name, operation) => {
  it('is told, loses nothing, and the same works when there is space', { timeout: 600_000 }, async () => {
    for (const [index, options] of KINDS.entries()) {
      const seed = (seedOf(`no space ${name}`) + index) >>> 0;
      const past = await prepared(name, options, new Random(seed));
      let counter: Counter | undefined;
      const free = await past.again((storage) => (counter = new Counter(storage)));
      if (!(await new Attempt(operation, free, seed).run())) continue;
      const after = free.moments[free.moments.length - 1]!;
      const requests = counter?.requests ?? 0;
      let failures = 0;
      for (const full of fullDisks(requests)) {
        const context = `${JSON.stringify({ ...options, ...full })} of ${String(requests)}, SPINDLE_SEED=${String(seed - index)}`;
        let disk: FaultLayer | undefined;
        const tried = await past.again((storage) => new MemoryFile((disk = fault(storage))));
        const attempt = new Attempt(operation, tried, seed);
        const done = await onFull(disk!, full, () => attempt.run(), context);
        if (!done) failures++;
        // Were the power cut now.
        const now = tried.moments[tried.moments.length - 1]!;
        const next = free.moments[tried.moments.length] ?? after;
        expect(await judge(tried.memory.toBytes(), [now, next]), context).toBeNull();
        if (!done) await attempt.finish(next);
        await tried.close();
        const reached = tried.moments[tried.moments.length - 1]!;
        expect(await judge(tried.memory.toBytes(), [reached]), `${context}, with space`).toBeNull();
        expect([...reached.snapshots.keys()], context).toEqual([...after.snapshots.keys()]);
        expect(reached.bytes.length, context).toBe(after.bytes.length);
      }
      expect(failures).toBeGreaterThan(0);
    }
  });
});

describe('no space at any request of the rest', () => {
  it(
    'a repair leaves an image that is no worse, and works when there is space',
    { timeout: 300_000 },
    async () => {
      for (const [index, options] of KINDS.entries()) {
        const seed = (seedOf('no space repair') + index) >>> 0;
        const past = await prepared('repair', options, new Random(seed));
        const { memory, moments } = past;
        // Refcounts that are all wrong: they are written anew, elsewhere.
        const damaged = memory.toBytes();
        const { header, geometry } = await readMetadata(memory, 'check');
        const block = Number(Buffer.from(damaged.buffer).readBigUInt64BE(header.refcountTableOffset));
        damaged.fill(0, block + 2, block + geometry.clusterSize / 2);
        const storage = MemoryStorage.from(damaged);
        const counter = new Counter(new MemoryFile(storage));
        await repair(counter, { mode: 'all' });
        expect(await judge(storage.toBytes(), moments), JSON.stringify(options)).toBeNull();
        let failures = 0;
        for (const full of fullDisks(counter.requests)) {
          const context = `${JSON.stringify({ ...options, ...full })} SPINDLE_SEED=${String(seed - index)}`;
          const tried = MemoryStorage.from(damaged);
          const disk = fault(new MemoryFile(tried));
          if (!(await onFull(disk, full, () => repair(disk, { mode: 'all' }), context))) failures++;
          const seen = await readSeen(tried.toBytes());
          expect(missing(seen, moments[0]!), context).toBeNull();
          await repair(disk, { mode: 'all' });
          expect(await judge(tried.toBytes(), moments), `${context}, with space`).toBeNull();
        }
        expect(failures).toBeGreaterThan(0);
      }
    },
  );

  it('changes of key slots never lock the owner out', { timeout: 300_000 }, async () => {
    const crypto = await nodeCrypto();
    const [old, added] = [bytesOf('old'), bytesOf('added')];
    const memory = new MemoryStorage();
    const luks = { ...LUKS_DEFAULTS, iterTime: 1 };
    await createLuks(memory, { size: 4096, preallocation: 'off', luks, crypto, secret: old.slice() });
    const opens = async (storage: Storage, secret: Uint8Array): Promise<boolean> =>
      (await findKey(crypto, await readLuksPlace(storage, 0), secret)) !== null;
    const add = async (storage: Storage): Promise<number> =>
      addSlot(crypto, await readLuksPlace(storage, 0), { secret: old, newSecret: added, iterTime: 1 });
    const erase = async (storage: Storage): Promise<void> =>
      eraseSlots(crypto, await readLuksPlace(storage, 0), [0], false);
    const both = MemoryStorage.from(memory.toBytes());
    await add(both);
    const works = [
      { from: memory, work: add, sure: old },
      { from: both, work: erase, sure: added },
    ];
    for (const { from, work, sure } of works) {
      const counter = new Counter(MemoryStorage.from(from.toBytes()));
      await work(counter);
      for (const full of fullDisks(counter.requests)) {
        const disk = fault(MemoryStorage.from(from.toBytes()));
        if (await onFull(disk, full, () => work(disk), JSON.stringify(full))) continue;
        expect(await opens(disk, sure), JSON.stringify(full)).toBe(true);
        if (work === add && !(await opens(disk, added))) await work(disk);
        if (work === erase && (await readLuksPlace(disk, 0)).header.slots[0]?.active === true)
          await work(disk);
        expect(await opens(disk, added)).toBe(true);
        expect(await opens(disk, old)).toBe(work === add);
      }
    }
  });

  it('closing an image that cannot write what it has closes its file all the same', async () => {
    const past = await prepared('close', { clusterSize: 512 }, new Random(1));
    const disk = fault(past.storage);
    const image = await openImage(disk, { format: 'qcow2', codec: nodeCodec, write: true });
    await image.write(new Uint8Array(5120).fill(1), 0);
    disk.inject({ on: TAKING, code: 'NO_SPACE' });
    await expect(image.close()).rejects.toMatchObject({ code: 'NO_SPACE' });
    expect(past.storage.requests('close')).toEqual(['close']);
  });

  it('creating says so, in every mode', async () => {
    for (const preallocation of ['off', 'metadata', 'falloc', 'full'] as const) {
      const options = { ...QCOW2_DEFAULTS, size: 1024 ** 2, preallocation };
      const counter = new Counter(new MemoryFile(new MemoryStorage()));
      await createQcow2(counter, options);
      for (const full of fullDisks(counter.requests)) {
        const disk = fault(new MemoryStorage());
        const file = new MemoryFile(disk);
        // An image that is not complete is thrown away by who makes it: it must only never count as made.
        expect(await onFull(disk, full, () => createQcow2(file, options), preallocation)).toBe(false);
      }
    }
  });
});
