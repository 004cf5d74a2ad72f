import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { SpindleError } from '../../../src/core/errors.ts';
import { ReadOnlyStorage } from '../../../src/core/storage.ts';
import type { CheckProblem, ProblemCode } from '../../../src/format/qcow2/check/problem.ts';
import { ReferenceCounts } from '../../../src/format/qcow2/check/references.ts';
import { sweep } from '../../../src/format/qcow2/check/sweep.ts';
import { check, checkExitCode, checkJson } from '../../../src/op/check.ts';
import { MemoryStorage } from '../../../src/storage/memory.ts';
import { openFile } from '../../../src/storage/file.ts';
import { FIXTURES, fixtureJson, golden, type Fixture } from '../../tool/fixtures.ts';
import * as qemu from '../../tool/qemu.ts';
import { Random, withRandom } from '../../tool/random.ts';
import { tempDir } from '../../tool/temp.ts';
import { makeImage, mutate, restore, STYLES, type CheckedImage } from './check-images.ts';
import { times } from '../../tool/share.ts';

/**
 * What spindle reports as corruption and qemu-img check does not see. In both cases reading the cluster fails, in qemu as
 * well as here, so "no errors were found" would be wrong.
 */
const BEYOND_QEMU: ReadonlySet<ProblemCode> = new Set(['ZERO_FLAG_V2', 'DATA_FILE_OFFSET']);

interface Verdict {
  readonly exit: number;
  readonly output: Record<string, unknown>;
  /** The same without {@link BEYOND_QEMU}. */
  readonly asQemu: { readonly exit: number; readonly output: Record<string, unknown> };
  readonly problems: readonly CheckProblem[];
}

async function judge(path: string, filename = path): Promise<Verdict> {
  const storage = await openFile(path);
  try {
    const result = await check(storage, { problemLimit: Infinity });
    const extra = result.problems
      .filter(({ code }) => BEYOND_QEMU.has(code))
      .reduce((sum, { times }) => sum + times, 0);
    const reduced = { ...result, corruptions: result.corruptions - extra };
    return {
      exit: checkExitCode(result),
      output: { ...checkJson(result, filename, 'qcow2') },
      asQemu: { exit: checkExitCode(reduced), output: { ...checkJson(reduced, filename, 'qcow2') } },
      problems: result.problems,
    };
  } finally {
    await storage.close();
  }
}

/** Counts that belong to the problems must add up to the counts of the result. */
function expectConsistent(verdict: Verdict): void {
  const sum = (kind: CheckProblem['kind']): number =>
    verdict.problems
      .filter((problem) => problem.kind === kind)
      .reduce((total, { times }) => total + times, 0);
  expect({
    corruptions: sum('corruption'),
    leaks: sum('leak'),
    'check-errors': sum('error'),
  }).toEqual({
    corruptions: verdict.output['corruptions'] ?? 0,
    leaks: verdict.output['leaks'] ?? 0,
    'check-errors': verdict.output['check-errors'],
  });
}

describe('check agrees with the goldens', () => {
  interface Golden {
    readonly exit: number;
    readonly output: Record<string, unknown> | null;
  }
  /** Fixtures on which spindle says more; the codes that explain it. */
  const more: Readonly<Record<string, ProblemCode>> = {
    'zero-flag-v2.qcow2': 'ZERO_FLAG_V2',
    'data-file-offset.qcow2': 'DATA_FILE_OFFSET',
  };

  for (const section of ['good', 'check'] as const) {
    const entries = fixtureJson<Fixture[]>(section, 'index.json').filter(({ file }) =>
      file.endsWith('.qcow2'),
    );
    it.each(entries.map((entry) => ({ file: entry.file })))(`${section}/$file`, async ({ file }) => {
      const verdict = await judge(join(FIXTURES, section, file), file);
      const expected = golden(section, file, 'check.json') as Golden;
      expectConsistent(verdict);
      if (file in more) {
        expect(verdict.problems.map(({ code }) => code)).toEqual([more[file]]);
        expect(verdict.exit).toBe(2);
      } else expect(verdict.exit).toBe(expected.exit);
      expect(verdict.asQemu.exit).toBe(expected.exit);
      // Where the snapshot table cannot be read qemu prints nothing; spindle goes on and tells what else it finds.
      if (expected.output === null) expect(verdict.output['check-errors']).toBe(1);
      else expect(verdict.asQemu.output).toEqual({ ...expected.output, filename: file });
    });
  }
});

qemu.describeWithQemu('check agrees with qemu-img', () => {
  const folder = tempDir();

  it.each(STYLES.map((style, index) => ({ name: style.name, style, index })))(
    'as qemu made it: $name',
    async ({ name, style, index }) => {
      await withRandom(`check ${name}`, async (random) => {
        const image = await makeImage(folder, `clean-${String(index)}`, style, random);
        const theirs = await qemu.check(image.path, { source: image.source });
        const ours = await judge(image.path, theirs.json?.filename);
        // qemu leaves leaks behind when a snapshot fails because a refcount would overflow.
        if (theirs.code === 0) expect(ours.problems).toEqual([]);
        else expect(theirs.code).toBe(3);
        expect(ours.exit).toBe(theirs.code);
        expect(ours.output).toEqual(theirs.json);
      });
    },
    60_000,
  );

  const rounds = times('SPINDLE_CHECK_ROUNDS', 15);
  it.each(STYLES.map((style, index) => ({ name: style.name, style, index })))(
    `mutated ${String(rounds)} times: $name`,
    async ({ name, style, index }) => {
      await withRandom(`check mutated ${name}`, async (random) => {
        const image = await makeImage(folder, `mutated-${String(index)}`, style, random);
        for (let round = 0; round < rounds; round++) {
          const changes = mutate(image, random);
          await compareWithQemu(
            image,
            `round ${String(round)}: ${changes.map(({ what }) => what).join('; ')}`,
          );
          restore(image, changes);
        }
      });
    },
    600_000,
  );
});

async function compareWithQemu(image: CheckedImage, what: string): Promise<void> {
  const theirs = await qemu.check(image.path, { source: image.source, timeout: 120_000 });
  let ours: Verdict;
  try {
    ours = await judge(image.path, theirs.json?.filename);
  } catch (error) {
    expect(error, what).toBeInstanceOf(SpindleError);
    expect(theirs.json, what).toBeUndefined();
    return;
  }
  expectConsistent(ours);
  if (theirs.json === undefined) {
    expect([1, 2], what).toContain(ours.exit);
    return;
  }
  expect({ exit: ours.asQemu.exit, ...ours.asQemu.output }, what).toEqual({
    exit: theirs.code,
    ...theirs.json,
  });
}

describe('check', () => {
  const file = (name: string): Promise<Buffer> => readFile(join(FIXTURES, 'check', name));

  it('explains metadata that shares a cluster, and does not count it twice', async () => {
    const storage = MemoryStorage.from(await file('l2-self.qcow2'));
    const result = await check(storage);
    const overlap = result.problems.filter(({ code }) => code === 'OVERLAP');
    expect(overlap).toHaveLength(1);
    expect(overlap[0]).toMatchObject({ kind: 'corruption', times: 0, hostOffset: 0x4000 });
    expect(result.corruptions).toBe(1);
  });

  it('keeps a limited number of problems and tells all to the callback', async () => {
    const storage = MemoryStorage.from(await file('refblock-missing.qcow2'));
    const told: CheckProblem[] = [];
    const result = await check(storage, { problemLimit: 3, onProblem: (problem) => told.push(problem) });
    expect(result.problems).toHaveLength(3);
    expect(result.problems.length + result.problemsOmitted).toBe(told.length);
    expect(told.filter(({ times }) => times > 0)).toHaveLength(19);
  });

  it('says where the problem is', async () => {
    const result = await check(MemoryStorage.from(await file('copied-missing-l2.qcow2')));
    expect(result.problems).toMatchObject([
      { code: 'COPIED_WRONG', structure: 'L2 entry', guestOffset: 0, repair: 'flag', times: 1 },
    ]);
  });

  it('tells progress that ends at its total', async () => {
    const steps: [number, number][] = [];
    await check(MemoryStorage.from(await file('clean.qcow2')), {
      onProgress: (done, total) => steps.push([done, total]),
    });
    const last = steps.at(-1);
    expect(last?.[0]).toBe(last?.[1]);
    expect(steps.map(([done]) => done)).toEqual(steps.map(([done]) => done).toSorted((a, b) => a - b));
  });

  it('can be aborted', async () => {
    const storage = MemoryStorage.from(await file('clean.qcow2'));
    await expect(check(storage, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('does not call clusters leaked when it could not read what may refer to them', async () => {
    const bytes = new Uint8Array(await file('clean.qcow2'));
    // The second L2 table of the fixture; the refcounts stay.
    const l1 = new DataView(bytes.buffer, bytes.byteOffset + 0x3000);
    const storage = new BadBlock(bytes, l1.getUint32(12));
    const result = await check(storage);
    expect(result).toMatchObject({ checkErrors: 1, leaks: 0, corruptions: 0, complete: false });
    expect(result.problems).toMatchObject([{ kind: 'error', code: 'READ_FAILED', structure: 'L2 table' }]);
    expect(checkExitCode(result)).toBe(1);
  });

  it('counts refcounts that cannot be read as errors, one for each cluster', async () => {
    const result = await check(new BadBlock(new Uint8Array(await file('clean.qcow2')), 0x2000));
    expect(result).toMatchObject({ checkErrors: 12, corruptions: 0, leaks: 0 });
  });
});

describe('hostile images', () => {
  it('a huge L1 and refcount table in a tiny file', async () => {
    const image = new Crafted({
      clusterBits: 16,
      l1Size: 4 << 20,
      l1Offset: 0x10000,
      tableOffset: 0x1000_0000,
      tableClusters: 128,
    });
    image.entry(0x10000, 0x2_0000);
    await expectQuick(image.storage(0x30000), 1000);
  });

  it('millions of L1 entries that share one L2 table', async () => {
    const image = new Crafted({
      clusterBits: 16,
      l1Size: 1 << 20,
      l1Offset: 0x10_0000,
      tableOffset: 0x10000,
      tableClusters: 1,
    });
    image.entry(0x10000, 0x2_0000);
    for (let i = 0; i < 1 << 20; i++) image.entry(0x10_0000 + i * 8, 0x3_0000);
    for (let i = 0; i < 8192; i++) image.entry(0x3_0000 + i * 8, 0x1_0000 * (i % 100));
    const result = await expectQuick(image.storage(), 2000);
    expect(result.allocatedClusters).toBe(2 ** 20 * (8192 - 82));
  });

  it('L2 tables that overlap, at every sector', async () => {
    const image = new Crafted({
      clusterBits: 21,
      l1Size: 4096,
      l1Offset: 0x60_0000,
      tableOffset: 0x20_0000,
      tableClusters: 1,
    });
    image.entry(0x20_0000, 0x40_0000);
    for (let i = 0; i < 4096; i++) image.entry(0x60_0000 + i * 8, 512 * i);
    await expectQuick(image.storage(0x80_0000), 5000);
  });

  it('snapshots whose L1 tables overlap', async () => {
    const image = new Crafted({
      clusterBits: 9,
      tableOffset: 512,
      tableClusters: 1,
      snapshots: 2000,
      snapshotsOffset: 0x10_0000,
    });
    image.entry(512, 1024);
    for (let i = 0; i < 2000; i++) image.snapshot(0x10_0000 + i * 56, 0x20_0000 + i * 512, 4 << 20);
    image.entry(0x20_0000 + 2000 * 512, 0x8_0000);
    const result = await expectQuick(image.storage(0x400_0000), 5000);
    // The last snapshots reach past the end; all others lead to the L2 table.
    expect(result.corruptions).toBeGreaterThan(0);
  });

  it('a table that names one refcount block over and over', async () => {
    const image = new Crafted({ clusterBits: 16, tableOffset: 0x10_0000, tableClusters: 128 });
    for (let i = 0; i < 1 << 20; i++) image.entry(0x10_0000 + i * 8, 0x2_0000);
    image.entry(0x2_0000, 0x0001_0001);
    await expectQuick(image.storage(), 3000);
  });
});

describe('the parts of a check', () => {
  it('sweep cuts spans like a simple count of what covers each byte', () => {
    const random = new Random(7);
    for (let round = 0; round < 200; round++) {
      const spans = Array.from({ length: random.between(1, 8) }, () => {
        const at = random.below(30);
        return { at, end: at + random.between(1, 10) };
      });
      const starts = Float64Array.from(spans, ({ at }) => at).sort();
      const ends = Float64Array.from(spans, ({ end }) => end).sort();
      const cover = new Array<number>(50).fill(0);
      for (const { at, end, opened, closed } of sweep(starts, ends)) {
        for (let i = at; i < end; i++) cover[i] = (cover[i] ?? 0) + opened - closed;
      }
      expect(cover).toEqual(cover.map((_, i) => spans.filter(({ at, end }) => at <= i && i < end).length));
    }
  });

  it('reference counts are exact from none to very many', () => {
    const random = new Random(11);
    const counts = new ReferenceCounts();
    const model = new Map<number, number>();
    for (let i = 0; i < 20_000; i++) {
      const cluster = random.chance(0.5) ? random.below(1000) : random.below(50) * 2 ** 35 + random.below(3);
      const times = random.chance(0.01) ? random.below(2 ** 31) : random.between(1, 100);
      counts.add(cluster, times);
      model.set(cluster, (model.get(cluster) ?? 0) + times);
    }
    for (const [cluster, times] of model) expect(counts.get(cluster)).toBe(times);
    expect(counts.get(12_345_678)).toBe(0);
  });
});

async function expectQuick(storage: MemoryStorage, milliseconds: number): ReturnType<typeof check> {
  const before = performance.now();
  const result = await check(storage);
  expect(performance.now() - before).toBeLessThan(milliseconds);
  expect([1, 2, 3]).toContain(checkExitCode(result));
  return result;
}

/** Memory with one block of 4 KiB that cannot be read. */
class BadBlock extends ReadOnlyStorage {
  readonly size: number;
  readonly #bytes: Uint8Array;
  readonly #bad: number;

  constructor(bytes: Uint8Array, bad: number) {
    super();
    this.#bytes = bytes;
    this.#bad = bad;
    this.size = bytes.length;
  }

  read(into: Uint8Array, at: number): Promise<void> {
    if (at < this.#bad + 4096 && at + into.length > this.#bad) {
      return Promise.reject(new SpindleError('IO', 'a bad block'));
    }
    into.set(this.#bytes.subarray(at, at + into.length));
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** A version 3 image from scratch; offsets are bytes. */
class Crafted {
  readonly #bytes = new Uint8Array(64 << 20);
  readonly #view = new DataView(this.#bytes.buffer);
  #end = 112;

  constructor(header: {
    clusterBits: number;
    tableOffset: number;
    tableClusters: number;
    l1Size?: number;
    l1Offset?: number;
    snapshots?: number;
    snapshotsOffset?: number;
  }) {
    const view = this.#view;
    view.setUint32(0, 0x514649fb);
    view.setUint32(4, 3);
    view.setUint32(20, header.clusterBits);
    view.setUint32(36, header.l1Size ?? 0);
    view.setUint32(44, header.l1Offset ?? 0);
    view.setUint32(52, header.tableOffset);
    view.setUint32(56, header.tableClusters);
    view.setUint32(60, header.snapshots ?? 0);
    view.setUint32(68, header.snapshotsOffset ?? 0);
    view.setUint32(96, 4);
    view.setUint32(100, 104);
  }

  entry(at: number, low: number): void {
    this.#view.setUint32(at + 4, low);
    this.#end = Math.max(this.#end, at + 8);
  }

  snapshot(at: number, l1Offset: number, l1Size: number): void {
    this.#view.setUint32(at + 4, l1Offset);
    this.#view.setUint32(at + 8, l1Size);
    this.#view.setUint32(at + 36, 16);
    this.#end = Math.max(this.#end, at + 56);
  }

  storage(length = this.#end): MemoryStorage {
    return MemoryStorage.from(this.#bytes.slice(0, length));
  }
}
