import { describe, expect, it } from 'vitest';
import { RangeLock, type LockMode } from '../../src/core/range-lock.ts';
import { withRandom } from '../tool/random.ts';

/** A lock whose work starts and ends when told, and says in which order it started. */
function bench(): {
  hold(name: string, at: number, length: number, mode: LockMode): Promise<void>;
  release(name: string): Promise<void>;
  started: string[];
} {
  const lock = new RangeLock();
  const started: string[] = [];
  const ends = new Map<string, () => void>();
  return {
    started,
    async hold(name, at, length, mode) {
      void lock.run(at, length, mode, () => {
        started.push(name);
        return new Promise<void>((resolve) => ends.set(name, resolve));
      });
      await settle();
    },
    async release(name) {
      ends.get(name)?.();
      await settle();
    },
  };
}

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

describe('RangeLock', () => {
  it('lets disjoint ranges run together, also when they touch', async () => {
    const { hold, started } = bench();
    await hold('a', 0, 10, 'exclusive');
    await hold('b', 10, 10, 'exclusive');
    expect(started).toEqual(['a', 'b']);
  });

  it('serialises overlapping ranges in the order in which they came', async () => {
    const { hold, release, started } = bench();
    await hold('a', 0, 10, 'exclusive');
    await hold('b', 9, 10, 'exclusive');
    await hold('c', 0, 100, 'exclusive');
    expect(started).toEqual(['a']);
    await release('a');
    expect(started).toEqual(['a', 'b']);
    await release('b');
    expect(started).toEqual(['a', 'b', 'c']);
  });

  it('lets shared holders run together and keeps exclusive ones apart', async () => {
    const { hold, release, started } = bench();
    await hold('a', 0, 10, 'shared');
    await hold('b', 5, 10, 'shared');
    await hold('c', 7, 1, 'exclusive');
    expect(started).toEqual(['a', 'b']);
    await release('b');
    expect(started).toEqual(['a', 'b']);
    await release('a');
    expect(started).toEqual(['a', 'b', 'c']);
  });

  it('does not let later shared holders starve an exclusive one', async () => {
    const { hold, release, started } = bench();
    await hold('a', 0, 10, 'shared');
    await hold('b', 0, 10, 'exclusive');
    await hold('c', 0, 10, 'shared');
    await hold('far', 10, 5, 'shared');
    expect(started).toEqual(['a', 'far']);
    await release('a');
    await release('b');
    expect(started).toEqual(['a', 'far', 'b', 'c']);
  });

  it('waits for nothing with an empty range, and for everything with an endless one', async () => {
    const { hold, release, started } = bench();
    await hold('a', 0, 10, 'exclusive');
    await hold('empty', 5, 0, 'exclusive');
    await hold('all', 0, Infinity, 'exclusive');
    await hold('b', 2 ** 52, 1, 'shared');
    expect(started).toEqual(['a', 'empty']);
    await release('a');
    expect(started).toEqual(['a', 'empty', 'all']);
    await release('all');
    expect(started).toEqual(['a', 'empty', 'all', 'b']);
  });

  it('gives the result, and lets the next one in after a failure', async () => {
    const lock = new RangeLock();
    const failed = lock.run(0, 1, 'exclusive', () => Promise.reject(new Error('no')));
    const thrown = lock.run(0, 1, 'exclusive', () => {
      throw new Error('at once');
    });
    const good = lock.run(0, 1, 'exclusive', () => Promise.resolve(7));
    await expect(failed).rejects.toThrow('no');
    await expect(thrown).rejects.toThrow('at once');
    expect(await good).toBe(7);
  });

  it('never lets conflicting work run together', () =>
    withRandom('range-lock', async (random) => {
      const lock = new RangeLock();
      const running = new Set<{ at: number; end: number; mode: LockMode }>();
      let most = 0;
      await Promise.all(
        Array.from({ length: 500 }, () => {
          const at = random.below(100);
          const length = random.between(1, 10);
          const mode = random.pick(['shared', 'exclusive'] as const);
          return lock.run(at, length, mode, async () => {
            const mine = { at, end: at + length, mode };
            for (const other of running) {
              const overlap = other.at < mine.end && mine.at < other.end;
              if (overlap) expect([other.mode, mode]).toEqual(['shared', 'shared']);
            }
            running.add(mine);
            most = Math.max(most, running.size);
            for (let i = random.below(4); i > 0; i--) await settle();
            running.delete(mine);
          });
        }),
      );
      expect(most).toBeGreaterThan(3);
    }));

  it('is tried without waiting: what stands in the way keeps it, and it keeps others', async () => {
    const lock = new RangeLock();
    const held = lock.tryHold(10, 10, 'shared');
    if (held === undefined) throw new Error('nothing stands in the way');
    expect(lock.tryHold(15, 10, 'exclusive')).toBe(undefined);
    const beside = lock.tryHold(15, 10, 'shared');
    expect(beside).toBeDefined();
    let ran = false;
    const waiting = lock.run(12, 1, 'exclusive', () => {
      ran = true;
      return Promise.resolve();
    });
    await settle();
    expect(ran).toBe(false);
    // Nothing overtakes what waits.
    expect(lock.tryHold(12, 1, 'shared')).toBe(undefined);
    lock.release(held);
    await waiting;
    expect(ran).toBe(true);
    expect(lock.tryHold(12, 1, 'exclusive')).toBeDefined();
    expect(lock.tryHold(12, 1, 'shared')).toBe(undefined);
  });
});
