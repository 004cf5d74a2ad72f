import { join } from 'node:path';
import { rmSync } from 'node:fs';
import { expect, it } from 'vitest';
import { commit } from '../../src/op/commit.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { copyChain, topKinds, layerName, layerPath, makeChain, type ChainLayer } from '../tool/chain.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { times } from '../tool/share.ts';

const M = 1024 ** 2;
const ROUNDS = times('SPINDLE_CHAIN_ROUNDS', 2);

const qcow2 = (
  size: number,
  options: ChainLayer['options'] = {},
  more: Partial<ChainLayer> = {},
): ChainLayer => ({ format: 'qcow2', size, options, ...more });
const raw = (size: number): ChainLayer => ({ format: 'raw', size });

/** Chains from the bottom up. */
const CHAINS: Readonly<Record<string, readonly ChainLayer[]>> = {
  'raw base': [raw(3 * M), qcow2(3 * M)],
  'raw base, smaller': [raw(M + 512), qcow2(3 * M)],
  'raw base, larger': [raw(5 * M), qcow2(3 * M + 1536)],
  'qcow2 base': [qcow2(3 * M), qcow2(3 * M)],
  'qcow2 base, smaller': [qcow2(2 * M + 1024), qcow2(3 * M)],
  'qcow2 base, larger': [qcow2(4 * M), qcow2(2 * M)],
  'small on large clusters': [qcow2(3 * M, { cluster_size: '2M' }), qcow2(3 * M, { cluster_size: 512 })],
  'large on small clusters': [qcow2(3 * M, { cluster_size: 512 }), qcow2(3 * M, { cluster_size: '2M' })],
  'version 2': [qcow2(3 * M, { compat: '0.10' }), qcow2(3 * M, { compat: '0.10' })],
  'version 3 on 2 on raw': [raw(2 * M), qcow2(3 * M, { compat: '0.10' }), qcow2(3 * M)],
  subclusters: [
    qcow2(3 * M, { extended_l2: 'on', cluster_size: '128k' }),
    qcow2(3 * M, { extended_l2: 'on', cluster_size: '64k' }),
  ],
  compressed: [qcow2(3 * M, {}, { compressed: 65_536 }), qcow2(3 * M, {}, { compressed: 65_536 })],
  'compressed with zstd': [
    raw(3 * M),
    qcow2(3 * M, { compression_type: 'zstd', cluster_size: '16k' }, { compressed: 16_384 }),
  ],
  'data files': [qcow2(3 * M, { data_file: 'zero.data' }), qcow2(3 * M, { data_file: 'one.data' })],
  'data file that grows': [qcow2(2 * M, { data_file: 'zero.data' }), qcow2(3 * M)],
  'snapshots in both': [qcow2(3 * M, {}, { snapshot: true }), qcow2(3 * M, {}, { snapshot: true })],
  bitmaps: [
    qcow2(2 * M, {}, { bitmaps: true }),
    qcow2(3 * M, { extended_l2: 'on' }, { bitmaps: true, snapshot: true }),
  ],
  'lazy refcounts, narrow refcounts': [
    qcow2(3 * M, { lazy_refcounts: 'on' }),
    qcow2(3 * M, { refcount_bits: 1, cluster_size: 4096 }),
  ],
  'preallocated base': [qcow2(3 * M, { preallocation: 'metadata' }), qcow2(3 * M)],
  'three layers': [raw(2 * M), qcow2(3 * M), qcow2(4 * M)],
  'four layers of many sizes': [qcow2(4 * M), qcow2(2 * M), qcow2(M + 4096), qcow2(4 * M)],
  'a base that is backed': [qcow2(4 * M), qcow2(M + 512), qcow2(3 * M)],
};

qemu.describeWithQemu('commit, as qemu-img does it', () => {
  it.each(Object.entries(CHAINS))('%s', { timeout: 300_000 }, async (name, layers) => {
    const dir = tempDir();
    const seed = seedOf(`commit ${name}`);
    for (let round = 0; round < ROUNDS; round++) {
      const context = `SPINDLE_SEED=${String(seed)}, round ${String(round)}`;
      const made = join(dir, 'made');
      await makeChain(made, layers, new Random((seed + round) >>> 0));
      const top = layers.length - 1;
      const cwd = made;
      await qemu.convert(layerName(top), '../before.raw', { cwd });
      const hasSnapshot = layers[top]?.snapshot === true;
      // Into each layer below, by default and by name.
      const ways = Array.from({ length: top }, (_, base) => [
        { base, args: ['-b', layerName(base)], named: layerName(base), keep: undefined },
        ...(base === top - 1
          ? [
              { base, args: [], named: undefined, keep: undefined },
              { base, args: ['-d'], named: undefined, keep: true },
            ]
          : []),
      ]).flat();
      for (const { base, args, named, keep } of ways) {
        const where = `${context}, ${args.join(' ')} into ${String(base)}`;
        const [ours, theirs] = [join(dir, 'ours'), join(dir, 'theirs')];
        await copyChain(made, ours);
        await copyChain(made, theirs);
        const judged = await qemu.qemuImg(['commit', ...args, layerName(top)], { cwd: theirs });
        expect(judged.stdout).toBe('Image committed.\n');
        const done = await commit(layerPath(ours, top), { base: named, keep });
        expect(done.emptied, where).toBe(named === undefined && keep !== true);
        for (let index = 0; index < layers.length; index++) {
          const format = layers[index]?.format ?? 'raw';
          // Each where it is: qemu looks for data files in the current directory.
          const [found, wanted] = await Promise.all(
            [ours, theirs].map((cwd) => qemu.contentHash(layerName(index), 'scratch', { format, cwd })),
          );
          expect(found, `${where}: layer ${String(index)}`).toBe(wanted);
          if (format === 'raw') continue;
          const facts = await Promise.all([ours, theirs].map((cwd) => qemu.info(layerName(index), { cwd })));
          const [now, then] = facts.map((one) => (one as Record<string, unknown>)['format-specific']);
          expect(now, where).toEqual(then);
          const judged = await qemu.check(layerName(index), { cwd: ours });
          expect(judged.code, `${where}: layer ${String(index)} ${judged.stderr}`).toBe(0);
          expect((await checkFile(layerPath(ours, index))).problems).toEqual([]);
        }
        expect(await topKinds(layerName(top), { cwd: ours }), where).toEqual(
          await topKinds(layerName(top), { cwd: theirs }),
        );
        expect(
          await qemu.compare(
            { path: layerName(top), format: 'qcow2' },
            { path: '../before.raw', format: 'raw' },
            { cwd: ours },
          ),
          where,
        ).toBe(true);
        if (hasSnapshot) {
          // It lies over a base that has changed, but what it holds itself is there.
          for (const cwd of [ours, theirs])
            await qemu.convert(layerName(top), 'snapshot.raw', { cwd, more: ['-l', 'before'] });
          const [a, b] = [ours, theirs].map((one) => ({ path: join(one, 'snapshot.raw'), format: 'raw' }));
          if (a !== undefined && b !== undefined) expect(await qemu.compare(a, b), where).toBe(true);
        }
        for (const path of [ours, theirs]) rmSync(path, { recursive: true });
      }
      rmSync(made, { recursive: true });
    }
  });
});
