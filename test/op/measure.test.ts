import { closeSync, fsyncSync, openSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { convert } from '../../src/op/convert.ts';
import { measure, measureSize, type Measured, type MeasureTarget } from '../../src/op/measure.ts';
import { secretOf } from '../../src/op/open.ts';
import { PASSPHRASE } from '../tool/encrypted.ts';
import { KINDS, randomContent, SECRET_OBJECT, sourceArgs } from '../tool/kinds.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf, withRandom } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const KIB = 1024;
const GIB = KIB ** 3;

/** What is measured, for the library and for qemu-img. */
interface Target {
  readonly name: string;
  readonly target: MeasureTarget;
  readonly args: readonly string[];
}

/** qemu-img measures how fast it can stretch passphrases, which takes it seconds. */
const isSlow = ({ target }: Target): boolean =>
  target.encryption !== undefined && target.encryption.format !== 'aes';

const luks = { luks: { iterTime: 10 } };

const TARGETS: readonly Target[] = [
  { name: 'raw', target: {}, args: ['-O', 'raw'] },
  { name: 'qcow2', target: { format: 'qcow2' }, args: ['-O', 'qcow2'] },
  ...[512, 4096, 2 ** 21].map((clusterSize) => ({
    name: `clusters of ${String(clusterSize)}`,
    target: { format: 'qcow2', qcow2: { clusterSize } },
    args: ['-O', 'qcow2', '-o', `cluster_size=${String(clusterSize)}`],
  })),
  {
    name: 'extended L2',
    target: { format: 'qcow2', qcow2: { extendedL2: true, clusterSize: 16 * KIB } },
    args: ['-O', 'qcow2', '-o', 'extended_l2=on,cluster_size=16k'],
  },
  {
    name: 'version 2',
    target: { format: 'qcow2', qcow2: { version: 2 } },
    args: ['-O', 'qcow2', '-o', 'compat=0.10'],
  },
  ...(['metadata', 'falloc', 'full'] as const).map((preallocation) => ({
    name: `preallocation ${preallocation}`,
    target: { format: 'qcow2', preallocation },
    args: ['-O', 'qcow2', '-o', `preallocation=${preallocation}`],
  })),
  {
    name: 'an overlay',
    target: { format: 'qcow2', backed: true },
    args: ['-O', 'qcow2', '-o', 'backing_file=absent,backing_fmt=raw'],
  },
  {
    name: 'external data file',
    target: { format: 'qcow2', qcow2: { dataFile: 'x' } },
    args: ['-O', 'qcow2', '-o', 'data_file=x'],
  },
  {
    name: 'encrypted',
    target: { format: 'qcow2', encryption: luks },
    args: [
      '-O',
      'qcow2',
      '--object',
      SECRET_OBJECT,
      '-o',
      'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10',
    ],
  },
  {
    name: 'encrypted with a short key, small clusters',
    target: {
      format: 'qcow2',
      qcow2: { clusterSize: 1024 },
      encryption: { luks: { cipherAlg: 'aes-128', cipherMode: 'cbc' } },
    },
    args: [
      ...['-O', 'qcow2', '--object', SECRET_OBJECT, '-o'],
      'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,cluster_size=1k',
    ],
  },
  {
    name: 'encrypted as long ago',
    target: { format: 'qcow2', encryption: { format: 'aes' } },
    args: ['-O', 'qcow2', '-o', 'encryption=on'],
  },
  {
    name: 'luks',
    target: { format: 'luks', encryption: luks },
    args: ['-O', 'luks', '--object', SECRET_OBJECT, '-o', 'key-secret=s,iter-time=10'],
  },
];

async function theirs(args: readonly string[]): Promise<unknown> {
  const { stdout } = await qemu.qemuImg(['measure', '--output=json', ...args]);
  return JSON.parse(stdout) as unknown;
}

function asJson({ required, fullyAllocated, bitmaps }: Measured): unknown {
  return { required, 'fully-allocated': fullyAllocated, ...(bitmaps === null ? {} : { bitmaps }) };
}

/** Makes the host write back what it holds of a file. */
function settle(path: string): void {
  const fd = openSync(path, 'r');
  fsyncSync(fd);
  closeSync(fd);
}

qemu.describeWithQemu('measure, as qemu-img does', () => {
  it.each(TARGETS.map((target) => [target.name, target] as const))('an empty image: %s', async (_, one) => {
    const { target, args } = one;
    const sizes = isSlow(one)
      ? [1000]
      : [0, 512, 1000, 65_536, 100 * KIB ** 2 + 512, 3 * GIB, 5 * 1024 * GIB];
    for (const size of sizes) {
      // Small clusters cannot hold the largest.
      if (target.qcow2?.clusterSize !== undefined && target.qcow2.clusterSize <= 1024 && size > 100 * GIB)
        continue;
      const judged = await theirs([...args, '--size', String(size)]);
      expect(asJson(measureSize(size, target)), String(size)).toEqual(judged);
    }
  });

  it('any empty image', { timeout: 300_000 }, () =>
    withRandom('measure any', async (random) => {
      for (let i = 0; i < 60; i++) {
        const clusterBits = random.between(9, 21);
        const clusterSize = 2 ** clusterBits;
        const refcountBits = 2 ** random.below(7);
        const extendedL2 = clusterBits >= 14 && random.chance(0.5);
        const preallocation = random.pick(['off', 'metadata', 'falloc', 'full'] as const);
        const most = Math.min(2 ** random.between(9, 46), clusterSize ** 2 * 256);
        const size = random.below(most);
        const list = [
          `cluster_size=${String(clusterSize)},refcount_bits=${String(refcountBits)}`,
          `extended_l2=${extendedL2 ? 'on' : 'off'},preallocation=${preallocation}`,
        ].join(',');
        const target = { format: 'qcow2', preallocation, qcow2: { clusterSize, refcountBits, extendedL2 } };
        const judged = await theirs(['-O', 'qcow2', '-o', list, '--size', String(size)]);
        expect(asJson(measureSize(size, target)), `${list} ${String(size)}`).toEqual(judged);
      }
    }),
  );

  for (const kind of KINDS) {
    it(`${kind.name}: to everything, and it is enough`, { timeout: 300_000 }, async () => {
      const dir = tempDir();
      const random = new Random(seedOf(`measure ${kind.name}`));
      const [from, to] = [join(dir, 'from'), join(dir, 'to')];
      const size = random.between(2 ** 11, 2 ** 14) * 512;
      await kind.make(from, size, randomContent(random, size, 8));
      // Where the holes are may hang on what the host has written back.
      settle(from);
      const source = { path: from, format: kind.format };
      const targets = kind.name === 'qcow2' ? TARGETS : TARGETS.filter((target) => !isSlow(target));
      for (const { name, target, args } of targets) {
        const where = `${kind.name} to ${name} (SPINDLE_SEED=${String(random.seed)})`;
        const judged = await theirs([...args, ...sourceArgs(kind, from)]);
        const found = await measure(source, target);
        expect(asJson(found), where).toEqual(judged);
        if (target.backed === true || target.encryption !== undefined) continue;
        const { backed: _, encryption: __, ...made } = target;
        const dataFile = made.qcow2?.dataFile === undefined ? {} : { dataFile: `${to}.data` };
        await convert([{ ...source, secret: secretOf(PASSPHRASE) }], {
          ...{ ...made, path: to, lasting: false },
          ...(made.qcow2 === undefined ? {} : { qcow2: { ...made.qcow2, ...dataFile } }),
        });
        const allocated = made.qcow2?.dataFile === undefined ? 0 : statSync(`${to}.data`).blocks * 512;
        // With tables for the whole disk all of it has its place in the file.
        const bound = target.preallocation === 'metadata' ? found.fullyAllocated : found.required;
        expect(statSync(to).size + allocated, where).toBeLessThanOrEqual(bound);
      }
    });
  }

  it('a disk of odd length, and of none', async () => {
    const path = join(tempDir(), 'odd');
    for (const length of [0, 1, 1000, 66_000]) {
      writeFileSync(path, Buffer.alloc(length, 1));
      for (const { name, target, args } of TARGETS.filter(
        ({ target: { encryption } }) => encryption === undefined,
      )) {
        const judged = await theirs([...args, '-f', 'raw', path]);
        expect(asJson(await measure({ path, format: 'raw' }, target)), `${name} ${String(length)}`).toEqual(
          judged,
        );
      }
    }
  });

  it('bitmaps, those that are out of date too', async () => {
    const path = join(tempDir(), 'bitmaps');
    await qemu.create(path, '300M');
    const both = async (): Promise<void> => {
      for (const options of ['cluster_size=64k', 'cluster_size=512', 'cluster_size=2M', 'compat=0.10']) {
        const judged = await theirs(['-O', 'qcow2', '-o', options, '-f', 'qcow2', path]);
        const qcow2 = {
          'cluster_size=64k': {},
          'cluster_size=512': { clusterSize: 512 },
          'cluster_size=2M': { clusterSize: 2 ** 21 },
          'compat=0.10': { version: 2 as const },
        }[options];
        expect(
          asJson(await measure({ path }, { format: 'qcow2', ...(qcow2 === undefined ? {} : { qcow2 }) })),
        ).toEqual(judged);
      }
      expect((await measure({ path }, {})).bitmaps).toBeNull();
    };
    await qemu.bitmap(path, 'one', ['--add']);
    await both();
    await qemu.bitmap(path, 'another with a long name, ü', ['--add', '-g', '512']);
    await both();
    await qemu.bitmap(path, 'third', ['--add', '--disable', '-g', '1M']);
    // What is killed while it has the image open leaves all bitmaps in use.
    await qemu.fill(path, [
      { do: 'write', at: 0, length: 4096, pattern: 1 },
      { do: 'flush' },
      { do: 'kill' },
    ]);
    await both();
  });

  it('an internal snapshot, with the size that it had', async () => {
    const path = join(tempDir(), 'snapshots');
    await qemu.create(path, '4M');
    await qemu.fill(path, [{ do: 'write', at: 0, length: 65_536, pattern: 1 }]);
    await qemu.snapshot(path, 'create', 'before');
    await qemu.fill(path, [{ do: 'write', at: 0, length: 1024 ** 2, pattern: 2 }]);
    for (const [snapshot, more] of [
      [undefined, []],
      ['before', ['-l', 'before']],
      ['1', ['-l', 'snapshot.id=1']],
    ] as const) {
      const judged = await theirs(['-O', 'qcow2', ...more, path]);
      expect(asJson(await measure({ path, snapshot }, { format: 'qcow2' }))).toEqual(judged);
    }
    await qemu.qemuImg(['resize', '-q', path, '6M']);
    expect((await measure({ path, snapshot: 'before' })).required).toBe(4 * 1024 ** 2);
    await expect(measure({ path, snapshot: 'absent' })).rejects.toMatchObject({ code: 'SNAPSHOT_NOT_FOUND' });
  });
});

it('measure refuses what cannot be made', () => {
  const size = 200 * GIB;
  const qcow2 = { clusterSize: 512 };
  expect(() => measureSize(size, { format: 'qcow2', qcow2 })).toThrow(
    expect.objectContaining({ code: 'LIMIT' }),
  );
  for (const target of [
    { format: 'qcow2', qcow2: { clusterSize: 3000 } },
    { format: 'qcow2', qcow2: { refcountBits: 3 } },
    { format: 'qcow2', qcow2: { version: 2 as const, refcountBits: 8 } },
    { format: 'qcow2', qcow2: { extendedL2: true, clusterSize: 4096 } },
    { format: 'raw', qcow2: { clusterSize: 4096 } },
    { format: 'raw', preallocation: 'metadata' as const },
    { format: 'raw', encryption: {} },
  ])
    expect(() => measureSize(size, target)).toThrow(expect.objectContaining({ code: 'BAD_OPTION' }));
  expect(() => measureSize(2 ** 60)).toThrow(expect.objectContaining({ code: 'BAD_SIZE' }));
  expect(() => measureSize(1, { format: 'vmdk' })).toThrow(
    expect.objectContaining({ code: 'UNKNOWN_FORMAT' }),
  );
});
