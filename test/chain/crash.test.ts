import { describe, expect, it } from 'vitest';
import { readPadded } from '../../src/core/read.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import { openImage } from '../../src/format/open.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { switchBacking, type RecordedBacking } from '../../src/format/qcow2/write/backing.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { createSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import type { Storage } from '../../src/core/storage.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { bringDown } from '../../src/op/commit/bring-down.ts';
import { keepDifferences } from '../../src/op/rebase/keep.ts';
import { Layer } from '../../src/layer/layer.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { applyStep, firstDifference, Model, randomStep } from '../tool/model.ts';
import { readAll } from '../tool/history.ts';
import { Random, seedOf } from '../tool/random.ts';
import { Timeline } from '../tool/timeline.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_CRASH_SEQUENCES', 24);

type Kind = 'raw' | Partial<Qcow2CreateOptions>;

const KINDS: readonly Kind[] = [
  'raw',
  { clusterSize: 512 },
  { clusterSize: 4096, refcountBits: 1 },
  { clusterSize: 4096, version: 2 },
  { clusterSize: 65536 },
  { clusterSize: 16384, extendedL2: true },
];

/** A disk of random content in memory. */
async function makeDisk(
  kind: Kind,
  size: number,
  below: Image | null,
  random: Random,
  steps: number,
): Promise<MemoryStorage> {
  const memory = new MemoryStorage(kind === 'raw' ? size : 0);
  if (kind !== 'raw') {
    const backing = below === null ? null : { name: 'below', format: below.format };
    await createQcow2(memory, { ...QCOW2_DEFAULTS, ...kind, size, backing });
  }
  const image = await open(memory, kind, below, true);
  const model = new Model(await readAll(image));
  for (let i = 0; i < steps; i++) {
    const step = randomStep(random, size, kind === 'raw' ? 4096 : (kind.clusterSize ?? 65536));
    if (step.do !== 'read') await applyStep(image, model, step);
  }
  if (kind !== 'raw' && kind.refcountBits !== 1 && random.chance(0.3)) {
    await (image.driver as Qcow2WriteDriver).changeSnapshots((writer) =>
      createSnapshot(writer, { name: 's', date: new Date(0) }),
    );
    for (let i = 0; i < 4; i++) {
      const step = randomStep(random, size, 4096);
      if (step.do !== 'read') await applyStep(image, model, step);
    }
  }
  await image.flush();
  // Closing it must not close what it shares.
  await (image as DiskImage).driver.close();
  return memory;
}

async function open(
  storage: Storage,
  kind: Kind,
  below: Image | null,
  write: boolean,
  covering = false,
): Promise<Image> {
  return openImage(new Shared(storage), {
    ...{ format: kind === 'raw' ? 'raw' : 'qcow2', codec: nodeCodec, write, covering },
    gate: ({ name }) => {
      if (below === null) throw new Error(`nothing is called ${name}`);
      return Promise.resolve({ storage: below.storage, name, id: name, image: below });
    },
  });
}

class Shared extends Layer {
  override close(): Promise<void> {
    return Promise.resolve();
  }
}

async function corruptions(bytes: Uint8Array): Promise<string | null> {
  const storage = MemoryStorage.from(bytes);
  const found = await checkImage(storage, await readMetadata(storage, 'check'));
  return found.corruptions + found.checkErrors > 0 ? JSON.stringify(found.problems.slice(0, 3)) : null;
}

describe('a power cut at any moment of a commit', () => {
  it(
    `leaves the overlay's disk as it was: ${String(SEQUENCES)} sequences`,
    { timeout: 1_800_000 },
    async () => {
      const seed = seedOf('commit power cut');
      for (let index = 0; index < SEQUENCES; index++) {
        const random = new Random((seed + index) >>> 0);
        const baseKind = KINDS[index % KINDS.length] as Kind;
        const topKind = KINDS[1 + (Math.floor(index / KINDS.length) % (KINDS.length - 1))] as Kind;
        const context = `SPINDLE_SEED=${String(seed)}, sequence ${String(index)}: ${JSON.stringify(topKind)} on ${JSON.stringify(baseKind)}`;
        const sizes = [random.between(40, 400) * 512, random.between(40, 400) * 512] as const;
        const baseMemory = await makeDisk(baseKind, sizes[0], null, random, 10);
        const topMemory = await makeDisk(
          topKind,
          sizes[1],
          await open(baseMemory, baseKind, null, false),
          random,
          14,
        );
        const time = new Timeline();
        const base = await open(time.record(baseMemory), baseKind, null, true);
        const top = await open(time.record(topMemory), topKind, base, true);
        const before = await readAll(top);
        await bringDown(top, base, { emptied: true });
        await top.close();
        for (let moment = 0; moment < time.moments; moment++) {
          for (const [baseLeft = new Uint8Array(), topLeft = new Uint8Array()] of time.cut(
            moment,
            random,
            2,
          )) {
            const where = `${context}, moment ${String(moment)} of ${String(time.moments)}`;
            if (baseKind !== 'raw') expect(await corruptions(baseLeft), where).toBeNull();
            expect(await corruptions(topLeft), where).toBeNull();
            const below = await open(MemoryStorage.from(baseLeft), baseKind, null, false);
            const left = await open(MemoryStorage.from(topLeft), topKind, below, false);
            expect(firstDifference(await readAll(left), before), where).toBe(-1);
          }
        }
        // What is left at the end is all in the base.
        const after = new Uint8Array(before.length);
        await readPadded(await open(baseMemory, baseKind, null, false), after, 0);
        expect(firstDifference(after, before), context).toBe(-1);
      }
    },
  );
});

describe('a power cut at any moment of a rebase', () => {
  it(
    `leaves the disk as it was, over the old or the new file: ${String(SEQUENCES)} sequences`,
    { timeout: 1_800_000 },
    async () => {
      const seed = seedOf('rebase power cut');
      for (let index = 0; index < SEQUENCES; index++) {
        const random = new Random((seed + index) >>> 0);
        const kind = KINDS[1 + (index % (KINDS.length - 1))] as Kind;
        const context = `SPINDLE_SEED=${String(seed)}, sequence ${String(index)}: ${JSON.stringify(kind)}`;
        const size = random.between(40, 400) * 512;
        const disks: Image[] = [];
        for (let i = 0; i < 2; i++)
          disks.push(
            await open(
              await makeDisk('raw', random.between(40, 400) * 512, null, random, 10),
              'raw',
              null,
              false,
            ),
          );
        const [old, next] = disks as [Image, Image];
        const hadBacking = random.chance(0.7);
        const wantsBacking = !hadBacking || random.chance(0.7);
        const memory = await makeDisk(kind, size, hadBacking ? old : null, random, 12);
        const time = new Timeline();
        const storage = time.record(memory);
        const image = await open(storage, kind, hadBacking ? old : null, true, wantsBacking);
        const before = await readAll(image);
        const { geometry } = await readMetadata(memory, 'data');
        await keepDifferences(image as DiskImage, wantsBacking ? next : null, geometry, {});
        await image.driver.flush();
        await image.driver.close();
        await switchBacking(storage, wantsBacking ? { name: 'the new one', format: 'raw' } : null);
        const seen = new Set<string | null>();
        for (let moment = 0; moment < time.moments; moment++) {
          for (const [left = new Uint8Array()] of time.cut(moment, random, 2)) {
            const where = `${context}, moment ${String(moment)} of ${String(time.moments)}`;
            expect(await corruptions(left), where).toBeNull();
            const { backingName } = await readMetadata(MemoryStorage.from(left), 'data');
            seen.add(backingName);
            const below = backingName === null ? null : backingName === 'below' ? old : next;
            expect(
              firstDifference(
                await readAll(await open(MemoryStorage.from(left), kind, below, false)),
                before,
              ),
              where,
            ).toBe(-1);
          }
        }
        expect([...seen], context).toEqual([
          hadBacking ? 'below' : null,
          wantsBacking ? 'the new one' : null,
        ]);
      }
    },
  );
});

describe('a power cut while the reference is switched', () => {
  const NAMES: readonly (RecordedBacking | null)[] = [
    null,
    { name: 'a', format: 'raw' },
    { name: 'base.qcow2', format: 'qcow2' },
    { name: 'x'.repeat(300), format: undefined },
    { name: `/srv/${'y'.repeat(900)}`, format: 'qcow2' },
  ];

  it.each([
    { clusterSize: 512 },
    { clusterSize: 4096 },
    { clusterSize: 4096, version: 2 as const },
    { clusterSize: 65536 },
    { clusterSize: 65536, version: 2 as const },
    { clusterSize: 65536, compressionType: 'zstd' as const, extendedL2: true },
  ])('leaves the old one or the new one: %o', async (options) => {
    const random = new Random(seedOf(JSON.stringify(options)));
    for (const from of NAMES) {
      for (const to of NAMES) {
        const room = options.clusterSize === 512 ? 376 : 1023;
        if ((from?.name.length ?? 0) > room || (to?.name.length ?? 0) > room) continue;
        const memory = new MemoryStorage();
        const backing =
          from === null
            ? null
            : { name: from.name, ...(from.format === undefined ? {} : { format: from.format }) };
        await createQcow2(memory, {
          ...QCOW2_DEFAULTS,
          ...options,
          size: 10 * 65536,
          backing: backing as Qcow2CreateOptions['backing'],
        });
        const others = (await readMetadata(memory, 'data')).extensions.filter(
          ({ magic }) => magic !== 0xe2792aca,
        );
        const time = new Timeline();
        await switchBacking(time.record(memory), to);
        const seen = new Set<string>();
        for (let moment = 0; moment < time.moments; moment++) {
          for (const [left = new Uint8Array()] of time.cut(moment, random, 6)) {
            const found = await readMetadata(MemoryStorage.from(left), 'data');
            expect(
              found.extensions
                .filter(({ magic }) => magic !== 0xe2792aca)
                .map(({ magic, data }) => [magic, ...data]),
            ).toEqual(others.map(({ magic, data }) => [magic, ...data]));
            seen.add(JSON.stringify([found.backingName, found.known.backingFormat]));
            expect(await corruptions(left)).toBeNull();
          }
        }
        const [first, last] = [from, to].map((one) => JSON.stringify([one?.name ?? null, one?.format]));
        expect([...seen]).toEqual(first === last ? [first] : [first, last]);
        const { header } = await readMetadata(memory, 'data');
        expect(header.headerLength).toBe(header.version === 2 ? 72 : 112);
        const cluster = memory.toBytes().subarray(0, options.clusterSize);
        const end = header.backingFileOffset + header.backingFileSize;
        if (to !== null) expect(cluster.subarray(end).every((byte) => byte === 0)).toBe(true);
      }
    }
  });
});
