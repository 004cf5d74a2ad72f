import type { Codec } from '../core/codec.ts';

/** The codec for Node: the addon, or its twins. */
export const nodeCodec: Codec = {
  async inflate(source, into) {
    const { native } = await import('./binding.ts');
    await native().inflate(source, into);
  },
  async zstd(source, into) {
    const { native } = await import('./binding.ts');
    await native().zstdDecompress(source, into);
  },
  async deflate(source, limit) {
    const { native } = await import('./binding.ts');
    return native().deflateRaw(source, DEFLATE_LEVEL, limit);
  },
  async zstdCompress(source, limit) {
    const { native } = await import('./binding.ts');
    return native().zstdCompress(source, ZSTD_LEVEL, limit);
  },
};

/** The default of both libraries, and what QEMU takes. */
const DEFLATE_LEVEL = 6;
const ZSTD_LEVEL = 3;
