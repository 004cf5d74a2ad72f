import { hex, setU64 } from '../../../core/bytes.ts';
import { viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readTables } from '../check/read-tables.ts';
import { TABLE_ENTRY } from '../layout.ts';
import { getRefcount, setRefcount } from '../refcount.ts';
import type { Scan } from './scan.ts';
import type { Patch } from './step.ts';
import { clustersOf, trustedBlocks, type Targets } from './targets.ts';

/** Changed bytes no further apart than this are written together. */
const GAP = 32;
/** Bytes of a patch at most, about. */
const MOST = 16 * 1024;

/** Sets refcounts in their places: those that are too low, or those that are too high. */
export async function* refcountPatches(
  scan: Scan,
  targets: Targets,
  direction: 'raise' | 'lower',
): AsyncGenerator<Patch> {
  const { context } = scan;
  const { refcountOrder, refcountBits, clusterSize } = context.metadata.geometry;
  for await (const parts of readTables(context.storage, trustedBlocks(scan), context.signal)) {
    for (const part of parts) {
      if (part.view === null) throw part.error ?? new SpindleError('IO', 'a refcount block cannot be read');
      const bytes = new Uint8Array(part.view.buffer, part.view.byteOffset, part.length);
      const { first, count } = clustersOf(scan, part);
      let original: Uint8Array | null = null;
      let run: { from: number; to: number; cluster: number; changed: number; text: string } | null = null;
      const patch = (): Patch[] => {
        if (run === null || original === null) return [];
        const { from, to, cluster, changed, text } = run;
        run = null;
        const words = direction === 'raise' ? 'raised' : 'lowered';
        return [
          {
            at: part.at + from,
            bytes: bytes.slice(from, to),
            before: original.slice(from, Math.max(from, Math.min(to, context.storage.size - part.at))),
            structure: 'refcount block',
            why:
              changed === 1
                ? text
                : `${String(changed)} refcounts from that of the cluster at ${hex(cluster * clusterSize)} on are ${words} to the number of references`,
          },
        ];
      };
      for (let i = 0; i < count; i++) {
        const refcount = getRefcount(part.view, refcountOrder, i);
        const target = targets.final(first + i);
        if (direction === 'raise' ? refcount >= target : refcount <= target) continue;
        original ??= bytes.slice();
        setRefcount(part.view, refcountOrder, i, target);
        const from = Math.floor((i * refcountBits) / 8);
        const to = Math.floor(((i + 1) * refcountBits + 7) / 8);
        if (run !== null && (from > run.to + GAP || to - run.from > MOST)) yield* patch();
        run ??= { from, to, cluster: first + i, changed: 0, text: '' };
        run.to = to;
        run.changed++;
        run.text = `refcount of the cluster at ${hex((first + i) * clusterSize)}: ${String(refcount)} -> ${String(target)}`;
      }
      yield* patch();
    }
  }
}

/** Clears reserved bits of refcount table entries. */
export async function* refcountTablePatches(scan: Scan): AsyncGenerator<Patch> {
  const { stored, untrusted, context } = scan;
  for (let index = 0; index < stored.entries; index++) {
    if (!stored.isReserved(index) || untrusted.has(index)) continue;
    const at = context.metadata.header.refcountTableOffset + index * TABLE_ENTRY;
    const before = new Uint8Array(TABLE_ENTRY);
    if (at + TABLE_ENTRY > context.storage.size) continue;
    await context.storage.read(before, at);
    const bytes = new Uint8Array(TABLE_ENTRY);
    setU64(viewOf(bytes), 0, stored.offset(index));
    yield { at, before, bytes, structure: 'refcount table entry', why: 'reserved bits are cleared' };
  }
}
