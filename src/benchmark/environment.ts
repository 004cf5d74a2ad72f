import { readFileSync, realpathSync, statfsSync, statSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, release, totalmem } from 'node:os';
import { addonStatus } from '../native/binding.ts';
import { mountOf } from '../storage/mount.ts';

/** What a study ran on. Null: not to be found out here. */
export interface Environment {
  readonly kernel: string;
  readonly node: string;
  readonly addon: boolean;
  /** Threads of Node's pool, which carry requests to the host. */
  readonly pool: number;
  readonly fileSystem: string | null;
  readonly mountOptions: readonly string[];
  readonly source: string | null;
  /** Values of the block device's queue: scheduler, write_cache, rotational, limits of discard and write-zeroes... */
  readonly queue: Readonly<Record<string, string>>;
  /** Folder below /sys of the device. */
  readonly device: string | null;
  readonly processors: number;
  readonly processor: string;
  readonly memory: number;
  /** Of one minute, when the study began. */
  readonly load: number;
  readonly freeBytes: number;
}

const QUEUE = [
  ...['scheduler', 'write_cache', 'rotational', 'nr_requests', 'logical_block_size', 'physical_block_size'],
  ...['discard_max_bytes', 'discard_granularity', 'write_zeroes_max_bytes', 'fua', 'wbt_lat_usec'],
];

/** Looks at the host and at what holds `folder`. */
export function environmentOf(folder: string): Environment {
  const path = realpathSync(folder);
  const mount = mountOf(path);
  const device = deviceFolder(path, mount?.source);
  const queue: Record<string, string> = {};
  for (const name of QUEUE) {
    const value = read(`${device ?? '/none'}/queue/${name}`) ?? read(`${device ?? '/none'}/../queue/${name}`);
    if (value !== null) queue[name] = value;
  }
  const { bavail, bsize } = statfsSync(path);
  return {
    ...{ kernel: release(), node: process.version, addon: addonStatus().loaded, pool: poolSize() },
    ...{ fileSystem: mount?.type ?? null, mountOptions: mount?.options ?? [], source: mount?.source ?? null },
    ...{ queue, device, processors: availableParallelism(), processor: cpus()[0]?.model ?? 'unknown' },
    ...{ memory: totalmem(), load: loadavg()[0] ?? 0, freeBytes: bavail * bsize },
  };
}

/** Threads of Node's pool, four unless the environment says otherwise. */
export function poolSize(told = process.env['UV_THREADPOOL_SIZE']): number {
  const number = told === undefined ? 4 : Math.trunc(Number.parseFloat(told));
  return number >= 1 ? Math.min(number, 1024) : 1;
}

/** The device of the mount: file systems such as btrfs give files a device number that is none of a block device. */
function deviceFolder(path: string, source: string | undefined): string | null {
  const numbers = [statSync(path).dev];
  try {
    if (source?.startsWith('/dev/') === true) numbers.unshift(statSync(source).rdev);
  } catch {
    // Not to be seen from here: the number that files have must do.
  }
  for (const number of numbers) {
    try {
      return realpathSync(
        `/sys/dev/block/${String((number >> 8) & 0xfff)}:${String((number & 0xff) | ((number >> 12) & 0xfff00))}`,
      );
    } catch {
      // None of a block device.
    }
  }
  return null;
}

function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return null;
  }
}

/** Counters at a moment. Null: not readable here. */
export interface Counters {
  /** Microseconds of processor time of this process, the engine's threads too. */
  readonly cpu: number;
  /** Bytes that this process sent to storage. */
  readonly process: number | null;
  /** Bytes that the device was sent, by whomever. */
  readonly device: number | null;
}

/** Reads the counters; `device` is that of {@link Environment}. */
export function countersOf(device: string | null): Counters {
  const { user, system } = process.cpuUsage();
  const own = /^write_bytes: (\d+)/m.exec(read('/proc/self/io') ?? '')?.[1];
  const sectors = device === null ? undefined : read(`${device}/stat`)?.split(/\s+/)[6];
  return {
    cpu: user + system,
    process: own === undefined ? null : Number(own),
    device: sectors === undefined ? null : Number(sectors) * 512,
  };
}

/** Milliseconds without a change after which a device is quiet, and after which we wait no longer. */
export interface Patience {
  readonly quiet: number;
  readonly longest: number;
}

/** Seconds until the last change of what the device was sent; null where that cannot be seen, or there is no end to it. */
export async function untilQuiet(
  device: string | null,
  { quiet, longest }: Patience,
): Promise<number | null> {
  const start = performance.now();
  let last = start;
  let before = countersOf(device).device;
  if (before === null) return null;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    const now = performance.now();
    const after = countersOf(device).device;
    if (after !== before) [before, last] = [after, now];
    if (now - last >= quiet) return (last - start) / 1000;
    if (now - start >= longest) return null;
  }
}
