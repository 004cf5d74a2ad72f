import { SpindleError } from '../core/errors.ts';
import type { Working } from '../core/working.ts';
import type { Gate } from '../format/gate.ts';
import type { Image } from '../format/image.ts';
import { chainOf, findBelow, identityOfName, type ChainLayer } from './chain.ts';
import { bringDown } from './commit/bring-down.ts';
import type { Copied } from './copy/copy.ts';
import { fileGate } from './file-gate.ts';
import { besideName } from './image-name.ts';
import { openImageFile, type OpenFileOptions } from './open.ts';

/** How an overlay is committed. */
export interface CommitOptions
  extends Working, Pick<OpenFileOptions, 'format' | 'secret' | 'direct' | 'gate'> {
  /**
   * The image of the backing chain that takes what lies above it: its name, seen from the image above it or from the
   * current directory. Default: the backing file.
   */
  readonly base?: string | undefined;
  /** Leave what the overlay holds where it is. Default: only where `base` is given. */
  readonly keep?: boolean | undefined;
  /** Bytes a second at most. Default: no limit. */
  readonly rate?: number | undefined;
}

/** What a commit did. */
export interface Committed extends Copied {
  /** The image that was written to. */
  readonly base: string;
  /** Bytes of its disk, before and now. */
  readonly from: number;
  readonly size: number;
  /** The overlay holds nothing any more. */
  readonly emptied: boolean;
  /** Images between the two: what they show is a mixture now. */
  readonly between: readonly string[];
}

/**
 * Writes what an overlay holds, and all layers between, into an image below it, which grows where the overlay's disk is
 * larger. The overlay is emptied then, unless told otherwise or a base is named; its internal snapshots stay. Other
 * overlays of images below show something else afterwards.
 *
 * Stopped, failed or killed at any moment, the overlay shows what it showed: it is emptied only when the base is
 * durable, and doing it again finishes it.
 * @throws SpindleError UNSUPPORTED (no backing file), BAD_OPTION (a base that is not below), CORRUPT, IN_USE, NO_SPACE,
 * ABORTED, and as {@link openImageFile}
 */
export async function commit(path: string, options: CommitOptions = {}): Promise<Committed> {
  const chain = await chainOf(path, options.format, options.gate);
  refuseUncommittable(chain, path);
  const index = options.base === undefined ? 1 : await findBelow(chain, options.base);
  const target = chain[index] as ChainLayer;
  const emptied = !(options.keep ?? options.base !== undefined);
  const { secret, direct, gate } = options;
  const base = await openImageFile(target.name, {
    ...{ format: target.format, secret, direct, gate },
    ...{ write: true, steady: true },
  });
  let top: Image | undefined;
  try {
    top = await openImageFile(path, {
      ...{ format: chain[0]?.format, secret, direct },
      ...{ write: emptied, steady: true, gate: gateTo(base, target, gate) },
    });
    sure(top, base);
    const from = base.size;
    const { signal, onProgress, rate } = options;
    const copied = await bringDown(top, base, { emptied, signal, onProgress, rate });
    const size = base.size;
    await top.close();
    const between = chain.slice(1, index).map((layer) => layer.path);
    return { ...copied, base: target.path, from, size, emptied, between };
  } catch (error) {
    // What closing would say is only what went wrong already.
    await (top ?? base).close().catch(() => undefined);
    throw error;
  }
}

/** Refuses a chain that cannot be committed. @throws SpindleError UNSUPPORTED, CORRUPT */
export function refuseUncommittable(chain: readonly ChainLayer[], path: string): void {
  if (chain.length < 2) {
    const [top] = chain;
    const why =
      typeof top?.backingName !== 'string'
        ? 'it has no backing file that it could be committed to'
        : `its backing file '${top.backingName}' is not a local file`;
    throw new SpindleError('UNSUPPORTED', why, { path });
  }
  const corrupt = chain.find(({ qcow2 }) => qcow2?.corrupt === true);
  if (corrupt === undefined) return;
  throw new SpindleError('CORRUPT', 'the image is marked corrupt: repair it before anything is made of it', {
    path: corrupt.path,
  });
}

/** Sees that the base, found before anything was locked, is below still. @throws SpindleError IN_USE */
function sure(top: Image, base: Image): void {
  for (let layer: Image | null = top.backing; layer !== null; layer = layer.backing)
    if (layer === base) return;
  throw new SpindleError('IN_USE', 'its backing chain was changed a moment ago; try again', {
    path: top.name,
  });
}

/** Opens what a chain needs, but for the base, which is open already. */
function gateTo(base: Image, { identity, file }: ChainLayer, gate?: Gate): Gate {
  const files = gate ?? fileGate();
  return async (reference) => {
    const backs = reference.kind === 'backing file';
    if (backs && (await identityOfName(besideName(reference.name, reference.from))) === identity)
      return { storage: base.storage, name: file, id: identity ?? file, image: base };
    return files(reference);
  };
}
