/**
 * Spindle: raw and qcow2 disk images, natively.
 *
 * `create`, `info`, `map` and `check` are the operations of the command line. `openImageFile` gives the disk of an image
 * as a {@link Storage}; the storages and layers make and wrap such storages.
 * @module
 */
export { ALLOCATION_POLICIES, type AllocationPolicy, type Reservable } from './core/allocation.ts';
export type { Codec } from './core/codec.ts';
export {
  isSpindleError,
  SpindleError,
  type ErrorCode,
  type ErrorDetails,
  type ErrorPlace,
} from './core/errors.ts';
export { ExtentFlag, type Extent, type HostExtent } from './core/extent.ts';
export { formatSize, parseSize } from './core/size.ts';
export { ReadOnlyStorage, type Storage, type StorageCan, type ZeroOptions } from './core/storage.ts';
export type { FormatDriver, Mapping, DataMapping } from './format/driver.ts';
export { denyAll, type Gate, type Opened, type Reference } from './format/gate.ts';
export type { Image } from './format/image.ts';
export { openImage, probeFormat, type Format, type OpenOptions } from './format/open.ts';
export type { Snapshot } from './format/qcow2/snapshot.ts';
export { addonStatus, type AddonStatus } from './native/binding.ts';
export { nodeCodec } from './native/codec.ts';
export {
  create,
  type Created,
  type CreateRequest,
  type Preallocation,
  type Qcow2Options,
} from './op/create.ts';
export { fileGate, type FileGateOptions } from './op/file-gate.ts';
export { type HostUsage } from './op/host-usage.ts';
export {
  info,
  infoChain,
  type BitmapInfo,
  type ImageInfo,
  type InfoOptions,
  type Qcow2Info,
} from './op/info.ts';
export { infoJson, type Json } from './op/info-json.ts';
export { map, type MapEntry, type MapOptions } from './op/map.ts';
export { openImageFile, type OpenFileOptions } from './op/open.ts';
export { listSnapshots } from './op/snapshots.ts';
export { FileStorage, openFile, type FileOptions } from './storage/file.ts';
export { MemoryStorage, type MemoryOptions } from './storage/memory.ts';
