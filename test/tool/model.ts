import type { Image } from '../../src/format/image.ts';
import type { Random } from './random.ts';

/** A plain array that holds what the guest should see. */
export class Model {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  get size(): number {
    return this.bytes.length;
  }
}

/** One thing done to an image and to its model. Bytes. */
export type Step =
  | { readonly do: 'read'; readonly at: number; readonly length: number }
  | { readonly do: 'zero' | 'zero-keep' | 'discard'; readonly at: number; readonly length: number }
  | { readonly do: 'write'; readonly at: number; readonly length: number; readonly seed: number }
  | { readonly do: 'flush' }
  | { readonly do: 'reopen' };

const UNIT = 512;

/** A random step; lengths around the cluster size are the likely ones. */
export function randomStep(random: Random, size: number, clusterSize: number): Step {
  const at = random.below(size / UNIT) * UNIT;
  const most = random.pick([UNIT, 4096, clusterSize / 2, clusterSize, clusterSize * 3, clusterSize * 9]);
  const wanted = random.chance(0.3) ? most : random.between(1, Math.max(1, most / UNIT)) * UNIT;
  const aligned = random.chance(0.3) ? Math.floor(at / clusterSize) * clusterSize : at;
  const length = Math.max(UNIT, Math.min(size - aligned, Math.floor(wanted / UNIT) * UNIT));
  switch (random.below(20)) {
    case 0:
      return { do: 'flush' };
    case 1:
      return { do: 'reopen' };
    case 2:
    case 3:
    case 4:
      return { do: 'read', at: aligned, length };
    case 5:
    case 6:
      return { do: 'zero', at: aligned, length };
    case 7:
      return { do: 'zero-keep', at: aligned, length };
    case 8:
    case 9:
    case 10:
      return { do: 'discard', at: aligned, length };
    default:
      return { do: 'write', at: aligned, length, seed: random.u32() };
  }
}

/** The bytes of a write: unlike zeroes, and unlike any other write. */
export function patternOf(seed: number, length: number): Uint8Array {
  const words = new Uint32Array(length / 4);
  let state = seed >>> 0;
  for (let i = 0; i < words.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    words[i] = state | 1;
  }
  return new Uint8Array(words.buffer);
}

/**
 * Applies a step to both. What a discard leaves is the image's to say: the model takes it over, after it was seen that
 * nothing outside the discarded range changed, and that only old data or zeroes came of it.
 */
export async function applyStep(image: Image, model: Model, step: Step): Promise<void> {
  if (step.do === 'flush' || step.do === 'reopen') {
    await image.flush();
    return;
  }
  const { at, length } = step;
  const here = model.bytes.subarray(at, at + length);
  switch (step.do) {
    case 'read': {
      const found = new Uint8Array(length);
      await image.read(found, at);
      const difference = firstDifference(found, here);
      if (difference >= 0)
        throw new Error(
          `byte ${String(at + difference)} is ${String(found[difference])}, not ${String(here[difference])}`,
        );
      return;
    }
    case 'write': {
      const bytes = patternOf(step.seed, length);
      await image.write(bytes, at);
      here.set(bytes);
      return;
    }
    case 'zero':
    case 'zero-keep':
      await image.zero(at, length, { keepAllocated: step.do === 'zero-keep' });
      here.fill(0);
      return;
    case 'discard': {
      await image.discard(at, length);
      const found = new Uint8Array(length);
      await image.read(found, at);
      for (let i = 0; i < length; i += UNIT) {
        const sector = found.subarray(i, i + UNIT);
        if (firstDifference(sector, here.subarray(i, i + UNIT)) < 0) continue;
        if (!sector.every((byte) => byte === 0))
          throw new Error(`discard brought up other data at ${String(at + i)}`);
      }
      here.set(found);
    }
  }
}

/** Index of the first byte that differs, -1 when there is none. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return -1;
  return a.findIndex((byte, index) => byte !== b[index]);
}
