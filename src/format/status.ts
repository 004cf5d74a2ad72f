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

/**
 * The status of the first run at `at`, 1 to `length` bytes, through the whole backing chain. Synchronous where all tables
 * that it takes are in memory.
 */
export function blockStatus(
  image: Image,
  at: number,
  length: number,
  depth = 0,
): BlockStatus | Promise<BlockStatus> {
  const status = layerStatus(image, at, Math.min(length, image.size - at), depth);
  const orBelow = (found: BlockStatus): BlockStatus | Promise<BlockStatus> =>
    found.zero || found.data || image.backing === null
      ? found
      : blockStatus(image.backing, at, found.length, depth + 1);
  return status instanceof Promise ? status.then(orBelow) : orBelow(status);
}

/**
 * The status of one layer alone. A range that the layer leaves to its backing file comes out neither zero nor data,
 * unless there is nothing below at `at`: then it is zero, though not allocated.
 */
export function layerStatus(
  layer: Image,
  at: number,
  length: number,
  depth = 0,
): BlockStatus | Promise<BlockStatus> {
  const mapping = preciseMapping(layer, at, length);
  return mapping instanceof Promise
    ? mapping.then((found) => statusOf(found, layer, at, depth))
    : statusOf(mapping, layer, at, depth);
}

function statusOf(
  mapping: Mapping,
  layer: Image,
  at: number,
  depth: number,
): BlockStatus | Promise<BlockStatus> {
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

function preciseMapping(layer: Image, at: number, length: number): Mapping | Promise<Mapping> {
  const named = (error: unknown): never => {
    if (error instanceof SpindleError) error.path ??= layer.name;
    throw error;
  };
  try {
    const mapping = layer.driver.map(at, length, true);
    return mapping instanceof Promise ? mapping.catch(named) : mapping;
  } catch (error) {
    return named(error);
  }
}

function reserved(
  layer: Image,
  { reserved: at, encrypted }: Extract<Mapping, { kind: 'zero' | 'backing' }>,
): BlockStatus['host'] {
  return at === undefined || encrypted === true ? null : { storage: layer.driver.data, at };
}

function dataStatus(
  mapping: Extract<Mapping, { kind: 'data' }>,
  plain: Pick<BlockStatus, 'length' | 'compressed' | 'depth' | 'layer'>,
): BlockStatus | Promise<BlockStatus> {
  const { storage, at } = mapping;
  const status = {
    ...plain,
    allocated: true,
    data: true,
    zero: false,
    host: mapping.encrypted ? null : { storage, at },
  };
  if (mapping.encrypted) return status;
  const sparse = plain.layer.driver.sparseData();
  if (sparse === false) return status;
  return sparse === true
    ? sparseStatus(status, storage, at)
    : sparse.then((found) => (found ? sparseStatus(status, storage, at) : status));
}

/** The status of data that may lie in a hole of the file. */
async function sparseStatus(status: BlockStatus, storage: Storage, at: number): Promise<BlockStatus> {
  if (at >= storage.size) return { ...status, zero: true };
  const there = await storage.extent(at, Math.min(status.length, storage.size - at));
  const zero = (there.flags & ExtentFlag.ZERO) !== 0;
  // What lies past the end of the file reads as zeroes too, so a hole that reaches the end covers the whole run.
  if (zero && at + there.length >= storage.size) return { ...status, zero };
  return { ...status, zero, length: Math.min(status.length, there.length) };
}
