import { SpindleError } from '../core/errors.ts';
import { localName } from '../core/path.ts';
import type { Gate } from '../format/gate.ts';
import type { Image } from '../format/image.ts';
import { pathIdentity } from '../storage/identity.ts';
import { besideName, fileOf } from './image-name.ts';
import { openImageFile } from './open.ts';

/** What lies below a new image. */
export interface Below {
  /** Virtual size of the backing file in bytes; undefined where it was not opened. */
  readonly size: number | undefined;
  /** Every file that the new image will read through. */
  readonly identities: readonly string[];
}

/**
 * Opens the backing chain as it will be opened later, to see that it is there and makes sense. With `unchecked` only
 * the backing file itself is looked at, and may be missing.
 * @throws SpindleError BACKING_NOT_FOUND, and what opening the chain throws
 */
export async function lookBelow(
  path: string,
  backing: { readonly name: string; readonly format: string; readonly unchecked?: boolean },
  gate?: Gate,
): Promise<Below> {
  const beside = besideName(backing.name, path);
  if (backing.unchecked === true) {
    const local = fileOf(beside);
    const identity = local === null ? null : await identityIfAny(local);
    return { size: undefined, identities: identity === null ? [] : [identity] };
  }
  try {
    const image = await openImageFile(beside, { format: backing.format, share: true, gate });
    try {
      return { size: image.size, identities: identitiesOf(image) };
    } finally {
      await image.close();
    }
  } catch (error) {
    if (!(error instanceof SpindleError) || error.code !== 'NOT_FOUND') throw error;
    throw new SpindleError(
      'BACKING_NOT_FOUND',
      `its backing file '${beside}' cannot be opened: there is no such file`,
      { path, cause: error },
    );
  }
}

/** The identities of all files that an image reads: its own, its data file, and those of its backing chain. */
export function identitiesOf(image: Image): string[] {
  const identities: string[] = [];
  for (let layer: Image | null = image; layer !== null; layer = layer.backing) {
    for (const storage of [layer.storage, layer.driver.data]) {
      const { identity } = storage as { identity?: unknown };
      if (typeof identity === 'string') identities.push(identity);
    }
  }
  return identities;
}

/** The identity of what a path names; null where nothing is there. */
export async function identityIfAny(path: string): Promise<string | null> {
  try {
    return await pathIdentity(path);
  } catch (error) {
    if (error instanceof SpindleError) return null;
    throw error;
  }
}

/**
 * Refuses to create an image over a file that it needs, or with a data file that is one of its own other files: either
 * would destroy what is there and leave an image that reads itself.
 * @throws SpindleError BACKING_LOOP, BAD_OPTION
 */
export async function refuseOverlap(
  path: string,
  dataFile: string | null,
  below: readonly string[],
): Promise<void> {
  if (dataFile === null && below.length === 0) return;
  const own = localName(path);
  const target = own === null ? null : await identityIfAny(own);
  if (target !== null && below.includes(target)) {
    throw new SpindleError('BACKING_LOOP', 'an image cannot replace a file of its own backing chain', {
      path,
    });
  }
  if (dataFile === null) return;
  const local = localName(dataFile);
  const data = local === null ? null : await identityIfAny(local);
  if (data === null) return;
  if (data === target) throw new SpindleError('BAD_OPTION', 'an image cannot be its own data file', { path });
  if (below.includes(data)) {
    throw new SpindleError(
      'BAD_OPTION',
      `the data file '${dataFile}' belongs to the backing chain, and would be emptied`,
      { path },
    );
  }
}
