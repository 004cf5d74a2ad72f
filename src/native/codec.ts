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
    return native().deflateRaw(source, LEVELS.deflate, limit);
  },
  async zstdCompress(source, limit) {
    const { native } = await import('./binding.ts');
    return native().zstdCompress(source, LEVELS.zstd, limit);
  },
};

/** The defaults of both libraries, and what QEMU takes. */
export const LEVELS = { deflate: 6, zstd: 3 } as const;
