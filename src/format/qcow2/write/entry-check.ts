import { isAligned } from '../../../core/align.ts';
import { formatError, type SpindleError } from '../../../core/errors.ts';
import { offsetOf } from '../entry.ts';
import type { Metadata } from '../metadata.ts';
import { hasZeroFlag, isCompressed, isCopied, type L2Entry } from './l2-editor.ts';

/**
 * Looks at the L2 entry of guest cluster number `cluster` before anything is written on the word of it.
 * @throws SpindleError BAD_ENTRY for what the format does not allow
 */
export function checkEntry(entry: L2Entry, cluster: number, metadata: Metadata, external: boolean): void {
  const { clusterSize, extendedL2 } = metadata.geometry;
  const bad = (message: string): SpindleError =>
    formatError('BAD_ENTRY', 'L2 entry', `guest offset ${String(cluster * clusterSize)}: ${message}`);
  const offset = offsetOf(entry.hi, entry.lo);
  if (isCompressed(entry)) {
    if (external) throw bad('a compressed cluster in an image with an external data file');
    return;
  }
  if (!isAligned(offset, clusterSize)) throw bad('a host offset that is not cluster aligned');
  if (external && offset !== 0 && offset !== cluster * clusterSize) {
    throw bad('host and guest offset differ in an image with an external data file');
  }
  if (metadata.header.version === 2 && hasZeroFlag(entry))
    throw bad('a zero cluster, which version 2 does not have');
  if (extendedL2 && ((entry.zeros & entry.data) !== 0 || (offset === 0 && !external && entry.data !== 0))) {
    throw bad('a subcluster bitmap that contradicts itself');
  }
}

/** Where the entry of guest cluster number `cluster` points to, null for nowhere. Streams have no place of their own. */
export function hostOf(entry: L2Entry, cluster: number, external: boolean): number | null {
  if (isCompressed(entry)) return null;
  const offset = offsetOf(entry.hi, entry.lo);
  if (offset === 0) return external && cluster === 0 && isCopied(entry) ? 0 : null;
  return offset;
}

/** Whether a standard cluster reads as zeroes. `backed`: what is nowhere is below. */
export function isBlank(entry: L2Entry, backed: boolean): boolean {
  if (isCompressed(entry)) return false;
  return hasZeroFlag(entry) || (!backed && offsetOf(entry.hi, entry.lo) === 0 && !isCopied(entry));
}
