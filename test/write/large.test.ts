import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import type { LargeResult } from '../tool/large-child.ts';
import * as qemu from '../tool/qemu.ts';
import { seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const MOST_MEMORY = 300 * 1024 ** 2;

qemu.describeWithQemu('a disk of more than 1 TiB with all its tables', () => {
  it.each([
    [65536, 'off'],
    [65536, 'on'],
    [32768, 'off'],
    [2 ** 21, 'off'],
  ] as const)(
    'in clusters of %i bytes, extended L2 %s, is written, read and checked in less than 300 MiB',
    { timeout: 900_000 },
    async (clusterSize, extended) => {
      const path = join(tempDir(), 'large.qcow2');
      const seed = String(seedOf(`large ${String(clusterSize)} ${extended}`));
      const args = ['--import', 'tsx', 'test/tool/large-child.ts', path, String(clusterSize), extended, seed];
      const { stdout } = await qemu.run(process.execPath, args, { cwd: ROOT, timeout: 800_000 });
      const { mostMemory, ...found } = JSON.parse(stdout) as LargeResult;
      const totalClusters = (2 ** 40 + 2 ** 36) / clusterSize;
      expect(found, `SPINDLE_SEED=${seed}`).toEqual({
        ...{ corruptions: 0, leaks: 0, checkErrors: 0, wrong: 0 },
        ...{ totalClusters, allocatedClusters: totalClusters },
      });
      expect(mostMemory).toBeLessThan(MOST_MEMORY);
      // The judge has no such limit, and takes a while: one of them is enough.
      if (clusterSize === 2 ** 21) expect((await qemu.check(path, { timeout: 300_000 })).code).toBe(0);
      rmSync(path);
    },
  );
});
