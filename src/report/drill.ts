import type { Drill } from '../benchmark/drill/drill.ts';
import { cellsOf, DRILL_HEAD, linesOf } from '../benchmark/drill/words.ts';
import { formatSize } from '../core/size.ts';
import { PAGE } from './style.ts';
import { escaped } from './svg.ts';

/** The drill as a part of a page. */
export function drillSection(drill: Drill): string {
  const { made, fileSystem, direct, clusterSize, rows, seed } = drill;
  const free = formatSize(rows[0]?.free ?? 0);
  const row = (tag: string, cells: readonly string[]): string =>
    `<tr>${cells.map((cell) => `<${tag}>${escaped(cell)}</${tag}>`).join('')}</tr>`;
  return `<h2>When space runs out</h2>
<p class="quiet">Volumes that together hold more than the store has, on ${escaped(made ? `a new ${fileSystem}` : `a ${fileSystem} that was named`)} with ${free} free; requests ${direct ? 'past' : 'through'} the page cache, qcow2 clusters of ${formatSize(clusterSize)}, seed ${String(seed)}.</p>
<div class="wide"><table id="drill"><thead>${row('th', DRILL_HEAD)}</thead><tbody>${rows.map((one) => row('td', cellsOf(one))).join('')}</tbody></table></div>
<ul>${linesOf(drill)
    .map((line) => `<li>${escaped(line)}</li>`)
    .join('')}</ul>`;
}

/** The report of a drill alone, as one HTML file that loads nothing. */
export function drillPageOf(drill: Drill): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>Out of space: ${escaped(drill.fileSystem)}</title>
<style>${PAGE}</style></head><body><main>
<h1>Thin or thick, out of space</h1>
${drillSection(drill)}
<p class="quiet">Started ${escaped(drill.started)}, kernel ${escaped(drill.kernel)}, mounted ${escaped(drill.mountOptions.join(', '))}.</p>
</main></body></html>
`;
}
