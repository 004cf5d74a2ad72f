import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';
import { seedOf } from '../tool/random.ts';
import type { FuzzReport } from './run.ts';

const CASES = Number(process.env['SPINDLE_FUZZ_CASES'] ?? 100_000);
const PROCESSES = 2;

async function fuzz(seed: number, count: number): Promise<FuzzReport> {
  const root = fileURLToPath(new URL('../../', import.meta.url));
  // How much garbage V8 lets lie differs from one Node to the next; what is asked here is how much is needed.
  const args = [
    '--max-semi-space-size=8',
    '--import',
    'tsx',
    'test/fuzz/run.ts',
    String(seed),
    String(count),
  ];
  const { stdout } = await promisify(execFile)(process.execPath, args, {
    cwd: root,
    maxBuffer: 64 * 1024 ** 2,
  });
  return JSON.parse(stdout) as FuzzReport;
}

it(
  `${String(CASES)} random mutations of the fixtures: no crash, no hang, bounded memory, a code for every refusal`,
  {
    timeout: 1_800_000,
  },
  async () => {
    const seed = seedOf('mutations');
    const share = Math.ceil(CASES / PROCESSES);
    const reports = await Promise.all(
      Array.from({ length: PROCESSES }, (_, index) => fuzz((seed + index * share) >>> 0, share)),
    );
    for (const report of reports) {
      console.log(JSON.stringify({ ...report.codes, slowest: report.slowest, maxRss: report.maxRss }));
      expect(report.failures).toEqual([]);
      expect(report.cases).toBe(share);
      expect(report.slowest.milliseconds, report.slowest.where).toBeLessThan(1000);
      expect(report.longest, 'milliseconds by the clock').toBeLessThan(20_000);
      expect(report.maxRss, 'RSS in bytes').toBeLessThan(300 * 1024 ** 2);
      // Mutations that only ever break the magic, or never break anything, would prove nothing.
      expect(Object.keys(report.codes).length).toBeGreaterThan(10);
      expect(report.codes['ok'] ?? 0).toBeGreaterThan(share / 2);
    }
  },
);
