/** Bits of {@link Extent.flags}. HOLE and ZERO are the two bits of NBD's `base:allocation`. */
export const ExtentFlag = {
  /** Not allocated in this storage. */
  HOLE: 1,
  /** Reads as zeroes. */
  ZERO: 2,
  /** Stored compressed. */
  COMPRESSED: 4,
} as const;

/** A run of bytes of equal status; flags 0 means allocated data. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** What the host file system holds under a run of bytes of a file. Offsets and lengths in bytes. */
export interface HostExtent {
  readonly offset: number;
  readonly length: number;
  /**
   * `written`: blocks that were written. `unwritten`: blocks reserved that read as zeroes until their first write,
   * which must convert them. `delayed`: in memory, with no blocks yet.
   */
  readonly kind: 'written' | 'unwritten' | 'delayed';
  /** The blocks are shared with another file or snapshot. */
  readonly shared: boolean;
}
