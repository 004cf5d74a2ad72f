import type { CheckProblem } from '../check/problem.ts';

/** What a repair may change: `leaks` lowers refcounts that are too high, `all` repairs what it can. */
export type RepairMode = 'leaks' | 'all';

/** One change: bytes at a host offset. */
export interface Patch {
  /** Host offset in bytes. */
  readonly at: number;
  readonly bytes: Uint8Array;
  /** The bytes as they are now; shorter than `bytes` where the file ends, empty past its end. */
  readonly before: Uint8Array;
  /** What is changed, such as `L2 entry`. */
  readonly structure: string;
  /** What for, in words. */
  readonly why: string;
}

/** The steps of a repair, by name. */
export type StepName =
  | 'autoclear' // feature bits of programs that are told by them that the image was changed
  | 'bitmaps' // the extension of bitmaps that are out of date
  | 'table' // a new snapshot table, in free space
  | 'build' // new refcount blocks and table, in free space
  | 'raise' // refcounts that are too low
  | 'mend' // entries: reserved bits, copied flags that must not be set
  | 'switch' // the header from the old refcount table to the new
  | 'snapshots' // the header from the old snapshot table to the new
  | 'lower' // refcounts that are too high
  | 'flags' // copied flags that may be set
  | 'finish'; // the dirty and the corrupt bit

/** Patches in any order among themselves; all are durable before the next step begins. */
export interface RepairStep {
  readonly name: StepName;
  /** What it does, in words. */
  readonly title: string;
  /** Bytes that the file must have before its patches are written; it never shrinks. */
  readonly size?: number;
  /**
   * The changes, made as they are asked for from what the image holds then. Valid until the next one is asked for. May be
   * asked for more than once.
   */
  readonly patches: () => AsyncIterable<Patch>;
}

/** Something that a repair leaves as it is. */
export interface LeftAlone {
  readonly message: string;
  /** The problem, where it is one that a check finds. */
  readonly problem?: CheckProblem;
}

/** What a repair does to snapshots whose entries in the snapshot table are damaged; a line for each, in words. */
export interface SnapshotChanges {
  readonly mended: readonly string[];
  /** Snapshots that are dropped, and why. Only a journal brings them back. */
  readonly dropped: readonly string[];
}

/** What a repair will do. */
export interface RepairPlan {
  readonly mode: RepairMode;
  /** In order. Empty: there is nothing that a repair of this mode can do. */
  readonly steps: readonly RepairStep[];
  /** The last step, only for an image that a check after all others finds clean; null when no bit is set. */
  readonly finish: RepairStep | null;
  /** What stays wrong, and why; the first of it. */
  readonly left: readonly LeftAlone[];
  /** What is mended in snapshots, and what is given up because it cannot be read; in words. */
  readonly snapshots: SnapshotChanges;
  /** Whether all refcounts are written anew. */
  readonly rebuilds: boolean;
  /** Whether refcounts are never lowered: references may be missing that would explain them. */
  readonly keepsCounts: boolean;
}

/** How a repair is planned. */
export interface PlanOptions {
  /** Aborts the work: it fails with ABORTED. */
  readonly signal?: AbortSignal | undefined;
  /** Never lower a refcount. */
  readonly keepCounts?: boolean | undefined;
  /** Whether the file may grow. Default: whether the storage can be resized; a plan may be made without that. */
  readonly grows?: boolean | undefined;
}
