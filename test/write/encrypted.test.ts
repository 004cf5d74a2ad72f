import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createEncrypted, encryptedSource, openEncrypted } from '../tool/encrypted.ts';
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
