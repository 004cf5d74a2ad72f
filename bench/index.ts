// npm run bench: the bars first, each against what it is measured by in the same run, then the micro-benchmarks.
//   npm run bench -- bars | micro
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { measureBars } from './bars.ts';
import { runMicro } from './micro.ts';
import { printBars } from './table.ts';

const only = process.argv[2];
const root = fileURLToPath(new URL('..', import.meta.url));

if (only !== 'micro') {
  const bars = await measureBars(root);
  printBars(bars);
  writeFileSync(`${root}/.cache/bars.json`, JSON.stringify(bars, null, 2));
}
if (only !== 'bars') await runMicro();
