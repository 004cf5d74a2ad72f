import {
  copyFileSync,
  openSync,
  closeSync,
  ftruncateSync,
  readFileSync,
  truncateSync,
  writeSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { alignDown } from '../../src/core/align.ts';
import { isSpindleError } from '../../src/core/errors.ts';
import { firstDifference } from '../../src/native/difference.ts';
import {
  compare,
  CompareError,
  compareExitCode,
  type Compared,
  type CompareSide,
} from '../../src/op/compare.ts';
import { secretOf } from '../../src/op/open.ts';
import { PASSPHRASE } from '../tool/encrypted.ts';
import {
  imageOpts,
  kindOf,
  KINDS,
  randomContent,
  SECRET_OBJECT,
  sourceArgs,
  type Kind,
} from '../tool/kinds.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const SIZE = 5 * 1024 ** 2 + 3 * 512;

/** What the judge or we say of two images. */
interface Verdict {
  readonly code: number;
  /** The start of the sector that differs first, or the place of a mismatch of status; null where there is none. */
  readonly offset: number | null;
  readonly status: boolean;
}

async function theirs(a: string, b: string, strict = false): Promise<Verdict> {
  const args = ['compare', ...(strict ? ['-s'] : []), '--object', SECRET_OBJECT, '--image-opts', a, b];
  const { code, stdout } = await qemu.qemuImg(args, { expect: 'any' });
  const found = /[Oo]ffset (\d+)/.exec(stdout)?.[1];
  return { code, offset: found === undefined ? null : Number(found), status: stdout.includes('status') };
}

async function ours(a: CompareSide, b: CompareSide, strict = false): Promise<Verdict> {
  let done: Compared;
  try {
    done = await compare(a, b, { strict });
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    return { code: compareExitCode(error), offset: null, status: false };
  }
  const { difference } = done;
  if (difference === null) return { code: 0, offset: null, status: false };
  const { kind, offset } = difference;
  return { code: 1, offset: offset === null ? null : alignDown(offset, 512), status: kind === 'status' };
}

const sideOf = (kind: Kind, path: string): CompareSide => ({
  path,
  format: kind.format,
  secret: secretOf(PASSPHRASE),
});

/** Whether maps of qemu tell the same of every byte. */
function sameMap(a: readonly qemu.MapEntry[], b: readonly qemu.MapEntry[]): boolean {
  const word = (map: readonly qemu.MapEntry[], at: number): string => {
    const entry = map.find(({ start, length }) => at >= start && at < start + length);
    return JSON.stringify(
      entry === undefined
        ? null
        : [entry.data, entry.zero, entry.present, entry.compressed, entry.offset !== undefined],
    );
  };
  return [...a, ...b].every(({ start }) => word(a, start) === word(b, start));
}

async function mapOf(kind: Kind, path: string): Promise<qemu.MapEntry[]> {
  return qemu.map(path, { source: sourceArgs(kind, path) });
}

describe('the first difference', () => {
  it('of two pieces', () => {
    const random = new Random(seedOf('first difference'));
    expect(firstDifference(new Uint8Array(0), new Uint8Array(0))).toBe(-1);
    for (let i = 0; i < 300; i++) {
      const a = random.bytes(random.between(1, 3000));
      const b = a.slice();
      expect(firstDifference(a, b)).toBe(-1);
      const places = Array.from({ length: random.between(1, 4) }, () => random.below(a.length));
      for (const at of places) b[at] = (a[at] ?? 0) ^ 0x80;
      const first = a.findIndex((byte, at) => byte !== b[at]);
      expect(firstDifference(a, b), `SPINDLE_SEED=${String(random.seed)}`).toBe(first);
    }
    expect(() => firstDifference(new Uint8Array(1), new Uint8Array(2))).toThrow(RangeError);
  });
});

qemu.describeWithQemu('compare, as qemu-img does', () => {
  for (const kind of KINDS) {
    it(`${kind.name}: with other kinds`, { timeout: 300_000 }, async () => {
      const random = new Random(seedOf(`compare ${kind.name}`));
      // Stretching passphrases takes its time.
      const rounds = kind.encrypted === true ? 2 : 4;
      for (let round = 0; round < rounds; round++) {
        const dir = tempDir();
        const other = random.pick(KINDS);
        const [a, b] = [join(dir, 'a'), join(dir, 'b')];
        const where = `${kind.name} and ${other.name}, round ${String(round)} (SPINDLE_SEED=${String(random.seed)})`;
        const size = random.chance(0.5) ? SIZE : random.between(1, SIZE / 512) * 512;
        const longer = random.chance(0.6) ? size : size + random.between(1, 5000) * 512;
        const pieces = randomContent(random, size);
        await kind.make(a, size, pieces);
        const changed = [...pieces];
        const differs = random.chance(0.6);
        if (differs) {
          const at = random.below(longer / 512) * 512;
          changed.push({ at, length: 512, pattern: random.chance(0.5) ? 0 : random.between(1, 255) });
        }
        await other.make(b, longer, changed);
        for (const [[first, one], [second, two]] of [
          [
            [kind, a],
            [other, b],
          ],
          [
            [other, b],
            [kind, a],
          ],
        ] as const) {
          const judged = await theirs(imageOpts(first, one), imageOpts(second, two));
          expect(await ours(sideOf(first, one), sideOf(second, two)), where).toEqual(judged);
          if (!differs) expect(judged.code, where).toBe(0);
        }
        await expectStrict(kind, a, other, b, where);
      }
    });
  }

  /** Of what differs by status qemu also complains where one run happens to reach the end of the disk and the other does not. */
  async function expectStrict(kind: Kind, a: string, other: Kind, b: string, where: string): Promise<void> {
    const [judged, found] = [
      await theirs(imageOpts(kind, a), imageOpts(other, b), true),
      await ours(sideOf(kind, a), sideOf(other, b), true),
    ];
    if (judged.code === found.code && judged.offset === found.offset) return;
    expect(judged, where).toMatchObject({ code: 1, status: true });
    expect(judged.offset, where).toBeLessThan(found.offset ?? Infinity);
    const end = found.offset ?? Infinity;
    const upTo = (map: readonly qemu.MapEntry[]): qemu.MapEntry[] => map.filter(({ start }) => start < end);
    expect(sameMap(upTo(await mapOf(kind, a)), upTo(await mapOf(other, b))), where).toBe(true);
  }

  it('strictly: what is allocated, zero and compressed counts', async () => {
    const dir = tempDir();
    const made: [string, string][] = [];
    const make = async (
      name: string,
      format: string,
      work: (path: string) => Promise<void>,
    ): Promise<void> => {
      const path = join(dir, name);
      await work(path);
      made.push([path, format]);
    };
    // One run each, so that where runs end does not count.
    const empty = (format: string) => (path: string) => qemu.create(path, '64k', { format });
    for (const name of ['hole', 'hole again']) {
      await make(name, 'raw', (path) => {
        writeFileSync(path, '');
        truncateSync(path, 65_536);
        return Promise.resolve();
      });
    }
    await make('unallocated', 'qcow2', empty('qcow2'));
    await make('zero', 'qcow2', async (path) => {
      await empty('qcow2')(path);
      await qemu.fill(path, [{ do: 'zero', at: 0, length: 65_536 }]);
    });
    await make('written', 'qcow2', async (path) => {
      await empty('qcow2')(path);
      await qemu.fill(path, [{ do: 'write', at: 0, length: 65_536, pattern: 0 }]);
    });
    await make('compressed', 'qcow2', async (path) => {
      await empty('qcow2')(path);
      await qemu.fill(path, [{ do: 'compress', at: 0, length: 65_536, pattern: 0 }]);
    });
    await make('below', 'qcow2', async (path) => {
      const base = `${path}.base`;
      await qemu.create(base, 0);
      await qemu.create(path, '64k', { backing: { path: base, format: 'qcow2' } });
    });
    for (const [a, formatA] of made) {
      for (const [b, formatB] of made) {
        const judged = await theirs(
          `driver=${formatA},file.filename=${a}`,
          `driver=${formatB},file.filename=${b}`,
          true,
        );
        expect(
          await ours({ path: a, format: formatA }, { path: b, format: formatB }, true),
          `${a} ${b}`,
        ).toEqual(judged);
      }
    }
  });

  it('what cannot be told or read, and a difference before it', async () => {
    const dir = tempDir();
    const [good, table, data, early] = ['good', 'table', 'data', 'early'].map((name) => join(dir, name)) as [
      string,
      string,
      string,
      string,
    ];
    await qemu.create(good, '1M');
    await qemu.fill(good, [
      { do: 'write', at: 0, length: 65_536, pattern: 1 },
      { do: 'compress', at: 524_288, length: 65_536, pattern: 2 },
      { do: 'write', at: 589_824, length: 65_536, pattern: 3 },
    ]);
    const l2 = l2Table(good);
    // An offset that is no place for a cluster; and bytes that do not decompress.
    copyFileSync(good, table);
    patch(table, l2 + 9 * 8, Buffer.from('8000000000050200', 'hex'));
    copyFileSync(good, data);
    patch(data, compressedPlace(good, l2 + 8 * 8), Buffer.alloc(30, 0xff));
    await qemu.create(early, '1M');
    for (const [a, b, code] of [
      [good, table, 3],
      [table, good, 3],
      [good, data, 4],
      [data, good, 4],
      [early, table, 1],
      [early, data, 1],
      [good, join(dir, 'absent'), 2],
      [join(dir, 'absent'), good, 2],
    ] as const) {
      const judged = await theirs(`driver=qcow2,file.filename=${a}`, `driver=qcow2,file.filename=${b}`);
      expect(judged.code, `${a} ${b}`).toBe(code);
      expect(await ours({ path: a }, { path: b }), `${a} ${b}`).toEqual(judged);
    }
    await expect(compare({ path: good }, { path: data })).rejects.toMatchObject({
      path: data,
      stage: 'read',
    });
    await expect(compare({ path: table }, { path: good })).rejects.toMatchObject({
      path: table,
      stage: 'status',
    });
  });

  it('does not read what both have from one place', async () => {
    const dir = tempDir();
    const base = join(dir, 'base');
    await qemu.create(base, '1M');
    await qemu.fill(base, [
      { do: 'write', at: 0, length: 65_536, pattern: 1 },
      { do: 'compress', at: 524_288, length: 65_536, pattern: 2 },
    ]);
    patch(base, compressedPlace(base, l2Table(base) + 8 * 8), Buffer.alloc(30, 0xff));
    const tops = ['a', 'b'].map((name) => join(dir, name));
    for (const path of tops) {
      await qemu.create(path, '1M', { backing: { path: base, format: 'qcow2' } });
      await qemu.fill(path, [{ do: 'write', at: 131_072, length: 65_536, pattern: 3 }]);
    }
    const [a = '', b = ''] = tops;
    // qemu reads what cannot be read, and fails.
    expect((await theirs(`driver=qcow2,file.filename=${a}`, `driver=qcow2,file.filename=${b}`)).code).toBe(4);
    expect(await compare({ path: a }, { path: b })).toMatchObject({ difference: null, read: 65_536 });
    await qemu.fill(b, [{ do: 'write', at: 0, length: 512, pattern: 9 }]);
    expect(await compare({ path: a }, { path: b })).toMatchObject({
      difference: { kind: 'content', offset: 0 },
    });
    // An image of another format in the same file is another disk.
    expect((await compare({ path: base, format: 'raw' }, { path: base })).difference).not.toBeNull();
  });

  it('an internal snapshot with the disk as it is now', async () => {
    const path = join(tempDir(), 'image');
    await kindOf('with a snapshot').make(path, 65_536 * 4, [
      { at: 0, length: 131_072, pattern: 5 },
      { at: 65_536, length: 512, pattern: 6 },
    ]);
    expect(await compare({ path, snapshot: 'before' }, { path })).toMatchObject({
      difference: { kind: 'content', offset: 65_536 },
    });
    expect((await compare({ path, snapshot: 'before' }, { path, snapshot: '1' })).difference).toBeNull();
  });
});

/** Host offset of the only L2 table. */
function l2Table(path: string): number {
  const bytes = readFileSync(path);
  const l1 = Number(bytes.readBigUInt64BE(40));
  return Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
}

/** Host offset of the compressed cluster that an L2 entry of an image with 64k clusters points to. */
function compressedPlace(path: string, entry: number): number {
  return Number(readFileSync(path).readBigUInt64BE(entry) & ((1n << 54n) - 1n));
}

function patch(path: string, at: number, bytes: Uint8Array): void {
  const fd = openSync(path, 'r+');
  writeSync(fd, bytes, 0, bytes.length, at);
  closeSync(fd);
}

describe('compare', () => {
  it('reads nothing of zeroes, however large the disks are', async () => {
    const dir = tempDir();
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    const fd = openSync(a, 'w');
    ftruncateSync(fd, 2 ** 42);
    closeSync(fd);
    writeFileSync(b, '');
    expect(await compare({ path: a, format: 'raw' }, { path: b, format: 'raw' })).toEqual({
      difference: null,
      sizes: [2 ** 42, 0],
      read: 0,
    });
    truncateSync(b, 2 ** 42);
    patch(b, 2 ** 41 + 5, Uint8Array.of(1));
    const { difference, read } = await compare({ path: a, format: 'raw' }, { path: b, format: 'raw' });
    expect(difference).toEqual({ kind: 'content', offset: 2 ** 41 + 5 });
    expect(read).toBeLessThanOrEqual(2 ** 21);
  });

  it('of files of odd length: the missing end of the last sector is zeroes', async () => {
    const dir = tempDir();
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    writeFileSync(a, Buffer.alloc(1000, 1));
    writeFileSync(b, Buffer.concat([Buffer.alloc(1000, 1), Buffer.alloc(24)]));
    expect(await compare({ path: a }, { path: b })).toMatchObject({ difference: null, sizes: [1024, 1024] });
    writeFileSync(b, Buffer.concat([Buffer.alloc(1000, 1), Buffer.alloc(24, 2)]));
    expect((await compare({ path: a }, { path: b })).difference).toEqual({ kind: 'content', offset: 1000 });
  });

  it('finds any one byte, at the edges of what is read at once too', async () => {
    const dir = tempDir();
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    const random = new Random(seedOf('compare, one byte'));
    const bytes = Buffer.from(random.bytes(13 * 1024 ** 2 + 512));
    writeFileSync(a, bytes);
    writeFileSync(b, bytes);
    const chunk = 2 * 1024 ** 2;
    for (const at of [
      0,
      chunk - 1,
      chunk,
      5 * chunk - 1,
      6 * chunk,
      bytes.length - 1,
      random.below(bytes.length),
    ]) {
      patch(b, at, Uint8Array.of((bytes[at] ?? 0) ^ 1));
      const { difference } = await compare({ path: a, format: 'raw' }, { path: b, format: 'raw' });
      expect(difference, `SPINDLE_SEED=${String(random.seed)}`).toEqual({ kind: 'content', offset: at });
      patch(b, at, bytes.subarray(at, at + 1));
    }
    const reports: [number, number][] = [];
    const options = { onProgress: (done: number, total: number) => void reports.push([done, total]) };
    expect(
      (await compare({ path: a, format: 'raw' }, { path: b, format: 'raw' }, options)).difference,
    ).toBeNull();
    expect(reports[0]).toEqual([0, bytes.length]);
    expect(reports.at(-1)).toEqual([bytes.length, bytes.length]);
    expect(reports.map(([done]) => done)).toEqual(reports.map(([done]) => done).sort((x, y) => x - y));
  });

  it('can be stopped', async () => {
    const path = join(tempDir(), 'a');
    writeFileSync(path, Buffer.alloc(65_536, 1));
    const signal = AbortSignal.abort();
    const failure = compare({ path }, { path }, { signal });
    await expect(failure).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(failure).rejects.not.toBeInstanceOf(CompareError);
  });
});

qemu.describeWithQemu('compare of encrypted images', () => {
  it('needs the right secret to open them', async () => {
    const dir = tempDir();
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    const pieces = [{ at: 4096, length: 8192, pattern: 7 }];
    await kindOf('encrypted').make(a, 1024 ** 2, pieces);
    await kindOf('raw').make(b, 1024 ** 2, pieces);
    expect((await compare({ path: a, secret: secretOf(PASSPHRASE) }, { path: b })).difference).toBeNull();
    for (const secret of [undefined, secretOf('wrong')]) {
      await expect(compare({ path: b }, { path: a, secret })).rejects.toMatchObject({
        stage: 'open',
        path: a,
      });
    }
  });
});
