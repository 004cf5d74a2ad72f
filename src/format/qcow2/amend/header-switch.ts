import { alignUp } from '../../../core/align.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readPadded } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { encodeExtensions, encodeFeatureNames, type Extension } from '../extensions.ts';
import { encodeHeader, type Header } from '../header.ts';
import { ExtensionMagic, SECTOR } from '../layout.ts';
import type { Metadata } from '../metadata.ts';
import type { WholeTables } from '../write/whole.ts';

/** An extension to be written. */
export type NewExtension = Pick<Extension, 'magic' | 'data'>;

/** What the first cluster is to say instead of what it says. */
export interface HeaderChange {
  /** The fields that change. */
  readonly header: Partial<Header>;
  /** The extensions, in order, without the feature names, of which the change takes care itself. */
  readonly extensions: readonly NewExtension[];
}

/** A header that takes effect with one write of one sector, which arrives as a whole or not at all. */
export interface HeaderPlan {
  /** The name of the backing file, where it has to be somewhere else first: where nothing stands now. */
  readonly name: { readonly at: number; readonly bytes: Uint8Array } | null;
  /** The first sector. */
  readonly first: Uint8Array;
}

/**
 * Plans a new header, extensions and all, so that it can be switched to in one step: all of it but the name of the
 * backing file lies in the first sector. The table of feature names, which is there for people only, is left out where
 * there is no room. `metadata` is what the disk says now.
 * @throws SpindleError LIMIT when there is no room
 */
export async function planHeader(
  storage: Storage,
  metadata: Metadata,
  change: HeaderChange,
): Promise<HeaderPlan> {
  const { header: old, geometry } = metadata;
  const name = new Uint8Array(old.backingFileOffset === 0 ? 0 : old.backingFileSize);
  await readPadded(storage, name, old.backingFileOffset);
  const named = { magic: ExtensionMagic.FEATURE_NAMES, data: encodeFeatureNames() };
  const version = change.header.version ?? old.version;
  for (const names of version === 3 && geometry.clusterSize > 4096 ? [[named], []] : [[]]) {
    const area = encodeExtensions([...change.extensions, ...names]);
    const areaAt = encodeHeader({ ...old, ...change.header }).length;
    const end = areaAt + area.length;
    const nameAt = placeName(metadata, end, name.length);
    if (end > SECTOR || nameAt === null) continue;
    const first = new Uint8Array(SECTOR);
    const field = name.length === 0 ? 0 : nameAt;
    const fields = { ...old, ...change.header, backingFileOffset: field, backingFileSize: name.length };
    first.set(encodeHeader(fields));
    first.set(area, areaAt);
    if (nameAt < SECTOR) first.set(name.subarray(0, SECTOR - nameAt), nameAt);
    const moves = nameAt + name.length > SECTOR && nameAt !== old.backingFileOffset;
    return { name: moves ? { at: nameAt, bytes: name } : null, first };
  }
  throw new SpindleError(
    'LIMIT',
    'the first cluster has no room to change the header in one step, so that a power cut could destroy it: its names or extensions are too long',
  );
}

/** Where the name of the backing file goes when the extensions end at `end`: near, where it is, or to unused space. */
function placeName(metadata: Metadata, end: number, length: number): number | null {
  const { header, extensions, geometry } = metadata;
  if (end + length <= SECTOR) return end;
  if (header.backingFileOffset >= end) return header.backingFileOffset;
  const last = extensions.at(-1);
  const areaEnd = last === undefined ? header.headerLength : last.offset + 8 + alignUp(last.data.length, 8);
  // Behind the end marker, and all that is there.
  const used = Math.max(SECTOR, areaEnd + 8, header.backingFileOffset + header.backingFileSize);
  const at = alignUp(used, 8);
  return at + length <= geometry.clusterSize ? at : null;
}

/** Switches to a planned header, when all that was done before is durable. */
export async function switchToHeader(whole: WholeTables, plan: HeaderPlan): Promise<void> {
  await whole.flush();
  if (plan.name !== null) {
    await whole.storage.write(plan.name.bytes, plan.name.at);
    await whole.storage.flush();
  }
  await whole.storage.write(plan.first, 0);
  await whole.storage.flush();
}

/** The extensions of an image without the feature names, and without those that `without` names. */
export function keptExtensions(metadata: Metadata, ...without: readonly number[]): Extension[] {
  const dropped = [ExtensionMagic.FEATURE_NAMES, ...without];
  return metadata.extensions.filter(({ magic }) => !dropped.includes(magic));
}
