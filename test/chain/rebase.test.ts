import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { checkFile } from '../../src/op/check-file.ts';
import { rebase } from '../../src/op/rebase.ts';
import { copyChain, layerName, layerPath, makeChain, topRanges, type ChainLayer } from '../tool/chain.ts';
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

/** Chains from the bottom up; the top one is rebased. */
const CHAINS: Readonly<Record<string, readonly ChainLayer[]>> = {
  'raw base': [raw(3 * M), qcow2(3 * M)],
  'raw base, smaller': [raw(M + 512), qcow2(3 * M)],
  'qcow2 base, larger': [qcow2(5 * M), qcow2(3 * M + 1536)],
  'no base': [qcow2(3 * M)],
  'small clusters': [qcow2(3 * M), qcow2(3 * M, { cluster_size: 512 })],
  'large clusters': [qcow2(3 * M, { cluster_size: 4096 }), qcow2(3 * M, { cluster_size: '2M' })],
  'version 2': [qcow2(2 * M), qcow2(3 * M, { compat: '0.10' })],
  'version 2 without base': [qcow2(3 * M, { compat: '0.10' })],
  subclusters: [raw(3 * M), qcow2(3 * M - 4096, { extended_l2: 'on', cluster_size: '128k' })],
  'preallocated subclusters': [raw(2 * M), qcow2(3 * M, { extended_l2: 'on', preallocation: 'metadata' })],
  compressed: [qcow2(3 * M, {}, { compressed: 65_536 }), qcow2(3 * M, {}, { compressed: 65_536 })],
  'data files': [qcow2(3 * M, { data_file: 'zero.data' }), qcow2(3 * M, { data_file: 'one.data' })],
  bitmaps: [qcow2(3 * M), qcow2(3 * M, { cluster_size: '16k' }, { bitmaps: true })],
  snapshot: [qcow2(3 * M), qcow2(3 * M, {}, { snapshot: true })],
  'three layers': [raw(2 * M), qcow2(3 * M, { lazy_refcounts: 'on' }), qcow2(4 * M)],
  'four layers of many sizes': [qcow2(4 * M), qcow2(2 * M), qcow2(M + 4096), qcow2(4 * M)],
};

interface Way {
  readonly name: string;
  readonly format: 'raw' | 'qcow2';
  readonly compress?: boolean;
}

/** Files beside the chain that it may be put on. */
async function others(dir: string, layers: readonly ChainLayer[], random: Random): Promise<Way[]> {
  const cwd = dir;
  const [base] = layers;
  await qemu.create('raw.img', 2 * M + 512, { format: 'raw', cwd });
  await qemu.fill('raw.img', [{ do: 'write', at: random.below(3000) * 512, length: 50_176, pattern: 7 }], {
    format: 'raw',
    cwd,
  });
  await qemu.create('empty.img', 4 * M, { cwd });
  const ways: Way[] = [
    { name: 'raw.img', format: 'raw' },
    { name: 'empty.img', format: 'qcow2' },
  ];
  if (base === undefined || layers.length < 2) return ways;
  // Nearly the same as the base, and an overlay of the base itself.
  await qemu.convert(layerName(0), 'nearly.img', { format: base.format, cwd });
  const at = random.below((base.size - 1024) / 512) * 512;
  await qemu.fill('nearly.img', [{ do: 'write', at, length: 1024, pattern: 9 }], { format: 'raw', cwd });
  await qemu.create('beside.img', 3 * M, {
    backing: { path: layerName(0), format: base.format },
    options: { cluster_size: '32k' },
    cwd,
  });
  await qemu.fill(
    'beside.img',
    [
      { do: 'write', at: M, length: 70_000 * 8, pattern: 3 },
      { do: 'zero', at: 0, length: 100_352 },
    ],
    { cwd },
  );
  return [...ways, { name: 'nearly.img', format: 'raw' }, { name: 'beside.img', format: 'qcow2' }];
}

qemu.describeWithQemu('rebase, as qemu-img does it', () => {
  it.each(Object.entries(CHAINS))('%s', { timeout: 300_000 }, async (name, layers) => {
    const dir = tempDir();
    const seed = seedOf(`rebase ${name}`);
    for (let round = 0; round < ROUNDS; round++) {
      const random = new Random((seed + round) >>> 0);
      const made = join(dir, 'made');
      await makeChain(made, layers, random);
      const top = layers.length - 1;
      const file = layerName(top);
      const below = layers.slice(0, -1).map(({ format }, index): Way => ({ name: layerName(index), format }));
      const ways: (Way | null)[] = [null, ...below, ...(await others(made, layers, random))];
      const before = await qemu.contentHash(file, 'scratch', { cwd: made });
      for (const way of ways) {
        const encoded = layers[top]?.options?.['data_file'] !== undefined;
        for (const compress of encoded ? [false] : [false, true]) {
          const context = `SPINDLE_SEED=${String(seed)}, round ${String(round)}, onto ${way?.name ?? 'none'}${compress ? ' -c' : ''}`;
          const [ours, theirs] = [join(dir, 'ours'), join(dir, 'theirs')];
          await copyChain(made, ours);
          await copyChain(made, theirs);
          const args = way === null ? ['-b', ''] : ['-b', way.name, '-F', way.format];
          // qemu-img stops with a failed assertion where it would compress parts of clusters.
          const judges = !(compress && layers[top]?.options?.['extended_l2'] === 'on');
          if (judges)
            await qemu.qemuImg(['rebase', ...(compress ? ['-c'] : []), ...args, file], { cwd: theirs });
          await rebase(join(ours, file), way, { compress });
          expect(await qemu.contentHash(file, 'scratch', { cwd: ours }), context).toBe(before);
          const judged = await qemu.check(file, { cwd: ours });
          expect(judged.code, `${context} ${judged.stderr}`).toBe(0);
          expect((await checkFile(layerPath(ours, top))).problems, context).toEqual([]);
          if (judges) {
            const [found, wanted] = await Promise.all(
              [ours, theirs].map((cwd) => qemu.info(file, { cwd, chain: false })),
            );
            expect(settled(found), context).toEqual(settled(wanted));
            // Version 2 has no zero clusters: which of them hold zeroes as data is each one's own choice.
            if (layers[top]?.options?.['compat'] !== '0.10')
              expect(await topRanges(file, { cwd: ours }), context).toEqual(
                await topRanges(file, { cwd: theirs }),
              );
          }
          for (const path of [ours, theirs]) rmSync(path, { recursive: true });
        }
      }
      rmSync(made, { recursive: true });
    }
  });
});

/** What info says, but for lengths of files. */
function settled(info: unknown): unknown {
  const { children: _, ...rest } = qemu.normalise(info) as Record<string, unknown>;
  return rest;
}
