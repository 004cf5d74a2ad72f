import { isZero, sameBytes, viewOf } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import { directoryEntrySize, encodeDirectory, type BitmapEntry, type BitmapFields } from '../bitmap.ts';
import type { BitmapState } from '../bitmap-state.ts';
import {
  ALL_CLEAR,
  ALL_SET,
  encodeBitmapTable,
  hasCluster,
  readBitmapTable,
  type BitmapTable,
} from '../bitmap-table.ts';
import { BitmapFlag, BitmapOffset, Limit, TABLE_ENTRY } from '../layout.ts';
import { checkHeaderRoom, hideDirectory, showDirectory } from './bitmap-header.ts';
import type { MetadataKind } from './cluster-kinds.ts';
import { giveTable, placeTable, takeTableBack } from './place.ts';
import type { WholeTables } from './whole.ts';
import type { Qcow2Writer } from './writer.ts';

/** Flags as the directory has them for a bitmap at rest. */
export function flagsOf({ enabled, inconsistent }: BitmapState): number {
  return (enabled ? BitmapFlag.AUTO : 0) | (inconsistent ? BitmapFlag.IN_USE : 0);
}

/**
 * Makes `states` the bitmaps of the image. What changed goes to new clusters, and a new directory that refers to it, and
 * to what did not change, replaces the old one in the header; then what only the old one referred to is freed. A power cut
 * leaves all of the old bitmaps or all of the new ones. `inUse` are bitmaps that are marked as in use on disk though they
 * were not when they were read; they are not any more when this has succeeded.
 *
 * Where it fails the bitmaps are as they were, and what was taken for new ones is given back.
 * @throws SpindleError LIMIT, BAD_BITMAP, NO_SPACE, IO
 */
export async function storeBitmaps(
  writer: Qcow2Writer,
  whole: WholeTables,
  states: readonly BitmapState[],
  inUse: ReadonlySet<BitmapState>,
): Promise<void> {
  const { bitmaps: before, known } = whole.metadata;
  checkLimits(states);
  if (states.length > 0) await checkHeaderRoom(whole);
  const work = new Placing(writer, whole);
  let fields: BitmapFields[];
  let place = { offset: 0, size: 0 };
  try {
    fields = [];
    for (const state of states) fields.push(await work.bitmap(state));
    if (sameDirectory(before, states, fields)) {
      if (inUse.size > 0) await writeFlags(whole, states, inUse);
      return;
    }
    if (fields.length > 0) {
      const directory = encodeDirectory(fields);
      place = { offset: await work.place(directory, 'bitmap directory'), size: directory.length };
    }
  } catch (error) {
    await work.takeBack();
    throw error;
  }
  if (fields.length > 0) await showDirectory(whole, { ...place, count: fields.length });
  else await hideDirectory(whole);
  await freeOld(work, states);
  if (known.bitmaps !== undefined && before.length > 0) {
    giveTable(writer, whole, known.bitmaps.directoryOffset, known.bitmaps.directorySize);
  }
  await whole.flush();
}

/** @throws SpindleError LIMIT */
function checkLimits(states: readonly BitmapState[]): void {
  if (states.length > Limit.BITMAPS) {
    throw new SpindleError('LIMIT', 'the image would have more than 65535 bitmaps');
  }
  const size = states.reduce((sum, { nameBytes }) => sum + directoryEntrySize(nameBytes), 0);
  if (size > Limit.BITMAP_DIRECTORY) {
    throw new SpindleError('LIMIT', 'the bitmap directory would be larger than 64 MiB');
  }
}

/** Whether the directory on disk says the same, marks of use aside. */
function sameDirectory(
  before: readonly BitmapEntry[],
  states: readonly BitmapState[],
  after: readonly BitmapFields[],
): boolean {
  return (
    before.length === after.length &&
    after.every(({ tableOffset, flags }, index) => {
      const { entry } = states[index] ?? {};
      return (
        entry?.tableOffset === tableOffset &&
        entry.flags === flags &&
        before[index]?.tableOffset === tableOffset
      );
    })
  );
}

/** Takes the marks of use from directory entries that say nothing else but what they said before. */
async function writeFlags(
  whole: WholeTables,
  states: readonly BitmapState[],
  inUse: ReadonlySet<BitmapState>,
): Promise<void> {
  await whole.flush();
  for (const state of states) {
    if (state.entry === null || !inUse.has(state)) continue;
    const bytes = new Uint8Array(4);
    viewOf(bytes).setUint32(0, flagsOf(state));
    await whole.storage.write(bytes, state.entry.offset + BitmapOffset.flags);
  }
  await whole.storage.flush();
}

/** Frees the tables and the bits that the old directory referred to and the new one does not. */
async function freeOld(work: Placing, states: readonly BitmapState[]): Promise<void> {
  const { writer, whole } = work;
  const { clusterSize } = whole.metadata.geometry;
  // Entries are read anew now and then; what tells bitmaps apart is where their tables are.
  const staying = new Map(states.map((state) => [state.entry?.tableOffset, state]));
  const give = (at: number, length: number, kind: MetadataKind): void => {
    // The bitmap of a program that did not close the image may say anything.
    if (writer.kinds.kindAt(at) === kind) giveTable(writer, whole, at, length);
  };
  for (const entry of whole.metadata.bitmaps) {
    const state = staying.get(entry.tableOffset);
    if (state !== undefined && !work.replaced.has(state)) continue;
    if (writer.kinds.kindAt(entry.tableOffset) !== 'bitmap table') continue;
    const kept = state === undefined ? undefined : work.replaced.get(state);
    const old = await readBitmapTable(whole.storage, entry, clusterSize, 'clear');
    old.forEach((offset, index) => {
      if (hasCluster(offset) && kept?.[index] !== offset) give(offset, clusterSize, 'bitmap data');
    });
    give(entry.tableOffset, entry.tableSize * TABLE_ENTRY, 'bitmap table');
  }
}

/** Writes what changed to new clusters, and knows how to give them back. */
class Placing {
  readonly writer: Qcow2Writer;
  readonly whole: WholeTables;
  /** The new tables of bitmaps that changed. */
  readonly replaced = new Map<BitmapState, BitmapTable>();
  readonly #taken: { readonly at: number; readonly length: number }[] = [];

  constructor(writer: Qcow2Writer, whole: WholeTables) {
    this.writer = writer;
    this.whole = whole;
  }

  async place(bytes: Uint8Array, kind: MetadataKind): Promise<number> {
    const at = await placeTable(this.writer, this.whole, bytes, kind);
    this.#taken.push({ at, length: bytes.length });
    return at;
  }

  async takeBack(): Promise<void> {
    for (const { at, length } of this.#taken) await takeTableBack(this.writer, this.whole, at, length);
  }

  /** The directory entry of a bitmap, with all that it refers to in its place. */
  async bitmap(state: BitmapState): Promise<BitmapFields> {
    const { entry, nameBytes, granularityBits } = state;
    const flags = flagsOf(state);
    const table = state.inconsistent ? null : await this.#changedTable(state);
    if (table === null && entry !== null) return { ...entry, flags };
    const bytes = encodeBitmapTable(table ?? new Float64Array(0));
    const tableOffset = await this.place(bytes, 'bitmap table');
    return { nameBytes, granularityBits, flags, tableOffset, tableSize: bytes.length / TABLE_ENTRY };
  }

  /** The new table of a bitmap; null when the one on disk says the same. */
  async #changedTable(state: BitmapState): Promise<BitmapTable | null> {
    const { storage, metadata } = this.whole;
    const { clusterSize } = metadata.geometry;
    if (state.entry !== null && state.asStored && state.added.empty) return null;
    const old = await state.readTable(storage, clusterSize);
    const table = new Float64Array(state.tableSize(clusterSize));
    const keptChunks = Math.ceil(state.kept / (clusterSize * 8));
    table.set(old.subarray(0, Math.min(keptChunks, table.length)));
    const touched = new Set(state.added.chunks(clusterSize));
    // The last chunk may hold bits that do not count any more.
    if (!state.asStored && keptChunks > 0) touched.add(keptChunks - 1);
    let changed = state.entry === null || table.length !== old.length;
    for (let i = 0; i < old.length && !changed; i++) changed = old[i] !== table[i];
    for (const index of touched) {
      if (index >= table.length) continue;
      const chunk = await state.chunk(storage, old, index, clusterSize);
      if (await this.#holds(table[index] ?? ALL_CLEAR, chunk)) continue;
      table[index] = chunk === null ? ALL_CLEAR : await this.place(chunk, 'bitmap data');
      changed = true;
    }
    if (!changed) return null;
    this.replaced.set(state, table);
    return table;
  }

  /** Whether a table entry stands for these bits already; null stands for none. */
  async #holds(entry: number, chunk: Uint8Array | null): Promise<boolean> {
    if (chunk === null) return entry === ALL_CLEAR;
    if (entry === ALL_CLEAR) return false;
    if (entry === ALL_SET) return isZero(chunk.map((byte) => ~byte));
    const stored = new Uint8Array(chunk.length);
    const { storage } = this.whole;
    await readPadded(storage, stored, entry);
    return sameBytes(stored, chunk);
  }
}
