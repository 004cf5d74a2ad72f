import { alignDown, alignUp } from '../core/align.ts';
import type { Held, RangeLock } from '../core/range-lock.ts';
import type { Storage } from '../core/storage.ts';
import type { FormatDriver, Mapping, Place } from './driver.ts';

/**
 * The one place that a range is read from, or written over, with nothing to be looked up or made first; undefined where
 * there is none, and for whatever is wrong.
 */
function placeNow(
  driver: FormatDriver,
  at: number,
  length: number,
  way: 'read' | 'write',
): Place | undefined {
  try {
    if (way === 'write') return driver.placeNow?.(at, length);
    const mapping = driver.map(at, length);
    if (mapping instanceof Promise) {
      mapping.catch(() => undefined);
      return undefined;
    }
    const there = mapping.kind === 'data' && mapping.encrypted !== true && mapping.length >= length;
    return there && mapping.at + length <= mapping.storage.size ? mapping : undefined;
  } catch {
    // A request that may wait comes upon it again, and tells.
    return undefined;
  }
}

/** A request for a range of a disk. */
interface Request {
  readonly at: number;
  readonly length: number;
  readonly way: 'read' | 'write';
}

/**
 * Begins a request that needs nothing but one place, with as little around it as can be; undefined where there is more to
 * it, or where it is not its turn. `lock` is held meanwhile where there is one: by a write the whole units of the format.
 * Failures are what `named` makes of them.
 */
export function atOnce(
  { driver, lock }: { readonly driver: FormatDriver; readonly lock: RangeLock | null },
  { at, length, way }: Request,
  work: (place: Place) => Promise<void>,
  named: (error: unknown) => unknown,
): Promise<void> | undefined {
  const place = placeNow(driver, at, length, way);
  if (place === undefined) return undefined;
  const fail = (error: unknown): never => {
    throw named(error);
  };
  if (lock === null) return work(place).catch(fail);
  const unit = way === 'write' ? driver.granularity : 1;
  const start = alignDown(at, unit);
  const end = alignUp(at + length, unit);
  const held = lock.tryHold(start, end - start, way === 'write' ? 'exclusive' : 'shared');
  return held && holding(lock, held, () => work(place)).catch(fail);
}

/** Runs work that holds a range, and lets go of it whatever comes. */
function holding(lock: RangeLock, held: Held, work: () => Promise<void>): Promise<void> {
  const release = (): void => {
    lock.release(held);
  };
  try {
    const begun = work();
    begun.then(release, release);
    return begun;
  } catch (error) {
    release();
    return Promise.reject(error);
  }
}

/**
 * Fills `into` from the disk that `driver` and `backing` are, as {@link Storage.readNow}: where all tables are in memory
 * and all data can be had at once. False also for whatever is wrong.
 */
export function readNow(
  driver: FormatDriver,
  backing: Storage | null,
  into: Uint8Array,
  at: number,
): boolean {
  try {
    for (let done = 0; done < into.length;) {
      const mapping = driver.map(at + done, into.length - done);
      if (mapping instanceof Promise) {
        // Tables are being read by now. What may be wrong with them is told to the read that waits for them.
        mapping.catch(() => undefined);
        return false;
      }
      const part = mapping.length === into.length ? into : into.subarray(done, done + mapping.length);
      if (!fetchNow(mapping, backing, part, at + done)) return false;
      done += mapping.length;
    }
    return true;
  } catch {
    // A read that may wait comes upon it again, and tells.
    return false;
  }
}

function fetchNow(mapping: Mapping, backing: Storage | null, part: Uint8Array, at: number): boolean {
  if (mapping.kind === 'data') return mapping.storage.readNow?.(part, mapping.at) ?? false;
  if (mapping.kind === 'compressed') return false;
  if (mapping.kind === 'backing' && backing !== null) return backing.readNow?.(part, at) ?? false;
  part.fill(0);
  return true;
}
