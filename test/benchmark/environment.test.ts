import { writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { countersOf, poolSize, untilQuiet } from '../../src/benchmark/environment.ts';
import { wayOf } from '../../src/benchmark/verdict-words.ts';
import { tempDir } from '../tool/temp.ts';

/** A folder as /sys has of a device that was sent so many sectors. */
function device(): { readonly folder: string; send(sectors: number): void } {
  const folder = tempDir();
  let sent = 0;
  const send = (sectors: number): void => {
    sent += sectors;
    writeFileSync(
      `${folder}/stat`,
      `     100        0      800       12       50        0 ${String(sent)}       30        0\n`,
    );
  };
  send(8);
  return { folder, send };
}

describe('a device', () => {
  it('is quiet when nothing is sent to it for a while', async () => {
    const { folder, send } = device();
    expect(countersOf(folder).device).toBe(8 * 512);
    expect(await untilQuiet(folder, { quiet: 20, longest: 60_000 })).toBe(0);
    const timer = setTimeout(() => {
      send(8);
    }, 100);
    const found = await untilQuiet(folder, { quiet: 400, longest: 60_000 });
    clearTimeout(timer);
    expect(found).toBeGreaterThan(0.05);
  });

  it('that is never quiet is not said to be', async () => {
    const { folder, send } = device();
    const timer = setInterval(() => {
      send(8);
    }, 2);
    expect(await untilQuiet(folder, { quiet: 5000, longest: 200 })).toBeNull();
    clearInterval(timer);
    expect(await untilQuiet(null, { quiet: 1, longest: 1 })).toBeNull();
    expect(await untilQuiet('/nowhere', { quiet: 1, longest: 1 })).toBeNull();
  });
});

it('the way of requests says what is in the figures', () => {
  expect(wayOf({ addon: true, pool: 12 })).toMatch(
    /^Raw files take requests on their descriptor; .*include the event loop.* 12 threads/,
  );
  expect(wayOf({ addon: false, pool: 4 })).toMatch(
    /no addon: all figures include the event loop of Node, those of raw files too/,
  );
  expect(['12', undefined, '0', '', 'x', '2.9', '9999'].map((told) => poolSize(told ?? '4'))).toEqual([
    12, 4, 1, 1, 1, 2, 1024,
  ]);
});
