import { hex, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readAvailable } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { Autoclear, HeaderOffset, Incompatible, ExtensionMagic } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import { entryPatches } from './entry-patches.ts';
import { planRebuild } from './rebuild.ts';
import { refcountPatches, refcountTablePatches } from './refcount-patches.ts';
import { scanImage, type Scan } from './scan.ts';
import { mendSnapshots, type SnapshotMending } from './snapshot-table.ts';
import type { LeftAlone, Patch, PlanOptions, RepairMode, RepairPlan, RepairStep } from './step.ts';
import { Targets } from './targets.ts';

/**
 * Plans the repair of a qcow2 image; nothing is changed. `metadata` was read with the purpose `check`. The plan holds
 * for the image as it is now.
 *
 * Whatever of it is carried out, in this order and with a flush between steps, no cluster in use ends up with a
 * refcount that is lower than before and too low: power may fail at any time. Refcounts are lowered only where every
 * reference is known; a broken reference (past the end of the file, not aligned, in a table that cannot be read) may
 * have led to what looks unused.
 * @throws SpindleError ABORTED; LIMIT when refcounts must be written anew and their width, or the refcount table, cannot
 * hold them; NO_SPACE
 */
export async function planRepair(
  image: Storage,
  found: Metadata,
  mode: RepairMode,
  options: PlanOptions = {},
): Promise<RepairPlan> {
  const grows = options.grows ?? image.can.resize;
  const mending = mode === 'all' ? await mendSnapshots(image, found, options) : null;
  // Everything else is planned for the image with its new snapshot table.
  const { storage, metadata } = mending ?? { storage: image, metadata: found };
  const scan = await scanImage(storage, metadata, mode, options.signal);
  const keeps = scan.loses || options.keepCounts === true;
  const targets = await Targets.of(scan, mode, keeps);
  const left = [...scan.left];
  const damage = scan.damage ?? (targets.lacksBlocks() ? 'clusters in use have no refcount block' : null);
  const rebuilds = damage !== null && mode === 'all';
  const isDirty = (metadata.header.incompatible.lo & Incompatible.DIRTY) !== 0;
  const steps =
    mode === 'all'
      ? repairAll(storage, scan, targets, { rebuilds, keeps, grows, mending })
      : leaksOnly(scan, targets, left, damage, isDirty, keeps);
  if (keeps && !rebuilds && (await hasLeaks(scan, metadata, options)))
    left.push({
      message: 'refcounts that look too high are kept: a reference that is broken may account for them',
    });
  const overflow = targets.overflow();
  if (overflow !== null) left.push({ message: overflowMessage(scan, targets, overflow) });
  const filled = await notEmpty([...headerSteps(storage, metadata), ...steps], options.signal);
  const isOnlyHeader = filled.every(({ name }) => name === 'autoclear');
  return {
    ...{ mode, left, rebuilds, keepsCounts: keeps },
    steps: isOnlyHeader ? [] : filled,
    snapshots: mending?.changes ?? { mended: [], dropped: [] },
    finish: finishStep(storage, metadata, mode, left),
  };
}

/** How everything is repaired. */
interface Ways {
  readonly rebuilds: boolean;
  readonly keeps: boolean;
  readonly grows: boolean;
  readonly mending: SnapshotMending | null;
}

function repairAll(
  storage: Storage,
  scan: Scan,
  targets: Targets,
  { rebuilds, keeps, grows, mending }: Ways,
): RepairStep[] {
  const write = mending?.write ?? null;
  const before = write === null ? [] : [write];
  const mend: RepairStep = {
    name: 'mend',
    title: 'clear reserved bits and copied flags that must not be set',
    patches: () => mendPatches(scan, targets, rebuilds),
  };
  const flags: RepairStep = {
    name: 'flags',
    title: 'set copied flags that are missing',
    patches: () => entryPatches(scan, targets, 'flags'),
  };
  if (rebuilds) {
    const { build, change } = planRebuild(storage, scan, targets, grows);
    // Without the old structures: nothing is shared with them any more.
    const overflow = targets.overflow();
    if (overflow !== null) throw new SpindleError('LIMIT', overflowMessage(scan, targets, overflow));
    // What mending takes a reference from keeps its old refcount until the header changes.
    return [...before, build, mend, mending === null ? change : joined(change, mending.show), flags];
  }
  const raise: RepairStep = {
    name: 'raise',
    title: 'raise refcounts that are too low',
    patches: () => refcountPatches(scan, targets, 'raise'),
  };
  const show = mending === null ? [] : [mending.show];
  return [...before, raise, mend, ...show, ...(keeps ? [] : [lowerStep(scan, targets)]), flags];
}

/** Two changes of the header that lie side by side, so that they are made by one write. */
function joined(first: RepairStep, second: RepairStep): RepairStep {
  return {
    name: first.name,
    title: `${first.title}; ${second.title}`,
    patches: async function* () {
      yield* first.patches();
      yield* second.patches();
    },
  };
}

async function* mendPatches(scan: Scan, targets: Targets, rebuilds: boolean): AsyncGenerator<Patch> {
  if (!rebuilds) yield* refcountTablePatches(scan);
  yield* entryPatches(scan, targets, 'mend');
}

function lowerStep(scan: Scan, targets: Targets): RepairStep {
  return {
    name: 'lower',
    title: 'lower refcounts that are too high',
    patches: () => refcountPatches(scan, targets, 'lower'),
  };
}

function leaksOnly(
  scan: Scan,
  targets: Targets,
  left: LeftAlone[],
  damage: string | null,
  isDirty: boolean,
  keeps: boolean,
): RepairStep[] {
  if (damage !== null) {
    left.push({ message: `${damage}: leaks cannot be told; repair all (-r all)` });
    return [];
  }
  if (isDirty) {
    left.push({
      message:
        'the image is marked dirty, so its refcounts may be out of date: repair all (-r all), not only leaks',
    });
    return [];
  }
  return [
    {
      name: 'mend',
      title: 'clear copied flags that must not be set',
      patches: () => entryPatches(scan, targets, 'mend'),
    },
    ...(keeps ? [] : [lowerStep(scan, targets)]),
    {
      name: 'flags',
      title: 'set copied flags that are missing',
      patches: () => entryPatches(scan, targets, 'flags'),
    },
  ];
}

/** What any program does that changes an image: tell those that mark their own data with a bit, and drop old bitmaps. */
function headerSteps(storage: Storage, metadata: Metadata): RepairStep[] {
  const { header, known, extensions } = metadata;
  const steps: RepairStep[] = [];
  const unknown = header.autoclear.hi !== 0 || (header.autoclear.lo & ~Autoclear.KNOWN) !== 0;
  if (unknown) {
    const why = 'autoclear bits that are not known are cleared before the image changes';
    const value = header.autoclear.lo & Autoclear.KNOWN;
    steps.push({
      name: 'autoclear',
      title: why,
      patches: () => headerWord(storage, HeaderOffset.autoclearFeatures, 0, value, why),
    });
  }
  const last = extensions.at(-1);
  const isLast = last?.magic === ExtensionMagic.BITMAPS;
  if (known.bitmaps !== undefined && isLast && (header.autoclear.lo & Autoclear.BITMAPS) === 0) {
    const why =
      'bitmaps that are out of date are dropped: another program has changed the image without them';
    steps.push({
      name: 'bitmaps',
      title: why,
      patches: () => headerWord(storage, last.offset, 0, 0, why),
    });
  }
  return steps;
}

function finishStep(
  storage: Storage,
  { header }: Metadata,
  mode: RepairMode,
  left: LeftAlone[],
): RepairStep | null {
  const { hi, lo } = header.incompatible;
  const bits = lo & (Incompatible.DIRTY | Incompatible.CORRUPT);
  if (bits === 0) return null;
  if (mode === 'leaks') {
    if ((bits & Incompatible.CORRUPT) !== 0)
      left.push({ message: 'the image stays marked corrupt: repairing all (-r all) clears the mark' });
    return null;
  }
  const names = [
    ...((bits & Incompatible.DIRTY) !== 0 ? ['dirty'] : []),
    ...((bits & Incompatible.CORRUPT) !== 0 ? ['corrupt'] : []),
  ].join(' and ');
  const why = `the image is not marked ${names} any more`;
  return {
    name: 'finish',
    title: `${why}, if a check finds it sound`,
    patches: () => headerWord(storage, HeaderOffset.incompatibleFeatures, hi, (lo & ~bits) >>> 0, why),
  };
}

async function* headerWord(
  storage: Storage,
  at: number,
  hi: number,
  lo: number,
  why: string,
): AsyncGenerator<Patch> {
  const bytes = new Uint8Array(8);
  viewOf(bytes).setUint32(0, hi);
  viewOf(bytes).setUint32(4, lo);
  yield { at, bytes, before: await readAvailable(storage, at, 8), structure: 'header', why };
}

async function hasLeaks(scan: Scan, metadata: Metadata, options: PlanOptions): Promise<boolean> {
  if (metadata.header.refcountTableClusters === 0) return false;
  const plain = await Targets.of(scan, 'all', false);
  for await (const _ of refcountPatches(scan, plain, 'lower')) return true;
  return options.signal?.aborted === true;
}

/** The steps that change anything. */
async function notEmpty(
  steps: readonly RepairStep[],
  signal: AbortSignal | undefined,
): Promise<RepairStep[]> {
  const found: RepairStep[] = [];
  for (const step of steps) {
    if (signal?.aborted === true) throw new SpindleError('ABORTED', 'the repair was stopped');
    for await (const _ of step.patches()) {
      found.push(step);
      break;
    }
  }
  return found;
}

function overflowMessage(scan: Scan, targets: Targets, cluster: number): string {
  const { clusterSize, refcountBits } = scan.context.metadata.geometry;
  return `the cluster at ${hex(cluster * clusterSize)} has ${String(targets.references(cluster))} references, more than a refcount of ${String(refcountBits)} bits can count: copy the image (convert) to one with wider refcounts`;
}
