import { SpindleError } from '../core/errors.ts';
import { localName } from '../core/path.ts';
import type { Gate } from '../format/gate.ts';
import { identityIfAny } from './create-guard.ts';
import { besideName, fileOf } from './image-name.ts';
import { info, infoChain, type ImageInfo } from './info.ts';

/** One image of a backing chain. */
export interface ChainLayer extends ImageInfo {
  /** The same for the same file however it is named. */
  readonly identity: string | null;
}

/**
 * The image at `path` and all below it, from the top down, as they are now: nothing is locked.
 * @throws SpindleError BACKING_LOOP, BACKING_NOT_FOUND, and what info throws
 */
export async function chainOf(path: string, format?: string, gate?: Gate): Promise<ChainLayer[]> {
  const chain: ChainLayer[] = [];
  for (const layer of await infoChain(path, { format, share: true, gate }))
    chain.push({ ...layer, identity: await identityOfName(layer.file) });
  return chain;
}

/** The identity of the local file that a name names; null where there is none. */
export async function identityOfName(name: string): Promise<string | null> {
  const local = fileOf(name);
  return local === null ? null : identityIfAny(local);
}

/**
 * The number of the layer that `name` names, 1 or more: seen from the image above it or, where that is none of them,
 * from the current directory.
 * @throws SpindleError BAD_OPTION
 */
export async function findBelow(chain: readonly ChainLayer[], name: string): Promise<number> {
  for (let index = 1; index < chain.length; index++) {
    const identity = await identityOfName(besideName(localName(name) ?? name, chain[index - 1]?.file));
    if (identity !== null && identity === chain[index]?.identity) return index;
  }
  const identity = await identityOfName(name);
  const found = chain.findIndex(
    (layer, index) => index > 0 && identity !== null && layer.identity === identity,
  );
  if (found > 0) return found;
  const below = chain.slice(1).map(({ path }) => path);
  throw new SpindleError('BAD_OPTION', `'${name}' is not below it; it is backed by ${below.join(', ')}`, {
    path: chain[0]?.path,
  });
}

/**
 * Refuses a backing file through which an image would read itself. What is missing or cannot be read ends the search.
 * @throws SpindleError BACKING_LOOP
 */
export async function refuseLoop(
  path: string,
  backing: { readonly name: string; readonly format: string | undefined },
): Promise<void> {
  const own = await identityOfName(path);
  const loop = (): SpindleError =>
    new SpindleError(
      'BACKING_LOOP',
      `it cannot be backed by '${backing.name}', which is or reads this image`,
      {
        path,
      },
    );
  let name: string | null = besideName(backing.name, path);
  let { format } = backing;
  for (const seen = new Set<string>(); name !== null && own !== null;) {
    const identity = await identityOfName(name);
    if (identity === own) throw loop();
    // A circle further down is for whoever opens it to tell.
    if (identity === null || seen.has(identity)) return;
    seen.add(identity);
    const layer: ImageInfo | null = await look(name, format);
    const { qcow2, backingPath, backingFormat } = layer ?? {
      qcow2: null,
      backingPath: null,
      backingFormat: null,
    };
    if (
      typeof qcow2?.dataFile === 'string' &&
      (await identityOfName(besideName(qcow2.dataFile, name))) === own
    )
      throw loop();
    name = backingPath;
    format = backingFormat ?? undefined;
  }
}

async function look(path: string, format: string | undefined): Promise<ImageInfo | null> {
  try {
    return await info(path, { format, share: true });
  } catch (error) {
    if (error instanceof SpindleError) return null;
    throw error;
  }
}
