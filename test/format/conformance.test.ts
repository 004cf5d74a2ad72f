// Every format is a storage, and behaves like one.
import { rmSync, writeFileSync } from 'node:fs';
import { READ_ONLY } from '../../src/core/storage.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import type { Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { RawDriver } from '../../src/format/raw/driver.ts';
import { create } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { openFile } from '../../src/storage/file.ts';
import { storageSuite } from '../suite/storage.ts';
import { qcow2Of } from '../tool/build-qcow2.ts';
import { tempPath } from '../tool/temp.ts';

/** Guests see whole sectors. */
const SECTOR = 512;

function rawImage(content: Uint8Array): Image {
  const storage = MemoryStorage.from(content);
  return new DiskImage(new RawDriver(storage), storage, null);
}

storageSuite('raw in memory', {
  can: { write: true, resize: true, zero: true, discard: true, extents: true, direct: false },
  sizeGranularity: SECTOR,
  make: (content) => {
    const storage = rawImage(content);
    return Promise.resolve({ storage, dispose: () => storage.close() });
  },
});

const probe = tempPath('probe.raw');
writeFileSync(probe, new Uint8Array(4096));
const file = await openFile(probe, { write: true });
const canOfFiles = file.can;
await file.close();

storageSuite('raw in a file', {
  can: canOfFiles,
  sizeGranularity: SECTOR,
  make: async (content) => {
    const path = tempPath('disk.raw');
    writeFileSync(path, content);
    const open = (): Promise<Image> => openImageFile(path, { format: 'raw', write: true });
    const storage = await open();
    return {
      storage,
      reopen: open,
      dispose: async () => {
        await storage.close();
        rmSync(path);
      },
    };
  },
});

for (const [name, options] of Object.entries({
  'clusters of 64 KiB': {},
  'clusters of 512 bytes': { clusterSize: 512 },
  'version 2': { version: 2 as const, clusterSize: 4096 },
  'extended L2 entries': { clusterSize: 16384, extendedL2: true },
})) {
  storageSuite(`qcow2 in a file, written to: ${name}`, {
    can: { write: true, resize: true, zero: true, discard: true, extents: true, direct: false },
    sizeGranularity: SECTOR,
    make: async (content) => {
      const path = tempPath('disk.qcow2');
      await create({ path, format: 'qcow2', size: content.length, qcow2: options });
      const open = (): Promise<Image> => openImageFile(path, { format: 'qcow2', write: true });
      const storage = await open();
      await storage.write(content, 0);
      return {
        storage,
        reopen: open,
        dispose: async () => {
          await storage.close();
          rmSync(path);
        },
      };
    },
  });
}

const KINDS: Readonly<Record<string, Partial<Qcow2CreateOptions>>> = {
  'clusters of 64 KiB': {},
  'clusters of 512 bytes': { clusterSize: 512, refcountBits: 1 },
  'version 2': { version: 2, clusterSize: 4096 },
  'extended L2 entries': { clusterSize: 16384, extendedL2: true },
  'nothing but a backing file': { backing: { name: 'base.raw', format: 'raw' } },
};

for (const [name, options] of Object.entries(KINDS)) {
  storageSuite(`qcow2: ${name}`, {
    can: { ...READ_ONLY, extents: true },
    sizeGranularity: SECTOR,
    make: async (content) => {
      const storage = await qcow2Of(content, options);
      return { storage, dispose: () => storage.close() };
    },
  });
}
