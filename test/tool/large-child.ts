/*
 * Creates a disk of 1 TiB with all its tables, writes to it at random places, reads that back and checks the image: the
 * process whose memory is told. Arguments: path, cluster size, extended L2 (on or off), seed.
 */
import { checkFile } from '../../src/op/check-file.ts';
import { create } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { resize } from '../../src/op/resize.ts';
import { createSnapshot, deleteSnapshot } from '../../src/op/snapshots.ts';
import { firstDifference, patternOf } from './model.ts';
import { Random } from './random.ts';

/** What the process found out. */
export interface LargeResult {
  /** The most memory that the process had at any time (RSS), in bytes. */
  readonly mostMemory: number;
  /** Places whose bytes did not come back. */
  readonly wrong: number;
  readonly corruptions: number;
  readonly leaks: number;
  readonly checkErrors: number;
  readonly totalClusters: number;
  readonly allocatedClusters: number;
}

const SIZE = 2 ** 40;
const WRITES = 400;
const [path = '', clusterSize = '', extended = '', seed = ''] = process.argv.slice(2);
const random = new Random(Number(seed));

const qcow2 = { clusterSize: Number(clusterSize), extendedL2: extended === 'on' };
await create({ path, format: 'qcow2', size: SIZE, preallocation: 'metadata', qcow2 });
// A part of it comes by growing.
await resize(path, SIZE + 2 ** 36, { preallocation: 'metadata' });

const writes: { at: number; length: number; seed: number }[] = [];
const disk = await openImageFile(path, { format: 'qcow2', write: true });
const MIB = 2 ** 20;
// Each in a MiB of its own, so that none writes over another.
const places = new Set<number>();
while (places.size < WRITES) places.add(random.below((SIZE + 2 ** 36) / MIB));
for (const place of places) {
  const at = place * MIB + random.below(1024) * 512;
  const write = { at, length: random.between(1, 1000) * 512, seed: random.u32() };
  writes.push(write);
  await disk.write(patternOf(write.seed, write.length), at);
}
await disk.close();

// All tables are gone through, in several steps.
await createSnapshot(path, 'whole');
await deleteSnapshot(path, 'whole');

let wrong = 0;
const again = await openImageFile(path, { format: 'qcow2' });
for (const write of writes) {
  const found = new Uint8Array(write.length);
  await again.read(found, write.at);
  if (firstDifference(found, patternOf(write.seed, write.length)) >= 0) wrong++;
}
await again.close();

const checked = await checkFile(path, { format: 'qcow2' });
const { corruptions, leaks, checkErrors, totalClusters, allocatedClusters } = checked;
const result: LargeResult = {
  ...{ corruptions, leaks, checkErrors, totalClusters, allocatedClusters, wrong },
  mostMemory: process.resourceUsage().maxRSS * 1024,
};
process.stdout.write(JSON.stringify(result));
