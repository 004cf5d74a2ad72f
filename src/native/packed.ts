import { isZero } from '../core/bytes.ts';
import type { Packing } from '../core/codec.ts';
import { inflateRaw, deflateRaw } from './deflate.ts';
import { systemError } from './errno.ts';
import { get, putFilled, steps } from './transfer.ts';
import type { PackedClusters } from './types.ts';

/** A stream in the format has fewer bytes than this. */
const MOST_STREAM = 8 * 1024 * 1024;

/** The twin of `expand` in `native/src/packed.rs`. */
export async function expandPieces(
  source: number,
  target: number,
  pieces: Float64Array,
  { type, clusterSize }: Packing,
  skip: number,
): Promise<number> {
  let written = 0;
  for (let piece = 0; piece < pieces.length; piece += 5) {
    const [from = 0, to = 0, length = 0, packed = 0, first = 0] = pieces.subarray(piece, piece + 5);
    if (packed === 0) {
      for await (const { bytes, done } of steps(source, from, length, skip))
        written += await putFilled(target, bytes, to + done, skip);
      continue;
    }
    if (first + length > clusterSize) throw systemError('EINVAL', 'pwrite', { fd: target });
    if (packed > MOST_STREAM) throw systemError('EINVAL', 'pread', { fd: source });
    const stream = await sectors(source, from, packed);
    const cluster = new Uint8Array(clusterSize);
    await decode(stream, cluster, type);
    written += await putFilled(target, cluster.subarray(first, first + length), to, skip);
  }
  return written;
}

async function decode(stream: Uint8Array, into: Uint8Array, type: Packing['type']): Promise<void> {
  if (type === 'deflate') return inflateRaw(stream, into);
  const { decompressFrames } = await import('./zstd.ts');
  decompressFrames(stream, into);
}

/** Bytes of a file that may end before they do. */
async function sectors(fd: number, at: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  for (let had = 0; had < length;) {
    const count = await get(fd, bytes.subarray(had), at + had);
    if (count === 0) return bytes.subarray(0, had);
    had += count;
  }
  return bytes;
}

/** The twin of `pack` in `native/src/packed.rs`. */
export async function packRanges(
  fd: number,
  ranges: Float64Array,
  { type, clusterSize }: Packing,
  level: number,
): Promise<PackedClusters> {
  const lengths: number[] = [];
  const streams: Uint8Array[] = [];
  for (let range = 0; range < ranges.length; range += 2) {
    const [at = 0, length = 0] = ranges.subarray(range, range + 2);
    for await (const { bytes } of steps(fd, at, length, clusterSize)) {
      for (let start = 0; start < bytes.length; start += clusterSize) {
        const cluster = new Uint8Array(clusterSize);
        cluster.set(bytes.subarray(start, start + clusterSize));
        if (isZero(cluster)) {
          lengths.push(0);
          continue;
        }
        const stream = await encode(cluster, type, level);
        lengths.push(stream?.length ?? clusterSize);
        if (stream !== null) streams.push(stream);
      }
    }
  }
  return { lengths: Uint32Array.from(lengths), streams: Buffer.concat(streams) };
}

async function encode(cluster: Uint8Array, type: Packing['type'], level: number): Promise<Uint8Array | null> {
  if (type === 'deflate') return deflateRaw(cluster, level, cluster.length);
  const { compressFrame } = await import('./zstd-encoder.ts');
  return compressFrame(cluster, level, cluster.length);
}
