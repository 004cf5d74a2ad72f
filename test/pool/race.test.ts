// Two processes that do the same at once: a thousand rounds of it, and what may be found afterwards.
import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it } from 'vitest';
import { Pools } from '../../src/pool/index.ts';
import { checkFile } from '../../src/index.ts';
import { tempDir } from '../tool/temp.ts';

const CHILD = fileURLToPath(new URL('race-child.ts', import.meta.url));
const ROUNDS = 1000;

type Racer = ChildProcessByStdio<Writable, Readable, null>;
const racers: Racer[] = [];

afterEach(() => {
  for (const racer of racers.splice(0)) racer.kill();
});

/** A process that does verbs on the pools below `root`; gives the code that one ended with. */
function racer(root: string): (round: string, verb: string) => Promise<string> {
  const child = spawn(process.execPath, ['--import', 'tsx', CHILD, root], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  racers.push(child);
  const waiting: ((code: string) => void)[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => waiting.shift()?.(line.split(' ')[1] ?? ''));
  return (round, verb) =>
    new Promise((resolve) => {
      waiting.push(resolve);
      child.stdin.write(`${round} ${verb}\n`);
    });
}

describe('two processes', () => {
  it(`race on everything, ${String(ROUNDS)} rounds: one wins where one may`, async () => {
    const root = tempDir();
    mkdirSync(join(root, 'pools'));
    const [one, two] = [racer(root), racer(root)];
    const home = {
      config: join(root, 'config'),
      run: join(root, 'run'),
      state: join(root, 'state'),
      secrets: '',
      bootId: 'races',
    };
    const pools = new Pools({ home });
    const both = async (round: number, verb: string, other = verb): Promise<string[]> =>
      Promise.all([one(String(round), verb), two(String(round), other)]);
    const count: Record<string, number> = {};
    const expectOne = async (round: number, verb: string, loser: readonly string[]): Promise<void> => {
      const codes = await both(round, verb);
      count[verb] = (count[verb] ?? 0) + 1;
      expect({ round, verb, wins: codes.filter((code) => code === 'ok').length }).toEqual({
        round,
        verb,
        wins: 1,
      });
      expect({ round, verb, loser }).toEqual({
        round,
        verb,
        loser: expect.arrayContaining([codes.find((code) => code !== 'ok')]) as unknown,
      });
    };
    for (let round = 0; round < ROUNDS;) {
      // Each defines it with a UUID of its own.
      await expectOne(round++, 'define', ['EXISTS']);
      await expectOne(round++, 'start', ['POOL_ACTIVE']);
      for (let inner = 0; inner < 12; inner++) {
        await expectOne(round, 'volume', ['EXISTS']);
        await both(round, 'refresh', 'guard');
        const removed = await both(round, 'remove');
        expect(removed).toContain('ok');
        await both(round++, 'volume', 'refresh');
      }
      expect(await both(round++, 'autostart')).toEqual(['ok', 'ok']);
      expect((await both(round, 'volume', 'destroy')).filter((code) => code === 'ok').length).toBeGreaterThan(
        0,
      );
      if (pools.find('r').active() !== null) await expectOne(round, 'destroy', ['POOL_INACTIVE', 'IN_USE']);
      await expectOne(round++, 'undefine', ['POOL_NOT_FOUND']);
      await expectOne(round++, 'create', ['POOL_ACTIVE', 'EXISTS']);
      await expectOne(round++, 'destroy', ['POOL_NOT_FOUND', 'POOL_INACTIVE', 'IN_USE']);
      expect(pools.all()).toEqual([]);
    }
    expect(count['volume']).toBeGreaterThan(100);
    // Nothing half made, and each volume is whole.
    const left = readdirSync(join(root, 'pools', 'r'));
    expect(left.filter((name) => name.startsWith('.') && name !== '.spindle-guard')).toEqual([]);
    for (const name of left.filter((one) => one.startsWith('v')).slice(0, 50))
      expect((await checkFile(join(root, 'pools', 'r', name))).corruptions).toBe(0);
    expect(readdirSync(home.config)).toEqual(['autostart']);
    expect(readdirSync(home.run)).toEqual(['.locks']);
  });
});
