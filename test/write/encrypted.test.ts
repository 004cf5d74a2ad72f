import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { checkFile } from '../../src/op/check-file.ts';
import { secretOf } from '../../src/op/open.ts';
import { resize } from '../../src/op/resize.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../src/op/snapshots.ts';
import { createEncrypted, encryptedSource, openEncrypted, PASSPHRASE } from '../tool/encrypted.ts';
import { applyStep, firstDifference, Model, randomStep } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const STEPS = 120;

qemu.describeWithQemu('writing to encrypted images', () => {
  it.for([
    { format: 'luks', cluster_size: '4096', extended_l2: 'off' },
    { format: 'luks', cluster_size: '65536', extended_l2: 'off' },
    { format: 'luks', cluster_size: '16384', extended_l2: 'on' },
    { format: 'aes', cluster_size: '4096', extended_l2: 'off' },
  ])('%j agrees with a plain model, and with qemu', { timeout: 300_000 }, async ({ format, ...more }) => {
    const dir = tempDir();
    const path = join(dir, 'disk.qcow2');
    const size = 500 * 1024;
    const random = new Random(seedOf(`encrypted ${format} ${JSON.stringify(more)}`));
    const quick = format === 'luks' ? { 'iter-time': '10' } : {};
    await createEncrypted(path, size, 'qcow2', { format, ...quick }, more);
    const model = new Model(new Uint8Array(size));
    let image = await openEncrypted(path, { write: true });
    for (let i = 0; i < STEPS; i++) {
      const step = randomStep(random, size, Number(more.cluster_size));
      await applyStep(image, model, step);
      if (step.do !== 'reopen') continue;
      await image.close();
      image = await openEncrypted(path, { write: true });
    }
    const found = new Uint8Array(size);
    await image.read(found, 0);
    await image.close();
    const context = `SPINDLE_SEED=${String(random.seed)}`;
    expect(firstDifference(found, model.bytes), context).toBe(-1);
    const source = encryptedSource(path, 'qcow2');
    expect((await qemu.check(path, { source })).code, context).toBe(0);
    const hash = await qemu.contentHash(path, join(dir, 'plain.raw'), { source });
    expect(hash, context).toBe(createHash('sha256').update(model.bytes).digest('hex'));
  });
});

/** What is done with the whole of an image, beside plain copies of it. */
qemu.describeWithQemu('snapshots and sizes of encrypted images', () => {
  it.for([
    { format: 'luks', cluster_size: '4096', extended_l2: 'off' },
    { format: 'luks', cluster_size: '65536', extended_l2: 'on' },
    { format: 'aes', cluster_size: '1024', extended_l2: 'off' },
  ])('%j: agree with plain copies, and with qemu', { timeout: 300_000 }, async ({ format, ...more }) => {
    const dir = tempDir();
    const path = join(dir, 'disk.qcow2');
    const random = new Random(seedOf(`encrypted whole ${format}`));
    const quick = format === 'luks' ? { 'iter-time': '10' } : {};
    let model = new Model(new Uint8Array(300 * 1024));
    await createEncrypted(path, model.size, 'qcow2', { format, ...quick }, more);
    const kept = new Map<string, Uint8Array>();
    const secret = secretOf(PASSPHRASE);
    const source = encryptedSource(path, 'qcow2');
    const context = `SPINDLE_SEED=${String(random.seed)}`;
    for (let round = 0; round < 40; round++) {
      const image = await openEncrypted(path, { write: true });
      for (let i = 0; i < 5; i++)
        await applyStep(image, model, randomStep(random, model.size, Number(more.cluster_size)));
      await image.close();
      const name = random.pick([...kept.keys(), '']);
      const bytes = kept.get(name);
      if (random.chance(0.3)) {
        const size = random.between(100, 900) * 512;
        if (size > model.size)
          await expect(resize(path, size, { secret, preallocation: 'full' })).rejects.toMatchObject({
            code: 'UNSUPPORTED',
          });
        await resize(path, size, { secret, shrink: true });
        const resized = new Uint8Array(size);
        resized.set(model.bytes.subarray(0, size));
        model = new Model(resized);
      } else if (bytes === undefined) {
        const made = `s${String(round)}`;
        await createSnapshot(path, made);
        kept.set(made, model.bytes.slice());
      } else if (random.chance(0.5)) {
        // No secret: only tables change.
        await applySnapshot(path, name);
        model = new Model(bytes.slice());
      } else {
        await deleteSnapshot(path, name);
        kept.delete(name);
      }
      if (round % 8 !== 7) continue;
      expect((await checkFile(path)).problems, context).toEqual([]);
      expect((await qemu.check(path, { source })).code, context).toBe(0);
      const hash = await qemu.contentHash(path, join(dir, 'plain.raw'), { source });
      expect(hash, context).toBe(createHash('sha256').update(model.bytes).digest('hex'));
      for (const [snapshot, content] of kept) {
        const old = await openEncrypted(path, { snapshot });
        const found = new Uint8Array(old.size);
        await old.read(found, 0);
        await old.close();
        expect(found.length, `${snapshot}, ${context}`).toBe(content.length);
        expect(firstDifference(found, content), `${snapshot}, ${context}`).toBe(-1);
      }
    }
    expect(kept.size).toBeGreaterThan(0);
  });
});
