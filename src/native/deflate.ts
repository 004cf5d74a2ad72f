import * as zlib from 'node:zlib';
import { SpindleError } from '../core/errors.ts';
import { checkDeflate } from './arguments.ts';

/** zlib takes no smaller output buffer. */
const MIN_CHUNK = 64;

/**
 * The twin of `inflate` in `native/src/deflate.rs`. One pass, whose output buffer is exactly the cluster. The one-shot functions of node:zlib will not do: a stream that
 * goes on past the cluster makes them fail, and a larger buffer would decode (and fail on) bytes that nobody asked for.
 */
export function inflateRaw(source: Uint8Array, into: Uint8Array): Promise<void> {
  if (into.length === 0) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const stream = zlib.createInflateRaw({
      chunkSize: Math.max(MIN_CHUNK, into.length),
      windowBits: 15,
      // No complaint about a source that was cut short: whether enough came out is what counts.
      finishFlush: zlib.constants.Z_SYNC_FLUSH,
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

/**
 * The twin of `deflate` in `native/src/deflate.rs`. The window is 4 KiB, since a reader of qcow2 need not have a larger
 * one.
 */
export function deflateRaw(source: Uint8Array, level: number, limit: number): Promise<Uint8Array | null> {
  checkDeflate(level, limit);
  // A stream has 2 bytes at the least.
  if (limit <= 2) return Promise.resolve(null);
  return new Promise((resolve, reject) => {
    const options = {
      windowBits: 12,
      memLevel: 9,
      level,
      chunkSize: Math.max(MIN_CHUNK, limit),
      maxOutputLength: limit - 1,
    };
    zlib.deflateRaw(source, options, (error, stream) => {
      if (error === null) resolve(stream);
      else if ('code' in error && error.code === 'ERR_BUFFER_TOO_LARGE') resolve(null);
      else reject(error);
    });
  });
}

function damaged(reason: string, cause?: unknown): SpindleError {
  return new SpindleError('BAD_COMPRESSED', `deflate: ${reason}`, { cause });
}
