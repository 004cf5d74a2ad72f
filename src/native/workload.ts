import { fdatasync, read, write } from 'node:fs';
import { promisify } from 'node:util';
import { nodeError, systemError } from './errno.ts';
import { OperationKind, type Native, type WorkloadOptions, type WorkloadReport } from './types.ts';

const readFrom = promisify(read);
const writeTo = promisify(write);
const sync = promisify(fdatasync);

/**
 * The twin of `native/src/workload.rs`. Its latencies include what the event loop does before it comes back, and its
 * memory is aligned to nothing that O_DIRECT would take.
 */
export async function runWorkload(
  fd: number,
  operations: Float64Array,
  { depth, seed, limit = 0 }: WorkloadOptions,
  fallocate: Native['fallocate'],
): Promise<WorkloadReport> {
  const count = operations.length / 3;
  const latencies = new Float64Array(count);
  const finishes = new Float64Array(count);
  const start = process.hrtime.bigint();
  const now = (): number => Number(process.hrtime.bigint() - start);
  let next = 0;
  let failure: { readonly reason: unknown } | undefined;

  const worker = async (slot: number): Promise<void> => {
    const buffer = noise(longest(operations), seed, slot);
    while (failure === undefined && next < count && (limit === 0 || now() < limit)) {
      const index = next++;
      const [offset = 0, length = 0, kind = 0] = operations.subarray(index * 3, index * 3 + 3);
      if (kind === OperationKind.write || kind === OperationKind.writeSync) stamp(buffer, seed, index);
      const begin = now();
      try {
        await one({ fd, offset, length, kind, bytes: buffer.subarray(0, length) }, fallocate);
      } catch (reason) {
        failure ??= { reason };
      }
      const finish = now();
      latencies[index] = finish - begin;
      finishes[index] = finish;
    }
  };
  await Promise.all(Array.from({ length: Math.min(depth, Math.max(count, 1)) }, (_, slot) => worker(slot)));
  if (failure !== undefined) throw failure.reason;
  const elapsed = now();
  return {
    engine: 'event loop',
    elapsed,
    latencies: latencies.slice(0, next),
    finishes: finishes.slice(0, next),
  };
}

interface One {
  readonly fd: number;
  readonly offset: number;
  readonly length: number;
  readonly kind: number;
  readonly bytes: Uint8Array;
}

async function one({ fd, offset, length, kind, bytes }: One, fallocate: Native['fallocate']): Promise<void> {
  if (kind === OperationKind.punch) return fallocate(fd, 'punch', offset, length);
  const call = kind === OperationKind.read ? 'pread' : 'pwrite';
  try {
    let moved = length;
    if (kind === OperationKind.read) moved = (await readFrom(fd, bytes, 0, length, offset)).bytesRead;
    else if (kind !== OperationKind.sync) moved = (await writeTo(fd, bytes, 0, length, offset)).bytesWritten;
    if (kind !== OperationKind.sync && moved !== length)
      throw systemError('EIO', call, { fd, offset, length });
    if (kind === OperationKind.writeSync || kind === OperationKind.sync) await sync(fd);
  } catch (error) {
    throw nodeError(error, call, { fd, offset, length });
  }
}

function longest(operations: Float64Array): number {
  let most = 1;
  for (let at = 0; at < operations.length; at += 3) {
    const kind = operations[at + 2];
    if (kind !== OperationKind.punch && kind !== OperationKind.sync)
      most = Math.max(most, operations[at + 1] ?? 0);
  }
  return most;
}

/** Bytes that neither compress nor repeat. */
export function noise(length: number, seed: number, slot = 0): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = (Math.imul(seed ^ (slot + 1), 0x9e3779b1) ^ 0x6d2b79f5) >>> 0 || 1;
  for (let index = 0; index < words.length; index++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[index] = state >>> 0;
  }
  return new Uint8Array(words.buffer, 0, length);
}

/** Makes the data of an operation unlike that of any other: each 512 bytes begin with a mark. */
export function stamp(bytes: Uint8Array, seed: number, index: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at + 8 <= bytes.length; at += 512) {
    view.setUint32(at, Math.imul(index + 1, 0x85ebca6b) ^ at);
    view.setUint32(at + 4, Math.imul(seed ^ index, 0xc2b2ae35));
  }
}
