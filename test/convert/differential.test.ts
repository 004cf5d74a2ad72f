import { createHash } from 'node:crypto';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { convert, type ConvertOptions, type ExistingTarget, type NewTarget } from '../../src/op/convert.ts';
import { secretOf } from '../../src/op/open.ts';
import { expectAgreement } from '../tool/agree.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { shareOf } from '../tool/share.ts';

const SECRET = 'a passphrase';
const SIZE = 9 * 1024 ** 2 + 3 * 512;

/** Something to convert, made by qemu. */
interface Source {
  readonly name: string;
  readonly format: 'raw' | 'qcow2' | 'luks';
  readonly encrypted?: boolean;
  make(path: string, random: Random): Promise<void>;
}

/** What a guest does: seeded, so that a failure comes back. */
function steps(random: Random, compressed = 0): qemu.Fill[] {
  const all: qemu.Fill[] = [];
  for (let at = 0; at + compressed <= SIZE && compressed > 0; at += compressed) {
    if (random.chance(0.3))
      all.push({ do: 'compress', at, length: compressed, pattern: random.between(1, 255) });
  }
  for (let i = 0; i < 20; i++) {
    const at = random.below(SIZE / 512) * 512;
    const length = Math.min(SIZE - at, random.pick([512, 4096, 65_536, 700_416]));
    const kind = random.below(6);
    if (kind < 4) all.push({ do: 'write', at, length, pattern: random.below(256) });
    else if (kind === 4) all.push({ do: 'zero', at, length, unmap: random.chance(0.5) });
    else all.push({ do: 'discard', at, length });
  }
  return all;
}

const luksArgs = (path: string): string[] => [
  ...['--object', `secret,id=s,data=${SECRET}`, '--image-opts'],
  `driver=qcow2,file.filename=${path},encrypt.key-secret=s`,
];

function qcow2(name: string, options: Record<string, string | number> = {}, compressed = 0): Source {
  return {
    name,
    format: 'qcow2',
    async make(path, random) {
      await qemu.create(path, SIZE, {
        options: Object.fromEntries(
          Object.entries(options).map(([key, value]) => [
            key,
            key === 'data_file' ? `${path}.${String(value)}` : value,
          ]),
        ),
      });
      await qemu.fill(path, steps(random, compressed));
    },
  };
}

const SOURCES: readonly Source[] = [
  {
    name: 'raw',
    format: 'raw',
    async make(path, random) {
      await qemu.create(path, SIZE, { format: 'raw' });
      await qemu.fill(path, steps(random), { format: 'raw' });
    },
  },
  {
    name: 'raw of odd length',
    format: 'raw',
    make(path, random) {
      writeFileSync(path, Buffer.concat([Buffer.alloc(70_000), random.bytes(100_001)]));
      return Promise.resolve();
    },
  },
  qcow2('qcow2'),
  qcow2('qcow2, small clusters', { cluster_size: 512 }),
  qcow2('qcow2, large clusters', { cluster_size: '2M' }),
  qcow2('version 2', { compat: '0.10' }),
  qcow2('extended L2', { extended_l2: 'on', cluster_size: '128k' }),
  qcow2('compressed', {}, 65_536),
  qcow2('compressed with zstd', { compression_type: 'zstd', cluster_size: '16k' }, 16_384),
  qcow2('external data file', { data_file: 'data' }),
  qcow2('preallocated', { preallocation: 'metadata' }),
  {
    name: 'overlay on a shorter base',
    format: 'qcow2',
    async make(path, random) {
      const base = { path: `${path}.base`, format: 'raw' };
      await qemu.create(base.path, SIZE - 1024 ** 2, { format: 'raw' });
      await qemu.fill(base.path, [{ do: 'write', at: 65_536, length: 2 ** 21, pattern: 9 }], {
        format: 'raw',
      });
      await qemu.create(path, SIZE, { backing: base });
      await qemu.fill(path, steps(random));
    },
  },
  {
    name: 'snapshots',
    format: 'qcow2',
    async make(path, random) {
      await qemu.create(path, SIZE);
      await qemu.fill(path, steps(random));
      await qemu.snapshot(path, 'create', 'before');
      await qemu.fill(path, steps(random));
    },
  },
  {
    name: 'encrypted',
    format: 'qcow2',
    encrypted: true,
    async make(path) {
      await qemu.qemuImg([
        ...['create', '-q', '-f', 'qcow2', '--object', `secret,id=s,data=${SECRET}`],
        ...['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10', path, String(SIZE)],
      ]);
      await qemu.qemuIo([
        ...['-c', 'write -P 7 0 300k', '-c', 'write -P 8 5M 4k', '-c', 'write -z 6M 1M'],
        ...luksArgs(path),
      ]);
    },
  },
];

/** What it becomes. */
interface Target {
  readonly name: string;
  readonly format: 'raw' | 'qcow2' | 'luks';
  readonly new?: Partial<NewTarget>;
  readonly options?: ConvertOptions;
  /** What qemu-img convert is told for the same. */
  readonly qemu?: { readonly options?: Record<string, string | number>; readonly more?: readonly string[] };
}

const TARGETS: readonly Target[] = [
  { name: 'raw', format: 'raw', qemu: {} },
  { name: 'raw, everything written', format: 'raw', options: { sparse: 0 }, qemu: { more: ['-S', '0'] } },
  { name: 'raw, thick-lazy', format: 'raw', new: { allocation: 'thick-lazy' } },
  { name: 'qcow2', format: 'qcow2', qemu: {} },
  {
    name: 'qcow2, small clusters',
    format: 'qcow2',
    new: { qcow2: { clusterSize: 512 } },
    qemu: { options: { cluster_size: 512 } },
  },
  {
    name: 'qcow2, large clusters',
    format: 'qcow2',
    new: { qcow2: { clusterSize: 2 ** 21 } },
    qemu: { options: { cluster_size: '2M' } },
  },
  { name: 'extended L2', format: 'qcow2', new: { qcow2: { extendedL2: true, clusterSize: 131_072 } } },
  {
    name: 'version 2',
    format: 'qcow2',
    new: { qcow2: { version: 2 } },
    qemu: { options: { compat: '0.10' } },
  },
  {
    name: 'compressed',
    format: 'qcow2',
    options: { compress: true },
    qemu: { more: ['-c'] },
  },
  {
    name: 'compressed with zstd, small clusters',
    format: 'qcow2',
    new: { qcow2: { compressionType: 'zstd', clusterSize: 4096 } },
    options: { compress: true },
    qemu: { more: ['-c'], options: { compression_type: 'zstd', cluster_size: 4096 } },
  },
  {
    name: 'compressed, extended L2',
    format: 'qcow2',
    new: { qcow2: { extendedL2: true } },
    options: { compress: true },
  },
  { name: 'qcow2, everything written', format: 'qcow2', options: { sparse: 0 }, qemu: { more: ['-S', '0'] } },
  { name: 'qcow2, thick-eager', format: 'qcow2', new: { allocation: 'thick-eager' } },
  { name: 'external data file', format: 'qcow2', new: { qcow2: { dataFile: 'DATA' } } },
  {
    name: 'encrypted',
    format: 'qcow2',
    new: { encryption: { secret: secretOf(SECRET), luks: { iterTime: 10 } } },
  },
  { name: 'luks', format: 'luks', new: { encryption: { secret: secretOf(SECRET), luks: { iterTime: 10 } } } },
];

const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

function targetOf(target: Target, path: string): NewTarget {
  const { qcow2: options, ...rest } = target.new ?? {};
  const dataFile = options?.dataFile === undefined ? {} : { dataFile: `${path}.data` };
  return {
    ...rest,
    path,
    format: target.format,
    lasting: false,
    ...(options === undefined ? {} : { qcow2: { ...options, ...dataFile } }),
  };
}

/** Both images as qemu sees them hold the same disk. */
async function expectSameDisk(source: Source, from: string, target: Target, to: string): Promise<void> {
  const side = (format: string, path: string, encrypted: boolean): string =>
    `driver=${format},file.filename=${path}` +
    (!encrypted ? '' : format === 'luks' ? ',key-secret=s' : ',encrypt.key-secret=s');
  const { code, stdout, stderr } = await qemu.qemuImg(
    [
      ...['compare', '--object', `secret,id=s,data=${SECRET}`, '--image-opts'],
      side(source.format, from, source.encrypted === true),
      side(target.format, to, target.new?.encryption !== undefined),
    ],
    { expect: 'any' },
  );
  expect({ code, stdout, stderr }).toMatchObject({ code: 0 });
}

qemu.describeWithQemu('convert', () => {
  for (const source of SOURCES) {
    it(`${source.name}: to everything, as qemu-img does`, { timeout: 300_000 }, async () => {
      const dir = tempDir();
      const random = new Random(seedOf(`convert ${source.name}`));
      const from = join(dir, 'source');
      await source.make(from, random);
      for (const target of shareOf(`targets of ${source.name}`, TARGETS)) {
        const to = join(dir, 'target');
        const where = `${source.name} to ${target.name} (SPINDLE_SEED=${String(random.seed)})`;
        try {
          const one = { path: from, format: source.format, secret: secretOf(SECRET) };
          const made = await convert([one], targetOf(target, to), target.options);
          await expectSameDisk(source, from, target, to);
          expect(made.written + made.shared + made.zero).toBeGreaterThanOrEqual(made.size);
          const plain = target.new?.encryption === undefined;
          if (target.format === 'qcow2' && plain) await expectAgreement(to);
          const first = sha256(to);
          // Made again over itself: the same bytes, as nothing but the input counts. Keys are random.
          await convert([one], targetOf(target, to), target.options);
          if (plain) expect(sha256(to), 'the same bytes again').toBe(first);
          if (target.qemu !== undefined && source.encrypted !== true) {
            await expectAsFrugal(from, source, to, target, join(dir, 'judge'));
          }
        } catch (error) {
          throw new Error(where, { cause: error });
        }
        for (const name of [to, `${to}.data`, join(dir, 'judge')]) rmSync(name, { force: true });
      }
    });
  }

  /** As many clusters as qemu-img takes, and no more of the host than a little. */
  async function expectAsFrugal(
    from: string,
    source: Source,
    to: string,
    target: Target,
    judge: string,
  ): Promise<void> {
    await qemu.convert(from, judge, { format: source.format, to: target.format, ...target.qemu });
    if (target.format === 'raw') {
      expect(Math.abs(statSync(to).blocks - statSync(judge).blocks) * 512).toBeLessThanOrEqual(65_536);
      return;
    }
    const [ours, theirs] = [await qemu.check(to), await qemu.check(judge)];
    expect(ours.json?.['allocated-clusters'] ?? 0).toBeLessThanOrEqual(
      theirs.json?.['allocated-clusters'] ?? 0,
    );
    expect(ours.json?.['compressed-clusters'] ?? 0).toBe(theirs.json?.['compressed-clusters'] ?? 0);
  }

  it('an internal snapshot, with the size that it had', async () => {
    const dir = tempDir();
    const [image, old, out] = [join(dir, 'i.qcow2'), join(dir, 'old.raw'), join(dir, 'out.raw')];
    await qemu.create(image, '4M');
    await qemu.fill(image, [{ do: 'write', at: 0, length: 65_536, pattern: 1 }]);
    await qemu.convert(image, old);
    await qemu.snapshot(image, 'create', 'before');
    await qemu.fill(image, [{ do: 'write', at: 0, length: 1024 ** 2, pattern: 2 }]);
    await qemu.qemuImg(['resize', '-q', image, '6M']);
    for (const snapshot of ['before', '1']) {
      await convert([{ path: image, snapshot }], { path: out, format: 'raw' });
      expect(sha256(out)).toBe(sha256(old));
    }
  });

  it('an overlay, of what the top layer holds', async () => {
    const dir = tempDir();
    const [base, top, out] = [join(dir, 'base.qcow2'), join(dir, 'top.qcow2'), join(dir, 'out.qcow2')];
    await qemu.create(base, '4M');
    await qemu.fill(base, [{ do: 'write', at: 0, length: 2 * 1024 ** 2, pattern: 1 }]);
    await qemu.create(top, '4M', { backing: { path: base, format: 'qcow2' } });
    await qemu.fill(top, [
      { do: 'write', at: 131_072, length: 4096, pattern: 2 },
      { do: 'zero', at: 1024 ** 2, length: 65_536 },
    ]);
    for (const compress of [false, true]) {
      const backing = { name: 'base.qcow2', format: 'qcow2' };
      await convert([{ path: top }], { path: out, format: 'qcow2', backing }, { compress });
      expect(await qemu.compare({ path: top, format: 'qcow2' }, { path: out, format: 'qcow2' })).toBe(true);
      await expectAgreement(out);
      const { json } = await qemu.check(out);
      expect(json?.['allocated-clusters'], 'only what differs').toBe(1);
    }
  });

  it('over the disk of an image that exists: old data goes, the image stays', async () => {
    const dir = tempDir();
    const random = new Random(seedOf('convert over'));
    const from = join(dir, 'from.raw');
    await qemu.create(from, '3M', { format: 'raw' });
    await qemu.fill(from, [{ do: 'write', at: 1024 ** 2, length: 200_704, pattern: 5 }], { format: 'raw' });
    for (const format of ['raw', 'qcow2'] as const) {
      for (const zeroed of [false, true]) {
        const to = join(dir, `to.${format}`);
        await qemu.create(to, '4M', { format });
        if (!zeroed)
          await qemu.fill(to, [{ do: 'write', at: 0, length: 4 * 1024 ** 2, pattern: 0xee }], { format });
        const target: ExistingTarget = { existing: true, path: to, format, zeroed };
        await convert([{ path: from, format: 'raw' }], target);
        const expected = Buffer.alloc(4 * 1024 ** 2, zeroed ? 0 : 0xee);
        readFileSync(from).copy(expected);
        const scratch = join(dir, 'scratch');
        await qemu.convert(to, scratch, { format });
        expect(
          readFileSync(scratch).equals(expected),
          `${format} ${String(zeroed)} ${String(random.seed)}`,
        ).toBe(true);
        if (format === 'qcow2') expect((await qemu.check(to)).code).toBe(0);
      }
    }
    const small = join(dir, 'small.qcow2');
    await qemu.create(small, '1M');
    const before = sha256(small);
    await expect(
      convert([{ path: from, format: 'raw' }], { existing: true, path: small }),
    ).rejects.toMatchObject({ code: 'BAD_SIZE', path: small });
    expect(sha256(small)).toBe(before);
  });

  it('several sources one after the other', async () => {
    const dir = tempDir();
    const parts = ['a.raw', 'b.qcow2', 'c.raw'].map((name) => join(dir, name));
    const [a = '', b = '', c = ''] = parts;
    writeFileSync(a, Buffer.alloc(1000, 1));
    await qemu.create(b, '1M');
    await qemu.fill(b, [{ do: 'write', at: 4096, length: 8192, pattern: 2 }]);
    writeFileSync(c, Buffer.alloc(5000, 3));
    for (const format of ['raw', 'qcow2']) {
      const [ours, theirs] = [join(dir, `ours.${format}`), join(dir, `theirs.${format}`)];
      await convert(
        parts.map((path) => ({ path })),
        { path: ours, format },
      );
      await qemu.qemuImg(['convert', '-O', format, ...parts, theirs]);
      expect(await qemu.compare({ path: ours, format }, { path: theirs, format }, { strict: true })).toBe(
        true,
      );
    }
  });
});
