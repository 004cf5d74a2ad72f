import type { Storage } from '../core/storage.ts';
import type { FormatDriver, Mapping } from './driver.ts';

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
