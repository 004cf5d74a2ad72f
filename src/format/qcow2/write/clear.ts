import { giveEntry, NOWHERE, sameEntry, type L2Entry } from './l2-editor.ts';
import { Tree } from './tree.ts';
import type { WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** Runs of clusters given back after which they are freed, so that the list stays short. */
const MOST_GIVEN = 50_000;

/**
 * Unmaps every cluster from number `from` on, also past the end of the disk: entries that say anything become `next`;
 * with null they become nothing, and L2 tables that lie beyond as a whole go too. Runs inside {@link Qcow2Writer.alone}.
 */
export async function clearFrom(
  writer: Qcow2Writer,
  whole: WholeTables,
  from: number,
  next: L2Entry | null,
): Promise<void> {
  const { editor, allocator, cache } = writer;
  const { geometry } = whole.metadata;
  const { l2Entries, clusterSize } = geometry;
  const tree = new Tree(writer, whole);
  const { l1 } = editor;
  const entry = next ?? NOWHERE;
  const firstTable = Math.floor(from / l2Entries);
  for (let index = l1.nextUsed(firstTable, l1.entries); index < l1.entries;) {
    const first = Math.max(from, index * l2Entries);
    if (next === null && first === index * l2Entries) {
      const table = l1.l2Offset(index) / clusterSize;
      await editor.setL1(index, 0);
      await tree.releaseTable(table);
    } else {
      for (let cluster = first; cluster < (index + 1) * l2Entries; cluster++) {
        const old = await editor.entry(cluster);
        if (sameEntry(old, NOWHERE) || sameEntry(old, entry)) continue;
        await editor.ensureTable(cluster);
        await editor.set(cluster, entry);
        if (!whole.external) giveEntry(old, geometry, allocator);
      }
    }
    if (cache.full || allocator.pending > MOST_GIVEN) await whole.flush();
    index = l1.nextUsed(index + 1, l1.entries);
  }
}
