/**
 * Decompression and compression of one cluster, supplied by the runtime so that format code stays free of it.
 *
 * Decompressing, `source` may be followed by bytes of a neighbour, or be cut short; `into` is filled completely. Both
 * ways throw SpindleError BAD_COMPRESSED when the stream is damaged or ends before `into` is full.
 *
 * Compressing gives the stream, or null where it would have `limit` bytes or more. `source` must not change meanwhile.
 */
export interface Codec {
  /** Raw deflate (no zlib header). A stream that would go on past `into` is accepted. */
  inflate(source: Uint8Array, into: Uint8Array): Promise<void>;
  /** One or more zstd frames; skippable frames are passed over. A frame must not decode past `into`. */
  zstd(source: Uint8Array, into: Uint8Array): Promise<void>;
  /** Raw deflate, no distance of which passes 4096: what every reader of qcow2 can decode. */
  deflate(source: Uint8Array, limit: number): Promise<Uint8Array | null>;
  /** One zstd frame with its content size and no checksum. @throws SpindleError UNSUPPORTED where there is no encoder */
  zstdCompress(source: Uint8Array, limit: number): Promise<Uint8Array | null>;
}

/** How the clusters of an image are compressed. */
export interface Packing {
  readonly type: 'deflate' | 'zstd';
  /** Bytes, 2 MiB at the most. */
  readonly clusterSize: number;
}
