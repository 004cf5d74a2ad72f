import type { Drill } from '../benchmark/drill/drill.ts';
import { cellsOf, DRILL_HEAD, linesOf } from '../benchmark/drill/words.ts';
import { formatSize } from '../core/size.ts';
import { table } from './study-text.ts';

/** The table of a drill, and what it means. */
export function drillText(drill: Drill): string {
  const { made, fileSystem, direct, clusterSize, seed, seconds, rows } = drill;
  const free = formatSize(rows[0]?.free ?? 0);
  const store = made
    ? `a new ${fileSystem} of ${free}`
    : `the named store, a ${fileSystem} with ${free} free`;
  return `Out-of-space drill on ${store}, ${direct ? 'past' : 'through'} the page cache, seed ${String(seed)}
qcow2 images have clusters of ${formatSize(clusterSize)}, so that small disks have many tables.

${table([DRILL_HEAD, ...rows.map(cellsOf)])}
${linesOf(drill)
  .map((line) => `${line}\n`)
  .join('')}
Took ${seconds.toFixed(0)} s; nothing is left behind.
`;
}
