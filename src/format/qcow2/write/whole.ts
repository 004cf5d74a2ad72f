import type { Storage } from '../../../core/storage.ts';
import type { PlainData } from '../../crypto/encrypted-storage.ts';
import type { Metadata } from '../metadata.ts';
import type { LiveBitmaps } from './live-bitmaps.ts';
import type { ClusterRun } from './allocator.ts';
import type { OverlapCheck } from './cluster-kinds.ts';
import type { Qcow2Writer } from './writer.ts';

/** What work on the tables as a whole is given. Everything that was done before it is durable. */
export interface WholeTables {
  /** The file that holds the tables. */
  readonly storage: Storage;
  /** Where guest data is. */
  readonly data: Storage;
  readonly metadata: Metadata;
  /** Guest data has its fixed place in a file of its own. */
  readonly external: boolean;
  /** Makes all that was done durable, in order, and frees what was given back. */
  flush(): Promise<void>;
  /** Makes the file long enough for a write that ends at `end`. */
  reach(end: number): Promise<void>;
  /** Takes clusters for guest clusters from number `first` on; `clean` when they read as zeroes. */
  takeData(first: number, most: number): Promise<{ readonly run: ClusterRun; readonly clean: boolean }>;
  /** Cuts the file, of which nothing at or after `end` is in use. */
  cut(end: number): Promise<void>;
}

/** An image that is changed in steps, between which its tables are read anew. */
export interface Reloadable {
  /** The writer; another one after every {@link reload}. */
  writer(): Qcow2Writer;
  /** Reads the metadata anew. `size` is the virtual size to work with where it is not the header's. */
  reload(size?: number): Promise<void>;
  /** Give the space of freed clusters back to the host. */
  readonly punch: boolean;
  /** See {@link WriterOptions.atOnce}. */
  readonly atOnce: number | undefined;
}

/** How the writer of an image works. */
export interface WriterOptions {
  /** Something is below the image: what it does not hold is not zero. */
  readonly backed: boolean;
  /** The way to guest data in the clear, of an encrypted image. */
  readonly plain?: PlainData | undefined;
  /** Give the space of freed clusters back to the host. Default: yes. */
  readonly punch?: boolean;
  /** Bytes from the start of the file that may be in use. Default: all of it. */
  readonly usedEnd?: number;
  /** What is looked at before every write. Default: cached. */
  readonly overlapCheck?: OverlapCheck | undefined;
  /** The bitmaps of the image that record what is written; none where it has none. */
  readonly bitmaps?: LiveBitmaps | undefined;
  /** For tests: how many clusters a snapshot operation changes at once. Default: as many as do not take much memory. */
  readonly atOnce?: number;
  /** For tests: write metadata in the wrong order. */
  readonly brokenOrder?: boolean;
}
