// Damaged snapshot tables: what can be read of them is kept, what cannot is dropped, and nothing else changes.
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { fault } from '../../../src/layer/fault.ts';
import { repair, repairFile, undoRepairFile, type RepairResult } from '../../../src/op/repair.ts';
import { MemoryStorage } from '../../../src/storage/memory.ts';
import * as qemu from '../../tool/qemu.ts';
import { withRandom } from '../../tool/random.ts';
import { contentOf, expectSafe, sha256 } from '../../tool/repair-cuts.ts';
import { tempDir } from '../../tool/temp.ts';
import { times } from '../../tool/share.ts';

const CLUSTER = 4096;
const MIB = 1024 ** 2;
const ALL = ['one', 'two', 'three'];

/** An image of qemu's with three snapshots of different content, the later ones of a larger disk. */
async function build(path: string, compat: string): Promise<void> {
  await qemu.create(path, '256k', { options: { cluster_size: CLUSTER, compat } });
  const write = (pattern: number, at: number): Promise<void> =>
    qemu.fill(path, [{ do: 'write', at, length: 5 * CLUSTER, pattern }]);
  await write(1, 0);
  await qemu.snapshot(path, 'create', 'one');
  // Version 2 images with snapshots cannot be resized.
  if (compat !== '0.10') await qemu.qemuImg(['resize', '-q', path, '600k']);
  await write(2, 2 * CLUSTER);
  await qemu.snapshot(path, 'create', 'two');
  await write(3, 200_000);
  await qemu.snapshot(path, 'create', 'three');
  await write(4, 4 * CLUSTER);
}

/** The image as bytes, and where its snapshot entries begin. BigInt on purpose: this is an oracle of its own. */
interface Damaged {
  readonly bytes: Buffer;
  readonly entries: readonly number[];
}

function entriesOf(bytes: Buffer): number[] {
  const entries: number[] = [];
  let at = Number(bytes.readBigUInt64BE(64));
  for (let i = 0; i < bytes.readUInt32BE(60); i++) {
    entries.push(at);
    at += 40 + bytes.readUInt32BE(at + 36) + bytes.readUInt16BE(at + 12) + bytes.readUInt16BE(at + 14);
    at = Math.ceil(at / 8) * 8;
  }
  return entries;
}

interface Case {
  readonly what: string;
  /** Changes the bytes, or gives other ones. */
  readonly damage: (image: Damaged) => Buffer | undefined;
  /** Names afterwards, in order. */
  readonly survive: readonly string[];
  /** What the plan says. */
  readonly says: RegExp;
  /** Not in version 2. */
  readonly onlyV3?: boolean;
}

/** Damage to the bytes in place. */
const edit =
  (change: (bytes: Buffer, entry: (number: number) => number) => void): Case['damage'] =>
  ({ bytes, entries }) => {
    change(bytes, (number) => entries[number - 1] ?? 0);
    return undefined;
  };

/** The table at the end of the file, which then ends inside the last entry. */
const cutAt =
  (kept: number): Case['damage'] =>
  ({ bytes, entries }) => {
    const [first = 0, , third = 0] = entries;
    const end = Math.ceil(bytes.length / CLUSTER) * CLUSTER;
    const longer = Buffer.alloc(end + third - first + kept);
    bytes.copy(longer);
    bytes.copy(longer, end, first, third + kept);
    longer.writeBigUInt64BE(BigInt(end), 64);
    const block = Number(longer.readBigUInt64BE(Number(longer.readBigUInt64BE(48))));
    longer.writeUInt16BE(1, block + (end / CLUSTER) * 2);
    return longer;
  };

const CASES: readonly Case[] = [
  {
    what: 'a name length past the table',
    damage: edit((bytes, entry) => bytes.writeUInt16BE(60_000, entry(2) + 14)),
    ...{ survive: ALL, says: /mended.*'two'.*lengths/s },
  },
  {
    what: 'an id length past the table',
    damage: edit((bytes, entry) => bytes.writeUInt16BE(300, entry(3) + 12)),
    ...{ survive: ALL, says: /mended.*'three'.*lengths/s },
  },
  {
    what: 'more extra data than is allowed',
    damage: edit((bytes, entry) => bytes.writeUInt32BE(0xffff_ffff, entry(1) + 36)),
    ...{ survive: ALL, says: /mended.*'one'.*lengths/s },
  },
  {
    what: 'an id and a name that are gone',
    damage: edit((bytes, entry) => {
      bytes.fill(0, entry(2) + 12, entry(2) + 16);
      bytes.fill(0, entry(2) + 40, entry(3));
    }),
    ...{ survive: ['one', 'recovered-2', 'three'], says: /id and name are lost/ },
  },
  {
    what: 'an L1 table past the end of the file',
    damage: edit((bytes, entry) => bytes.writeBigUInt64BE(1n << 40n, entry(2))),
    ...{ survive: ['one', 'three'], says: /dropped.*'two'.*past the end/s },
  },
  {
    what: 'an L1 table past all numbers',
    damage: edit((bytes, entry) => bytes.writeBigUInt64BE(1n << 62n, entry(2))),
    ...{ survive: ['one', 'three'], says: /dropped.*snapshot 2/s },
  },
  {
    what: 'an L1 table on the header',
    damage: edit((bytes, entry) => bytes.writeBigUInt64BE(0n, entry(1))),
    ...{ survive: ['two', 'three'], says: /dropped.*'one'.*header/s },
  },
  {
    what: 'an L1 table that is not aligned',
    damage: edit((bytes, entry) => bytes.writeBigUInt64BE(bytes.readBigUInt64BE(entry(3)) + 512n, entry(3))),
    ...{ survive: ALL, says: /mended.*'three'.*L1 table is at/s },
  },
  {
    what: 'an L1 table that is not aligned, in no table',
    damage: edit((bytes, entry) => bytes.writeBigUInt64BE(bytes.readBigUInt64BE(40) + 512n, entry(3))),
    ...{ survive: ['one', 'two'], says: /dropped.*'three'.*no L1 table of its own/s },
  },
  {
    what: 'an L1 table of 2^31 entries',
    damage: edit((bytes, entry) => bytes.writeUInt32BE(2 ** 31, entry(1) + 8)),
    ...{ survive: ALL, says: /mended.*'one'.*entries, not/s },
  },
  {
    what: 'a count of five',
    damage: edit((bytes) => bytes.writeUInt32BE(5, 60)),
    ...{ survive: ALL, says: /2 of the 5 snapshots/ },
  },
  {
    what: 'a count of 2^32 - 1',
    damage: edit((bytes) => bytes.writeUInt32BE(0xffff_ffff, 60)),
    ...{ survive: ALL, says: /of the 4294967295 snapshots/ },
  },
  {
    what: 'an offset that is not aligned',
    damage: edit((bytes) => bytes.writeBigUInt64BE(bytes.readBigUInt64BE(64) + 8n, 64)),
    ...{ survive: ALL, says: /new snapshot table/ },
  },
  {
    what: 'an offset past the end of the file',
    damage: edit((bytes) => bytes.writeBigUInt64BE(1n << 40n, 64)),
    ...{ survive: [], says: /dropped.*3 of the 3 snapshots/s },
  },
  {
    what: 'an offset into the data of the guest, where the guest has written a snapshot table',
    damage: edit((bytes, entry) => {
      const l2 = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0x00ff_ffff_ffff_fe00n);
      const data = Number(bytes.readBigUInt64BE(l2) & 0x00ff_ffff_ffff_fe00n);
      bytes.copy(bytes, data, entry(1), entry(3) + 100);
      bytes.writeUInt32BE(4, 60);
      bytes.writeBigUInt64BE(BigInt(data), 64);
    }),
    ...{ survive: [], says: /dropped/ },
  },
  {
    what: 'an entry of noise',
    damage: edit((bytes, entry) => bytes.fill(0xd7, entry(2), entry(3))),
    ...{ survive: ['one', 'three'], says: /dropped.*snapshot 2: nothing/s },
  },
  {
    what: 'an entry of zeroes',
    damage: edit((bytes, entry) => bytes.fill(0, entry(1), entry(2))),
    ...{ survive: ['two', 'three'], says: /dropped.*snapshot 1: nothing/s },
  },
  {
    what: 'a file that ends in the extra data',
    damage: cutAt(44),
    ...{ survive: ['one', 'two', 'recovered-3'], says: /id and name are lost/ },
  },
  {
    what: 'a file that ends in the name',
    damage: cutAt(40 + 24 + 3),
    ...{ survive: ['one', 'two', 'th'], says: /mended.*lengths/s },
  },
  {
    what: 'a file that ends before the last entry',
    damage: cutAt(0),
    ...{ survive: ['one', 'two'], says: /1 of the 3 snapshots/ },
  },
  {
    what: 'extra data of version 2',
    damage: edit((bytes, entry) => {
      const at = entry(3);
      bytes.copyWithin(at + 40, at + 64, at + 64 + 6);
      bytes.fill(0, at + 46, at + 80);
      bytes.writeUInt32BE(0, at + 36);
    }),
    ...{ survive: ALL, says: /mended.*'three'.*version 3/s, onlyV3: true },
  },
];

function planText({ snapshots, steps }: RepairResult): string {
  return [
    ...steps,
    ...snapshots.mended.map((one) => `mended: ${one}`),
    ...snapshots.dropped.map((one) => `dropped: ${one}`),
  ].join('\n');
}

interface SnapshotJson {
  readonly id: string;
  readonly name: string;
}

async function listed(path: string): Promise<SnapshotJson[]> {
  const { snapshots = [] } = (await qemu.info(path)) as { snapshots?: SnapshotJson[] };
  return snapshots;
}

qemu.describeWithQemu('repair of snapshot tables', () => {
  const folder = tempDir();
  const scratch = join(folder, 'scratch.raw');
  const hashOf = (path: string, id?: string): Promise<string> =>
    qemu.contentHash(path, scratch, id === undefined ? {} : { more: ['-l', `snapshot.id=${id}`] });

  describe.each(['1.1', '0.10'])('compat=%s', (compat) => {
    const whole = join(folder, `whole-${compat}.qcow2`);
    const contents: string[] = [];
    let active = '';

    beforeAll(async () => {
      await build(whole, compat);
      for (const id of ['1', '2', '3']) contents.push(await hashOf(whole, id));
      active = await hashOf(whole);
    });

    const cases = CASES.filter(({ onlyV3 }) => onlyV3 !== true || compat === '1.1');
    const damaged = ({ damage }: Case): Buffer => {
      const bytes = readFileSync(whole);
      return damage({ bytes, entries: entriesOf(bytes) }) ?? bytes;
    };

    it.each(cases)('$what', async (one) => {
      const path = join(folder, 'damaged.qcow2');
      const bytes = damaged(one);
      writeFileSync(path, bytes);
      const planned = await repairFile(path, { mode: 'all', dryRun: true });
      expect(planText(planned)).toMatch(one.says);
      const journal = join(folder, `undo-${compat}-${String(CASES.indexOf(one))}`);
      const done = await repairFile(path, { mode: 'all', journal });
      expect(done).toEqual(planned);
      expect(done.after.problems).toEqual([]);
      expect(await qemu.check(path)).toMatchObject({ code: 0 });
      const names = await listed(path);
      expect(names.map(({ name }) => name)).toEqual(one.survive);
      const guest = one.what.includes('guest') ? undefined : await hashOf(path);
      if (guest !== undefined) expect(guest).toBe(active);
      for (const { id, name } of names) {
        const index = ALL.findIndex(
          (wanted, i) => wanted.startsWith(name) || name === `recovered-${String(i + 1)}`,
        );
        expect(await hashOf(path, id), name).toBe(contents[index]);
      }
      expect((await repairFile(path, { mode: 'all' })).changes).toBe(0);
      // They are of use: qemu goes back to one, and ours deletes it.
      const [first] = names;
      const copy = join(folder, 'copy.qcow2');
      copyFileSync(path, copy);
      if (first !== undefined && compat === '1.1') {
        await qemu.snapshot(copy, 'apply', first.id);
        expect((await qemu.check(copy)).code).toBe(0);
      }
      await undoRepairFile(path, journal);
      expect(sha256(readFileSync(path))).toBe(sha256(bytes));
    });

    // What differs between the versions is the extra data.
    it.each(compat === '1.1' ? cases : cases.slice(0, 3))('when the power fails: $what', async (one) => {
      await withRandom(`cut snapshots ${compat} ${one.what}`, async (random) => {
        const bytes = damaged(one);
        await expectSafe(new Uint8Array(bytes), one.what, random, undefined, async (repaired) => {
          for (const name of one.survive) expect(await contentOf(repaired, name), name).toBeDefined();
        });
      });
    });

    it('after random damage', async () => {
      await withRandom(`snapshot table ${compat}`, async (random) => {
        const rounds = 5 * times('SPINDLE_REPAIR_ROUNDS', 8);
        const path = join(folder, 'random.qcow2');
        for (let round = 0; round < rounds; round++) {
          const bytes = readFileSync(whole);
          const [first = 0] = entriesOf(bytes);
          const what: string[] = [];
          for (let count = random.between(1, 4); count > 0; count--) {
            const at = random.chance(0.85) ? first + random.below(210) : 60 + random.below(12);
            bytes[at] = random.pick([0, 1, 0xff, random.below(256)]);
            what.push(`byte ${String(at)} := ${String(bytes[at])}`);
          }
          const message = `round ${String(round)}: ${what.join(', ')}`;
          writeFileSync(path, bytes);
          const done = await repairFile(path, { mode: 'all', format: 'qcow2' });
          // Two snapshots may share a table now, which is no damage once it is counted twice.
          expect(done.after, message).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
          expect((await qemu.check(path)).code, message).toBe(0);
          expect(await hashOf(path), message).toBe(active);
        }
      });
    });
  });

  it('leaves a table that cannot be read for a fault of the disk', async () => {
    const bytes = readFileSync(join(folder, 'whole-1.1.qcow2'));
    const storage = fault(MemoryStorage.from(bytes), {
      faults: [{ on: 'read', offset: Number(bytes.readBigUInt64BE(64)), length: 8 }],
    });
    const done = await repair(storage, { mode: 'all' });
    expect(done.snapshots.dropped).toEqual([]);
    expect(done.changes).toBe(0);
    expect(done.after.checkErrors).toBeGreaterThan(0);
  });

  it('with -r leaks reports only, and frees nothing', async () => {
    const bytes = readFileSync(join(folder, 'whole-1.1.qcow2'));
    bytes.writeUInt32BE(5, 60);
    const storage = MemoryStorage.from(bytes);
    expect(await repair(storage, { mode: 'leaks' })).toMatchObject({
      changes: 0,
      snapshots: { dropped: [] },
    });
    expect(Buffer.from(storage.toBytes()).equals(bytes)).toBe(true);
  });

  it('with all refcounts lost as well', async () => {
    const bytes = readFileSync(join(folder, 'whole-1.1.qcow2'));
    const [, second = 0] = entriesOf(bytes);
    bytes.writeUInt16BE(60_000, second + 14);
    const table = Number(bytes.readBigUInt64BE(48));
    bytes.writeBigUInt64BE(0n, table);
    const path = join(folder, 'lost.qcow2');
    writeFileSync(path, bytes);
    const done = await repairFile(path, { mode: 'all' });
    expect(done.after.problems).toEqual([]);
    expect((await qemu.check(path)).code).toBe(0);
    expect((await listed(path)).map(({ name }) => name)).toEqual(ALL);
    await withRandom('cut lost', (random) => expectSafe(new Uint8Array(bytes), 'lost', random));
  });

  it('brings an L1 table that the end of the file cuts to where there is room', async () => {
    const path = join(folder, 'cut-l1.qcow2');
    // 512-byte clusters: an L1 table of several, moved to the end of the file and cut.
    await qemu.create(path, '8M', { options: { cluster_size: 512 } });
    await qemu.fill(path, [{ do: 'write', at: 0, length: MIB, pattern: 7 }]);
    await qemu.snapshot(path, 'create', 'one');
    const before = await hashOf(path, '1');
    const bytes = readFileSync(path);
    const [entry = 0] = entriesOf(bytes);
    const l1 = Number(bytes.readBigUInt64BE(entry));
    const end = Math.ceil(bytes.length / 512) * 512;
    const longer = Buffer.concat([bytes, Buffer.alloc(end - bytes.length), bytes.subarray(l1, l1 + 512)]);
    longer.writeBigUInt64BE(BigInt(end), entry);
    writeFileSync(path, longer);
    const done = await repairFile(path, { mode: 'all' });
    expect(done.snapshots.mended.join('\n')).toMatch(/'one'.*cut by the end/);
    expect((await qemu.check(path)).code).toBe(0);
    expect(await hashOf(path, '1')).toBe(before);
  });
});
