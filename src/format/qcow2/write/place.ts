import { divUp } from '../../../core/align.ts';
import { setU64, viewOf } from '../../../core/bytes.ts';
import { HeaderOffset } from '../layout.ts';
import type { MetadataKind } from './cluster-kinds.ts';
import type { WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** Writes a table to new clusters that lie together; returns its host offset, 0 for an empty one. Not durable yet. */
export async function placeTable(
  writer: Qcow2Writer,
  whole: WholeTables,
  bytes: Uint8Array,
  kind: MetadataKind,
): Promise<number> {
  const { clusterSize } = whole.metadata.geometry;
  if (bytes.length === 0) return 0;
  const run = await writer.allocator.takeTogether(divUp(bytes.length, clusterSize));
  const at = run.start * clusterSize;
  writer.kinds.claimNew(at, run.count * clusterSize, kind);
  try {
    await whole.reach(at + run.count * clusterSize);
    await whole.storage.write(bytes, at);
  } catch (error) {
    await takeTableBack(writer, whole, at, bytes.length);
    throw error;
  }
  writer.cache.noteWritten();
  return at;
}

/** Takes back a table that nothing on disk points to, nor ever did. */
export async function takeTableBack(
  writer: Qcow2Writer,
  whole: WholeTables,
  at: number,
  length: number,
): Promise<void> {
  const { clusterSize } = whole.metadata.geometry;
  const run = { start: at / clusterSize, count: divUp(length, clusterSize) };
  writer.kinds.release(at, run.count * clusterSize);
  await writer.allocator.takeBack(run);
}

/** Gives back the clusters of a table. */
export function giveTable(writer: Qcow2Writer, whole: WholeTables, at: number, length: number): void {
  const { clusterSize } = whole.metadata.geometry;
  if (at !== 0 && length > 0) writer.allocator.give(at / clusterSize, divUp(length, clusterSize));
}

/** Writes a part of the header, in one write that lies within one sector, between two flushes. */
export async function switchHeader(whole: WholeTables, bytes: Uint8Array, at: number): Promise<void> {
  await whole.flush();
  await whole.storage.write(bytes, at);
  await whole.storage.flush();
}

/** Sets the virtual size in the header. */
export function switchSize(whole: WholeTables, size: number): Promise<void> {
  const bytes = new Uint8Array(8);
  setU64(viewOf(bytes), 0, size);
  return switchHeader(whole, bytes, HeaderOffset.size);
}

/** Sets size, number of L1 entries and place of the L1 table in the header, all at once. */
export function switchL1(whole: WholeTables, size: number, entries: number, offset: number): Promise<void> {
  const bytes = new Uint8Array(HeaderOffset.refcountTableOffset - HeaderOffset.size);
  const view = viewOf(bytes);
  setU64(view, 0, size);
  view.setUint32(HeaderOffset.cryptMethod - HeaderOffset.size, whole.metadata.header.cryptMethod);
  view.setUint32(HeaderOffset.l1Size - HeaderOffset.size, entries);
  setU64(view, HeaderOffset.l1TableOffset - HeaderOffset.size, offset);
  return switchHeader(whole, bytes, HeaderOffset.size);
}
