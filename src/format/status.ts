import { SpindleError } from '../core/errors.ts';
import { ExtentFlag } from '../core/extent.ts';
import type { Storage } from '../core/storage.ts';
import type { Mapping } from './driver.ts';
import type { Image } from './image.ts';

/** What a run of guest bytes is, and which layer of the backing chain decides it. */
export interface BlockStatus {
  readonly length: number;
  /** Allocated in the layer at `depth`, as data or as explicit zeroes. */
  readonly allocated: boolean;
  readonly data: boolean;
  /** Reads as zeroes. May go with `data`: allocated space that holds nothing but zeroes. */
  readonly zero: boolean;
  readonly compressed: boolean;
  /** 0: the image itself; 1: its backing file, and so on. */
  readonly depth: number;
  readonly layer: Image;
  /** Where plain bytes or reserved space are: `at` in `storage`. */
  readonly host: { readonly storage: Storage; readonly at: number } | null;
}

/** The status of the first run at `at`, 1 to `length` bytes, through the whole backing chain. */
export async function blockStatus(image: Image, at: number, length: number): Promise<BlockStatus> {
  let layer = image;
  let bytes = length;
  for (let depth = 0; ; depth++) {
    const status = await layerStatus(layer, at, Math.min(bytes, layer.size - at), depth);
    if (status.zero || status.data || layer.backing === null) return status;
    bytes = status.length;
    layer = layer.backing;
  }
}

/**
 * The status of one layer alone. A range that the layer leaves to its backing file comes out neither zero nor data,
 * unless there is nothing below at `at`: then it is zero, though not allocated.
 */
export async function layerStatus(layer: Image, at: number, length: number, depth = 0): Promise<BlockStatus> {
  const mapping = await preciseMapping(layer, at, length);
  const plain = { length: mapping.length, compressed: false, depth, layer };
  switch (mapping.kind) {
    case 'data':
      return dataStatus(mapping, plain);
    case 'zero':
      return { ...plain, allocated: true, data: false, zero: true, host: reserved(layer, mapping) };
    case 'backing': {
      const below = layer.backing !== null && at < layer.backing.size;
      return {
        ...plain,
        allocated: false,
        data: false,
        zero: !below,
        host: reserved(layer, mapping),
      };
    }
    case 'compressed':
      return { ...plain, allocated: true, data: true, zero: false, compressed: true, host: null };
  }
}

async function preciseMapping(layer: Image, at: number, length: number): Promise<Mapping> {
  try {
    return await layer.driver.map(at, length, true);
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= layer.name;
    throw error;
  }
}

function reserved(
  layer: Image,
  { reserved: at, encrypted }: Extract<Mapping, { kind: 'zero' | 'backing' }>,
): BlockStatus['host'] {
  return at === undefined || encrypted === true ? null : { storage: layer.driver.data, at };
}

async function dataStatus(
  mapping: Extract<Mapping, { kind: 'data' }>,
  plain: Pick<BlockStatus, 'length' | 'compressed' | 'depth' | 'layer'>,
): Promise<BlockStatus> {
  const { storage, at } = mapping;
  const status = {
    ...plain,
    allocated: true,
    data: true,
    zero: false,
    host: mapping.encrypted ? null : { storage, at },
  };
  // Asked only where the answer is waited for: it reads the file, which may be closed by then.
  if (mapping.encrypted || !(await plain.layer.driver.sparseData())) return status;
  if (at >= storage.size) return { ...status, zero: true };
  const there = await storage.extent(at, Math.min(plain.length, storage.size - at));
  const zero = (there.flags & ExtentFlag.ZERO) !== 0;
  // What lies past the end of the file reads as zeroes too, so a hole that reaches the end covers the whole run.
  if (zero && at + there.length >= storage.size) return { ...status, zero };
  return { ...status, zero, length: Math.min(plain.length, there.length) };
}
