import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { create } from '../../src/op/create.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';
import { inParallel } from './grid.ts';

const K = 1024;
const M = K * K;
const G = K * M;
const T = K * G;

/** Virtual sizes at which tables grow, and some that are nothing special. */
function sizesFor(clusterSize: number): number[] {
  const coverage = clusterSize * (clusterSize / 8);
  const sizes = [0, 512, 1_000_448, coverage - 512, coverage, coverage + 512, coverage * 9, G];
  return [...sizes, ...(clusterSize >= 64 * K ? [T] : [])];
}

qemu.describeWithQemu('without preallocation', () => {
  it.for([512, K, 4 * K, 16 * K, 64 * K, 256 * K, 2 * M])(
    'an image with clusters of %i bytes is what qemu-img makes, to the byte',
    { timeout: 300_000 },
    async (clusterSize) => {
      const dir = tempDir();
      const cases = sizesFor(clusterSize).flatMap((size) =>
        (['v2', 'v3', 'lazy', 'zstd', 'extended', 'narrow', 'backed', 'data file'] as const).map((kind) => ({
          size,
          kind,
        })),
      );
      await inParallel([...cases.entries()], 3, async ([index, { size, kind }]) => {
        if (kind === 'extended' && clusterSize < 16 * K) return;
        const ours = join(dir, `${String(index)}.ours`);
        const theirs = join(dir, `${String(index)}.theirs`);
        // The name of a data file is recorded in the image, so both write the same.
        const dataFile = join(dir, `${String(index)}.data`);
        const qcow2 = {
          v2: { version: 2 as const },
          v3: {},
          lazy: { lazyRefcounts: true },
          zstd: { compressionType: 'zstd' as const },
          extended: { extendedL2: true },
          narrow: { refcountBits: 1 },
          backed: {},
          'data file': { dataFile },
        }[kind];
        const options = {
          v2: { compat: 'v2' },
          v3: {},
          lazy: { lazy_refcounts: 'on' },
          zstd: { compression_type: 'zstd' },
          extended: { extended_l2: 'on' },
          narrow: { refcount_bits: 1 },
          backed: {},
          'data file': { data_file: dataFile },
        }[kind];
        const backing =
          kind === 'backed' ? { name: 'some/base.raw', format: 'raw', unchecked: true } : undefined;
        await create({ path: ours, format: 'qcow2', size, qcow2: { clusterSize, ...qcow2 }, backing });
        const flags = kind === 'backed' ? ['-u', '-b', 'some/base.raw', '-F', 'raw'] : [];
        const list = qemu.optionList({ cluster_size: clusterSize, ...options });
        await qemu.qemuImg(['create', '-q', '-f', 'qcow2', '-o', list, ...flags, theirs, String(size)]);
        const same = readFileSync(ours).equals(readFileSync(theirs));
        expect(same, `${kind}, ${String(size)} bytes`).toBe(true);
        for (const path of [ours, theirs, dataFile]) rmSync(path, { force: true });
      });
    },
  );
});
