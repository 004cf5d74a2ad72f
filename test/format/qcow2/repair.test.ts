import { copyFileSync, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { SpindleError } from '../../../src/core/errors.ts';
import type { Image } from '../../../src/format/image.ts';
import type { CheckResult } from '../../../src/format/qcow2/check/check.ts';
import type { ProblemCode } from '../../../src/format/qcow2/check/problem.ts';
import { readMetadata } from '../../../src/format/qcow2/metadata.ts';
import { Covered } from '../../../src/format/qcow2/repair/covered.ts';
import { JournalWriter } from '../../../src/format/qcow2/repair/journal.ts';
import { planRepair } from '../../../src/format/qcow2/repair/plan.ts';
import { Spans } from '../../../src/format/qcow2/repair/spans.ts';
import type { RepairMode, RepairPlan } from '../../../src/format/qcow2/repair/step.ts';
import { undoRepair } from '../../../src/format/qcow2/repair/undo.ts';
import { trace } from '../../../src/layer/trace.ts';
import { checkExitCode } from '../../../src/op/check.ts';
import { openImageFile } from '../../../src/op/open.ts';
import { repair, repairFile, repairJson, undoRepairFile } from '../../../src/op/repair.ts';
import { MemoryStorage } from '../../../src/storage/memory.ts';
import { FIXTURES, fixtureJson, golden, type Fixture } from '../../tool/fixtures.ts';
import * as qemu from '../../tool/qemu.ts';
import { Random, withRandom } from '../../tool/random.ts';
import { content, cuts, expectKept, expectSafe, sha256 } from '../../tool/repair-cuts.ts';
import { tempDir } from '../../tool/temp.ts';
import { makeImage, STYLES, type CheckedImage } from './check-images.ts';
import { times } from '../../tool/share.ts';

const CHECK = join(FIXTURES, 'check');
const NAMES = fixtureJson<Fixture[]>('check', 'index.json').map(({ file }) => file);
const bytesOfFixture = (file: string): Buffer => readFileSync(join(CHECK, file));

/** A fixture and its data file in a directory of their own. */
function stage(file: string): string {
  const folder = tempDir();
  copyFileSync(join(CHECK, file), join(folder, file));
  const data = file.replace('.qcow2', '.img');
  if (existsSync(join(CHECK, data))) copyFileSync(join(CHECK, data), join(folder, data));
  return join(folder, file);
}

/** A broken reference stays: what it led to looks leaked, and is not given away, which qemu does. */
const KEEPS_COUNTS = new Set([
  ...['compressed-beyond-eof', 'l1-self', 'l2-beyond-eof', 'l2-unaligned', 'snapshot-l2-unaligned'].flatMap(
    (name) => [`${name} leaks`, `${name} all`],
  ),
  ...['snapshot-l1-beyond-eof', 'snapshot-l1-huge', 'snapshot-l1-unaligned'].map((name) => `${name} leaks`),
]);
/** Where ours leaves more, by mode, and why. */
const LEAVES_MORE: Readonly<Record<string, string>> = {
  'ext-l2-compressed leaks':
    'the cluster that a check does not count is in use: all drops the bitmap instead',
};
/** What qemu does not see, so that ours finds more afterwards. */
const UNSEEN: ReadonlySet<ProblemCode> = new Set(['ZERO_FLAG_V2', 'DATA_FILE_OFFSET']);
/** A guest cluster that shows a table changes with it, as with qemu. */
const SHOWS_TABLES = new Set(['l2-self.qcow2', 'l1-self.qcow2']);

interface Golden {
  readonly after: { readonly exit: number; readonly output: Record<string, number> | null };
}

qemu.describeWithQemu('repair of the fixtures', () => {
  const grid = NAMES.flatMap((file) => (['leaks', 'all'] as const).map((mode) => ({ file, mode })));
  it.each(grid)('$file -r $mode', async ({ file, mode }) => {
    const path = stage(file);
    const open = (): Promise<Image> => openImageFile(path, { format: 'qcow2' });
    const before = await content(open);
    const done = await repairFile(path, { mode, format: 'qcow2' });
    if (!SHOWS_TABLES.has(file)) expectKept(before, await content(open), file);

    const cwd = join(path, '..');
    const judged = await qemu.check(path, { cwd });
    const unseen = done.after.problems
      .filter(({ code }) => UNSEEN.has(code))
      .reduce((sum, { times }) => sum + times, 0);
    if (judged.json !== undefined) {
      expect(judged.json.corruptions ?? 0).toBe(done.after.corruptions - unseen);
      expect(judged.json.leaks ?? 0).toBe(done.after.leaks);
    }

    const theirs = (golden('check', file, 'repair.json') as Record<RepairMode, Golden>)[mode].after;
    const name = file.replace('.qcow2', '');
    const rank = (exit: number): number => [0, 3, 2, 1].indexOf(exit);
    const ours = checkExitCode({ ...done.after, corruptions: done.after.corruptions - unseen });
    if (`${name} ${mode}` in LEAVES_MORE) expect(rank(ours)).toBeGreaterThanOrEqual(rank(theirs.exit));
    else if (!KEEPS_COUNTS.has(`${name} ${mode}`)) expect(rank(ours)).toBeLessThanOrEqual(rank(theirs.exit));
    if (theirs.output !== null && !(`${name} ${mode}` in LEAVES_MORE)) {
      expect(done.after.corruptions - unseen).toBeLessThanOrEqual(theirs.output['corruptions'] ?? 0);
      if (!KEEPS_COUNTS.has(`${name} ${mode}`))
        expect(done.after.leaks).toBeLessThanOrEqual(theirs.output['leaks'] ?? 0);
      else expect(done.left.length).toBeGreaterThan(0);
    }
    // A second repair has nothing left to do.
    const bytes = await readFile(path);
    expect((await repairFile(path, { mode, format: 'qcow2' })).changes).toBe(0);
    expect((await readFile(path)).equals(bytes)).toBe(true);
  });

  it('of a dirty image: leaks keeps the mark and says so, all clears it', async () => {
    const path = stage('dirty-stale.qcow2');
    const incompatible = (): number => readFileSync(path).readUInt32BE(76);
    const leaks = await repairFile(path, { mode: 'leaks' });
    expect(leaks.changes).toBe(0);
    expect(leaks.left.map(({ message }) => message).join('\n')).toMatch(/dirty|-r all/);
    expect(incompatible() & 1).toBe(1);
    await repairFile(path, { mode: 'all' });
    expect(incompatible() & 1).toBe(0);
  });

  it('clears the corrupt mark only where nothing stays wrong', async () => {
    for (const [file, kept] of [
      ['corrupt-bit.qcow2', 0],
      ['data-beyond-eof.qcow2', 2],
    ] as const) {
      const path = stage(file);
      const bytes = readFileSync(path);
      bytes.writeUInt32BE(2, 76);
      await writeFile(path, bytes);
      await repairFile(path, { mode: 'all' });
      expect(readFileSync(path).readUInt32BE(76) & 2).toBe(kept);
    }
  });

  it('has the keys of qemu-img', async () => {
    const path = stage('snapshot-low.qcow2');
    const json = repairJson(await repairFile(path, { mode: 'all' }), path, 'qcow2');
    expect(json).toMatchObject({ 'check-errors': 0, 'corruptions-fixed': 2, format: 'qcow2' });
    expect(json).not.toHaveProperty('corruptions');
  });
});

describe('what cannot be repaired', () => {
  it('fails before anything changes where new refcounts would overflow', async () => {
    const bytes = new Uint8Array(bytesOfFixture('overflow.qcow2'));
    // The refcount table is gone as well, so that all must be written anew.
    const table = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(48));
    bytes.fill(0, table, table + 8);
    const storage = MemoryStorage.from(bytes);
    await expect(repair(storage, { mode: 'all' })).rejects.toMatchObject({ code: 'LIMIT' });
    expect(sha256(storage.toBytes())).toBe(sha256(bytes));
  });

  it('raw images', async () => {
    const path = join(tempDir(), 'raw');
    writeFileSync(path, 'nothing');
    await expect(repairFile(path, { mode: 'all' })).rejects.toMatchObject({ code: 'UNSUPPORTED' });
  });
});

// ---------------------------------------------------------------------------------------------- random damage

const OFFSET = 0x00ff_ffff_ffff_fe00n;

/** Damages refcounts, refcount table entries, copied flags and reserved bits: nothing that a guest's data hangs on. */
function damageCounts(image: CheckedImage, bytes: Buffer, random: Random): string[] {
  const { clusterSize, refcountBlocks, refcountTable, l1, l2 } = image;
  const clusters = Math.ceil(bytes.length / clusterSize);
  const done: string[] = [];
  for (let count = random.between(1, 6); count > 0; count--) {
    const kind = random.below(8);
    if (kind < 4) {
      const used = Math.min(clusterSize, clusters * 2 + 8);
      const at = random.pick(refcountBlocks) + random.below(used);
      if (at >= bytes.length) continue;
      bytes[at] = random.pick([0, 1, 2, 3, 255, random.below(256)]);
      done.push(`refcount byte at ${String(at)} := ${String(bytes[at])}`);
      continue;
    }
    const table = kind === 4;
    const at = table ? random.pick(refcountTable) : random.pick(kind < 6 ? l1 : l2);
    if (at + 8 > bytes.length) continue;
    const entry = bytes.readBigUInt64BE(at);
    const compressed = !table && kind >= 6 && (entry & (1n << 62n)) !== 0n;
    let value = entry;
    if (table) {
      value = random.pick([
        ...[0n, entry | 1n, entry + 512n, BigInt(random.below(clusters) * clusterSize)],
        ...[BigInt((clusters + random.below(10)) * clusterSize), BigInt(random.u32())],
      ]);
    } else if (compressed) value = entry | (1n << 63n);
    else if ((entry & OFFSET) !== 0n)
      value = entry ^ (random.chance(0.6) ? 1n << 63n : 1n << BigInt(random.between(57, 61)));
    bytes.writeBigUInt64BE(value, at);
    done.push(`entry at ${String(at)}: ${entry.toString(16)} -> ${value.toString(16)}`);
  }
  if (random.chance(0.1)) {
    bytes.writeUInt32BE(random.pick([0, 1, 2]), 56);
    done.push('number of clusters of the refcount table');
  }
  if (random.chance(0.1)) {
    const at = BigInt((random.below(clusters) + random.below(3)) * clusterSize);
    bytes.writeBigUInt64BE(at, 48);
    done.push(`refcount table at ${at.toString(16)}`);
  }
  return done;
}

qemu.describeWithQemu('repair after random damage', () => {
  const folder = tempDir();
  const rounds = times('SPINDLE_REPAIR_ROUNDS', 8);
  it.each(STYLES.map((style, index) => ({ name: style.name, style, index })))(
    `${String(rounds)} times: $name`,
    async ({ name, style, index }) => {
      await withRandom(`repair ${name}`, async (random) => {
        const image = await makeImage(folder, `r${String(index)}`, style, random);
        const scratch = join(folder, `scratch${String(index)}`);
        const content = (): Promise<string> =>
          qemu.contentHash(image.path, scratch, { source: image.source });
        const wanted = await content();
        for (let round = 0; round < rounds; round++) {
          const bytes = Buffer.from(image.bytes);
          const what = damageCounts(image, bytes, random).join('; ');
          await writeFile(image.path, bytes);
          const message = `round ${String(round)}: ${what}`;
          const planned = await repairFile(image.path, { mode: 'all', format: 'qcow2', dryRun: true });
          const result = await repairFile(image.path, { mode: 'all', format: 'qcow2' });
          expect(result, message).toEqual(planned);
          expect(result.after.problems, message).toEqual([]);
          const judged = await qemu.check(image.path, { source: image.source });
          expect(judged.json, message).toMatchObject({ 'check-errors': 0 });
          expect(judged.code, message).toBe(0);
          expect(await content(), message).toBe(wanted);
        }
        await writeFile(image.path, image.bytes);
      });
    },
    300_000,
  );
});

// ---------------------------------------------------------------------------------------------- power cuts

describe('repair when the power fails', () => {
  const damaged = NAMES.filter((file) => !/^data-file|^l[12]-self|^clean/.test(file));
  it.each(damaged.map((file) => ({ file })))('$file', async ({ file }) => {
    await withRandom(`cut ${file}`, (random) => expectSafe(bytesOfFixture(file), file, random));
  });

  /** Damage in which every step has something to do, without and with new refcount blocks. */
  function much(rebuild: boolean): Uint8Array {
    const bytes = new Uint8Array(bytesOfFixture('snapshot-low.qcow2'));
    const view = new DataView(bytes.buffer);
    const block = Number(view.getBigUint64(Number(view.getBigUint64(48))));
    const l1 = Number(view.getBigUint64(40));
    view.setUint16(block, 0); // the header
    view.setUint16(block + 2 * (l1 / 4096), 9); // the L1 table
    view.setUint32(76, 3);
    view.setUint8(l1 + 1, 0);
    if (rebuild) view.setBigUint64(Number(view.getBigUint64(48)), 0n);
    return bytes;
  }

  it.each([false, true])('with much damage (rebuild: %s)', async (rebuild) => {
    await withRandom('cut much', (random) => expectSafe(much(rebuild), 'much', random));
  });

  it.each([false, true])('fails where the order is broken (rebuild: %s)', async (rebuild) => {
    // Leaks, so that counts go down: in a broken order before what refers to them is changed.
    const bytes = rebuild ? much(true) : new Uint8Array(bytesOfFixture('zero-unaligned.qcow2'));
    const reversed = (plan: RepairPlan): RepairPlan => ({ ...plan, steps: [...plan.steps].reverse() });
    await expect(expectSafe(bytes, 'reversed', new Random(1), reversed)).rejects.toThrow();
  });

  it('fails where the flush between two steps is missing', async () => {
    const joined = (plan: RepairPlan): RepairPlan => {
      const [first] = plan.steps;
      if (first === undefined) throw new Error('an empty plan');
      const patches: typeof first.patches = async function* () {
        for (const step of plan.steps) yield* step.patches();
      };
      return { ...plan, steps: [{ ...first, patches }] };
    };
    await expect(expectSafe(much(true), 'joined', new Random(1), joined)).rejects.toThrow();
  });
});

// ---------------------------------------------------------------------------------------------- journal, dry run

describe('the journal', () => {
  it.each(NAMES.map((file) => ({ file })))('brings $file back', async ({ file }) => {
    const path = stage(file);
    const journal = `${path}.undo`;
    const before = sha256(readFileSync(path));
    const done = await repairFile(path, { mode: 'all', journal, format: 'qcow2' });
    if (done.changes === 0) return;
    expect(sha256(readFileSync(path))).not.toBe(before);
    expect((await undoRepairFile(path, journal)).changes).toBeGreaterThan(0);
    expect(sha256(readFileSync(path))).toBe(before);
    // Once more does no harm.
    await undoRepairFile(path, journal);
    expect(sha256(readFileSync(path))).toBe(before);
  });

  it('refuses an image that was changed after the repair, and changes nothing', async () => {
    for (const file of ['refblock-twice.qcow2', 'snapshot-low.qcow2']) {
      const path = stage(file);
      const places: number[] = [];
      await repairFile(path, {
        ...{ mode: 'all', journal: `${path}.undo` },
        onPatch: ({ at }) => places.push(at),
      });
      for (const at of [...new Set(places)]) {
        const bytes = readFileSync(path);
        bytes[at] = (bytes[at] ?? 0) ^ 0x55;
        const other = `${path}.other`;
        writeFileSync(other, bytes);
        await expect(undoRepairFile(other, `${path}.undo`)).rejects.toMatchObject({ code: 'BAD_OPTION' });
        expect(readFileSync(other).equals(bytes)).toBe(true);
      }
      const longer = Buffer.concat([readFileSync(path), Buffer.alloc(512)]);
      writeFileSync(path, longer);
      await expect(undoRepairFile(path, `${path}.undo`)).rejects.toMatchObject({ code: 'BAD_OPTION' });
      expect(readFileSync(path).equals(longer)).toBe(true);
    }
  });

  it('is not left behind where it was not needed', async () => {
    const path = stage('clean.qcow2');
    const journal = `${path}.undo`;
    expect((await repairFile(path, { mode: 'all', journal })).changes).toBe(0);
    expect(existsSync(journal)).toBe(false);
    // Nor where the repair failed before it began.
    const bytes = bytesOfFixture('overflow.qcow2');
    bytes.fill(0, Number(bytes.readBigUInt64BE(48)), Number(bytes.readBigUInt64BE(48)) + 8);
    writeFileSync(path, bytes);
    await expect(repairFile(path, { mode: 'all', journal })).rejects.toMatchObject({ code: 'LIMIT' });
    expect(existsSync(journal)).toBe(false);
  });

  it('is never written over, and must be one', async () => {
    const path = stage('leak.qcow2');
    writeFileSync(`${path}.undo`, 'precious');
    const options = { mode: 'all', journal: `${path}.undo` } as const;
    await expect(repairFile(path, options)).rejects.toMatchObject({ code: 'EXISTS' });
    expect(readFileSync(`${path}.undo`, 'utf8')).toBe('precious');
    await expect(undoRepairFile(path, `${path}.undo`)).rejects.toMatchObject({ code: 'BAD_OPTION' });
    expect(readFileSync(path).equals(bytesOfFixture('leak.qcow2'))).toBe(true);
  });

  it.each(['refblock-twice.qcow2', 'zero-unaligned.qcow2', 'snapshot-leaked.qcow2'])(
    'brings %s back from every power cut, also in the undo',
    async (file) => {
      await withRandom(`undo ${file}`, async (random) => {
        const bytes = new Uint8Array(bytesOfFixture(file));
        const image = MemoryStorage.from(bytes);
        const traced = trace(image, { keepBytes: true });
        const journal = new MemoryStorage();
        await repair(traced, { mode: 'all' }, new JournalWriter(journal, file));
        // The image is always as far as its journal, or behind.
        for (const [where, cut] of cuts(bytes, traced.records, random)) {
          const disk = MemoryStorage.from(cut);
          // A journal that is whole belongs to a repair that ended; here what came last may be missing.
          const text = Buffer.from(journal.toBytes()).toString();
          const open = Buffer.from(
            text
              .split('\n')
              .filter((line) => !line.includes('"done"'))
              .join('\n') + '\n',
          );
          await undoRepair(disk, MemoryStorage.from(open));
          expect(sha256(disk.toBytes()), where).toBe(sha256(bytes));
        }
        const start = image.toBytes();
        const undone = trace(image, { keepBytes: true });
        await undoRepair(undone, journal);
        for (const [where, cut] of cuts(start, undone.records, random)) {
          const disk = MemoryStorage.from(cut);
          await undoRepair(disk, journal);
          expect(sha256(disk.toBytes()), where).toBe(sha256(bytes));
        }
      });
    },
  );
});

describe('a dry run', () => {
  const grid = NAMES.flatMap((file) => (['leaks', 'all'] as const).map((mode) => ({ file, mode })));
  it.each(grid)('leaves $file as it is and tells all that -r $mode does', async ({ file, mode }) => {
    const path = stage(file);
    const look = (): unknown => [sha256(readFileSync(path)), statSync(path, { bigint: true }).mtimeNs];
    const before = look();
    const run = async (dryRun: boolean): Promise<unknown> => {
      const changes: unknown[] = [];
      const done = await repairFile(path, {
        ...{ mode, dryRun, format: 'qcow2' },
        onPatch: ({ at, bytes, structure, why }, step) =>
          changes.push([step, at, sha256(bytes), structure, why]),
      });
      expect(changes).toHaveLength(done.changes);
      return { ...done, list: changes };
    };
    const planned = await run(true);
    expect(look()).toEqual(before);
    expect(await run(false)).toEqual(planned);
  });

  it('tells of every round', async () => {
    // An L2 table that is taken for a refcount block: it is mended only once the refcounts are elsewhere.
    const path = stage('copied-missing-l2.qcow2');
    const bytes = readFileSync(path);
    const l2 = bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & OFFSET;
    bytes.writeBigUInt64BE(l2, Number(bytes.readBigUInt64BE(48)));
    writeFileSync(path, bytes);
    const storage = MemoryStorage.from(bytes);
    let first = 0;
    for (const step of (await planRepair(storage, await readMetadata(storage, 'check'), 'all')).steps)
      for await (const _ of step.patches()) first++;
    const planned = await repairFile(path, { mode: 'all', dryRun: true });
    expect(planned.changes).toBeGreaterThan(first);
    expect(planned.after.problems).toEqual([]);
    expect(await repairFile(path, { mode: 'all' })).toEqual(planned);
  });
});

describe('the parts of a repair', () => {
  it('spans and covered ranges answer like an array of bytes', () => {
    const random = new Random(3);
    for (let round = 0; round < 300; round++) {
      const held = new Array<boolean>(64).fill(false);
      const covered = new Covered();
      const ranges = Array.from({ length: random.between(0, 8) }, () => {
        const at = random.below(15) * 4;
        return { at, end: at + 4 * random.between(0, 3) };
      });
      for (const { at, end } of ranges) {
        if (end > at) covered.add(at, end);
        held.fill(true, at, end);
      }
      const spans = new Spans(ranges, 4);
      const from = random.below(50);
      const to = from + random.between(1, 10);
      expect(spans.touching(from, to) >= 0).toBe(held.slice(from, to).includes(true));
      const gaps = covered.gaps(from, to).flatMap(([a, b]) => Array.from({ length: b - a }, (_, i) => a + i));
      expect(gaps).toEqual([...held.keys()].filter((i) => i >= from && i < to && held[i] !== true));
    }
  });

  it('an abort leaves an image that can be repaired', async () => {
    const storage = MemoryStorage.from(bytesOfFixture('refblock-missing.qcow2'));
    const controller = new AbortController();
    const options = {
      mode: 'all',
      signal: controller.signal,
      onPatch: () => {
        controller.abort();
      },
    } as const;
    await expect(repair(storage, options)).rejects.toMatchObject({ code: 'ABORTED' });
    const { after }: { after: CheckResult } = await repair(storage, { mode: 'all' });
    expect(after.problems).toEqual([]);
    expect(new SpindleError('ABORTED', '')).toBeInstanceOf(Error);
  });
});
