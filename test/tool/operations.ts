import type { Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';
import { CODECS } from './compressed.ts';
import type { Random } from './random.ts';
import { Recorder, type GrowMode, type RecorderOptions } from './recorded.ts';

const SECTOR = 512;

/** Images of every kind that the write path treats in its own way. */
export const KINDS: readonly Partial<Qcow2CreateOptions>[] = [
  { clusterSize: 512 },
  { clusterSize: 512, refcountBits: 64 },
  { clusterSize: 4096, refcountBits: 4 },
  { clusterSize: 4096, version: 2 },
  { clusterSize: 65536 },
  {
    clusterSize: 16384,
    extendedL2: true,
    ...(CODECS.length > 1 ? { compressionType: 'zstd' as const } : {}),
  },
  { clusterSize: 4096, preallocation: 'metadata' },
  { clusterSize: 4096, backing: { name: 'base.raw', format: 'raw' } },
  { clusterSize: 1024, version: 2, backing: { name: 'base.raw', format: 'raw' } },
  { clusterSize: 16384, extendedL2: true, backing: { name: 'base.raw', format: 'raw' } },
];

/** An image with a past: data of all kinds, and snapshots that share some of it. */
export async function withPast(
  options: Partial<Qcow2CreateOptions>,
  random: Random,
  how: Omit<RecorderOptions, 'size'> = {},
): Promise<Recorder> {
  const recorder = await Recorder.make(options, { ...how, size: random.between(60, 400) * SECTOR });
  for (let made = 0; made < 2; made++) {
    for (let i = 0; i < 10; i++) await recorder.do(recorder.random(random, { snapshots: 0, resize: 0 }));
    await recorder.do({ do: 'snapshot' });
  }
  for (let i = 0; i < 6; i++) await recorder.do(recorder.random(random, { snapshots: 0, resize: 0 }));
  await recorder.do({ do: 'flush' });
  recorder.startHere();
  return recorder;
}

/** Something done to an image with a past; false where the image cannot do it. */
export type Operation = (recorder: Recorder, random: Random) => Promise<boolean>;

function grow(mode: GrowMode): Operation {
  return (recorder, random) => {
    const size = recorder.model.size + random.between(1, 200) * SECTOR;
    return recorder.do({ do: 'resize', size, mode });
  };
}

const id = (recorder: Recorder, random: Random): string => random.pick([...recorder.snapshots.keys()]);

/** The same range of whole clusters, as data, compressed, zeroed and discarded, with flushes between. */
async function writesOverShared(recorder: Recorder, random: Random): Promise<boolean> {
  const { clusterSize } = recorder.driver.metadata.geometry;
  for (const what of ['compress', 'write', 'zero', 'compress', 'discard', 'zero-keep', 'compress'] as const) {
    const at = random.below(Math.max(1, Math.floor(recorder.model.size / clusterSize))) * clusterSize;
    const length = Math.min(clusterSize * random.between(1, 3), recorder.model.size - at);
    await recorder.do({ do: what, at, length, seed: random.u32() });
    if (random.chance(0.6)) await recorder.do({ do: 'flush' });
  }
  return true;
}

/** The operations, by what they are called. */
export const OPERATIONS: Readonly<Record<string, Operation>> = {
  'snapshot create': (recorder) => recorder.do({ do: 'snapshot' }),
  'snapshot apply': (recorder, random) => recorder.do({ do: 'apply', id: id(recorder, random) }),
  'snapshot delete': (recorder, random) => recorder.do({ do: 'delete', id: id(recorder, random) }),
  'delete of both snapshots': async function both(recorder) {
    for (const one of [...recorder.snapshots.keys()]) await recorder.do({ do: 'delete', id: one });
    return true;
  },
  'grow, off': grow('off'),
  'grow, metadata': grow('metadata'),
  'grow, falloc': grow('falloc'),
  'grow, full': grow('full'),
  shrink: (recorder, random) => {
    const size = random.between(1, recorder.model.size / SECTOR - 1) * SECTOR;
    return recorder.do({ do: 'resize', size, mode: 'off' });
  },
  'writes, compressed writes, zeroes and discards over snapshots': writesOverShared,
};

/** An image for the operation of that name. Version 2 cannot be resized with snapshots: those images have none. */
export async function prepared(
  name: string,
  options: Partial<Qcow2CreateOptions>,
  random: Random,
): Promise<Recorder> {
  const recorder = await withPast(options, random);
  if (options.version === 2 && /grow|shrink/.test(name)) {
    for (const one of [...recorder.snapshots.keys()]) await recorder.do({ do: 'delete', id: one });
    recorder.startHere();
  }
  return recorder;
}
