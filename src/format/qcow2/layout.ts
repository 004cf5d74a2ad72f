/*
 * Every constant of the qcow2 format, defined once. Offsets are bytes from the start of the structure named,
 * integers big-endian, as the format has them throughout.
 */

/** "QFI\xfb", the first four bytes of every qcow2 image. */
export const MAGIC = 0x514649fb;

/** Byte offsets of the header fields; those from 72 on exist from version 3. */
export const HeaderOffset = {
  magic: 0,
  version: 4,
  backingFileOffset: 8,
  backingFileSize: 16,
  clusterBits: 20,
  size: 24,
  cryptMethod: 32,
  l1Size: 36,
  l1TableOffset: 40,
  refcountTableOffset: 48,
  refcountTableClusters: 56,
  nbSnapshots: 60,
  snapshotsOffset: 64,
  incompatibleFeatures: 72,
  compatibleFeatures: 80,
  autoclearFeatures: 88,
  refcountOrder: 96,
  headerLength: 100,
  compressionType: 104,
} as const;

/** Length of the header of version 2. */
export const HEADER_LENGTH_V2 = 72;
/** The shortest header of version 3. */
export const HEADER_LENGTH_V3_MIN = 104;
/** The header that spindle writes: up to and including the compression type and its padding. */
export const HEADER_LENGTH = 112;

/** Bits of the incompatible features. */
export const Incompatible = {
  DIRTY: 1 << 0,
  CORRUPT: 1 << 1,
  DATA_FILE: 1 << 2,
  COMPRESSION_TYPE: 1 << 3,
  EXTENDED_L2: 1 << 4,
  KNOWN: 0x1f,
} as const;

/** Bits of the compatible features. */
export const Compatible = { LAZY_REFCOUNTS: 1 << 0 } as const;

/** Bits of the autoclear features. */
export const Autoclear = { BITMAPS: 1 << 0, DATA_FILE_RAW: 1 << 1, KNOWN: 0x3 } as const;

/** Magic numbers of the header extensions. */
export const ExtensionMagic = {
  END: 0x00000000,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  CRYPTO: 0x0537be77,
  DATA_FILE: 0x44415441,
} as const;

/** Values of `crypt_method`. */
export const CryptMethod = { NONE: 0, AES: 1, LUKS: 2 } as const;

/** Values of `compression_type`. */
export const CompressionType = { ZLIB: 0, ZSTD: 1 } as const;

/** The feature names that spindle writes, in the order of the table: set (0 incompatible, 1 compatible, 2 autoclear). */
export const FEATURE_NAMES: readonly (readonly [set: number, bit: number, name: string])[] = [
  [0, 0, 'dirty bit'],
  [0, 1, 'corrupt bit'],
  [0, 2, 'external data file'],
  [0, 3, 'compression type'],
  [0, 4, 'extended L2 entries'],
  [1, 0, 'lazy refcounts'],
  [2, 0, 'bitmaps'],
  [2, 1, 'raw external data'],
];
/** Bytes of one feature name entry: set, bit, and 46 bytes of name. */
export const FEATURE_NAME_LENGTH = 48;

/** What an image may not exceed. */
export const Limit = {
  MIN_CLUSTER_BITS: 9,
  MAX_CLUSTER_BITS: 21,
  /** Extended L2 needs subclusters of at least one sector. */
  MIN_CLUSTER_BITS_EXTENDED_L2: 14,
  MAX_REFCOUNT_ORDER: 6,
  /** Bytes. */
  L1_TABLE: 32 * 1024 * 1024,
  /** Bytes. */
  REFCOUNT_TABLE: 8 * 1024 * 1024,
  BACKING_NAME: 1023,
  BACKING_FORMAT: 15,
  SNAPSHOTS: 65536,
  /** Bytes of the whole table. */
  SNAPSHOT_TABLE: 64 * 1024 * 1024,
  /** Bytes of extra data of one snapshot. */
  SNAPSHOT_EXTRA: 1024,
  BITMAPS: 65535,
  /** Bytes of the whole directory. */
  BITMAP_DIRECTORY: 67_107_840,
  /** Entries of one bitmap table. */
  BITMAP_TABLE: 2 ** 27,
  /** Bytes of the data of one bitmap. */
  BITMAP_DATA: 512 * 1024 * 1024,
  BITMAP_NAME: 1023,
  MIN_BITMAP_GRANULARITY_BITS: 9,
  MAX_BITMAP_GRANULARITY_BITS: 31,
} as const;

/** Bytes of a sector: the unit of virtual sizes and of compressed lengths. */
export const SECTOR = 512;
/** Subclusters of a cluster in an image with extended L2 entries. */
export const SUBCLUSTERS = 32;
/** Bytes of an L1 entry, a refcount table entry, and a bitmap table entry. */
export const TABLE_ENTRY = 8;

/** Byte offsets in a snapshot table entry. */
export const SnapshotOffset = {
  l1TableOffset: 0,
  l1Size: 8,
  idLength: 12,
  nameLength: 14,
  dateSeconds: 16,
  dateNanoseconds: 20,
  vmClock: 24,
  vmStateSize: 32,
  extraLength: 36,
  extra: 40,
} as const;

/** Byte offsets in the extra data of a snapshot. */
export const SnapshotExtra = { vmStateSize: 0, diskSize: 8, icount: 16 } as const;

/** Byte offsets in a bitmap directory entry. */
export const BitmapOffset = {
  tableOffset: 0,
  tableSize: 8,
  flags: 12,
  type: 16,
  granularityBits: 17,
  nameLength: 18,
  extraLength: 20,
  extra: 24,
} as const;

/** Bits of a bitmap's flags. */
export const BitmapFlag = { IN_USE: 1 << 0, AUTO: 1 << 1, KNOWN: 0x3 } as const;
/** The only bitmap type: a dirty bitmap. */
export const BITMAP_TYPE_DIRTY = 1;
