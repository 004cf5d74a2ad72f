// Runs the random tests, each time with a new seed, until it is stopped or one fails.
//   npm run test:long -- [--minutes N] [FILE...]
import { spawnSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { root } from './common.mjs';

const RANDOM = [
  'test/write/model.test.ts',
  'test/write/snapshots.test.ts',
  'test/write/resize.test.ts',
  'test/write/bitmaps-model.test.ts',
  'test/write/amend.test.ts',
  'test/write/interleaved.test.ts',
  'test/write/crash.test.ts',
  'test/write/crash-whole.test.ts',
  'test/write/bitmaps-crash.test.ts',
  'test/write/amend-crash.test.ts',
  'test/write/lazy.test.ts',
  'test/write/killed.test.ts',
  'test/write/no-space.test.ts',
  'test/chain',
  'test/convert',
  'test/differential',
  'test/fuzz',
];
/** How much one round does: little, so that the seeds change often. */
const ROUND = {
  SPINDLE_MODEL_SEQUENCES: '200',
  SPINDLE_CRASH_SEQUENCES: '50',
  SPINDLE_INTERLEAVED_ROUNDS: '100',
  SPINDLE_KILLS: '50',
  SPINDLE_FUZZ_CASES: '20000',
  SPINDLE_REQUIRE_JUDGES: '1',
};

const { values, positionals } = parseArgs({
  options: { minutes: { type: 'string' } },
  allowPositionals: true,
});
const minutes = values.minutes === undefined ? Infinity : Number(values.minutes);
if (!(minutes > 0)) {
  console.error(`test:long: --minutes ${values.minutes}: not a number of minutes`);
  process.exit(1);
}
const end = Date.now() + minutes * 60_000;

let rounds = 0;
do {
  const seed = String(randomInt(2 ** 31));
  console.log(`== round ${String(++rounds)}, SPINDLE_SEED=${seed}`);
  const files = positionals.length > 0 ? positionals : RANDOM;
  const { status, signal } = spawnSync(process.execPath, [join(root, '.dev', 'test.mjs'), ...files], {
    cwd: root,
    stdio: 'inherit',
    env: { ...ROUND, ...process.env, SPINDLE_SEED: seed },
  });
  if (signal !== null || status === 130) process.exit(130);
  if (status !== 0) {
    console.error(
      `test:long: failed in round ${String(rounds)}; again with: SPINDLE_SEED=${seed} npm test -- FILE`,
    );
    process.exit(1);
  }
} while (Date.now() < end);
console.log(`test:long: ${String(rounds)} rounds, all passed`);
