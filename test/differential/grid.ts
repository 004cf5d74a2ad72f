import type { Qcow2CreateOptions } from '../../src/format/qcow2/create.ts';

/** One point of the option grid. */
export interface GridPoint {
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly version: 2 | 3;
  readonly extendedL2: boolean;
  readonly compressionType: 'zlib' | 'zstd';
  readonly preallocation: Qcow2CreateOptions['preallocation'];
  readonly backing: 'none' | 'raw' | 'qcow2';
}

const CLUSTER_SIZES = [512, 1024, 4096, 16384, 65536, 262144, 2097152];
const WIDTHS = [1, 2, 4, 8, 16, 32, 64];
const MODES = ['off', 'metadata', 'falloc', 'full'] as const;
const BACKINGS = ['none', 'raw', 'qcow2'] as const;

/** Every combination that qemu accepts, in a fixed order. */
export function gridPoints(): GridPoint[] {
  const points: GridPoint[] = [];
  for (const clusterSize of CLUSTER_SIZES)
    for (const version of [2, 3] as const)
      for (const refcountBits of version === 2 ? [16] : WIDTHS)
        for (const extendedL2 of version === 3 && clusterSize >= 16384 ? [false, true] : [false])
          for (const compressionType of version === 3 ? (['zlib', 'zstd'] as const) : (['zlib'] as const))
            for (const backing of BACKINGS)
              for (const preallocation of MODES) {
                if (backing !== 'none' && preallocation !== 'off' && !extendedL2) continue;
                points.push({
                  clusterSize,
                  refcountBits,
                  version,
                  extendedL2,
                  compressionType,
                  preallocation,
                  backing,
                });
              }
  return points;
}

/** The point as words, for messages. */
export function describePoint(point: GridPoint): string {
  return Object.entries(point)
    .map(([key, value]) => `${key}=${String(value)}`)
    .join(' ');
}

/** The options that make qemu-img create an image at this point. */
export function qemuOptions(point: GridPoint): Record<string, string | number> {
  return {
    compat: point.version === 2 ? 'v2' : 'v3',
    cluster_size: point.clusterSize,
    ...(point.version === 2
      ? {}
      : {
          refcount_bits: point.refcountBits,
          extended_l2: point.extendedL2 ? 'on' : 'off',
          compression_type: point.compressionType,
        }),
    ...(point.preallocation === 'off' ? {} : { preallocation: point.preallocation }),
  };
}

/** Groups by cluster size: one test each, so that a failure says roughly where. */
export function byClusterSize(points: readonly GridPoint[]): [clusterSize: number, points: GridPoint[]][] {
  return CLUSTER_SIZES.map((size) => [size, points.filter((point) => point.clusterSize === size)]);
}

/** Runs `work` on all items, `width` at a time; the first failure stops the rest. */
export async function inParallel<T>(
  items: readonly T[],
  width: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  let next = 0;
  await Promise.all(
    Array.from({ length: width }, async () => {
      while (next < items.length) {
        const item = items[next++] as T;
        try {
          await work(item);
        } catch (error) {
          next = items.length;
          throw error;
        }
      }
    }),
  );
}
