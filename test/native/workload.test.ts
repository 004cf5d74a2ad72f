import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { OperationKind } from '../../src/native/types.ts';
import { addonHere, outcome, scratch } from './help.ts';

const ways = [
  ...(addonHere
    ? ([
        [native(), false],
        [native(), true],
      ] as const)
    : []),
  [twins, false] as const,
].map(([side, threads]) => ({ side, threads, name: `${side.kind}${threads ? ' on threads' : ''}` }));

function list(kind: number, count: number, length = 4096): Float64Array {
  return Float64Array.from({ length: count * 3 }, (_, at) =>
    at % 3 === 0 ? (at / 3) * length : at % 3 === 1 ? length : kind,
  );
}

describe.each(ways)('timed operations by the $name', ({ side, threads, name }) => {
  const { open, path } = scratch();
  const file = (what: string): string => `${what}-${name.replaceAll(' ', '-')}`;

  it('are all done, timed, and write noise of which no block is like another', async () => {
    for (const depth of [1, 4, 64]) {
      for (const kind of [OperationKind.write, OperationKind.writeSync]) {
        const fd = open(file('written'));
        const report = await side.runWorkload(fd, list(kind, 60), { depth, seed: 3, threads });
        expect(report.latencies).toHaveLength(60);
        expect(report.finishes).toHaveLength(60);
        if (threads) expect(report.engine).toBe('threads');
        expect(report.engine === 'event loop').toBe(side.kind === 'twin');
        for (const [index, latency] of report.latencies.entries()) {
          expect(latency).toBeGreaterThan(0);
          expect(latency).toBeLessThanOrEqual(report.finishes[index] ?? 0);
          expect(report.finishes[index]).toBeLessThanOrEqual(report.elapsed);
        }
        const bytes = readFileSync(path(file('written')));
        const blocks = new Set(
          Array.from({ length: 60 }, (_, at) => bytes.toString('hex', at * 4096, at * 4096 + 4096)),
        );
        expect(blocks.size).toBe(60);
        const read = await side.runWorkload(fd, list(OperationKind.read, 60), { depth, seed: 3, threads });
        expect(read.latencies).toHaveLength(60);
      }
    }
  });

  it('punch and sync', async () => {
    const fd = open(file('punched'));
    await side.runWorkload(fd, list(OperationKind.write, 8), { depth: 2, seed: 1, threads });
    await side.runWorkload(fd, list(OperationKind.punch, 4), { depth: 1, seed: 1, threads });
    await side.runWorkload(fd, Float64Array.of(0, 0, OperationKind.sync), { depth: 1, seed: 1, threads });
    const bytes = readFileSync(path(file('punched')));
    expect(bytes.subarray(0, 4 * 4096).every((byte) => byte === 0)).toBe(true);
    expect(bytes.subarray(4 * 4096).every((byte) => byte === 0)).toBe(false);
  });

  it('end at a failure and at a limit', async () => {
    const fd = open(file('empty'));
    const past = side.runWorkload(fd, list(OperationKind.read, 2), { depth: 2, seed: 1, threads });
    expect(await outcome(() => past)).toEqual({ code: 'IO' });
    const most = 2000;
    const report = await side.runWorkload(fd, list(OperationKind.write, most), {
      depth: 4,
      seed: 1,
      threads,
      limit: 1,
    });
    expect(report.latencies.length).toBeLessThan(most);
    await expect(side.runWorkload(fd, Float64Array.of(0, 1), { depth: 1, seed: 1 })).rejects.toThrow(
      RangeError,
    );
    await expect(side.runWorkload(fd, list(0, 1), { depth: 257, seed: 1 })).rejects.toThrow(RangeError);
  });
});
