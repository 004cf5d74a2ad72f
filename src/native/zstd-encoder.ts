import * as zlib from 'node:zlib';
import { SpindleError } from '../core/errors.ts';
import { checkCompression } from './arguments.ts';

/** What Node has from 22.15 on. */
interface ZstdEncoder {
  zstdCompress(
    source: Uint8Array,
    options: { readonly params: Readonly<Record<number, number>>; readonly pledgedSrcSize: number },
    done: (error: Error | null, frame: Uint8Array) => void,
  ): void;
  readonly constants: Readonly<Record<'ZSTD_c_compressionLevel' | 'ZSTD_c_checksumFlag', number>>;
}

/** Whether this Node has a zstd encoder. */
export function encoderHere(): boolean {
  return 'zstdCompress' in zlib;
}

/**
 * The twin of `compress` in `native/src/codec.rs`: one frame, null where it would have `limit` bytes or more.
 * @throws SpindleError UNSUPPORTED where Node has no encoder
 */
export function compressFrame(source: Uint8Array, level: number, limit: number): Promise<Uint8Array | null> {
  checkCompression(level, limit);
  if (!encoderHere()) {
    throw new SpindleError('UNSUPPORTED', 'zstd compression needs the addon, or Node 22.15 or later');
  }
  const encoder = zlib as unknown as ZstdEncoder;
  const { constants } = encoder;
  const params = { [constants.ZSTD_c_compressionLevel]: level, [constants.ZSTD_c_checksumFlag]: 0 };
  return new Promise((resolve, reject) => {
    encoder.zstdCompress(source, { params, pledgedSrcSize: source.length }, (error, frame) => {
      if (error !== null) reject(error);
      else resolve(frame.length < limit ? frame : null);
    });
  });
}
