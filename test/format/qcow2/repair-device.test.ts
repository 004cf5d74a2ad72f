// Repair of images on block devices, which cannot grow: new tables have to fit into what is free.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { repairFile, undoRepairFile } from '../../../src/op/repair.ts';
import { attachLoop, noLoop, type LoopDevice } from '../../tool/loop.ts';
import * as qemu from '../../tool/qemu.ts';
import { sha256 } from '../../tool/repair-cuts.ts';
import { tempDir } from '../../tool/temp.ts';

const CLUSTER = 4096;
const MIB = 1024 ** 2;

/** The bytes of an image of 60 clusters of data, some of them discarded again, and a snapshot where asked for. */
async function image(discarded: readonly number[], snapshot = false): Promise<Buffer> {
  const path = join(tempDir(), 'image.qcow2');
  await qemu.create(path, '1M', { options: { cluster_size: CLUSTER } });
  await qemu.fill(path, [{ do: 'write', at: 0, length: 60 * CLUSTER, pattern: 9 }]);
  if (snapshot) await qemu.snapshot(path, 'create', 'one');
  for (const cluster of discarded)
    await qemu.fill(path, [{ do: 'discard', at: cluster * CLUSTER, length: CLUSTER }]);
  const bytes = readFileSync(path);
  return Buffer.concat([bytes, Buffer.alloc(Math.ceil(bytes.length / CLUSTER) * CLUSTER - bytes.length)]);
}

/** Takes the refcount table's only block away, so that all refcounts have to be written anew. */
function withoutRefcounts(bytes: Buffer): Buffer {
  bytes.writeBigUInt64BE(0n, Number(bytes.readBigUInt64BE(48)));
  return bytes;
}

async function onDevice(content: Uint8Array, work: (device: LoopDevice) => Promise<void>): Promise<void> {
  const device = attachLoop(content);
  try {
    await work(device);
  } finally {
    device.detach();
  }
}

const hashOf = (path: string): Promise<string> => qemu.contentHash(path, join(tempDir(), 'scratch'));

/** Repairs what is on the device, and takes it back, and repairs it again. */
async function expectRepaired(content: Buffer): Promise<string[]> {
  let steps: string[] = [];
  await onDevice(content, async ({ path }) => {
    const before = await hashOf(path);
    const journal = join(tempDir(), 'undo');
    const planned = await repairFile(path, { mode: 'all', dryRun: true });
    expect(sha256(readFileSync(path))).toBe(sha256(content));
    const done = await repairFile(path, { mode: 'all', journal });
    expect(done).toEqual(planned);
    expect(done.after.problems).toEqual([]);
    expect(await qemu.check(path)).toMatchObject({ code: 0 });
    expect(await hashOf(path)).toBe(before);
    await undoRepairFile(path, journal);
    expect(sha256(readFileSync(path))).toBe(sha256(content));
    await repairFile(path, { mode: 'all' });
    expect((await qemu.check(path)).code).toBe(0);
    steps = [...done.steps];
  });
  return steps;
}

const missing = noLoop();
qemu.describeUnlessMissing('repair on a block device', missing ?? qemu.qemuMissing(), () => {
  it('writes new refcounts to where the device has room', async () => {
    const bytes = withoutRefcounts(await image([]));
    const steps = await expectRepaired(Buffer.concat([bytes, Buffer.alloc(MIB)]));
    expect(steps[0]).toMatch(/2 free clusters/);
  });

  it('scatters them where there is no room in one piece', async () => {
    const bytes = withoutRefcounts(await image([10, 20, 30]));
    const steps = await expectRepaired(bytes);
    expect(steps[0]).toMatch(/2 free clusters/);
  });

  it('moves a damaged snapshot table to a free cluster', async () => {
    const bytes = await image([], true);
    const entry = Number(bytes.readBigUInt64BE(64));
    bytes.writeUInt16BE(50_000, entry + 14);
    const steps = await expectRepaired(Buffer.concat([bytes, Buffer.alloc(MIB)]));
    expect(steps[0]).toMatch(/new snapshot table/);
  });

  it('changes nothing where the device is one cluster short', async () => {
    // The place of the lost block is free.
    const bytes = withoutRefcounts(await image([]));
    await onDevice(bytes, async ({ path }) => {
      const journal = join(tempDir(), 'undo');
      for (const dryRun of [true, false]) {
        const options = dryRun ? { dryRun } : { journal };
        await expect(repairFile(path, { mode: 'all', ...options })).rejects.toMatchObject({
          code: 'NO_SPACE',
          path,
          message: expect.stringMatching(/2 free clusters.*copy it to a larger place/) as string,
        });
      }
      expect(existsSync(journal)).toBe(false);
      expect(sha256(readFileSync(path))).toBe(sha256(bytes));
    });
  });

  it('lowers and raises refcounts in place', async () => {
    const bytes = await image([]);
    const block = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
    bytes.writeUInt16BE(0, block + 2 * 20);
    bytes.writeUInt16BE(7, block + 2 * 21);
    await expectRepaired(bytes);
  });
});
