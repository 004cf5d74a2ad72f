// Runs all tests: those of the addon with cargo where it is there, all others with vitest. Ends with one line of counts.
// --whole does every case of each grid and all random sequences, not a share of them; --quick does less of them, and leaves
// out the tests that take minutes; every other argument goes to vitest.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { have, root } from './common.mjs';

const quick = process.argv.includes('--quick');
const share = process.argv.includes('--whole')
  ? { SPINDLE_SHARE: '1' }
  : quick
    ? { SPINDLE_SHARE: '12' }
    : {};
const rest = process.argv.slice(2).filter((arg) => arg !== '--quick' && arg !== '--whole');
const counts = { passed: 0, failed: 0, skipped: 0 };
const failures = [];

mkdirSync(join(root, '.cache'), { recursive: true });
if (process.env.SPINDLE_ADDON !== 'off' && rest.length === 0 && have('cargo')) cargo();
vitest();

const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : '';
for (const failure of failures) console.log(`FAILED: ${failure}`);
writeFileSync(join(root, '.cache', 'counts.json'), JSON.stringify({ ...counts, failures }));
console.log(`${counts.passed} passed, ${counts.failed} failed${skipped}`);
process.exit(counts.failed > 0 ? 1 : 0);

function cargo() {
  const done = spawnSync('cargo', ['test', '--quiet', '--manifest-path', 'native/Cargo.toml'], {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  process.stdout.write(done.stdout);
  for (const [, passed, failed, ignored] of done.stdout.matchAll(
    /(\d+) passed; (\d+) failed; (\d+) ignored/g,
  )) {
    counts.passed += Number(passed);
    counts.failed += Number(failed);
    counts.skipped += Number(ignored);
  }
  if (done.status !== 0 && counts.failed === 0) counts.failed++;
  if (done.status !== 0) failures.push('cargo test');
}

function vitest() {
  const report = join(root, '.cache', 'vitest.json');
  rmSync(report, { force: true });
  const done = spawnSync(
    process.execPath,
    [
      join(root, 'node_modules', 'vitest', 'vitest.mjs'),
      'run',
      '--config=.dev/vitest.config.mjs',
      '--reporter=default',
      '--reporter=json',
      `--outputFile.json=${report}`,
      ...rest,
    ],
    {
      cwd: root,
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...share, ...process.env, SPINDLE_QUICK: quick ? '1' : '0' },
    },
  );
  if (!existsSync(report)) {
    counts.failed++;
    failures.push('vitest left no report');
    return;
  }
  const result = JSON.parse(readFileSync(report, 'utf8'));
  counts.passed += result.numPassedTests;
  counts.failed += result.numFailedTests;
  counts.skipped += result.numPendingTests + result.numTodoTests;
  for (const { name, message, assertionResults } of result.testResults) {
    const file = relative(root, name);
    for (const { status, fullName, failureMessages } of assertionResults)
      if (status === 'failed') failures.push(`${file}: ${fullName}: ${firstLines(failureMessages[0])}`);
    if (message) failures.push(`${file}: ${firstLines(message)}`);
  }
  // A file that could not even be loaded has no failed test; an error outside tests fails the run without one.
  if (done.status !== 0 && result.numFailedTests === 0)
    counts.failed += Math.max(1, result.numFailedTestSuites);
}

function firstLines(text = '') {
  return text.split('\n').slice(0, 3).join(' | ').slice(0, 500);
}
