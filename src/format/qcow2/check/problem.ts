/** How bad a problem is: `error` means that a part of the image could not be checked at all. */
export type ProblemKind = 'corruption' | 'leak' | 'error';

/** Stable names of what a check can find. Codes never change meaning within a major version; messages may. */
export type ProblemCode =
  // refcounts
  | 'REFCOUNT_TOO_LOW' // a cluster has more references than its refcount says
  | 'REFCOUNT_TOO_HIGH' // a cluster has fewer references than its refcount says: a leak
  | 'REFCOUNT_UNREADABLE' // a refcount block cannot be read
  | 'REFERENCE_OVERFLOW' // more references than a refcount of the image's width can hold
  | 'REFTABLE_RESERVED' // reserved bits in a refcount table entry
  | 'REFBLOCK_UNALIGNED'
  | 'REFBLOCK_BEYOND_END'
  | 'REFBLOCK_SHARED' // a refcount block that something else refers to as well
  // references
  | 'BEYOND_END' // a reference to a range that ends a cluster or more past the end of the file
  | 'OVERLAP' // explains others: metadata in a cluster that has another use, too
  // L1 and L2
  | 'L1_RESERVED'
  | 'L2_RESERVED'
  | 'L2_UNALIGNED'
  | 'DATA_UNALIGNED'
  | 'COPIED_WRONG' // the copied flag contradicts the refcount
  | 'COMPRESSED_COPIED' // the copied flag on a compressed cluster
  | 'COMPRESSED_SUBCLUSTERS' // a subcluster bitmap on a compressed cluster
  | 'COMPRESSED_DATA_FILE' // a compressed cluster beside an external data file
  | 'SUBCLUSTERS_WRONG' // a subcluster bitmap that contradicts itself or its entry
  | 'ZERO_FLAG_V2' // a zero cluster in version 2
  | 'DATA_FILE_OFFSET' // host and guest offset differ in an external data file
  // snapshots and bitmaps
  | 'SNAPSHOT_TABLE' // the snapshot table cannot be read
  | 'SNAPSHOT_EXTRA_SHORT'
  | 'SNAPSHOT_L1_UNALIGNED'
  | 'SNAPSHOT_L1_TOO_LARGE'
  | 'SNAPSHOTS_DATA_FILE' // internal snapshots beside an external data file
  | 'BITMAP_ENTRY' // a bitmap table entry that breaks the format
  // the check itself
  | 'READ_FAILED'
  | 'LIMIT';

/**
 * What would put a problem right: `refcount` set one refcount; `flag` set or clear the copied flag; `rebuild` write all
 * refcounts anew; `entry` change or drop the entry; `none` nothing that keeps the data; `other` follows when the problem
 * that this one explains is repaired.
 */
export type RepairKind = 'refcount' | 'flag' | 'rebuild' | 'entry' | 'none' | 'other';

/** One finding. Offsets are bytes. */
export interface CheckProblem {
  readonly kind: ProblemKind;
  readonly code: ProblemCode;
  readonly message: string;
  /** The structure that is wrong, such as `L2 entry`. */
  readonly structure: string;
  /**
   * How often the finding counts: more than once where several tables lead to it, or where it stands for a run of
   * clusters; 0 where it only explains findings that are counted by themselves.
   */
  readonly times: number;
  /** Host offset of the cluster or entry in question. */
  readonly hostOffset?: number;
  /** Guest offset that is affected; where there are several, one of them. */
  readonly guestOffset?: number;
  readonly repair: RepairKind;
}

/** Findings kept when the caller does not say. */
const DEFAULT_LIMIT = 1000;

/** Counts problems and keeps the first of them. Texts are made only for those that somebody will see. */
export class ProblemLog {
  corruptions = 0;
  leaks = 0;
  checkErrors = 0;
  readonly problems: CheckProblem[] = [];
  /** Findings that were counted but not kept. */
  omitted = 0;
  readonly #limit: number;
  readonly #tell: ((problem: CheckProblem) => void) | undefined;

  constructor(limit: number = DEFAULT_LIMIT, tell?: (problem: CheckProblem) => void) {
    this.#limit = limit;
    this.#tell = tell;
  }

  /** Whether the text of one more problem would be wanted. */
  get wanted(): boolean {
    return this.#tell !== undefined || this.problems.length < this.#limit;
  }

  corruption(times: number, describe: () => Described): void {
    this.corruptions += times;
    this.#add('corruption', times, describe);
  }

  leak(times: number, describe: () => Described): void {
    this.leaks += times;
    this.#add('leak', times, describe);
  }

  error(times: number, describe: () => Described): void {
    this.checkErrors += times;
    this.#add('error', times, describe);
  }

  #add(kind: ProblemKind, times: number, describe: () => Described): void {
    if (!this.wanted) {
      this.omitted++;
      return;
    }
    const problem: CheckProblem = { kind, times, ...describe() };
    if (this.problems.length < this.#limit) this.problems.push(problem);
    else this.omitted++;
    this.#tell?.(problem);
  }
}

/** A problem without its kind and count. */
export type Described = Omit<CheckProblem, 'kind' | 'times'>;
