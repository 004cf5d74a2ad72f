import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { viewOf } from '../../src/core/bytes.ts';
import type { Storage } from '../../src/core/storage.ts';
import { DiskImage } from '../../src/format/disk-image.ts';
import { createQcow2, QCOW2_DEFAULTS } from '../../src/format/qcow2/create.ts';
import { HeaderOffset, Incompatible } from '../../src/format/qcow2/layout.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { getRefcount, setRefcount } from '../../src/format/qcow2/refcount.ts';
import { L1Table } from '../../src/format/qcow2/tables.ts';
import {
  ClusterKinds,
  type MetadataKind,
  type OverlapCheck,
} from '../../src/format/qcow2/write/cluster-kinds.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { createSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const CLUSTER = 4096;
const SIZE = 4 * 1024 * 1024;
const LEVELS: readonly OverlapCheck[] = ['none', 'constant', 'cached', 'all'];

/** The lowest level that looks at each kind. The header is never handed out, at no level. */
const FROM: Readonly<Record<MetadataKind, OverlapCheck>> = {
  header: 'constant',
  'L1 table': 'constant',
  'refcount table': 'constant',
  'snapshot table': 'constant',
  'bitmap directory': 'constant',
  'encryption header': 'constant',
  'bitmap table': 'cached',
  'bitmap data': 'cached',
  'L2 table': 'cached',
  'refcount block': 'cached',
  'L1 table of a snapshot': 'cached',
  'L2 table of a snapshot': 'all',
};

type Target = Exclude<
  MetadataKind,
  'bitmap directory' | 'bitmap table' | 'bitmap data' | 'encryption header'
>;
const TARGETS: readonly Target[] = [
  ...(['header', 'L1 table', 'refcount table', 'snapshot table', 'L2 table'] as const),
  ...(['refcount block', 'L1 table of a snapshot', 'L2 table of a snapshot'] as const),
];

function isLookedAt(kind: MetadataKind, level: OverlapCheck): boolean {
  return LEVELS.indexOf(level) >= LEVELS.indexOf(FROM[kind]);
}

async function opened(storage: Storage, overlapCheck?: OverlapCheck): Promise<DiskImage> {
  const metadata = await readMetadata(storage, 'data');
  const driver = await Qcow2WriteDriver.open(storage, metadata, null, nodeCodec, {
    backed: false,
    overlapCheck,
  });
  return new DiskImage(driver, storage, null);
}

function driverOf(image: DiskImage): Qcow2WriteDriver {
  if (!(image.driver instanceof Qcow2WriteDriver)) throw new Error('not a writer');
  return image.driver;
}

/** An image with all kinds of tables, and the cluster of each. */
async function made(): Promise<{ bytes: Uint8Array; places: Readonly<Record<Target, number>> }> {
  const memory = new MemoryStorage();
  await createQcow2(memory, { ...QCOW2_DEFAULTS, clusterSize: CLUSTER, size: SIZE });
  const image = await opened(memory);
  await image.write(new Uint8Array(10 * CLUSTER).fill(1), 0);
  await image.alone(() =>
    driverOf(image).changeSnapshots((writer) => createSnapshot(writer, { name: 'a', date: new Date(0) })),
  );
  await image.write(new Uint8Array(3 * CLUSTER).fill(2), 0);
  await image.driver.close();
  const { header, snapshots } = await readMetadata(memory, 'data');
  const [snapshot] = snapshots;
  const l2 = async (offset: number, entries: number): Promise<number> =>
    (await L1Table.readWhole(memory, offset, entries, CLUSTER)).l2Offset(0);
  const table = new Uint8Array(8);
  await memory.read(table, header.refcountTableOffset);
  const offsets: Record<Target, number> = {
    header: 0,
    'L1 table': header.l1TableOffset,
    'refcount table': header.refcountTableOffset,
    'snapshot table': header.snapshotsOffset,
    'L2 table': await l2(header.l1TableOffset, header.l1Size),
    'refcount block': Number(viewOf(table).getBigUint64(0)),
    'L1 table of a snapshot': snapshot!.l1TableOffset,
    'L2 table of a snapshot': await l2(snapshot!.l1TableOffset, snapshot!.l1Size),
  };
  const places = Object.fromEntries(Object.entries(offsets).map(([kind, at]) => [kind, at / CLUSTER]));
  expect(new Set(Object.values(places)).size).toBe(TARGETS.length);
  return { bytes: memory.toBytes(), places: places as Record<Target, number> };
}

/** Counts one cluster as free, and all others that the file has as used. */
function misled(bytes: Uint8Array, block: number, free: number): Uint8Array {
  const wrong = bytes.slice();
  const view = new DataView(wrong.buffer, block * CLUSTER, CLUSTER);
  for (let cluster = 0; cluster < bytes.length / CLUSTER; cluster++) {
    if (cluster === free) setRefcount(view, 4, cluster, 0);
    else if (getRefcount(view, 4, cluster) === 0) setRefcount(view, 4, cluster, 1);
  }
  return wrong;
}

function isCorrupt(bytes: Uint8Array): boolean {
  return (viewOf(bytes).getUint32(HeaderOffset.incompatibleFeatures + 4) & Incompatible.CORRUPT) !== 0;
}

/** Expects that a file is as before, but for the mark, and for what is past its old end. */
function expectUntouched(after: Uint8Array, before: Uint8Array): void {
  expect(isCorrupt(after)).toBe(true);
  const unmarked = after.slice(0, before.length);
  unmarked[HeaderOffset.incompatibleFeatures + 7] = before[HeaderOffset.incompatibleFeatures + 7]!;
  expect(Buffer.compare(unmarked, before)).toBe(0);
}

/** Writes to a guest cluster that has no place yet, one that has, and what other writes there are. */
const WAYS: Readonly<Record<string, (image: DiskImage) => Promise<unknown>>> = {
  'a write': (image) => image.write(new Uint8Array(CLUSTER).fill(0xee), 20 * CLUSTER),
  'a write over shared data': (image) => image.write(new Uint8Array(CLUSTER).fill(0xee), 5 * CLUSTER),
  'a compressed write': (image) => image.writeCompressed(new Uint8Array(CLUSTER).fill(0xee), 20 * CLUSTER),
};

describe.each(LEVELS)('overlap check %s', (level) => {
  it.each(TARGETS)('a cluster that is handed out and holds: %s', async (kind) => {
    const { bytes, places } = await made();
    const place = places[kind];
    const wrong = misled(bytes, places['refcount block'], place);
    for (const [name, way] of Object.entries(WAYS)) {
      const memory = MemoryStorage.from(wrong);
      const image = await opened(memory, level);
      if (kind === 'header' || isLookedAt(kind, level)) {
        await expect(way(image), name).rejects.toMatchObject({ code: 'CORRUPT' });
        // The image takes no other write, and closing it writes nothing.
        await expect(image.write(new Uint8Array(1), 0)).rejects.toMatchObject({ code: 'CORRUPT' });
        await image.driver.close();
        expectUntouched(memory.toBytes(), wrong);
        await expect(opened(memory, level)).rejects.toMatchObject({ code: 'CORRUPT' });
        continue;
      }
      // Nobody looked: that is what the level means.
      await way(image);
      const there = memory.toBytes().subarray(place * CLUSTER, (place + 1) * CLUSTER);
      expect(Buffer.compare(there, wrong.subarray(place * CLUSTER, (place + 1) * CLUSTER)), name).not.toBe(0);
      expect(isCorrupt(memory.toBytes()), name).toBe(false);
    }
  });

  it.each(['snapshot table', 'L1 table of a snapshot', 'L2 table'] as const)(
    'a new table where there is: %s',
    async (kind) => {
      const { bytes, places } = await made();
      const wrong = misled(bytes, places['refcount block'], places[kind]);
      const memory = MemoryStorage.from(wrong);
      const image = await opened(memory, level);
      // Far away, so that it needs an L2 table, which is placed before the data.
      const work = image.write(new Uint8Array(CLUSTER).fill(0xee), SIZE - CLUSTER);
      if (!isLookedAt(kind, level)) {
        await work;
        return;
      }
      await expect(work).rejects.toMatchObject({ code: 'CORRUPT' });
      await image.driver.close();
      const after = memory.toBytes();
      expect(isCorrupt(after)).toBe(true);
      const [from, to] = [places[kind] * CLUSTER, (places[kind] + 1) * CLUSTER];
      expect(Buffer.compare(after.subarray(from, to), wrong.subarray(from, to))).toBe(0);
    },
  );

  it('the kinds that no image here has', () => {
    for (const kind of Object.keys(FROM) as MetadataKind[]) {
      const kinds = new ClusterKinds(CLUSTER, level);
      kinds.claim(CLUSTER, 3 * CLUSTER, kind);
      const check = (): void => {
        kinds.check(0, 2 * CLUSTER);
      };
      if (isLookedAt(kind, level)) expect(check, kind).toThrow(/would be written over it/);
      else expect(check, kind).not.toThrow();
      kinds.check(CLUSTER, CLUSTER, kind);
      kinds.release(CLUSTER, 3 * CLUSTER);
      expect(check).not.toThrow();
    }
  });
});

it('cached is the level when none is named', async () => {
  const { bytes, places } = await made();
  for (const kind of ['refcount block', 'L2 table of a snapshot'] as const) {
    const image = await opened(MemoryStorage.from(misled(bytes, places['refcount block'], places[kind])));
    const work = image.write(new Uint8Array(CLUSTER), 20 * CLUSTER);
    if (kind === 'refcount block') await expect(work).rejects.toMatchObject({ code: 'CORRUPT' });
    else await work;
  }
});

qemu.describeWithQemu('overlap checks', () => {
  it.each(LEVELS)('%s refuses what it refuses in qemu', async (level) => {
    const { bytes, places } = await made();
    const path = join(tempDir(), 'wrong.qcow2');
    for (const kind of TARGETS) {
      writeFileSync(path, misled(bytes, places['refcount block'], places[kind]));
      const options = `driver=qcow2,overlap-check=${level},file.filename=${path}`;
      const args = [
        '-c',
        `write -P 0xee ${String(20 * CLUSTER)} ${String(CLUSTER)}`,
        '--image-opts',
        options,
      ];
      const { stdout, stderr } = await qemu.qemuIo(args, { expect: 'any' });
      const refused = /corrupt|rror/i.test(stdout + stderr);
      // Without checks qemu writes over the header, which spindle never does.
      expect(refused, `${kind}: ${stdout}${stderr}`).toBe(isLookedAt(kind, level));
    }
  });
});
