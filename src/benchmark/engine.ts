import type { Storage } from '../core/storage.ts';
import { native } from '../native/binding.ts';
import { OperationKind, type WorkloadReport } from '../native/types.ts';
import { noise, stamp } from '../native/workload.ts';
import { memoryFor } from '../op/bench.ts';
import { openImageFile } from '../op/open.ts';
import { openFile } from '../storage/file.ts';

/** Requests, `depth` at a time: offset, length, {@link OperationKind} of each. */
export interface Requests {
  readonly operations: Float64Array;
  readonly depth: number;
  readonly seed: number;
  /** Nanoseconds after which none begins any more. */
  readonly limit: number;
}

/** `image layer`: through spindle's own driver, with the event loop in the figures. */
export type EngineName = WorkloadReport['engine'] | 'image layer';

/** What an engine measured. */
export type Measured = Omit<WorkloadReport, 'engine'> & { readonly engine: EngineName };

/** An image that takes requests. */
export interface Target {
  run(requests: Requests): Promise<Measured>;
  close(): Promise<void>;
}

/**
 * Sends the same requests to all targets at once; the data of each has a seed of its own. Settles only when none has a
 * request in flight: what still writes must not meet a descriptor that was closed, and given to another file.
 * @throws what the first target that failed throws
 */
export async function runTogether(targets: readonly Target[], requests: Requests): Promise<Measured[]> {
  return allOf(targets.map((target, at) => target.run({ ...requests, seed: requests.seed + at })));
}

/** Closes every target, also where one fails. @throws what the first that failed throws */
export async function closeTargets(targets: readonly Target[]): Promise<void> {
  await allOf(targets.map((target) => target.close()));
}

/** Waits for all, and fails with the first failure only then. */
async function allOf<T>(work: readonly Promise<T>[]): Promise<T[]> {
  const ended = await Promise.allSettled(work);
  return ended.map((end) => {
    if (end.status === 'rejected') throw end.reason;
    return end.value;
  });
}

/** Opens a raw file for the addon's engine, which sends requests to the very descriptor. @throws as openFile */
export async function rawTarget(path: string, direct: boolean, threads: boolean): Promise<Target> {
  const file = await openFile(path, { write: true, direct });
  return {
    run: ({ operations, ...how }) => native().runWorkload(file.fd, operations, { ...how, threads }),
    close: () => file.close(),
  };
}

/** Opens an image for requests through its driver. @throws as openImageFile */
export async function imageTarget(path: string, format: string, direct: boolean): Promise<Target> {
  const image = await openImageFile(path, { format, write: true, direct });
  return { run: (requests) => runOnStorage(image, requests), close: () => image.close() };
}

/** Does requests on any storage, and times each from JavaScript: the event loop is in the figures. @throws what it throws */
export async function runOnStorage(
  storage: Storage,
  { operations, depth, seed, limit }: Requests,
): Promise<Measured> {
  const count = operations.length / 3;
  const latencies = new Float64Array(count);
  const finishes = new Float64Array(count);
  let longest = 1;
  for (let at = 0; at < operations.length; at += 3)
    if (operations[at + 2] !== OperationKind.punch) longest = Math.max(longest, operations[at + 1] ?? 0);
  const memory = Array.from({ length: Math.max(Math.min(depth, count), 1) }, (_, slot) => {
    const bytes = memoryFor(storage, longest);
    bytes.set(noise(longest, seed, slot));
    return bytes;
  });
  const start = performance.now();
  const now = (): number => (performance.now() - start) * 1e6;
  let next = 0;
  let failure: { readonly reason: unknown } | undefined;
  const worker = async (buffer: Uint8Array): Promise<void> => {
    while (failure === undefined && next < count && (limit === 0 || now() < limit)) {
      const index = next++;
      const [offset = 0, length = 0, kind = 0] = operations.subarray(index * 3, index * 3 + 3);
      const bytes = buffer.subarray(0, kind === OperationKind.punch ? 0 : length);
      if (kind === OperationKind.write || kind === OperationKind.writeSync) stamp(bytes, seed, index);
      const begin = now();
      try {
        if (kind === OperationKind.punch) await storage.discard(offset, length);
        else if (kind === OperationKind.read) await storage.read(bytes, offset);
        else if (kind !== OperationKind.sync) await storage.write(bytes, offset);
        if (kind === OperationKind.writeSync || kind === OperationKind.sync) await storage.flush();
      } catch (reason) {
        failure ??= { reason };
      }
      const finish = now();
      latencies[index] = finish - begin;
      finishes[index] = finish;
    }
  };
  await Promise.all(memory.map(worker));
  if (failure !== undefined) throw failure.reason;
  return {
    ...{ engine: 'image layer', elapsed: now() },
    ...{ latencies: latencies.slice(0, next), finishes: finishes.slice(0, next) },
  };
}
