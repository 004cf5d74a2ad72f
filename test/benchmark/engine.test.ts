import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  closeTargets,
  runTogether,
  type Measured,
  type Requests,
  type Target,
} from '../../src/benchmark/engine.ts';

const NOTHING: Measured = {
  ...{ engine: 'threads', elapsed: 1 },
  ...{ latencies: new Float64Array(), finishes: new Float64Array() },
};
const REQUESTS: Requests = { operations: new Float64Array(), depth: 1, seed: 5, limit: 0 };

function target(run: Target['run'], close: Target['close'] = () => Promise.resolve()): Target {
  return { run, close };
}

describe('several targets at once', () => {
  it('come to rest before the failure of one is told: nothing writes to a descriptor that was closed', async () => {
    let inFlight = 0;
    const slow = target(async () => {
      inFlight++;
      await sleep(100);
      inFlight--;
      return NOTHING;
    });
    const bad = target(() => Promise.reject(new Error('no space')));
    await expect(runTogether([slow, bad, slow], REQUESTS)).rejects.toThrow('no space');
    expect(inFlight).toBe(0);
  });

  it('have data of their own', async () => {
    const seeds: number[] = [];
    const one = target(({ seed }) => {
      seeds.push(seed);
      return Promise.resolve(NOTHING);
    });
    expect(await runTogether([one, one, one], REQUESTS)).toHaveLength(3);
    expect(seeds).toEqual([5, 6, 7]);
  });

  it('are all closed, also where closing one fails', async () => {
    let closed = 0;
    const close = (): Promise<void> => {
      closed++;
      return closed === 1 ? Promise.reject(new Error('no')) : Promise.resolve();
    };
    const all = [1, 2, 3].map(() => target(() => Promise.resolve(NOTHING), close));
    await expect(closeTargets(all)).rejects.toThrow('no');
    expect(closed).toBe(3);
  });
});
