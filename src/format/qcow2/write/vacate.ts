import { isZero } from '../../../core/bytes.ts';
import { ZERO } from '../entry.ts';
import { checkEntry, hostOf } from './entry-check.ts';
import { ALL, giveEntry, isCompressed, isCopied, hasZeroFlag, NOWHERE, type L2Entry } from './l2-editor.ts';
import { cutFile } from './resize.ts';
import type { WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** A range in bytes. */
export interface ByteRange {
  readonly at: number;
  readonly length: number;
}

/** Runs of clusters given back after which they are freed, so that the list stays short. */
const MOST_GIVEN = 50_000;

/**
 * Takes the places of guest clusters away that read as zeroes. What internal snapshots share keeps its place, and so does
 * everything where the format has no zero clusters though something lies below. Runs inside {@link Qcow2Writer.alone}; the
 * space is free after a flush.
 *
 * The clusters that kept their places: guest ranges.
 * @throws SpindleError BAD_ENTRY, CORRUPT, NO_SPACE
 */
export async function vacate(
  writer: Qcow2Writer,
  whole: WholeTables,
  ranges: readonly ByteRange[],
): Promise<ByteRange[]> {
  const { metadata, external } = whole;
  const { clusterSize } = metadata.geometry;
  const kept: ByteRange[] = [];
  for (const { at, length } of ranges) {
    const end = (at + length) / clusterSize;
    for (let cluster = Math.floor(at / clusterSize); cluster < end; cluster++) {
      const entry = await writer.editor.entry(cluster);
      checkEntry(entry, cluster, metadata, external);
      if (isCompressed(entry) || hostOf(entry, cluster, external) === null) continue;
      const next = isCopied(entry) ? emptied(entry, writer, whole) : null;
      if (next === null) {
        kept.push({ at: cluster * clusterSize, length: clusterSize });
        continue;
      }
      await writer.editor.ensureTable(cluster);
      await writer.editor.set(cluster, next);
      if (!external) giveEntry(entry, metadata.geometry, writer.allocator);
    }
    if (writer.cache.full || writer.allocator.pending > MOST_GIVEN) await whole.flush();
  }
  return kept;
}

/** The entry of a cluster that reads as before without its place; null where there is none. */
function emptied(entry: L2Entry, writer: Qcow2Writer, { metadata }: WholeTables): L2Entry | null {
  const { backed } = writer.options;
  const { header, geometry } = metadata;
  if (header.version === 2) return backed ? null : NOWHERE;
  if (geometry.extendedL2) {
    if (entry.data === 0) return { ...NOWHERE, zeros: entry.zeros };
    return backed ? { ...NOWHERE, zeros: ALL } : NOWHERE;
  }
  return backed || hasZeroFlag(entry) ? { ...NOWHERE, lo: ZERO } : NOWHERE;
}

/**
 * The places of subclusters that are no data, in clusters that belong to this image alone: host ranges that nobody reads.
 * @throws SpindleError BAD_ENTRY
 */
export async function spareSpace(
  writer: Qcow2Writer,
  whole: WholeTables,
  ranges: readonly ByteRange[],
): Promise<ByteRange[]> {
  const { metadata, external } = whole;
  const { clusterSize, subclusterSize } = metadata.geometry;
  const spare: ByteRange[] = [];
  for (const { at, length } of ranges) {
    for (let cluster = Math.floor(at / clusterSize); cluster * clusterSize < at + length; cluster++) {
      const entry = await writer.editor.entry(cluster);
      checkEntry(entry, cluster, metadata, external);
      const host = isCompressed(entry) ? null : hostOf(entry, cluster, external);
      if (host === null || !isCopied(entry)) continue;
      for (let i = 0; i < 32; i++) {
        if (((entry.data >>> i) & 1) !== 0) continue;
        const place = host + i * subclusterSize;
        const last = spare[spare.length - 1];
        if (last !== undefined && last.at + last.length === place)
          spare[spare.length - 1] = { at: last.at, length: last.length + subclusterSize };
        else spare.push({ at: place, length: subclusterSize });
      }
    }
  }
  return spare;
}

/**
 * Gives back what the file holds and nothing uses: L2 tables that say nothing, free clusters, and the end of the file.
 * Runs inside {@link Qcow2Writer.alone}. The refcounts must be right.
 * @throws SpindleError CORRUPT, BAD_ENTRY, IO
 */
export async function tidy(writer: Qcow2Writer, whole: WholeTables): Promise<void> {
  await whole.flush();
  await dropEmptyTables(writer, whole);
  await whole.flush();
  await punchFree(writer, whole);
  await cutFile(writer, whole);
  await whole.storage.flush();
}

async function dropEmptyTables(writer: Qcow2Writer, whole: WholeTables): Promise<void> {
  const { l1 } = writer.editor;
  const { clusterSize, l2Entries } = whole.metadata.geometry;
  for (
    let index = l1.nextUsed(0, l1.entries);
    index < l1.entries;
    index = l1.nextUsed(index + 1, l1.entries)
  ) {
    // A table that a snapshot shares stays.
    if (!l1.copied(index)) continue;
    const table = l1.l2Offset(index);
    let empty = true;
    for (let first = 0; empty && first < l2Entries;) {
      const answer = await writer.editor.slice(table, first);
      const { view } = answer;
      empty = isZero(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
      first = answer.first + view.byteLength / whole.metadata.geometry.l2EntrySize;
    }
    if (!empty) continue;
    await writer.editor.setL1(index, 0);
    writer.allocator.give(table / clusterSize, 1);
  }
}

/** Makes holes of free clusters: some programs leave their space in the file. */
async function punchFree(writer: Qcow2Writer, { storage, metadata }: WholeTables): Promise<void> {
  if (writer.options.punch === false) return;
  const { clusterSize } = metadata.geometry;
  const end = Math.ceil(storage.size / clusterSize);
  const counts = writer.refcounts.scan();
  for (let cluster = 0; cluster < end;) {
    const answer = counts.get(cluster);
    if ((answer instanceof Promise ? await answer : answer) !== 0) {
      cluster++;
      continue;
    }
    let free = cluster + 1;
    for (; free < end; free++) {
      const next = counts.get(free);
      if ((next instanceof Promise ? await next : next) !== 0) break;
    }
    const at = cluster * clusterSize;
    await storage.discard(at, Math.min(free * clusterSize, storage.size) - at);
    cluster = free;
  }
}
