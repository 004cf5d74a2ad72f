// npm run bench:fio -- --folder DIR [--rounds N] [--seed N] [--size SIZE] [--awake] [--json FILE]
//   --awake: the processors never sleep. In a virtual machine one that does takes tens of microseconds to wake, and how often
//   that happens depends on the tool more than on the store.
// Our figures of raw files beside those of fio, which does the same requests: whether they agree, and by how much not.
import { spawn } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { environmentOf } from '../../src/benchmark/environment.ts';
import { FIO_SCENARIOS } from '../../src/benchmark/fio.ts';
import { planOf, type Slot } from '../../src/benchmark/plan.ts';
import { seeded, seedOf, shuffled } from '../../src/benchmark/random.ts';
import { medianInterval, ratioInterval, type Interval } from '../../src/benchmark/statistics.ts';
import { inScratch } from '../../src/benchmark/study.ts';
import { parseSize } from '../../src/core/size.ts';
import { table } from '../../src/cli/study-text.ts';
import { ours, theirs, type Pair } from './run.ts';

/** Part by which two tools may differ and agree still: their engines differ in how they submit and wait. */
const TOLERANCE = 0.15;

const { values } = parseArgs({
  options: {
    folder: { type: 'string' },
    rounds: { type: 'string', default: '7' },
    seed: { type: 'string' },
    size: { type: 'string', default: '256M' },
    awake: { type: 'boolean', default: false },
    json: { type: 'string' },
  },
});
if (values.folder === undefined) throw new Error('name a directory on the store: --folder DIR');
const { folder } = values;
for (const [name, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)
  // prettier-ignore
  process.on(name, () => process.exit(code));

const standard = planOf({
  ...{ rounds: Number(values.rounds), size: parseSize(values.size), scenarios: FIO_SCENARIOS },
  subjects: ['raw-thin', 'raw-thick-lazy', 'raw-thick-eager'],
  ...(values.seed === undefined ? {} : { seed: Number(values.seed) }),
});
// fio is a new process for each job, and a device that was idle meanwhile is slow for some milliseconds: over a hundred
// requests that would be most of what is measured, over two thousand it is little.
const plan = { ...standard, scale: { ...standard.scale, shallow: 2048 } };
const subjects = plan.subjects.filter(({ control }) => !control);
const { device, fileSystem } = environmentOf(folder);
console.log(
  `On ${fileSystem ?? 'an unknown file system'}, ${String(plan.rounds)} rounds, seed ${String(plan.seed)}${values.awake ? ', processors kept awake' : ''}`,
);

const found = new Map<string, Pair[]>();
const spinners = values.awake
  ? cpus().map(() => spawn('chrt', ['--idle', '0', process.execPath, '-e', 'for(;;);']))
  : [];
process.on('exit', () => {
  for (const spinner of spinners) spinner.kill('SIGKILL');
});
for (const spinner of spinners) {
  spinner.on('exit', (code) => {
    console.error(`chrt, which keeps a processor awake, ended with ${String(code)}`);
    process.exit(1);
  });
}
await inScratch(folder, async (scratch) => {
  const random = seeded(seedOf(plan.seed, 'fio'));
  const bench = { base: '', device, clocks: { steady: () => performance.now(), wall: () => Date.now() } };
  for (let round = 0; round < plan.rounds; round++) {
    const all = plan.scenarios.flatMap((scenario) =>
      subjects.flatMap((subject) => ['ours', 'fio'].map((tool) => ({ round, subject, scenario, tool }))),
    );
    for (const { tool, ...slot } of shuffled(all, random)) {
      const key = keyOf(slot, tool);
      const own = join(scratch, 'images');
      mkdirSync(own);
      const pair = await (tool === 'ours'
        ? ours(plan, slot, { ...bench, folder: own })
        : theirs(plan, slot, own));
      found.set(key, [...(found.get(key) ?? []), pair]);
      rmSync(own, { recursive: true });
    }
  }
});
for (const spinner of spinners) {
  spinner.removeAllListeners('exit');
  spinner.kill('SIGKILL');
}

function keyOf({ scenario, subject }: Pick<Slot, 'scenario' | 'subject'>, tool: string): string {
  return `${scenario.id} ${subject.id} ${tool}`;
}

const rows = plan.scenarios.flatMap((scenario) =>
  subjects.flatMap((subject) =>
    (['first', 'rewrite'] as const).map((step) => {
      const of = (tool: string): number[] =>
        (found.get(keyOf({ scenario, subject }, tool)) ?? []).map((pair) => pair[step]);
      const seed = seedOf(plan.seed, scenario.id, subject.id, step);
      const [mine, fio] = [medianInterval(of('ours'), seed), medianInterval(of('fio'), seed)];
      const ratio = ratioInterval(of('fio'), of('ours'), seed);
      return {
        ...{ phase: scenario.id, subject: subject.id, step, mine, fio, ratio },
        ...judged(mine, fio, ratio),
      };
    }),
  ),
);

function judged(mine: Interval, fio: Interval, ratio: Interval): { overlap: boolean; agree: boolean } {
  const overlap = mine.low <= fio.high && fio.low <= mine.high;
  const holdsOne = ratio.low <= 1 && ratio.high >= 1;
  const isNear = ratio.low >= 1 / (1 + TOLERANCE) && ratio.high <= 1 + TOLERANCE;
  return { overlap, agree: overlap || holdsOne || isNear };
}

const micro = ({ low, value, high }: Interval): string =>
  `${(value / 1000).toFixed(1)} (${(low / 1000).toFixed(1)} to ${(high / 1000).toFixed(1)})`;
const shown = ({ low, value, high }: Interval): string =>
  `${value.toFixed(2)} (${low.toFixed(2)} to ${high.toFixed(2)})`;
console.log(
  table([
    ['phase', 'subject', 'step', 'ours, µs', 'fio, µs', 'fio by ours', 'intervals', ''],
    ...rows.map(({ phase, subject, step, mine, fio, ratio, overlap, agree }) => [
      ...[phase, subject, step, micro(mine), micro(fio), shown(ratio)],
      ...[overlap ? 'overlap' : 'apart', agree ? 'agree' : 'DISAGREE'],
    ]),
  ]),
);
const apart = rows.filter(({ agree }) => !agree).length;
const worst = Math.max(...rows.map(({ ratio }) => Math.abs(Math.log(ratio.value))));
console.log(
  `${String(rows.length - apart)} of ${String(rows.length)} agree: intervals of 95 % overlap, or the ratio's holds 1 or lies within ${String(TOLERANCE * 100)} %. Medians differ by at most ${((Math.exp(worst) - 1) * 100).toFixed(0)} %.`,
);
if (values.json !== undefined)
  writeFileSync(values.json, JSON.stringify({ seed: plan.seed, fileSystem, rows, found: [...found] }));
process.exitCode = apart > 0 ? 1 : 0;
