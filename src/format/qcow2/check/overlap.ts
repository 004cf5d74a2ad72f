import { isAligned } from '../../../core/align.ts';
import { alignDown, alignUp } from '../../../core/align.ts';
import { hex } from '../../../core/bytes.ts';
import type { CheckContext } from './context.ts';
import type { L2Tables } from './l2-tables.ts';
import { sortSpans, sweep } from './sweep.ts';

/**
 * Explains metadata that shares its cluster with anything else. Such clusters show up as wrong refcounts or copied flags
 * (or as nothing, where somebody has made the refcount fit), so none of this counts. Must follow all counting.
 */
export function explainOverlaps(context: CheckContext, tables: L2Tables, offsets: Float64Array): void {
  const { clusterSize } = context.metadata.geometry;
  const { references, log } = context;
  const seen = new Set<number>();
  const explain = (cluster: number): void => {
    if (!log.wanted || seen.has(cluster)) return;
    seen.add(cluster);
    log.corruption(0, () => ({
      code: 'OVERLAP',
      structure: 'cluster',
      message: `cluster at ${hex(cluster * clusterSize)} is used as ${uses(context, tables, cluster)}`,
      hostOffset: cluster * clusterSize,
      repair: 'other',
    }));
  };
  const { starts, ends } = sortSpans(
    context.regions
      .filter(({ at, end }) => end > at && !context.isBeyondEnd(at, end - at))
      .map(({ at, end }) => ({ at: alignDown(at, clusterSize), end: alignUp(end, clusterSize) })),
  );
  for (const { at, end } of sweep(starts, ends)) {
    if (!log.wanted) return;
    for (let cluster = at / clusterSize; cluster < end / clusterSize; cluster++) {
      if (references.get(cluster) > 1) explain(cluster);
    }
  }
  for (const offset of offsets) {
    if (!log.wanted) return;
    if (!isAligned(offset, clusterSize) || context.isBeyondEnd(offset, clusterSize)) continue;
    if (references.get(offset / clusterSize) > tables.references(offset)) explain(offset / clusterSize);
  }
}

/** All that a cluster is used as, in words. */
function uses(context: CheckContext, tables: L2Tables, cluster: number): string {
  const at = cluster * context.metadata.geometry.clusterSize;
  const end = at + context.metadata.geometry.clusterSize;
  const found = new Set<string>();
  let known = 0;
  for (const region of context.regions) {
    if (region.end <= at || region.at >= end) continue;
    found.add(region.structure);
    known++;
  }
  const l2 = tables.references(at);
  if (l2 > 0) found.add('L2 table');
  if (context.references.get(cluster) > known + l2)
    found.add('guest data, a refcount block or an unaligned table');
  if (found.size === 1) found.add('another of its kind');
  return [...found].join(' and ');
}
