// Makes a JSON report of `spindle bench allocation` small enough to keep: reduce-study.mjs FULL.json SMALL.json. Figures get four
// digits, histograms and time series go. `spindle bench compare` still takes it.
import { readFileSync, writeFileSync } from 'node:fs';

const [from, to] = process.argv.slice(2);
const study = JSON.parse(readFileSync(from, 'utf8'));
for (const cell of study.cells) for (const step of cell.steps) [step.histogram, step.series] = [[], []];
// The store's path, and what names one machine, are nobody else's business.
study.folder = '';
study.environment.device = null;
study.environment.kernel = study.environment.kernel.replace(/^(\d+\.\d+).*/, '$1');
study.environment.source = study.environment.source.replace(/^\/dev\/loop\d+$/, 'a loop device');
const short = (key, value) =>
  typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(4)) : value;
const text = JSON.stringify(study, short);
// A cell a line.
writeFileSync(to, `${text.replaceAll('{"round":', '\n{"round":').replace('"cells":[\n', '"cells":[')}\n`);
