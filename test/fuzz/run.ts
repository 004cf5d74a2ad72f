// Mutates the fixtures and reads them; a process of its own, so that its memory is its own. Prints one line of JSON.
//   node --import tsx test/fuzz/run.ts SEED COUNT
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { nodeCodec } from '../../src/native/codec.ts';
import { Random } from '../tool/random.ts';
import { exercise } from './exercise.ts';
import { mutate } from './mutate.ts';

/** Fixtures larger than this only slow the fuzzer down. */
const MAX_FIXTURE = 1200 * 1024;

/** What a run found. */
export interface FuzzReport {
  readonly cases: number;
  /** Outcomes of the single operations: `ok`, or an error code. */
  readonly codes: Readonly<Record<string, number>>;
  /** Processor time, which the load of the machine does not change; and the longest wait by the clock. */
  readonly slowest: { readonly milliseconds: number; readonly where: string };
  readonly longest: number;
  /** Bytes. */
  readonly maxRss: number;
  readonly failures: readonly string[];
}

const [seedText = '1', countText = '1000'] = process.argv.slice(2);
const fixtures = fileURLToPath(new URL('../../fixtures/', import.meta.url));
const images: { name: string; bytes: Uint8Array }[] = [];
const files = new Map<string, Uint8Array>();
for (const folder of ['good', 'check', 'bad']) {
  for (const name of readdirSync(join(fixtures, folder))) {
    if (!/\.(qcow2|raw|img)$/.test(name)) continue;
    // A Buffer would share its memory with its slices.
    const bytes = new Uint8Array(readFileSync(join(fixtures, folder, name)));
    if (bytes.length > MAX_FIXTURE) continue;
    files.set(name, bytes);
    if (name.endsWith('.qcow2')) images.push({ name: `${folder}/${name}`, bytes });
  }
}

const valid = images.filter(({ name }) => !name.startsWith('bad/'));
const codes = new Map<string, number>();
const failures: string[] = [];
let slowest = { milliseconds: 0, where: '' };
let maxRss = 0;
let longest = 0;
const count = Number(countText);
for (let index = 0; index < count && failures.length < 10; index++) {
  const random = new Random((Number(seedText) + index) >>> 0);
  const image = random.pick(random.chance(0.85) ? valid : images);
  const { bytes, what } = mutate(image.bytes, random);
  const where = `${image.name} (SEED=${String(Number(seedText) + index)}): ${what}`;
  const start = performance.now();
  const used = process.cpuUsage();
  try {
    await exercise(bytes, files, nodeCodec, random, codes);
  } catch (error) {
    failures.push(`${where}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  }
  const { user, system } = process.cpuUsage(used);
  const milliseconds = (user + system) / 1000;
  longest = Math.max(longest, performance.now() - start);
  if (milliseconds > slowest.milliseconds) slowest = { milliseconds, where };
  if (index % 50 === 0) maxRss = Math.max(maxRss, process.memoryUsage.rss());
}
maxRss = Math.max(maxRss, process.memoryUsage.rss());
const report: FuzzReport = {
  cases: count,
  codes: Object.fromEntries(codes),
  slowest,
  longest,
  maxRss,
  failures,
};
console.log(JSON.stringify(report));
