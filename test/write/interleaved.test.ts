import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { changeBitmap } from '../../src/op/bitmaps.ts';
import { openImageFile } from '../../src/op/open.ts';
import { applyStep, firstDifference, Model, randomStep } from '../tool/model.ts';
import { BitmapModel, ourRanges } from '../tool/bitmaps.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const ROUNDS = Number(process.env['SPINDLE_INTERLEAVED_ROUNDS'] ?? 500);

const KINDS: readonly Record<string, string | number>[] = [
  { cluster_size: 512, refcount_bits: 1 },
  { cluster_size: 4096, compat: 'v2' },
  { cluster_size: 65536 },
  { cluster_size: 16384, extended_l2: 'on' },
  { cluster_size: 4096, lazy_refcounts: 'on' },
];

qemu.describeWithQemu('ours and qemu on one image, in turn', () => {
  it.for(KINDS)('%j', { timeout: 1_800_000 }, async (options) => {
    const dir = tempDir();
    const path = join(dir, 'shared.qcow2');
    const size = 700 * 1024;
    await qemu.create(path, size, { format: 'qcow2', options });
    const bitmap = options['compat'] === 'v2' ? undefined : new BitmapModel('b', 1024, size);
    if (bitmap !== undefined) await qemu.bitmap(path, 'b', ['--add', '-g', '1k']);
    const random = new Random(seedOf(`interleaved ${JSON.stringify(options)}`));
    const model = new Model(new Uint8Array(size));
    for (let round = 0; round < ROUNDS; round++) {
      const context = `round ${String(round)} (SPINDLE_SEED=${String(random.seed)})`;
      const image = await openImageFile(path, { format: 'qcow2', write: true });
      try {
        const whole = new Uint8Array(size);
        await image.read(whole, 0);
        expect(firstDifference(whole, model.bytes), context).toBe(-1);
        for (let i = 0; i < 6; i++) {
          const step = randomStep(random, size, Number(options['cluster_size']));
          if (step.do === 'reopen') continue;
          await applyStep(image, model, step);
          if (step.do !== 'read' && 'at' in step) bitmap?.mark(step.at, step.length);
        }
      } finally {
        await image.close();
      }
      const fills: qemu.Fill[] = [];
      for (let i = 0; i < 4; i++) {
        const at = random.below(size / 512) * 512;
        const length = Math.min(size - at, random.between(1, 80) * 512);
        const pattern = random.between(1, 255);
        fills.push(
          random.chance(0.3)
            ? { do: 'zero', at, length, unmap: random.chance(0.5) }
            : { do: 'write', at, length, pattern },
        );
        const last = fills[fills.length - 1];
        bitmap?.mark(at, length);
        model.bytes.fill(last?.do === 'write' ? pattern : 0, at, at + length);
      }
      await qemu.fill(path, fills);
      const judged = await qemu.check(path);
      expect(judged.code, `${context}: ${judged.stderr}`).toBe(0);
      if (bitmap === undefined || !random.chance(0.1)) continue;
      expect(await ourRanges(path, 'b'), context).toBe(bitmap.ranges(size));
      // Most of it is dirty by now: it begins anew, by our hand or by qemu's.
      if (random.chance(0.5)) await changeBitmap(path, 'b', [{ do: 'clear' }]);
      else await qemu.bitmap(path, 'b', ['--clear']);
      bitmap.bits.fill(0);
    }
    const raw = join(dir, 'model.raw');
    writeFileSync(raw, model.bytes);
    expect(await qemu.compare({ path, format: 'qcow2' }, { path: raw, format: 'raw' })).toBe(true);
    rmSync(raw);
  });
});
