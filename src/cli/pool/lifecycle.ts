import { SpindleError } from '../../core/errors.ts';
import { parseScaled } from '../../pool/scaled.ts';
import { buildMode, OVERWRITE, POOL, poolOf, poolsOf } from './common.ts';
import { UNIT } from './unit.ts';
import type { Answer, Given, PoolVerb } from './spec.ts';
import type { Pool } from '../../pool/index.ts';

function done(pool: Pool, what: string): Answer {
  return { message: `Pool ${pool.name} ${what}`, json: { name: pool.name, uuid: pool.uuid } };
}

async function start(given: Given): Promise<Answer> {
  if (given.flag('autostarted')) {
    const started = await poolsOf(given).startAutostarted();
    for (const { name, error } of started) if (error !== null) given.warn(name, error.message);
    const failed = started.filter(({ error }) => error !== null);
    const well = started.filter(({ error }) => error === null).map(({ name }) => name);
    return {
      message: well.length === 0 ? 'No pool started' : `Pools started: ${well.join(', ')}`,
      json: started.map(({ name, error }) => ({
        name,
        active: error === null,
        error: error?.message ?? null,
      })),
      code: failed.length === 0 ? 0 : 1,
    };
  }
  const pool = poolOf(given);
  await pool.start({ build: given.flag('build') ? buildMode(given) : undefined });
  return done(pool, 'started');
}

async function guard(given: Given): Promise<Answer> {
  const pool = poolOf(given);
  const size = given.text('size');
  if (given.flag('release')) {
    if (size !== undefined) throw new SpindleError('BAD_OPTION', 'give a size, or --release');
    await pool.setGuard(0);
    return { message: `Reserve of pool ${pool.name} released`, json: { name: pool.name, guard: 0 } };
  }
  if (size !== undefined) {
    const bytes = parseScaled(size);
    if (bytes === 0)
      throw new SpindleError('BAD_SIZE', 'the reserve must be larger than zero; --release gives it back');
    await pool.setGuard(bytes);
    return {
      message: `Pool ${pool.name} keeps a reserve of ${size}`,
      json: { name: pool.name, guard: bytes },
    };
  }
  const bytes = await pool.guard();
  return { data: `${String(bytes)} bytes are kept in reserve\n`, json: { name: pool.name, guard: bytes } };
}

/** Verbs that start, stop and change pools. */
export const LIFECYCLE_VERBS: Readonly<Record<string, PoolVerb>> = {
  'pool-build': {
    does: 'prepare what a pool is made of: its directory, file system, or volume group',
    params: [POOL, ...OVERWRITE],
    examples: [
      ['images', 'make its directory'],
      ['disks --overwrite', 'whatever the device held is lost'],
    ],
    run: async (given) => {
      const pool = poolOf(given);
      await pool.build(buildMode(given));
      return done(pool, 'built');
    },
  },
  'pool-start': {
    does: 'make a pool active',
    params: [
      { ...POOL, place: 'optional' },
      { name: 'build', kind: 'flag', does: 'build it first' },
      ...OVERWRITE,
      { name: 'autostarted', kind: 'flag', does: 'start all pools that are marked to be autostarted' },
    ],
    examples: [
      ['images --build', 'make its directory, and start it'],
      ['--autostarted', 'all that are to be started with the system'],
    ],
    run: start,
  },
  'pool-autostart': {
    does: 'mark a pool to be started with the system',
    params: [
      { ...POOL, place: 'optional' },
      { name: 'disable', kind: 'flag', does: 'take the mark away' },
      { name: 'unit', kind: 'flag', does: 'print the unit for systemd that starts what is marked' },
    ],
    examples: [
      ['images', 'start it with the system'],
      ['--unit > /etc/systemd/system/spindle-pools.service', 'what makes systemd do so'],
    ],
    run: async (given) => {
      if (given.flag('unit')) return { data: UNIT, json: { unit: UNIT } };
      const pool = poolOf(given);
      const on = !given.flag('disable');
      await pool.setAutostart(on);
      return {
        message: `Pool ${pool.name} ${on ? 'marked' : 'unmarked'} as autostarted`,
        json: { name: pool.name, autostart: on },
      };
    },
  },
  'pool-refresh': {
    does: 'look again at what is in a pool, and clean up what crashes left',
    params: [POOL],
    examples: [
      ['images', 'after files were put there by hand'],
      ['images --quiet', 'without a message'],
    ],
    run: async (given) => {
      const pool = poolOf(given);
      await pool.refresh();
      return done(pool, 'refreshed');
    },
  },
  'pool-destroy': {
    does: 'make a pool inactive; what it holds stays',
    params: [POOL],
    examples: [
      ['images', 'its volumes are out of reach until it is started'],
      ['images --output json', 'for scripts'],
    ],
    run: async (given) => {
      const pool = poolOf(given);
      await pool.destroy();
      return done(pool, 'destroyed');
    },
  },
  'pool-delete': {
    does: 'remove what an inactive pool is made of; the definition stays',
    params: [POOL],
    examples: [
      ['images', 'remove its directory, which must be empty'],
      ['disks', 'remove its volume group, with all volumes'],
    ],
    run: async (given) => {
      const pool = poolOf(given);
      await pool.delete();
      return done(pool, 'deleted');
    },
  },
  'pool-guard': {
    does: 'keep blocks of a pool in reserve, to be given back in an emergency',
    params: [
      POOL,
      { name: 'size', place: 'optional', does: 'bytes of the reserve, such as 5G (default: tell)' },
      { name: 'release', kind: 'flag', does: 'give the reserve back' },
    ],
    examples: [
      ['images 5G', 'five GiB that no volume gets'],
      ['images --release', 'the pool is full: let guests go on until there is more room'],
    ],
    run: guard,
  },
};
