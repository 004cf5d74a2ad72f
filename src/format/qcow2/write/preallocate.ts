import { divUp } from '../../../core/align.ts';
import { fillWithZeroes, reserveNew } from '../../../core/allocation.ts';
import { ZERO } from '../entry.ts';
import type { Qcow2Preallocation } from '../plan.ts';
import { ALL, pointTo, type L2Entry } from './l2-editor.ts';
import type { WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** Bytes of guest data that are preallocated at once. */
const STEP = 64 * 1024 * 1024;

/** What is preallocated, and how. */
export interface PreallocatedRange {
  /** Guest offsets in bytes, of whole clusters; `to` may be the end of the disk. */
  readonly from: number;
  readonly to: number;
  readonly mode: Exclude<Qcow2Preallocation, 'off'>;
  /**
   * `data`: the new clusters hold zeroes as data. `zero`: they are said to read as zeroes, whatever they hold. `bits`:
   * subclusters stay zeroes or the backing file's, as they are.
   */
  readonly as: 'data' | 'zero' | 'bits';
}

/**
 * Gives places to clusters that have none. Tables point to a place when its bytes are written. Runs inside
 * {@link Qcow2Writer.alone}; the tables are durable after a flush.
 * @throws SpindleError NO_SPACE, UNSUPPORTED, LIMIT
 */
export async function preallocate(
  writer: Qcow2Writer,
  whole: WholeTables,
  { from, to, mode, as }: PreallocatedRange,
): Promise<void> {
  const { geometry, size } = whole.metadata;
  const { clusterSize, extendedL2, l2Entries } = geometry;
  const end = divUp(to, clusterSize);
  for (let cluster = from / clusterSize; cluster < end;) {
    const most = Math.min(
      end - cluster,
      l2Entries - (cluster % l2Entries),
      Math.max(1, Math.floor(STEP / clusterSize)),
    );
    const { run, clean } = await whole.takeData(cluster, most);
    const at = run.start * clusterSize;
    const length = run.count * clusterSize;
    try {
      const there = whole.external ? Math.min(length, size - at) : length;
      await fill(whole, at, there, mode, clean || as !== 'data');
    } catch (error) {
      if (!whole.external) await writer.allocator.takeBack(run);
      throw error;
    }
    writer.cache.noteWritten();
    await writer.editor.ensureTable(cluster);
    for (let i = 0; i < run.count; i++) {
      const place = at + i * clusterSize;
      const bits = as === 'bits' ? (await writer.editor.entry(cluster + i)).zeros : 0;
      await writer.editor.set(cluster + i, extendedL2 ? extendedEntry(place, as, bits) : entryOf(place, as));
    }
    cluster += run.count;
    if (writer.cache.full) await whole.flush();
  }
}

function entryOf(place: number, as: PreallocatedRange['as']): L2Entry {
  const entry = pointTo(place, 0, 0);
  return as === 'zero' ? { ...entry, lo: (entry.lo | ZERO) >>> 0 } : entry;
}

function extendedEntry(place: number, as: PreallocatedRange['as'], bits: number): L2Entry {
  if (as === 'data') return pointTo(place, 0, ALL);
  return pointTo(place, as === 'zero' ? ALL : bits, 0);
}

/** Gives a place its space; `clean`: it reads as zeroes, or need not. */
async function fill(
  whole: WholeTables,
  at: number,
  length: number,
  mode: PreallocatedRange['mode'],
  clean: boolean,
): Promise<void> {
  const { data } = whole;
  if (!clean && mode !== 'full') await data.zero(at, length, { keepAllocated: mode === 'falloc' });
  // A device has its space.
  if (mode === 'falloc' && data.can.resize) await reserveNew(data, at, length);
  if (mode === 'full') await fillWithZeroes(data, at, length);
}
