import { offsetIn } from '../../../core/align.ts';
import type { Qcow2Driver } from '../driver.ts';
import { Incompatible } from '../layout.ts';
import type { Place } from '../../driver.ts';
import { checkEntry } from './entry-check.ts';
import { isCopied } from './l2-editor.ts';
import type { Qcow2Writer } from './writer.ts';

/**
 * Where a guest range can be written over with nothing to be made, changed or waited for: it lies in one cluster, which is
 * this image's own and holds data, and its tables are in memory. Undefined for anything else.
 * @throws SpindleError BAD_ENTRY, CORRUPT, LIMIT
 */
export function inPlace(
  writer: Qcow2Writer,
  reader: Qcow2Driver,
  file: { readonly size: number },
  at: number,
  length: number,
): Place | undefined {
  const { metadata } = reader;
  const { clusterSize } = metadata.geometry;
  const within = offsetIn(at, clusterSize);
  if (!writer.isIdle || within + length > clusterSize) return undefined;
  const mapping = reader.map(at, length);
  if (mapping instanceof Promise) {
    // The table is being read by now; what is wrong with it is told to the write that waits for it.
    mapping.catch(() => undefined);
    return undefined;
  }
  if (mapping.kind !== 'data' || mapping.length < length) return undefined;
  const cluster = Math.floor(at / clusterSize);
  const entry = writer.editor.entryNow(cluster);
  if (entry === undefined || !isCopied(entry)) return undefined;
  const external = (metadata.header.incompatible.lo & Incompatible.DATA_FILE) !== 0;
  checkEntry(entry, cluster, metadata, external);
  const start = mapping.at - within;
  const end = start + clusterSize;
  if (external) {
    if (Math.min(end, metadata.size) > reader.data.size) return undefined;
  } else {
    if (end > file.size || end > writer.usedEnd) return undefined;
    writer.kinds.check(start, clusterSize);
  }
  return { storage: mapping.storage, at: mapping.at };
}
