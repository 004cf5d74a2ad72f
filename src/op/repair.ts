import { SpindleError } from '../core/errors.ts';
import type { Storage } from '../core/storage.ts';
import { stopIfAborted, type Working } from '../core/working.ts';
import { knownFormat, probeFormat, type Format } from '../format/open.ts';
import { checkImage, type CheckOptions, type CheckResult } from '../format/qcow2/check/check.ts';
import { readMetadata } from '../format/qcow2/metadata.ts';
import { applyRepair } from '../format/qcow2/repair/apply.ts';
import { JournalWriter } from '../format/qcow2/repair/journal.ts';
import { planRepair } from '../format/qcow2/repair/plan.ts';
import type {
  LeftAlone,
  Patch,
  RepairMode,
  RepairPlan,
  SnapshotChanges,
  StepName,
} from '../format/qcow2/repair/step.ts';
import { undoRepair, type Undone } from '../format/qcow2/repair/undo.ts';
import { overlay } from '../layer/overlay.ts';
import { openFile, type FileStorage } from '../storage/file.ts';
import { lockImage } from '../storage/lock.ts';
import { removeFile } from '../storage/remove.ts';
import { checkJson, type CheckJson } from './check.ts';
import { imageName } from './image-name.ts';
import { refuseKind, refuseToWrite } from './open.ts';

/** How an image is repaired. */
export interface RepairOptions extends Working {
  /** `leaks`: lower refcounts that are too high, and nothing that needs a decision. `all`: everything that can be. */
  readonly mode: RepairMode;
  /** Told each problem that the first check finds. */
  readonly onProblem?: CheckOptions['onProblem'];
  /** Told each change before it is made; with a dry run, each that would be made. */
  readonly onPatch?: ((patch: Patch, step: StepName) => void) | undefined;
}

/** What a repair did, or would do. */
export interface RepairResult {
  /** What a check found at first. */
  readonly before: CheckResult;
  /** What a check finds now; after a dry run what it would find. */
  readonly after: CheckResult;
  readonly corruptionsFixed: number;
  readonly leaksFixed: number;
  /** Changes made, or planned. */
  readonly changes: number;
  /** The steps done, or planned, in words. */
  readonly steps: readonly string[];
  /** What stays wrong, and why. */
  readonly left: readonly LeftAlone[];
  /** Snapshots that were mended, and those that were dropped because they cannot be read. */
  readonly snapshots: SnapshotChanges;
}

/** Plans that are carried out one after the other at most: what overlaps may only come to light when it is apart. */
const ROUNDS = 4;

/**
 * Repairs the qcow2 image in `storage` and checks it again. With a journal (an empty storage that can be resized) the
 * repair can be taken back. Power may fail at any time: the image is no worse than before then.
 * @throws SpindleError what {@link readMetadata} and {@link planRepair} throw; ABORTED; IO; NO_SPACE
 */
export async function repair(
  storage: Storage,
  options: RepairOptions,
  journal?: JournalWriter,
): Promise<RepairResult> {
  const { mode, signal } = options;
  const before = await checkImage(storage, await readMetadata(storage, 'check'), checkOptions(options));
  let after = before;
  let changes = 0;
  const steps: string[] = [];
  let left: readonly LeftAlone[] = [];
  let snapshots: SnapshotChanges = { mended: [], dropped: [] };
  let keepCounts = false;
  for (let round = 0; round < ROUNDS; round++) {
    stopIfAborted(signal);
    const plan = await planRepair(storage, await readMetadata(storage, 'check'), mode, {
      signal,
      keepCounts,
    });
    left = plan.left;
    // A reference that was lost stays lost, though the file may have grown over the place where it led.
    keepCounts = plan.keepsCounts;
    const isFinished = plan.finish === null || round > 0;
    if (plan.steps.length === 0 && isFinished) break;
    snapshots = {
      mended: [...snapshots.mended, ...plan.snapshots.mended],
      dropped: [...snapshots.dropped, ...plan.snapshots.dropped],
    };
    const done = await applyRepair(storage, watched(plan, options), {
      ...{ journal, signal },
      onStep: ({ title }) => steps.push(title),
      onProgress: options.onProgress,
    });
    after = done.after;
    changes += done.patches;
    if (done.patches === 0 || (after.corruptions === 0 && after.leaks === 0 && after.checkErrors === 0))
      break;
  }
  if (after.corruptions === 0 && after.leaks === 0 && after.checkErrors === 0)
    left = left.filter(({ problem }) => problem === undefined && mode === 'leaks');
  return {
    ...{ before, after, changes, steps, left, snapshots },
    corruptionsFixed: Math.max(0, before.corruptions - after.corruptions),
    leaksFixed: Math.max(0, before.leaks - after.leaks),
  };
}

/**
 * Tells what {@link repair} would do, and what a check would find then: the repair is done on a copy of what it changes,
 * in memory. Nothing is changed.
 * @throws SpindleError as {@link repair}
 */
export function planOnly(
  storage: Storage,
  options: RepairOptions & { readonly grows?: boolean },
): Promise<RepairResult> {
  return repair(overlay(storage, { resize: options.grows ?? storage.can.resize }), options);
}

/** A plan whose changes are told as they are made. */
function watched(plan: RepairPlan, { onPatch }: RepairOptions): RepairPlan {
  if (onPatch === undefined) return plan;
  const watch = (step: RepairPlan['steps'][number]): RepairPlan['steps'][number] => ({
    ...step,
    patches: async function* () {
      for await (const patch of step.patches()) {
        onPatch(patch, step.name);
        yield patch;
      }
    },
  });
  return { ...plan, steps: plan.steps.map(watch), finish: plan.finish === null ? null : watch(plan.finish) };
}

function checkOptions({ signal, onProgress, onProblem }: RepairOptions): CheckOptions {
  return {
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
    ...(onProblem === undefined ? {} : { onProblem }),
  };
}

/** The object that `qemu-img check -r --output=json` prints. */
export interface RepairJson extends CheckJson {
  readonly 'corruptions-fixed'?: number;
  readonly 'leaks-fixed'?: number;
}

/** A repair in the shape of qemu-img: the counts after it, and how many there were more before. */
export function repairJson(done: RepairResult, filename: string, format: string): RepairJson {
  return {
    ...checkJson(done.after, filename, format),
    ...(done.corruptionsFixed === 0 ? {} : { 'corruptions-fixed': done.corruptionsFixed }),
    ...(done.leaksFixed === 0 ? {} : { 'leaks-fixed': done.leaksFixed }),
  };
}

/** How an image file is repaired. */
export interface RepairFileOptions extends RepairOptions {
  /** Default: told from the first bytes. */
  readonly format?: string | undefined;
  /** Change nothing, only tell. */
  readonly dryRun?: boolean | undefined;
  /** Path of a new file that keeps what is needed to take the repair back. It must not exist. */
  readonly journal?: string | undefined;
}

/**
 * Repairs the qcow2 image in a file, which nobody else may use meanwhile. A journal that turns out not to be needed is
 * removed.
 * @throws SpindleError UNSUPPORTED for a raw image; EXISTS for a journal that is there; IN_USE; and what {@link repair}
 * throws
 */
export async function repairFile(path: string, options: RepairFileOptions): Promise<RepairResult> {
  const storage = await openForRepair(path, options.format, options.dryRun !== true);
  let journal: FileStorage | undefined;
  try {
    if (options.dryRun === true) return await planOnly(storage, { ...options, grows: !storage.isDevice });
    if (options.journal === undefined) return await repair(storage, options);
    journal = await openFile(options.journal, { create: 'exclusive' });
    return await repair(storage, options, new JournalWriter(journal, path));
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    try {
      if (journal !== undefined) await closeJournal(journal);
    } finally {
      await storage.close();
    }
  }
}

async function closeJournal(journal: FileStorage): Promise<void> {
  const isUnused = journal.size === 0;
  await journal.close();
  if (isUnused) await removeFile(journal.path);
}

/**
 * Takes the repair of an image file back with its journal, which stays as it is.
 * @throws SpindleError BAD_OPTION when the journal does not fit the image as it is now; IN_USE; NOT_FOUND
 */
export async function undoRepairFile(path: string, journalPath: string): Promise<Undone> {
  // Not told apart by its first bytes: the repair may have been of anything.
  const storage = await openForRepair(path, 'qcow2', true);
  try {
    const journal = await openFile(journalPath);
    try {
      return await undoRepair(storage, journal);
    } finally {
      await journal.close();
    }
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}

async function openForRepair(path: string, wanted: string | undefined, write: boolean): Promise<FileStorage> {
  const says = imageName(path);
  const format: Format | undefined = knownFormat(wanted ?? says.format);
  if (write) refuseToWrite(says, path);
  const storage = await openFile(says.path, { write, direct: says.direct === true });
  try {
    refuseKind(says, storage, path);
    if ((format ?? (await probeFormat(storage))) !== 'qcow2')
      throw new SpindleError('UNSUPPORTED', 'only qcow2 images have tables that could be repaired', { path });
    if (says.unlocked !== true) await lockImage(storage, write ? 'write' : 'read');
    return storage;
  } catch (error) {
    await storage.close();
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  }
}
