import { rmSync, statfsSync, statSync } from 'node:fs';
import { expect, it } from 'vitest';
import { create } from '../../src/op/create.ts';
import { describeWithFileSystem, FILE_SYSTEMS, withFileSystem } from '../tool/filesystem.ts';

const MIB = 1024 ** 2;

for (const type of FILE_SYSTEMS)
  describeWithFileSystem(`an image that takes two thirds of an ${type}`, type, () => {
    it.each(['raw', 'qcow2'])('has room as %s, thick-lazy and thick-eager', async (format) => {
      await withFileSystem(type, 400, async (folder) => {
        const { bavail, bsize } = statfsSync(folder);
        const size = Math.floor((bavail * bsize * 2) / 3 / MIB) * MIB;
        const path = `${folder}/disk`;
        for (const allocation of ['thick-lazy', 'thick-eager'] as const) {
          await create({ path, format, size, allocation });
          expect(statSync(path).blocks * 512, allocation).toBeGreaterThanOrEqual(size);
          rmSync(path);
        }
      });
    });
  });
