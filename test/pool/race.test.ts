// Two processes that do things to one pool at once: a thousand rounds of all pairs of verbs. After each, what is there must
// be what the answers say.
import { spawn, spawnSync, type ChildProcessByStdio } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { afterEach, expect, it } from 'vitest';
import { checkFile } from '../../src/index.ts';
import { parsePool } from '../../src/pool/definition.ts';
import { Pools, type PoolHome } from '../../src/pool/index.ts';
import { describeUnlessMissing, qemuMissing } from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const CHILD = fileURLToPath(new URL('race-child.ts', import.meta.url));
const ROUNDS = 1000;

/** Bytes of a volume, what `grow` adds, and the byte that it is full of before the race. */
const SIZE = 65536;
const MORE = 32768;
const OLD = 0xaa;

type Racer = ChildProcessByStdio<Writable, Readable, null>;
const racers: Racer[] = [];

afterEach(() => {
  for (const racer of racers.splice(0)) racer.kill();
});

/** A process that does verbs on the pools below `root`; gives the code that one ended with. */
function racer(root: string, who: string): (round: string, verb: string) => Promise<string> {
  const child = spawn(process.execPath, ['--import', 'tsx', CHILD, root, who], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  racers.push(child);
  const waiting: ((code: string) => void)[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => waiting.shift()?.(line.split(' ')[1] ?? ''));
  child.on('exit', () => {
    for (const tell of waiting.splice(0)) tell('crash:it-ended');
  });
  return (round, verb) =>
    new Promise((resolve) => {
      waiting.push(resolve);
      child.stdin.write(`${round} ${verb}\n`);
    });
}

/** All pairs of some words, each with itself as well. */
function pairs(words: readonly string[]): [string, string][] {
  return words.flatMap((one, index) =>
    words.slice(index).map((other): [string, string] => (Math.random() < 0.5 ? [one, other] : [other, one])),
  );
}

/** What there is of a pool: `edits` is what its definition counts, `full`: there is a volume in it. */
interface State {
  readonly defined: boolean;
  readonly active: 'no' | 'yes' | 'transient';
  readonly built: boolean;
  readonly edits: number;
  readonly full: boolean;
}

type Step = readonly [code: string, state: State];

/** What each verb of pools answers and leaves when it is alone; the second of two outcomes only beside another verb. */
function steps(verb: string, state: State, beside: string): Step[] {
  const { defined, active, built, edits, full } = state;
  const fails = (code: string): Step[] => [[code, state]];
  const unknown = !defined && active === 'no';
  if (verb === 'define')
    return defined || active !== 'no' ? fails('EXISTS') : [['ok', { ...state, defined: true, edits: 0 }]];
  if (verb === 'create')
    return defined || active !== 'no'
      ? fails('EXISTS')
      : [['ok', { ...state, active: 'transient', built: true }]];
  if (unknown) return fails('POOL_NOT_FOUND');
  switch (verb) {
    case 'edit':
      if (!defined) return fails('POOL_NOT_FOUND');
      return [
        ['ok', { ...state, edits: edits + 1 }],
        ...(beside === 'edit' || beside === 'undefine' ? fails('IN_USE') : []),
      ];
    case 'build':
      return active === 'no' ? [['ok', { ...state, built: true }]] : fails('POOL_ACTIVE');
    case 'start':
      return active === 'no' ? [['ok', { ...state, active: 'yes', built: true }]] : fails('POOL_ACTIVE');
    case 'destroy':
      if (active === 'no') return fails('POOL_INACTIVE');
      return [['ok', { ...state, active: 'no' }], ...(beside === 'volume' ? fails('IN_USE') : [])];
    case 'delete':
      if (active !== 'no') return fails('POOL_ACTIVE');
      if (!built) return fails('NOT_FOUND');
      return full ? fails('EXISTS') : [['ok', { ...state, built: false }]];
    case 'undefine':
      return active === 'no' ? [['ok', { ...state, defined: false }]] : fails('POOL_ACTIVE');
    case 'autostart':
      return defined ? [['ok', state]] : fails('UNSUPPORTED');
    case 'refresh':
      return active === 'no' ? fails('POOL_INACTIVE') : [['ok', state]];
    case 'volume':
      if (active === 'no') return fails('POOL_INACTIVE');
      return full ? fails('EXISTS') : [['ok', { ...state, full: true }]];
    default:
      throw new Error(`no verb ${verb}`);
  }
}

/** All that two verbs may answer and leave, in whichever order they come. */
function outcomesOf(state: State, one: string, two: string): string[] {
  const told: string[] = [];
  for (const swap of [false, true]) {
    const [first, second] = swap ? [two, one] : [one, two];
    for (const [a, between] of steps(first, state, second))
      for (const [b, after] of steps(second, between, first))
        told.push(JSON.stringify([swap ? [b, a] : [a, b], tidy(after)]));
  }
  return told;
}

/** What cannot be told apart: nobody counts edits without a definition, and an empty pool that is not there is not full. */
function tidy(state: State): State {
  return { ...state, edits: state.defined ? state.edits : 0, full: state.built && state.full };
}

/** The verbs of volumes, and how each may fail beside another. */
const VOLUME_VERBS: Readonly<Record<string, readonly string[]>> = {
  // The volume may be written by the other one, or be gone: before it was looked for, or since.
  upload: ['IN_USE', 'VOLUME_NOT_FOUND', 'NOT_FOUND'],
  wipe: ['IN_USE', 'VOLUME_NOT_FOUND', 'NOT_FOUND'],
  allocate: ['IN_USE', 'VOLUME_NOT_FOUND', 'NOT_FOUND'],
  grow: ['IN_USE', 'VOLUME_NOT_FOUND'],
  clone: ['IN_USE', 'VOLUME_NOT_FOUND', 'NOT_FOUND', 'EXISTS'],
  remove: ['VOLUME_NOT_FOUND'],
  volume: ['EXISTS'],
  refresh: [],
  guard: [],
};

/** Pools whose state can be set, and two processes that race on them. */
class Course {
  readonly root = tempDir();
  readonly home: PoolHome = {
    config: join(this.root, 'config'),
    run: join(this.root, 'run'),
    state: join(this.root, 'state'),
    secrets: '',
    bootId: 'races',
  };
  readonly pools = new Pools({ home: this.home });
  readonly path = join(this.root, 'pools', 'r');
  readonly #both = [racer(this.root, '1'), racer(this.root, '2')] as const;
  round = 0;

  constructor() {
    mkdirSync(join(this.root, 'pools'));
    for (const who of [0, 1, 2])
      writeFileSync(join(this.root, `data${String(who)}`), Buffer.alloc(SIZE, who === 0 ? OLD : who));
  }

  async race(one: string, two: string): Promise<[string, string]> {
    const round = String(this.round);
    const codes = await Promise.all([this.#both[0](round, one), this.#both[1](round, two)]);
    for (const code of codes) expect(code, `round ${round}: ${one} and ${two}`).toMatch(/^(ok|[A-Z_]+)$/);
    return codes;
  }

  async set({ defined, active, built }: State): Promise<void> {
    for (const folder of [this.home.config, this.home.run, this.path])
      rmSync(folder, { recursive: true, force: true });
    const definition = parsePool(
      `<pool type='dir'><name>r</name><target><path>${this.path}</path><permissions><mode>0700</mode></permissions></target></pool>`,
    );
    if (active === 'transient') await this.pools.create(definition, { build: 'plain' });
    if (defined) await this.pools.define(definition);
    if (active === 'yes') await this.pools.find('r').start({ build: 'plain' });
    if (built) mkdirSync(this.path, { recursive: true });
  }

  /** What is there now. All that is read for it must be whole. */
  state(): State {
    const known = this.pools.all();
    expect(known.length).toBeLessThan(2);
    const [pool] = known;
    const definition = pool?.definition() ?? null;
    const active = pool?.active() ?? null;
    const built = existsSync(this.path);
    if (active !== null) expect(built).toBe(true);
    const files = (folder: string): string[] => (existsSync(folder) ? readdirSync(folder) : []);
    expect(files(this.home.config).filter((name) => name !== 'autostart')).toEqual(
      definition === null ? [] : ['r.xml'],
    );
    if (definition === null) expect(files(join(this.home.config, 'autostart'))).toEqual([]);
    expect(files(this.home.run).filter((name) => name !== '.locks')).toEqual(
      active === null ? [] : ['r.xml'],
    );
    const volumes = files(this.path);
    expect(volumes.filter((name) => name.startsWith('.'))).toEqual([]);
    return {
      defined: definition !== null,
      active: active === null ? 'no' : active.transient ? 'transient' : 'yes',
      built,
      edits: definition === null ? 0 : (definition.target.permissions?.mode ?? 0o700) - 0o700,
      full: volumes.length > 0,
    };
  }
}

/** The bytes of the disk in an image, as qemu-img tells. */
function diskOf(path: string, format: string, into: string): Buffer {
  const read = spawnSync('qemu-img', ['convert', '-f', format, '-O', 'raw', path, into], {
    encoding: 'utf8',
  });
  expect({ path, status: read.status, stderr: read.stderr }).toEqual({ path, status: 0, stderr: '' });
  return readFileSync(into);
}

/** The byte that all of a range is, or -1. */
function byteOf(range: Buffer): number {
  const [first = 0] = range;
  return range.every((byte) => byte === first) ? first : -1;
}

describeUnlessMissing('two processes', qemuMissing(), () => {
  it(`race on everything, ${String(ROUNDS)} rounds`, { timeout: 900_000 }, async () => {
    const course = new Course();
    const wins: Record<string, number> = {};
    const losses: Record<string, number> = {};
    const counted = (verb: string, code: string): void => {
      const [count, name] = code === 'ok' ? [wins, verb] : [losses, `${verb}: ${code}`];
      count[name] = (count[name] ?? 0) + 1;
    };
    const inactive = { defined: true, active: 'no', built: true, edits: 0, full: false } as const;
    const states: readonly State[] = [
      { ...inactive, defined: false, built: false },
      inactive,
      { ...inactive, active: 'yes' },
      { ...inactive, defined: false, active: 'transient' },
    ];
    const poolVerbs = ['define', 'create', 'edit', 'build', 'start', 'destroy', 'delete', 'undefine'];
    const racePools = async (): Promise<void> => {
      for (const state of states)
        for (const [one, two] of pairs([...poolVerbs, 'autostart', 'refresh', 'volume'])) {
          course.round++;
          await course.set(state);
          const codes = await course.race(one, two);
          counted(one, codes[0]);
          counted(two, codes[1]);
          const found = JSON.stringify([codes, tidy(course.state())]);
          // As one after the other: there is no third way.
          expect(outcomesOf(state, one, two), `${one} and ${two} from ${JSON.stringify(state)}`).toContain(
            found,
          );
        }
    };
    const raceVolumes = async (format: string, verbs: readonly string[]): Promise<void> => {
      await course.set({ ...inactive, active: 'yes' });
      for (const [one, two] of pairs(verbs)) {
        const round = String(++course.round);
        const pool = course.pools.find('r');
        const made = spawnSync('qemu-img', [
          ...['convert', '-f', 'raw', '-O', format],
          ...[join(course.root, 'data0'), join(course.path, `v${round}`)],
        ]);
        expect(made.status).toBe(0);
        const codes = await course.race(one, two);
        const about = `round ${round}: ${one} (${codes[0]}) and ${two} (${codes[1]}) on ${format}`;
        const done = [
          { verb: one, code: codes[0], who: 1 },
          { verb: two, code: codes[1], who: 2 },
        ];
        for (const { verb, code } of done) {
          counted(verb, code);
          if (code !== 'ok') expect(VOLUME_VERBS[verb], about).toContain(code);
        }
        const well = (verb: string): number =>
          done.filter((step) => step.verb === verb && step.code === 'ok').length;
        if (one === two && ['remove', 'clone', 'volume'].includes(one)) expect(well(one), about).toBe(1);
        await pool.refresh();
        const names = readdirSync(course.path).sort();
        expect(names, about).toEqual(
          [
            ...(well('guard') > 0 ? ['.spindle-guard'] : []),
            ...(well('clone') > 0 ? [`c${round}`] : []),
            ...(well('volume') > 0 ? [`n${round}`] : []),
            ...(well('remove') > 0 ? [] : [`v${round}`]),
          ].sort(),
        );
        // Who was told that it wrote has written; who was not has left nothing.
        const written = done
          .filter(({ verb, code }) => code === 'ok' && (verb === 'upload' || verb === 'wipe'))
          .map(({ verb, who }) => (verb === 'upload' ? who : who === 1 ? 0 : 0xff));
        for (const name of names.filter((each) => /^[vc]/.test(each))) {
          const path = join(course.path, name);
          const disk = diskOf(path, format, join(course.root, 'read'));
          const sizes = [SIZE + MORE * well('grow'), ...(name.startsWith('c') ? [SIZE] : [])];
          expect(sizes, `${about}: ${name}`).toContain(disk.length);
          const whole = name.startsWith('c') ? [OLD, ...written] : written.length > 0 ? written : [OLD];
          expect(whole, `${about}: ${name}`).toContain(byteOf(disk.subarray(0, SIZE)));
          const tail = disk.subarray(SIZE);
          if (tail.length > 0) expect([0, ...written], `${about}: ${name}`).toContain(byteOf(tail));
        }
        for (const name of names.filter((each) => format === 'qcow2' || each.startsWith('n'))) {
          if (name.startsWith('.')) continue;
          const { corruptions, leaks } = await checkFile(join(course.path, name));
          expect({ about, name, corruptions, leaks }).toEqual({ about, name, corruptions: 0, leaks: 0 });
          const judged = spawnSync('qemu-img', ['check', '-q', '-f', 'qcow2', join(course.path, name)]);
          expect({ about, name, status: judged.status }).toEqual({ about, name, status: 0 });
        }
        for (const name of names) rmSync(join(course.path, name));
      }
    };
    const inPlace = ['upload', 'wipe'];
    const verbs = Object.keys(VOLUME_VERBS);
    while (course.round < ROUNDS) {
      await racePools();
      await raceVolumes('raw', verbs);
      await raceVolumes(
        'qcow2',
        // They write the bytes of the image, not of its disk.
        verbs.filter((verb) => !inPlace.includes(verb)),
      );
    }
    console.log(`${String(course.round)} rounds; ended well: ${JSON.stringify(wins)}`);
    console.log(`lost: ${JSON.stringify(losses)}`);
    // Each verb won, and what can lose did.
    for (const verb of [...poolVerbs, ...verbs]) expect([verb, wins[verb] ?? 0]).not.toEqual([verb, 0]);
    for (const lost of ['define: EXISTS', 'volume: EXISTS', 'clone: EXISTS', 'remove: VOLUME_NOT_FOUND'])
      expect([lost, losses[lost] ?? 0]).not.toEqual([lost, 0]);
  });
});
