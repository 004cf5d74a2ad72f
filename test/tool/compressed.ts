import { expect } from 'vitest';
import { DiskImage } from '../../src/format/disk-image.ts';
import type { Image } from '../../src/format/image.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { createQcow2, QCOW2_DEFAULTS, type Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { compressedPlace } from '../../src/format/qcow2/entry.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { isCompressed } from '../../src/format/qcow2/write/l2-editor.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { encoderHere } from '../../src/native/zstd-encoder.ts';
import { addonStatus } from '../../src/native/binding.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { Random } from './random.ts';

/** The compression types that can be written here. */
export const CODECS =
  addonStatus().loaded || encoderHere() ? (['zlib', 'zstd'] as const) : (['zlib'] as const);

/** Bytes of which about `noise` (0 to 1) is random, and the rest a pattern that compresses to next to nothing. */
export function content(random: Random, length: number, noise: number): Uint8Array {
  const bytes = new Uint8Array(length).fill(random.between(1, 255));
  bytes.set(random.bytes(Math.floor(length * noise)));
  return bytes;
}

/** Writes compressed. */
export async function write(image: Image, bytes: Uint8Array, at: number): Promise<void> {
  if (image.writeCompressed === undefined) throw new Error('the image has no writeCompressed');
  await image.writeCompressed(bytes, at);
}

/** All that the guest sees. */
export async function readAll(image: Image): Promise<Uint8Array> {
  const bytes = new Uint8Array(image.size);
  await image.read(bytes, 0);
  return bytes;
}

/** A new image in memory, open for writing. */
export async function inMemory(
  options: Partial<Qcow2CreateOptions> & { size: number },
  storage = new MemoryStorage(),
): Promise<{ image: Image; driver: Qcow2WriteDriver; storage: MemoryStorage }> {
  await createQcow2(storage, { ...QCOW2_DEFAULTS, ...options });
  return { ...(await openAgain(storage)), storage };
}

/** The image in a storage, open for writing. */
export async function openAgain(storage: MemoryStorage): Promise<{ image: Image; driver: Qcow2WriteDriver }> {
  const metadata = await readMetadata(storage, 'data');
  const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, { backed: false });
  return { image: new DiskImage(driver, storage, null), driver };
}

/** Where the stream of a guest cluster lies, null where it is not compressed. */
export async function streamOf(
  driver: Qcow2WriteDriver,
  cluster: number,
): Promise<{ offset: number; length: number } | null> {
  const entry = await driver.writer.editor.entry(cluster);
  if (!isCompressed(entry)) return null;
  return compressedPlace(entry.hi, entry.lo, driver.metadata.geometry.clusterBits);
}

/** How many streams touch each host cluster. */
export async function streamsByCluster(driver: Qcow2WriteDriver): Promise<Map<number, number>> {
  const { clusterSize } = driver.metadata.geometry;
  const counts = new Map<number, number>();
  for (let cluster = 0; cluster * clusterSize < driver.size; cluster++) {
    const place = await streamOf(driver, cluster);
    if (place === null) continue;
    const last = Math.floor((place.offset + place.length - 1) / clusterSize);
    for (let host = Math.floor(place.offset / clusterSize); host <= last; host++)
      counts.set(host, (counts.get(host) ?? 0) + 1);
  }
  return counts;
}

/** Expects that our check finds nothing, not even a leak. */
export async function expectClean(storage: MemoryStorage): Promise<void> {
  const found = await checkImage(storage, await readMetadata(storage, 'check'));
  expect(found.problems).toEqual([]);
}
