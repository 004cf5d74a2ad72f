import type { Codec } from '../core/codec.ts';
import { SpindleError } from '../core/errors.ts';

/** The codec for Node: deflate by node:zlib, on its thread pool, and zstd by the addon or its twin. */
export const nodeCodec: Codec = {
  inflate,
  async zstd(source, into) {
    const { native } = await import('./binding.ts');
    await native().zstdDecompress(source, into);
  },
  deflate,
  async zstdCompress(source, limit) {
    const { native } = await import('./binding.ts');
    return native().zstdCompress(source, ZSTD_LEVEL, limit);
  },
};

/** The default of both libraries, and what QEMU takes. */
const DEFLATE_LEVEL = 6;
const ZSTD_LEVEL = 3;

/** zlib takes no smaller output buffer. */
const MIN_CHUNK = 64;

/*
 * One pass, whose output buffer is exactly the cluster. The one-shot functions of node:zlib will not do: a stream that
 * goes on past the cluster makes them fail, and a larger buffer would decode (and fail on) bytes that nobody asked for.
 */
async function inflate(source: Uint8Array, into: Uint8Array): Promise<void> {
  if (into.length === 0) return;
  const { constants, createInflateRaw } = await import('node:zlib');
  return new Promise((resolve, reject) => {
    const stream = createInflateRaw({
      chunkSize: Math.max(MIN_CHUNK, into.length),
      windowBits: 15,
      // No complaint about a source that was cut short: whether enough came out is what counts.
      finishFlush: constants.Z_SYNC_FLUSH,
    });
    let filled = 0;
    stream.on('data', (chunk: Uint8Array) => {
      const part = chunk.subarray(0, into.length - filled);
      into.set(part, filled);
      filled += part.length;
      if (filled < into.length) return;
      stream.destroy();
      resolve();
    });
    stream.on('error', (error) => {
      reject(damaged(error.message, error));
    });
    stream.on('end', () => {
      reject(damaged(`the stream ends after ${String(filled)} of ${String(into.length)} bytes`));
    });
    stream.end(source);
  });
}

/** The window is 4 KiB, since a reader of qcow2 need not have a larger one. */
async function deflate(source: Uint8Array, limit: number): Promise<Uint8Array | null> {
  // A stream has 2 bytes at the least.
  if (limit <= 2) return null;
  const { deflateRaw } = await import('node:zlib');
  return new Promise((resolve, reject) => {
    const options = {
      windowBits: 12,
      memLevel: 9,
      level: DEFLATE_LEVEL,
      chunkSize: Math.max(MIN_CHUNK, limit),
      maxOutputLength: limit - 1,
    };
    deflateRaw(source, options, (error, stream) => {
      if (error === null) resolve(stream);
      else if ('code' in error && error.code === 'ERR_BUFFER_TOO_LARGE') resolve(null);
      else reject(error);
    });
  });
}

function damaged(reason: string, cause?: unknown): SpindleError {
  return new SpindleError('BAD_COMPRESSED', `deflate: ${reason}`, { cause });
}
