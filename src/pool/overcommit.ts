import { SpindleError } from '../core/errors.ts';
import type { PoolUsage } from './definition.ts';
import type { VolumeFacts } from './volume-definition.ts';

/** What a pool has promised to its guests. */
export interface Promised {
  /** Bytes: the capacities of all volumes. */
  readonly promised: number;
  /** Promised by capacity; 1 and more: the pool cannot keep all. */
  readonly ratio: number;
  /** Bytes that volumes may still want: what was promised and is not allocated. */
  readonly outstanding: number;
  readonly volumes: number;
}

/** Sums up what the volumes of a pool were promised. */
export function promisedBy(volumes: readonly VolumeFacts[], { capacity }: PoolUsage): Promised {
  let promised = 0;
  let outstanding = 0;
  for (const volume of volumes) {
    if (volume.type === 'dir') continue;
    promised += volume.capacity;
    outstanding += Math.max(0, volume.capacity - volume.allocation);
  }
  return { promised, ratio: capacity === 0 ? 0 : promised / capacity, outstanding, volumes: volumes.length };
}

/**
 * What there is to say about a volume of `bytes` more; undefined where all can be kept.
 * @throws SpindleError OVERCOMMIT when the ratio would pass `most`
 */
export function checkPromise(
  now: Promised,
  usage: PoolUsage,
  bytes: number,
  name: string,
  most: number | undefined,
): string | undefined {
  const promised = now.promised + bytes;
  const ratio = usage.capacity === 0 ? Infinity : promised / usage.capacity;
  const told = `${ratio.toFixed(2)} times its capacity`;
  if (most !== undefined && ratio > most)
    throw new SpindleError(
      'OVERCOMMIT',
      `with volume '${name}' the pool would promise ${told}, more than the ${most.toFixed(2)} that --max-overcommit allows`,
    );
  return now.outstanding + bytes > usage.available
    ? `with it the pool promises ${told}, and more than it has left: its volumes cannot all be filled`
    : undefined;
}
