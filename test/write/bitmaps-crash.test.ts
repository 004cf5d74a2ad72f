import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { DiskImage } from '../../src/format/disk-image.ts';
import { openImage } from '../../src/format/open.ts';
import { isSpindleError } from '../../src/core/errors.ts';
import { ReadOnlyStorage, type Storage } from '../../src/core/storage.ts';
import { setU64, viewOf } from '../../src/core/bytes.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { findSnapshot } from '../../src/format/qcow2/driver.ts';
import { encodeBitmapsExtension, encodeExtensions } from '../../src/format/qcow2/extensions.ts';
import { BitmapFlag, ExtensionMagic, HeaderOffset } from '../../src/format/qcow2/layout.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { BitmapEditor, editBitmaps } from '../../src/format/qcow2/write/edit-bitmaps.ts';
import { applySnapshot, createSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import { fault } from '../../src/layer/fault.ts';
import { trace, type TraceLayer, type TraceRecord } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { applyStep, Model, randomStep } from '../tool/model.ts';
import { changes, cutFiles } from '../tool/power-cut.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const SEQUENCES = times('SPINDLE_CRASH_SEQUENCES', 33);
const SECTOR = 512;

interface Kind extends Partial<Qcow2CreateOptions> {
  /** An extension in front that makes that of the bitmaps begin at this offset. */
  readonly startAt?: number;
  /** Bitmaps of which nothing is true any more are named between other extensions. */
  readonly stale?: boolean;
}

const KINDS: readonly Kind[] = [
  { clusterSize: 512 },
  { clusterSize: 4096, refcountBits: 1 },
  { clusterSize: 65536 },
  { clusterSize: 16384, extendedL2: true },
  // The name of the backing file stands where the extension goes, and there is no place beside it.
  { clusterSize: 512, backing: { name: 'n'.repeat(340), format: 'raw' } },
  { clusterSize: 4096, backing: { name: 'base.raw', format: 'raw' } },
  { clusterSize: 65536, backing: { name: 'n'.repeat(500), format: 'raw' } },
  // Magic and body, and parts of the body, in different sectors.
  { clusterSize: 4096, startAt: 504 },
  { clusterSize: 4096, startAt: 488 },
  { clusterSize: 4096, startAt: 1000 },
  { clusterSize: 4096, startAt: 1016 },
  { clusterSize: 4096, startAt: 160, stale: true },
];

/** Where the extension of the bitmaps spans sectors, a power cut may take the bitmaps away. */
const mayVanish = ({ startAt = 0 }: Kind): boolean =>
  Math.floor((startAt + 8) / SECTOR) !== Math.floor((startAt + 31) / SECTOR);

/** A file that is only read, so that none of it needs to be copied. */
class Bytes extends ReadOnlyStorage {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    super();
    this.#bytes = bytes;
  }

  get size(): number {
    return this.#bytes.length;
  }

  read(into: Uint8Array, at: number): Promise<void> {
    into.set(this.#bytes.subarray(at, at + into.length));
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

async function makeImage(kind: Kind, size: number): Promise<MemoryStorage> {
  const { startAt, stale, ...options } = kind;
  const memory = new MemoryStorage();
  // Its bytes are looked at when the image is closed.
  memory.close = () => Promise.resolve();
  await createQcow2(memory, { ...QCOW2_DEFAULTS, ...options, size });
  if (startAt !== undefined) {
    const filler = { magic: 0x12345678, data: new Uint8Array(startAt - 120).fill(0xee) };
    const old = { count: 1, reserved: 0, directorySize: 32, directoryOffset: 65536 };
    const rest =
      stale === true ? [{ magic: ExtensionMagic.BITMAPS, data: encodeBitmapsExtension(old) }, filler] : [];
    await memory.write(encodeExtensions([filler, ...rest]), 112);
  }
  return memory;
}

/** What the bitmaps of an image say: `flags: ranges`, or that they are in use. */
async function bitmapsOf(bytes: Uint8Array): Promise<Map<string, string>> {
  const storage = new Bytes(bytes);
  const metadata = await readMetadata(storage, 'data');
  const found = new Map<string, string>();
  for (const { name, flags, granularityBits } of metadata.bitmaps) {
    if ((flags & BitmapFlag.IN_USE) !== 0) {
      found.set(name, 'in use');
      continue;
    }
    const ranges: string[] = [];
    for await (const { at, length } of new BitmapEditor(storage, metadata).read(name).ranges())
      ranges.push(`${String(at)}+${String(length)}`);
    found.set(name, `${String(flags)} ${String(granularityBits)}: ${ranges.join(' ')}`);
  }
  return found;
}

/** The calls that matter when the power is cut. */
function callsOf({ records }: TraceLayer): TraceRecord[] {
  return records.filter((record) => changes(record) || record.operation === 'flush');
}

function asText(bitmaps: Map<string, string>): string {
  return JSON.stringify([...bitmaps]);
}

async function expectSound(bytes: Uint8Array, { backing = null }: Kind): Promise<string | null> {
  const storage = new Bytes(bytes);
  const metadata = await readMetadata(storage, 'check');
  if (metadata.backingName !== (backing?.name ?? null))
    return `the backing file is ${String(metadata.backingName)}`;
  const found = await checkImage(storage, metadata);
  return found.corruptions > 0 || found.checkErrors > 0 ? JSON.stringify(found.problems.slice(0, 3)) : null;
}

type Look = (bytes: Uint8Array) => Promise<void>;

/** Changes bitmaps in random ways and cuts the power at every call; gives what went wrong, or null. */
async function cutOperations(kind: Kind, random: Random, look?: Look): Promise<string | null> {
  const size = random.between(40, 3000) * SECTOR;
  const memory = await makeImage(kind, size);
  const original = memory.toBytes();
  const storage = trace(memory, { keepBytes: true });
  const states = [{ records: 0, text: asText(await bitmapsOf(original)) }];
  for (let i = 0; i < 8; i++) {
    await editBitmaps(storage, await readMetadata(storage, 'data'), async (editor) => {
      const names = editor.states.map(({ name }) => name);
      for (let step = 0; step < random.between(1, 3); step++) {
        const [name, other] = [
          names.length > 0 ? random.pick(names) : '',
          names.length > 0 ? random.pick(names) : '',
        ];
        if (name === '' || random.chance(0.3)) {
          const made = `b${String(i)}-${String(step)}${'x'.repeat(random.pick([0, 100, 600]))}`;
          editor.add(made, random.pick([512, 4096, 65536]));
          names.push(made);
          // As if it had recorded something.
          editor.states.at(-1)?.mark(random.below(size), random.between(1, size));
        } else if (random.chance(0.25)) {
          editor.remove(name);
          names.splice(names.indexOf(name), 1);
        } else if (random.chance(0.4)) await editor.merge(name, editor.read(other));
        else if (random.chance(0.5)) editor.clear(name);
        else editor.enable(name, random.chance(0.5));
      }
    });
    states.push({ records: callsOf(storage).length, text: asText(await bitmapsOf(memory.toBytes())) });
  }
  const records = callsOf(storage);
  for (let count = 0; count <= records.length; count++) {
    const before = states.findLast((state) => state.records <= count);
    const after = states.find((state) => state.records >= count);
    for (const bytes of cutFiles(original, records, count, random, 2)) {
      const where = `after ${String(count)} of ${String(records.length)} calls: `;
      const wrong = await expectSound(bytes, kind);
      if (wrong !== null) return where + wrong;
      const text = asText(await bitmapsOf(bytes));
      const fine = text === before?.text || text === after?.text;
      if (!fine && !(text === '[]' && mayVanish(kind))) return `${where}${text} is neither old nor new`;
      if (look !== undefined && random.chance(0.02)) await look(bytes);
    }
  }
  return null;
}

/** How many files had a bitmap that was marked as in use, and one that was to be believed. */
interface Seen {
  inUse: number;
  trusted: number;
}

/** What is done: steps of all kinds, writes to clusters that are there already, or one change of the size. */
type Plan = 'mixed' | 'in place' | 'resize';

/** Writes to an image with bitmaps and cuts the power at every call; gives what went wrong, or null. */
async function cutWrites(
  kind: Kind,
  random: Random,
  seen: Seen,
  options: { readonly look?: Look; readonly forgetful?: boolean; readonly plan?: Plan } = {},
): Promise<string | null> {
  const { plan = 'mixed' } = options;
  // With clusters of 512 bytes a table of a bitmap has an entry for each 2 MiB.
  const size = (plan === 'resize' ? random.between(3500, 4700) : random.between(40, 400)) * SECTOR;
  const memory = await makeImage(kind, size);
  const backed = kind.backing !== undefined;
  const below = new Uint8Array(size).fill(0xb5);
  const base = (): Bytes => new Bytes(below);
  const open = async (): Promise<DiskImage> => {
    const metadata = await readMetadata(storage, 'data');
    const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, { backed });
    const backing = backed ? await openImage(base(), { format: 'raw', codec: nodeCodec }) : null;
    return new DiskImage(driver, storage, backing);
  };
  const content = async (bytes: Uint8Array): Promise<Uint8Array> => {
    const from = new Bytes(bytes);
    const { driver } = await openImage(from, { format: 'qcow2', codec: nodeCodec, backing: false });
    const backing = backed ? await openImage(base(), { format: 'raw', codec: nodeCodec }) : null;
    const image = new DiskImage(driver, from, backing);
    const guest = new Uint8Array(image.size);
    await image.read(guest, 0);
    return guest;
  };
  let storage: TraceLayer = trace(memory, { keepBytes: true });
  // Something to begin with, a snapshot to go back to, and bitmaps.
  const first = await open();
  const start = new Model(await content(memory.toBytes()));
  if (plan === 'in place') await first.write(start.bytes.fill(0x1f), 0);
  for (let i = 0; i < 5; i++)
    await applyStep(first, start, randomStep(random, size, first.driver.granularity));
  const wide = kind.refcountBits !== 1;
  const { driver } = first;
  if (wide && driver instanceof Qcow2WriteDriver)
    await first.alone(() =>
      driver.changeSnapshots((w) => createSnapshot(w, { name: 's', date: new Date() })),
    );
  await first.close();
  await editBitmaps(memory, await readMetadata(memory, 'data'), (editor) => {
    editor.add('rec', random.pick([512, 4096, 65536]));
    editor.add('still', 512);
    editor.enable('still', false);
    editor.states.at(-1)?.mark(0, 700);
    return Promise.resolve();
  });
  const original = memory.toBytes();
  const before = await content(original);
  const still = (await bitmapsOf(original)).get('still');
  storage = trace(memory, { keepBytes: true });
  const image = await open();
  if (options.forgetful === true) {
    const writing = image.driver as Qcow2WriteDriver;
    const { bitmaps } = writing.writer.options;
    if (bitmaps !== undefined) bitmaps.record = () => undefined;
  }
  const model = new Model(before.slice());
  let resized = false;
  for (let i = 0; i < 25; i++) {
    if (plan === 'in place') {
      const at = random.below(size / SECTOR) * SECTOR;
      const length = Math.min(size - at, random.between(1, 4) * SECTOR);
      await applyStep(image, model, { do: 'write', at, length, seed: random.u32() });
      if (i === 5) break;
      continue;
    }
    const dice = plan === 'resize' ? 0 : random.below(20);
    if (plan === 'resize' && i > 0) break;
    if (dice === 0) {
      const step = plan === 'resize' ? random.between(-1000, 1000) : random.between(-60, 60);
      const next = Math.max(SECTOR, Math.min(model.size + step * SECTOR, size * 2));
      await image.resize(next);
      const bytes = new Uint8Array(next);
      bytes.set(model.bytes.subarray(0, next));
      Object.assign(model, { bytes });
      resized = true;
    } else if (dice === 1 && wide) {
      const writing = image.driver as Qcow2WriteDriver;
      const snapshot = findSnapshot(writing.metadata.snapshots, 's');
      await image.alone(() => writing.changeSnapshots((w) => applySnapshot(w, snapshot)));
      const bytes = new Uint8Array(image.size);
      await image.read(bytes, 0);
      Object.assign(model, { bytes });
      resized = true;
    } else await applyStep(image, model, randomStep(random, model.size, image.driver.granularity));
  }
  await image.close();
  const records = callsOf(storage);
  for (let count = 0; count <= records.length; count++) {
    for (const bytes of cutFiles(original, records, count, random, plan === 'mixed' ? 2 : 6)) {
      const where = `after ${String(count)} of ${String(records.length)} calls: `;
      const wrong = await expectSound(bytes, kind);
      if (wrong !== null) return where + wrong;
      const bitmaps = await bitmapsOf(bytes);
      const rec = bitmaps.get('rec');
      if (rec === undefined || !bitmaps.has('still')) {
        if (mayVanish(kind) && bitmaps.size === 0) continue;
        return `${where}a bitmap is gone`;
      }
      if (rec === 'in use') seen.inUse++;
      else {
        const guest = await content(bytes);
        const dirty = new Uint8Array(Math.ceil(guest.length / SECTOR));
        for (const range of rec.split(': ')[1]?.split(' ') ?? []) {
          const [at, length] = range.split('+').map(Number);
          if (at !== undefined && length !== undefined) dirty.fill(1, at / SECTOR, (at + length) / SECTOR);
        }
        for (let at = 0; at < guest.length; at += SECTOR) {
          const same =
            at < before.length &&
            Buffer.compare(guest.subarray(at, at + SECTOR), before.subarray(at, at + SECTOR)) === 0;
          if (same || dirty[at / SECTOR] === 1) continue;
          return `${where}sector ${String(at / SECTOR)} is called clean and is not what it was`;
        }
        seen.trusted++;
      }
      if (!resized && bitmaps.get('still') !== still) return `${where}the disabled bitmap changed`;
      if (options.look !== undefined && random.chance(0.02)) await options.look(bytes);
    }
  }
  const last = await bitmapsOf(memory.toBytes());
  if ([...last.values()].includes('in use')) return 'a bitmap is in use after closing';
  return null;
}

describe('a power cut, with bitmaps', () => {
  it(
    `leaves the old bitmaps or the new ones when they are changed: ${String(SEQUENCES)} sequences`,
    { timeout: 1_800_000 },
    async () => {
      const seed = seedOf('bitmap power cut');
      for (let index = 0; index < SEQUENCES; index++) {
        const kind = KINDS[index % KINDS.length]!;
        const context = `${JSON.stringify(kind)} SPINDLE_SEED=${String(seed)}, sequence ${String(index)}`;
        expect(await cutOperations(kind, new Random((seed + index) >>> 0)), context).toBeNull();
      }
    },
  );

  it(
    `leaves bitmaps that cover every change, or are marked as in use: ${String(SEQUENCES)} sequences`,
    { timeout: 1_800_000 },
    async () => {
      const seed = seedOf('bitmap writes power cut');
      const seen = { inUse: 0, trusted: 0 };
      for (let index = 0; index < SEQUENCES; index++) {
        const kind = KINDS[index % KINDS.length]!;
        const context = `${JSON.stringify(kind)} SPINDLE_SEED=${String(seed)}, sequence ${String(index)}`;
        expect(await cutWrites(kind, new Random((seed + index) >>> 0), seen), context).toBeNull();
        for (const plan of ['in place', 'resize'] as const) {
          const random = new Random((seed + index) >>> 0);
          expect(await cutWrites(kind, random, seen, { plan }), `${plan} ${context}`).toBeNull();
        }
      }
      expect(seen.inUse).toBeGreaterThan(10);
      expect(seen.trusted).toBeGreaterThan(10);
    },
  );

  it('is noticed by this test when a writer records nothing', async () => {
    const seen = { inUse: 0, trusted: 0 };
    for (let index = 0; index < 3; index++) {
      const random = new Random(2000 + index);
      expect(await cutWrites({ clusterSize: 4096 }, random, seen, { forgetful: true })).not.toBeNull();
    }
  });
});

qemu.describeWithQemu('a power cut, with bitmaps', () => {
  it('leaves what qemu too opens and finds leaking at most', { timeout: 600_000 }, async () => {
    const path = join(tempDir(), 'cut.qcow2');
    let looked = 0;
    const look = async (bytes: Uint8Array): Promise<void> => {
      writeFileSync(path, bytes);
      const judged = await qemu.check(path);
      expect([0, 3], judged.stderr).toContain(judged.code);
      await qemu.info(path);
      looked++;
      rmSync(path);
    };
    const seen = { inUse: 0, trusted: 0 };
    for (const [index, kind] of KINDS.entries()) {
      if (kind.backing !== undefined) continue;
      const seed = seedOf('bitmap power cut, qemu') + index;
      expect(await cutOperations(kind, new Random(seed), look), JSON.stringify(kind)).toBeNull();
      for (const plan of ['mixed', 'resize'] as const) {
        const wrong = await cutWrites(kind, new Random(seed), seen, { look, plan });
        expect(wrong, `${plan} ${JSON.stringify(kind)}`).toBeNull();
      }
    }
    expect(looked).toBeGreaterThan(10);
  });
});

describe('a call that fails while bitmaps are changed', () => {
  it('leaves the old bitmaps or the new ones, and no damage', async () => {
    const edit = async (storage: Storage): Promise<void> =>
      editBitmaps(storage, await readMetadata(storage, 'data'), async (editor) => {
        editor.remove('old');
        editor.add('new', 512);
        await editor.merge('new', editor.read('kept'));
      });
    for (const kind of KINDS) {
      const memory = await makeImage(kind, 3_000_320);
      await editBitmaps(memory, await readMetadata(memory, 'data'), (editor) => {
        for (const name of ['old', 'kept']) {
          editor.add(name, 4096);
          editor.states.at(-1)?.mark(100_000, 1_000_000);
        }
        return Promise.resolve();
      });
      const before = asText(await bitmapsOf(memory.toBytes()));
      let failures = 0;
      let hid = 0;
      for (let calls = 0; ; calls++) {
        const copy = MemoryStorage.from(memory.toBytes());
        const failing = fault(copy);
        failing.inject({
          on: ['write', 'flush', 'resize'],
          after: calls,
          times: calls % 2 === 0 ? 1 : 1e9,
          code: 'NO_SPACE',
        });
        const failed = await edit(failing).then(
          () => false,
          (error: unknown) => isSpindleError(error, 'NO_SPACE'),
        );
        const bytes = copy.toBytes();
        const context = `${JSON.stringify(kind)}, call ${String(calls)}`;
        expect(await expectSound(bytes, kind), context).toBeNull();
        const after = asText(await bitmapsOf(bytes));
        if (!failed) {
          expect(after, context).not.toBe(before);
          break;
        }
        failures++;
        if (after === '[]' && mayVanish(kind)) hid++;
        else if (after !== before) expect(after, context).toMatch(/^\[\["kept".*\["new"/);
        else {
          // It works when there is space again.
          await edit(copy);
          expect(await expectSound(copy.toBytes(), kind), context).toBeNull();
        }
      }
      expect(failures).toBeGreaterThan(5);
      expect(hid > 0).toBe(mayVanish(kind));
    }
  });
});

describe('the header', () => {
  it('keeps the name of a backing file that makes way for the bitmaps', async () => {
    for (const kind of KINDS) {
      if (kind.backing === undefined || kind.backing === null) continue;
      const memory = await makeImage(kind, 65536);
      const at = viewOf(memory.toBytes()).getUint32(HeaderOffset.backingFileOffset + 4);
      await editBitmaps(memory, await readMetadata(memory, 'data'), (editor) => {
        editor.add('b');
        return Promise.resolve();
      });
      const { backingName, header, bitmaps } = await readMetadata(memory, 'data');
      expect(backingName).toBe(kind.backing.name);
      expect(header.backingFileOffset).toBeGreaterThan(at);
      expect(bitmaps.map(({ name }) => name)).toEqual(['b']);
    }
  });

  it('refuses bitmaps where it has no room for them', async () => {
    const full: Kind = { clusterSize: 512, backing: { name: 'n'.repeat(345), format: 'raw' } };
    const memory = await makeImage(full, 65536);
    const before = memory.toBytes();
    const adding = editBitmaps(memory, await readMetadata(memory, 'data'), (editor) => {
      editor.add('b');
      return Promise.resolve();
    });
    await expect(adding).rejects.toMatchObject({ code: 'LIMIT' });
    expect(Buffer.compare(memory.toBytes(), before)).toBe(0);
  });

  it('may point with bitmaps that are out of date to what is something else by now', async () => {
    const memory = await makeImage({ clusterSize: 4096 }, 65536);
    const edit = async (name: string): Promise<void> =>
      editBitmaps(memory, await readMetadata(memory, 'data'), (editor) => {
        editor.add(name);
        return Promise.resolve();
      });
    await edit('old');
    // A program that does not know bitmaps clears the bit, frees what it takes for leaks, and uses it for the L1 table.
    const { header, known, extensions } = await readMetadata(memory, 'data');
    const place = new Uint8Array(8);
    setU64(viewOf(place), 0, header.l1TableOffset);
    await memory.write(place, (extensions.at(-1)?.offset ?? 0) + 24);
    await memory.write(new Uint8Array(8), HeaderOffset.autoclearFeatures);
    expect(known.bitmaps?.count).toBe(1);
    await edit('new');
    const after = await readMetadata(memory, 'data');
    expect(after.bitmaps.map(({ name }) => name)).toEqual(['new']);
    expect(await expectSound(memory.toBytes(), {})).toBeNull();
  });
});
