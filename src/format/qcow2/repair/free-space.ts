import { divUp } from '../../../core/align.ts';
import { SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import type { Scan } from './scan.ts';
import { Spans } from './spans.ts';
import type { Targets } from './targets.ts';

/** Clusters of a file that are looked at for free space at most. */
const SEARCH = 2 ** 26;

/**
 * The first of `count` clusters in a row that nothing refers to, not even from past the end of the file; behind the end
 * of the file where that may grow and nothing refers there.
 * @throws SpindleError NO_SPACE
 */
export function findPlace(
  storage: Storage,
  scan: Scan,
  targets: Targets,
  count: number,
  grows: boolean,
): number {
  const { context } = scan;
  const { clusterSize } = context.metadata.geometry;
  const end = Math.max(context.fileClusters, context.clusters);
  if (grows && context.beyondEnds === 0) return end;
  let run = 0;
  for (const cluster of freeClusters(storage, scan, targets, () => (run = 0))) {
    run++;
    if (run === count) return cluster - count + 1;
  }
  if (!grows) throw noSpace(count, 'in a row ');
  const spans = new Spans(context.beyondSpans, clusterSize);
  for (let first = end, next = end; first + count <= context.beyondLimit; next++) {
    if (next === first + count) {
      const taken = spans.touching(first * clusterSize, next * clusterSize);
      if (taken < 0) return first;
      first = taken / clusterSize;
      next = first - 1;
    } else if (context.beyond.get(next) > 0) first = next + 1;
  }
  return divUp(context.beyondEnds, clusterSize);
}

/** The whole clusters of the file that nothing refers to, ascending; told of each in between that is in use. */
export function* freeClusters(
  storage: Storage,
  { context, own }: Scan,
  targets: Targets,
  onUsed: () => void = () => undefined,
): Generator<number> {
  const { clusterSize } = context.metadata.geometry;
  const whole = Math.min(Math.floor(storage.size / clusterSize), SEARCH);
  for (let cluster = 1; cluster < whole; cluster++) {
    if (context.references.get(cluster) === 0 && own.get(cluster) === 0 && targets.final(cluster) === 0)
      yield cluster;
    else onUsed();
  }
}

/** The error of an image that cannot grow and is full. */
export function noSpace(count: number, how = ''): SpindleError {
  return new SpindleError(
    'NO_SPACE',
    `the repair needs ${String(count)} free clusters ${how}for new tables, but there are not as many and the image cannot grow here: copy it to a larger place and repair it there`,
  );
}
