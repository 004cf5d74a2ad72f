import { describe, expect, it } from 'vitest';
import { Lru } from '../../src/core/lru.ts';

/** A loader that counts, and answers when told. */
function source(): {
  load: (key: number) => Promise<string>;
  calls: number[];
  answer(key: number, error?: Error): void;
} {
  const calls: number[] = [];
  const waiting = new Map<number, { resolve: (value: string) => void; reject: (error: Error) => void }>();
  return {
    calls,
    load: (key) => {
      calls.push(key);
      return new Promise((resolve, reject) => waiting.set(key, { resolve, reject }));
    },
    answer: (key, error) => {
      if (error === undefined) waiting.get(key)?.resolve(`value ${String(key)}`);
      else waiting.get(key)?.reject(error);
    },
  };
}

const direct = (key: number): Promise<string> => Promise.resolve(`value ${String(key)}`);

describe('Lru', () => {
  it('forgets what was used longest ago', async () => {
    const lru = new Lru<string>({ budget: 3 });
    for (const key of [1, 2, 3]) await lru.load(key, direct);
    expect(lru.peek(1)).toBe('value 1');
    await lru.load(2, direct);
    await lru.load(4, direct);
    expect([1, 2, 3, 4].map((key) => lru.peek(key) !== undefined)).toEqual([true, true, false, true]);
    expect(lru.size).toBe(3);
  });

  it('loads each key once for all who ask', async () => {
    const lru = new Lru<string>({ budget: 3 });
    const { load, calls, answer } = source();
    const asked = [lru.load(7, load), lru.load(7, load), lru.load(8, load)];
    expect(lru.peek(7)).toBeUndefined();
    answer(7);
    answer(8);
    expect(await Promise.all(asked)).toEqual(['value 7', 'value 7', 'value 8']);
    expect(await lru.load(7, load)).toBe('value 7');
    expect(calls).toEqual([7, 8]);
  });

  it('keeps no failed load, and tells all who asked', async () => {
    const lru = new Lru<string>({ budget: 3 });
    const { load, calls, answer } = source();
    const asked = [lru.load(7, load), lru.load(7, load)];
    answer(7, new Error('no'));
    for (const attempt of asked) await expect(attempt).rejects.toThrow('no');
    const again = lru.load(7, load);
    answer(7);
    expect(await again).toBe('value 7');
    expect(calls).toEqual([7, 7]);
    await expect(
      lru.load(9, () => {
        throw new Error('at once');
      }),
    ).rejects.toThrow('at once');
    expect(await lru.load(9, direct)).toBe('value 9');
  });

  it('does not keep what was set or deleted while it loaded', async () => {
    const lru = new Lru<string>({ budget: 3 });
    const { load, answer } = source();
    const [one, two] = [lru.load(1, load), lru.load(2, load)];
    lru.delete(1);
    lru.set(2, 'newer');
    answer(1);
    answer(2);
    expect(await Promise.all([one, two])).toEqual(['value 1', 'value 2']);
    expect(lru.peek(1)).toBeUndefined();
    expect(lru.peek(2)).toBe('newer');
    const three = lru.load(3, load);
    lru.clear();
    answer(3);
    await three;
    expect([lru.size, lru.cost]).toEqual([0, 0]);
  });

  it('does not let an overtaken load end a newer one', async () => {
    const lru = new Lru<string>({ budget: 3 });
    const [first, second] = [source(), source()];
    const one = lru.load(1, first.load);
    lru.delete(1);
    const two = lru.load(1, second.load);
    first.answer(1, new Error('old'));
    await expect(one).rejects.toThrow('old');
    const three = lru.load(1, second.load);
    second.answer(1);
    expect(await Promise.all([two, three])).toEqual(['value 1', 'value 1']);
    expect(second.calls).toEqual([1]);
    expect(lru.peek(1)).toBe('value 1');
  });

  it('counts costs, and keeps the newest whatever it costs', () => {
    const lru = new Lru<Uint8Array>({ budget: 100, cost: (bytes) => bytes.length });
    lru.set(1, new Uint8Array(60));
    lru.set(2, new Uint8Array(40));
    expect([lru.size, lru.cost]).toEqual([2, 100]);
    lru.set(2, new Uint8Array(50));
    expect([lru.peek(1), lru.cost]).toEqual([undefined, 50]);
    lru.set(3, new Uint8Array(500));
    expect([lru.size, lru.cost]).toEqual([1, 500]);
    expect(lru.peek(3)?.length).toBe(500);
    lru.delete(3);
    lru.delete(3);
    expect([lru.size, lru.cost]).toEqual([0, 0]);
  });
});
