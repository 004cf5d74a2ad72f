/** Pools in a directory of their own, and what tests do to them. */
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Pools, type PoolHome } from '../../src/pool/index.ts';
import { parsePool } from '../../src/pool/definition.ts';
import { spindle, type CliResult } from '../tool/cli.ts';
import { tempDir } from '../tool/temp.ts';

/** A place for definitions, state and volumes. */
export interface Bench {
  readonly root: string;
  readonly home: PoolHome;
  readonly pools: Pools;
  /** Where a pool of that name lies. */
  at(name: string): string;
  /** Runs the command line on these pools. */
  cli(...args: string[]): Promise<CliResult>;
  /** Runs it and gives its standard output; fails when it does. */
  ok(...args: string[]): Promise<string>;
}

/** A new place, empty. */
export function newBench(env: Readonly<Record<string, string>> = {}): Bench {
  const root = tempDir();
  const home: PoolHome = {
    config: join(root, 'config'),
    run: join(root, 'run'),
    state: join(root, 'state'),
    secrets: join(root, 'secrets'),
    bootId: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
  };
  mkdirSync(join(root, 'pools'));
  const cli = (...args: string[]): Promise<CliResult> =>
    spindle(args, {
      cwd: root,
      env: { SPINDLE_POOLS: root, SPINDLE_LIBVIRT: join(root, 'libvirt'), ...env },
    });
  return {
    root,
    home,
    pools: new Pools({ home }),
    at: (name) => join(root, 'pools', name),
    cli,
    ok: async (...args) => {
      const { code, stdout, stderr } = await cli(...args);
      if (code !== 0) throw new Error(`spindle ${args.join(' ')}: exit ${String(code)}\n${stderr}`);
      return stdout;
    },
  };
}

/** A directory pool that is active. */
export async function activePool(bench: Bench, name = 'p'): ReturnType<Pools['define']> {
  const pool = await bench.pools.define(
    parsePool(`<pool type='dir'><name>${name}</name><target><path>${bench.at(name)}</path></target></pool>`),
  );
  await pool.start({ build: 'plain' });
  return pool;
}

/** The codes of what failed, and `ok` for what did not. */
export async function outcomes(work: readonly Promise<unknown>[]): Promise<string[]> {
  const settled = await Promise.allSettled(work);
  return settled.map((one) =>
    one.status === 'fulfilled' ? 'ok' : String((one.reason as { code?: unknown }).code ?? one.reason),
  );
}
