import { expect, it } from 'vitest';
import { overlay } from '../../src/layer/overlay.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import { withRandom } from '../tool/random.ts';

it('an overlay reads as if it were written to, and what is below stays', async () => {
  await withRandom('overlay', async (random) => {
    const bytes = random.bytes(20_001);
    const below = MemoryStorage.from(bytes);
    const changed = overlay(below);
    let model = Buffer.from(bytes);
    for (let step = 0; step < 500; step++) {
      const at = random.below(model.length + 1);
      const length = Math.min(model.length - at, random.below(random.pick([10, 5000, 10_000])));
      const kind = random.below(6);
      if (kind < 3) {
        const part = random.bytes(length);
        await changed.write(part, at);
        model.set(part, at);
      } else if (kind === 3) {
        await changed.zero(at, length);
        model.fill(0, at, at + length);
      } else if (kind === 4 && random.chance(0.3)) {
        const size = random.below(40_000);
        await changed.resize(size);
        const resized = Buffer.alloc(size);
        model.copy(resized);
        model = resized;
      }
      const from = random.below(model.length + 1);
      const found = new Uint8Array(random.below(model.length - from + 1));
      await changed.read(found, from);
      expect(Buffer.compare(found, model.subarray(from, from + found.length)), `step ${String(step)}`).toBe(
        0,
      );
      expect(changed.size).toBe(model.length);
    }
    expect(Buffer.compare(below.toBytes(), bytes)).toBe(0);
  });
});

it('an overlay of what cannot grow does not grow, and ends where it ends', async () => {
  const fixed = overlay(new MemoryStorage(4096), { resize: false });
  await fixed.resize(4096);
  await expect(fixed.resize(8192)).rejects.toMatchObject({ code: 'UNSUPPORTED' });
  await expect(fixed.write(new Uint8Array(2), 4095)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  await expect(fixed.read(new Uint8Array(2), 4095)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  await expect(fixed.discard(4095, 2)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
});
