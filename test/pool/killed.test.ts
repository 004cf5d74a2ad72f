// kill -9 at any moment of any verb: definitions whole, state readable, nothing half made.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { parsePool } from '../../src/pool/definition.ts';
import { checkFile } from '../../src/index.ts';
import { builtCli, MAIN } from '../tool/cli.ts';
import { Random, seedOf } from '../tool/random.ts';
import { newBench, type Bench } from './help.ts';
import { SHARE } from '../tool/share.ts';

beforeAll(builtCli);

const KILL_AT = fileURLToPath(new URL('../tool/kill-at.cjs', import.meta.url));
/** What may change nothing. */
const LOOKS: ReadonlySet<string> = new Set(['pool-start --autostarted']);

/**
 * Runs the command line, and has it killed right before its change number `step` of a file; what that was, or null where it
 * ended first.
 */
async function killedAt(bench: Bench, step: number, args: readonly string[]): Promise<string | null> {
  const child = spawn(process.execPath, ['--require', KILL_AT, MAIN, ...args], {
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
    env: {
      ...process.env,
      ...{ SPINDLE_POOLS: bench.root, VISUAL: join(bench.root, 'editor'), KILL_AT: String(step) },
    },
  });
  let [what, said] = ['', ''];
  child.stderr?.on('data', (part: Buffer) => (said += part.toString()));
  child.stdio[3]?.on('data', (part: Buffer) => (what += part.toString()));
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
    child.on('close', (...ended) => {
      resolve(ended);
    }),
  );
  if (signal === 'SIGKILL') return what.trim();
  expect({ args, code, said }).toEqual({ args, code: 0, said });
  return null;
}

/** What must hold at any moment. */
async function expectWhole(bench: Bench, about: string, mayLeak: boolean): Promise<void> {
  const config = join(bench.root, 'config');
  for (const name of existsSync(config) ? readdirSync(config) : []) {
    if (!name.endsWith('.xml') || name.startsWith('.')) continue;
    expect(parsePool(readFileSync(join(config, name), 'utf8')).name, about).toBe(name.slice(0, -4));
  }
  const list = await bench.cli('pool-list', '--all');
  expect({ about, code: list.code, stderr: list.stderr }).toEqual({ about, code: 0, stderr: '' });
  for (const pool of bench.pools.all()) {
    if (pool.active() === null) continue;
    await pool.refresh();
    for (const { path, name, type, format } of await pool.volumes()) {
      expect(name.startsWith('.'), about).toBe(false);
      if (type === 'file' && format === 'qcow2') {
        const { corruptions, leaks: found } = await checkFile(path);
        const leaks = mayLeak && name === 'base' ? 0 : found;
        expect({ about, name, corruptions, leaks }).toEqual({ about, name, corruptions: 0, leaks: 0 });
      }
    }
    expect(
      readdirSync(bench.at(pool.name)).filter((name) => /^\.{1,2}spindle-new/.test(name)),
      about,
    ).toEqual([]);
  }
}

describe('kill -9', () => {
  const random = new Random(seedOf('pools killed'));
  console.log(`seed ${String(random.seed)}`);

  it('before every change that a verb makes leaves everything whole', { timeout: 1_200_000 }, async () => {
    const bench = newBench();
    const target = bench.at('p');
    const xml = join(bench.root, 'p.xml');
    const volume = join(bench.root, 'v.xml');
    const data = join(bench.root, 'data');
    writeFileSync(
      xml,
      `<pool type='dir'><name>x</name><target><path>${bench.at('x')}</path></target></pool>`,
    );
    writeFileSync(
      volume,
      '<volume><name>x</name><capacity unit="M">4</capacity><target><format type="qcow2"/></target></volume>',
    );
    writeFileSync(data, Buffer.alloc(4 * 1024 ** 2, 'data'));
    writeFileSync(join(bench.root, 'editor'), '#!/bin/sh\nsed -i s,/idle.*/path,/idle-now\\</path, "$1"\n', {
      mode: 0o755,
    });
    const verbs: string[][] = [
      ['pool-define-as', 'd', 'dir', '--target', bench.at('d')],
      ['pool-define', xml],
      ['pool-create', xml, '--build'],
      ['pool-create-as', 'c', 'dir', '--target', bench.at('c'), '--build'],
      ['pool-edit', 'idle'],
      ['pool-build', 'idle'],
      ['pool-start', 'idle', '--build'],
      ['pool-start', '--autostarted'],
      ['pool-autostart', 'p'],
      ['pool-autostart', 'p', '--disable'],
      ['pool-refresh', 'p'],
      ['pool-destroy', 'p'],
      ['pool-delete', 'idle'],
      ['pool-undefine', 'idle'],
      ['pool-guard', 'p', '8M'],
      ['pool-guard', 'p', '--release'],
      ['pool-forecast', 'p'],
      ['vol-create', 'p', volume],
      ['vol-create-as', 'p', 'new', '16M', '--format', 'qcow2', '--allocation-policy', 'thick-eager'],
      ['vol-create-as', 'p', 'new', '16M', '--allocation-policy', 'thick-eager'],
      ['vol-create-from', 'p', volume, 'base', '--inputpool', 'p'],
      ['vol-clone', 'base', 'copy', 'p'],
      ['vol-resize', 'base', '32M', 'p'],
      ['vol-delete', 'base', 'p'],
      ['vol-wipe', 'raw', 'p', '--algorithm', 'dod'],
      ['vol-upload', 'raw', data, 'p'],
      ['vol-download', 'raw', join(bench.root, 'out'), 'p'],
      ['vol-allocate', 'base', 'thick-lazy', 'p'],
    ];
    for (const args of verbs) {
      const steps: string[] = [];
      // Each change of the first hundred, or a share of them, and then some: data is moved in many.
      for (let step = 1; ; step += step < 100 ? 1 + random.below(2 * SHARE - 1) : 1 + random.below(20)) {
        rmSync(join(bench.root, 'config'), { recursive: true, force: true });
        rmSync(join(bench.root, 'run'), { recursive: true, force: true });
        rmSync(join(bench.root, 'pools'), { recursive: true, force: true });
        mkdirSync(join(bench.root, 'pools'));
        for (const name of ['p', 'idle'])
          await bench.pools.define(
            parsePool(
              `<pool type='dir'><name>${name}</name><target><path>${bench.at(name)}</path></target></pool>`,
            ),
          );
        if (args.includes('idle') && args[0] === 'pool-delete') mkdirSync(bench.at('idle'));
        const pool = bench.pools.find('p');
        await pool.start({ build: 'plain' });
        await pool.createVolume({ name: 'base', capacity: 1024 ** 2 * 16, format: 'qcow2' });
        await pool.createVolume({ name: 'raw', capacity: 1024 ** 2 * 8 });
        if (args.includes('--release')) await pool.setGuard(1024 ** 2 * 8);
        const at = await killedAt(bench, step, args);
        const about = `${args.join(' ')}, killed before change ${String(step)} (${at ?? 'ended first'})`;
        // An image that is changed in place may be left with space that nothing points to.
        await expectWhole(bench, about, args[0] === 'vol-allocate');
        // What was not to be changed is as it was.
        expect(bench.pools.find('p').definition()?.target.path, about).toBe(target);
        if (!args.includes('pool-destroy')) expect(bench.pools.find('p').active(), about).not.toBe(null);
        if (at === null) break;
        steps.push(at);
      }
      console.log(`${args.join(' ')}: killed before ${String(steps.length)} changes`);
      if (!LOOKS.has(args.join(' '))) expect(steps.length, args.join(' ')).toBeGreaterThan(0);
    }
  });

  it('while a volume is made leaves nothing behind a refresh', async () => {
    const bench = newBench();
    await bench.ok('pool-create-as', 'p', 'dir', '--target', bench.at('p'), '--build');
    const child = spawn(
      process.execPath,
      [MAIN, 'vol-create-as', 'p', 'big', '4G', '--allocation-policy', 'thick-eager'],
      { stdio: 'ignore', env: { ...process.env, SPINDLE_POOLS: bench.root } },
    );
    const ended = new Promise((resolve) => child.on('close', resolve));
    const unfinished = (): string[] =>
      readdirSync(bench.at('p')).filter((name) => /^\.{1,2}spindle-new/.test(name));
    while (unfinished().length === 0) await sleep(5);
    // A refresh in between takes nothing from who is at work, and the pool cannot be stopped.
    await bench.ok('pool-refresh', 'p');
    expect(unfinished().length).toBeGreaterThan(0);
    expect((await bench.cli('pool-destroy', 'p')).stderr).toMatch(/being made/);
    expect(JSON.parse(await bench.ok('vol-list', 'p', '--output', 'json'))).toEqual([]);
    child.kill('SIGKILL');
    await ended;
    expect(unfinished().length).toBeGreaterThan(0);
    await bench.ok('pool-refresh', 'p');
    expect(readdirSync(bench.at('p'))).toEqual([]);
    await bench.ok('pool-destroy', 'p');
  });
});
