import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { Qcow2Driver } from '../../src/format/qcow2/driver.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { planImage } from '../../src/format/qcow2/plan.ts';
import { RawDriver } from '../../src/format/raw/driver.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';

/**
 * A qcow2 image in memory that holds `content`: everything is mapped at creation, and the bytes are put where the map
 * says. For what reading is tested on; images that live were made by qemu.
 */
export async function qcow2Of(
  content: Uint8Array,
  options: Partial<Qcow2CreateOptions> = {},
): Promise<Image> {
  const storage = new MemoryStorage();
  const preallocation = options.backing === undefined ? 'metadata' : 'off';
  await createQcow2(storage, { ...QCOW2_DEFAULTS, preallocation, ...options, size: content.length });
  if (options.extendedL2 === true)
    await markAllocated(storage, { ...QCOW2_DEFAULTS, ...options, size: content.length });
  const driver = await open(storage);
  for (let at = 0; at < content.length && options.backing === undefined;) {
    const mapping = await driver.map(at, content.length - at);
    if (mapping.kind === 'data') await storage.write(content.subarray(at, at + mapping.length), mapping.at);
    else if (mapping.kind !== 'backing') throw new Error(`a new image maps ${mapping.kind}`);
    at += mapping.length;
  }
  return new DiskImage(
    await open(storage),
    storage,
    options.backing === undefined || options.backing === null ? null : rawOf(content),
  );
}

/** Preallocation leaves the subclusters of extended L2 entries unallocated; this makes all of them data. */
async function markAllocated(storage: MemoryStorage, options: Qcow2CreateOptions): Promise<void> {
  const plan = planImage({ ...options, preallocation: 'metadata', externalData: false });
  const table = plan.l2.at * plan.geometry.clusterSize;
  for (let cluster = 0; cluster < plan.data.clusters; cluster++) {
    await storage.write(Uint8Array.of(0xff, 0xff, 0xff, 0xff), table + cluster * 16 + 12);
  }
}

/** A read-only raw image in memory. */
function rawOf(content: Uint8Array): Image {
  const storage = MemoryStorage.from(content, { readOnly: true });
  return new DiskImage(new RawDriver(storage), storage, null);
}

async function open(storage: MemoryStorage): Promise<Qcow2Driver> {
  return Qcow2Driver.open(storage, await readMetadata(storage, 'data'), null, nodeCodec);
}
