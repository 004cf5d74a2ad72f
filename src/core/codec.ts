/**
 * Decompression of one cluster, supplied by the runtime so that format code stays free of it.
 * `source` may be followed by bytes of a neighbour, or be cut short; `into` is filled completely.
 * Both throw SpindleError BAD_COMPRESSED when the stream is damaged or ends before `into` is full.
 */
export interface Codec {
  /** Raw deflate (no zlib header). A stream that would go on past `into` is accepted. */
  inflate(source: Uint8Array, into: Uint8Array): Promise<void>;
  /** One or more zstd frames; skippable frames are passed over. A frame must not decode past `into`. */
  zstd(source: Uint8Array, into: Uint8Array): Promise<void>;
}
