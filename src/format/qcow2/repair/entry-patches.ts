import { hex } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import type { L2Piece } from '../check/l2-tables.ts';
import { readTables, type Part, type Piece } from '../check/read-tables.ts';
import { sortSpans, sweep } from '../check/sweep.ts';
import { COMPRESSED, COPIED, offsetOf } from '../entry.ts';
import { Limit, TABLE_ENTRY } from '../layout.ts';
import { mendL1, mendL2 } from './entry-rules.ts';
import type { Scan } from './scan.ts';
import type { Patch } from './step.ts';
import type { Targets } from './targets.ts';

/**
 * What is done to entries. `mend`: what does no harm whatever the refcounts are, such as clearing a copied flag. `flags`:
 * setting copied flags, for which the refcounts must be right.
 */
export type EntryPhase = 'mend' | 'flags';

/** Changes of L1 and L2 entries, each by itself. */
export async function* entryPatches(scan: Scan, targets: Targets, phase: EntryPhase): AsyncGenerator<Patch> {
  yield* l1Patches(scan, targets, phase);
  const { context, tables, offsets } = scan;
  const { clusterSize, l2EntrySize } = context.metadata.geometry;
  const pieces = soundPieces(scan, tables.pieces(offsets, clusterSize));
  for await (const parts of readTables(context.storage, pieces, context.signal)) {
    for (const part of parts) {
      const view = readable(part);
      const flagged = part.piece.flagged > 0;
      for (let at = 0; at < part.length; at += l2EntrySize) {
        if (view.getUint32(at) === 0 && view.getUint32(at + 4) === 0 && l2EntrySize === 8) continue;
        const before = bytesAt(view, at, l2EntrySize);
        let why = mendL2(view, at, scan.rules);
        if (why !== null && scan.rules.mode === 'leaks') {
          // Counted, not written.
          restore(view, at, before);
          continue;
        }
        if (phase === 'flags') {
          before.set(bytesAt(view, at, l2EntrySize));
          why = null;
        }
        if (flagged && (view.getUint32(at) & COMPRESSED) === 0) {
          const offset = offsetOf(view.getUint32(at), view.getUint32(at + 4));
          why = join(why, setFlag(scan, targets, phase, view, at, offset, context.externalData));
        }
        if (why === null) continue;
        const place = part.at + at;
        yield { at: place, before, bytes: bytesAt(view, at, l2EntrySize), structure: 'L2 entry', why };
      }
    }
  }
}

async function* l1Patches(scan: Scan, targets: Targets, phase: EntryPhase): AsyncGenerator<Patch> {
  const { context } = scan;
  const { l1TableOffset, l1Size } = context.metadata.header;
  const active = { at: l1TableOffset, end: Math.min(l1TableOffset + l1Size * TABLE_ENTRY, context.fileSize) };
  const { starts, ends } = sortSpans([active, ...snapshotTables(scan)]);
  const pieces = phase === 'flags' ? [active] : sweep(starts, ends);
  for await (const parts of readTables(context.storage, soundL1(scan, pieces), context.signal)) {
    for (const part of parts) {
      const view = readable(part);
      const isActive = part.piece.at >= active.at && part.piece.at < active.end;
      for (let at = 0; at + TABLE_ENTRY <= part.length; at += TABLE_ENTRY) {
        if (view.getUint32(at) === 0 && view.getUint32(at + 4) === 0) continue;
        const before = bytesAt(view, at, TABLE_ENTRY);
        let why = mendL1(view, at, scan.rules);
        if (phase === 'flags') {
          before.set(bytesAt(view, at, TABLE_ENTRY));
          why = null;
        }
        const offset = offsetOf(view.getUint32(at), view.getUint32(at + 4));
        if (isActive) why = join(why, setFlag(scan, targets, phase, view, at, offset, false));
        if (why === null) continue;
        const place = part.at + at;
        if (place + TABLE_ENTRY > context.storage.size) continue;
        yield { at: place, before, bytes: bytesAt(view, at, TABLE_ENTRY), structure: 'L1 entry', why };
      }
    }
  }
}

/** The L1 tables of snapshots that a check reads, too. */
function* snapshotTables({ context }: Scan): Generator<Piece> {
  const { snapshots, geometry } = context.metadata;
  for (const { l1TableOffset: at, l1Size } of snapshots) {
    const isAligned = Math.floor(at / geometry.clusterSize) * geometry.clusterSize === at;
    if (!isAligned || l1Size * TABLE_ENTRY > Limit.L1_TABLE) continue;
    yield { at, end: Math.min(at + l1Size * TABLE_ENTRY, context.fileSize) };
  }
}

function* soundL1(scan: Scan, pieces: Iterable<Piece>): Generator<Piece> {
  const { clusterSize } = scan.context.metadata.geometry;
  for (const { at, end } of pieces) {
    if (at >= end || scan.foreign.touching(at, end) >= 0) continue;
    let isSound = true;
    // What a refcount block or the refcount table lies on is left alone until that is elsewhere.
    for (let cluster = Math.floor(at / clusterSize); cluster * clusterSize < end; cluster++)
      if (scan.own.get(cluster) > 0) isSound = false;
    if (isSound) yield { at, end };
  }
}

function* soundPieces(scan: Scan, pieces: Iterable<L2Piece>): Generator<L2Piece> {
  const { size } = scan.context.storage;
  for (const piece of pieces) {
    if (!scan.isSound(piece) || piece.at >= size) continue;
    yield piece.end <= size ? piece : { ...piece, end: size - (size % 16) };
  }
}

/** Clears (in phase `mend`) or sets (in phase `flags`) the copied flag where it is wrong; returns what for. */
function setFlag(
  scan: Scan,
  targets: Targets,
  phase: EntryPhase,
  view: DataView,
  at: number,
  offset: number,
  external: boolean,
): string | null {
  if (offset === 0) return null;
  const hi = view.getUint32(at);
  const isSet = (hi & COPIED) !== 0;
  const cluster = Math.floor(offset / scan.context.metadata.geometry.clusterSize);
  const wanted = external ? true : targets.copied(cluster);
  if (wanted === null || wanted === isSet || wanted !== (phase === 'flags')) return null;
  view.setUint32(at, (wanted ? hi | COPIED : hi & ~COPIED) >>> 0);
  const where = `the cluster at ${hex(offset)}`;
  if (!wanted)
    return `the copied flag is cleared: the refcount of ${where} is ${String(targets.final(cluster))}`;
  return `the copied flag is set: ${external ? `${where} lies in the data file` : `the refcount of ${where} is 1`}`;
}

function readable(part: Part<Piece>): DataView {
  if (part.view === null) throw part.error ?? new SpindleError('IO', 'a table cannot be read');
  return part.view;
}

function bytesAt(view: DataView, at: number, length: number): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset + at, length).slice();
}

function restore(view: DataView, at: number, bytes: Uint8Array): void {
  new Uint8Array(view.buffer, view.byteOffset + at, bytes.length).set(bytes);
}

function join(a: string | null, b: string | null): string | null {
  if (a === null || b === null) return a ?? b;
  return `${a}; ${b}`;
}
