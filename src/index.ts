/**
 * Spindle: raw and qcow2 disk images, natively.
 *
 * `create`, `info`, `map` and `checkFile` are the operations of the command line. `openImageFile` gives the disk of an
 * image as a {@link Storage}; the storages and layers make and wrap such storages.
 * @module
 */

// operations
export {
  create,
  type Created,
  type CreateRequest,
  type WarningAbout,
  type EncryptionRequest,
  type Preallocation,
  type Qcow2Options,
} from './op/create.ts';
export {
  info,
  infoChain,
  type BitmapInfo,
  type ImageInfo,
  type InfoOptions,
  type Qcow2Info,
} from './op/info.ts';
export { infoJson, type Json } from './op/info-json.ts';
export type { HostUsage } from './op/host-usage.ts';
export { map, type MapEntry, type MapOptions } from './op/map.ts';
export {
  addKey,
  changeKey,
  listKeys,
  removeKey,
  type AddKeyOptions,
  type KeyOptions,
  type KeySlotChange,
  type RemoveKeyOptions,
} from './op/keys.ts';
export {
  compare,
  compareExitCode,
  CompareError,
  type Compared,
  type CompareOptions,
  type CompareSide,
  type CompareStage,
  type Difference,
} from './op/compare.ts';
export { dd, type DdOptions } from './op/dd.ts';
export { measure, measureSize, type Measured, type MeasureSource, type MeasureTarget } from './op/measure.ts';
export {
  bench,
  benchStorage,
  type Benched,
  type BenchOpening,
  type BenchPlan,
  type BenchRequest,
} from './op/bench.ts';
export {
  benchImages,
  type BenchedImage,
  type Flow,
  type ImageBench,
  type ImageFigures,
} from './benchmark/image.ts';
export { study, type Study, type StudyOptions } from './benchmark/study.ts';
export type { Plan, Preset, StudyRequest } from './benchmark/plan.ts';
export type { Cell, StepResult } from './benchmark/cell.ts';
export type { Environment } from './benchmark/environment.ts';
export type { Comparison, Conclusion, Crossover, Finding } from './benchmark/verdict.ts';
export type { Interval } from './benchmark/statistics.ts';
export { compareStudies, parseStudy, type StudyDifference } from './benchmark/compare.ts';
export { drill, type Drill, type DrillOptions, type DrillRow } from './benchmark/drill/drill.ts';
export type { ImageBenchPlan, ImageBenchRequest, WriteData } from './benchmark/image-plan.ts';
export type { Access, SizeShare } from './benchmark/access.ts';
export type { Bucket, Series, SeriesPart, Tail } from './benchmark/recorder.ts';
export { checkFile } from './op/check-file.ts';
export {
  repairFile,
  repairJson,
  undoRepairFile,
  type RepairFileOptions,
  type RepairJson,
  type RepairOptions,
  type RepairResult,
} from './op/repair.ts';
export { checkExitCode, checkJson, type CheckJson } from './op/check.ts';
export type { CheckOptions, CheckResult } from './format/qcow2/check/check.ts';
export type { CheckProblem, ProblemCode, ProblemKind, RepairKind } from './format/qcow2/check/problem.ts';
export {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
  type CreateSnapshotOptions,
  type FindSnapshotOptions,
  type SnapshotFileOptions,
} from './op/snapshots.ts';
export { changeBitmap, readBitmap, type BitmapAction, type BitmapFileOptions } from './op/bitmaps.ts';
export type { GuestRange } from './format/qcow2/write/edit-bitmaps.ts';
export { amend, type AmendRequest } from './op/amend.ts';
export {
  convert,
  type Converted,
  type ConvertOptions,
  type ConvertSource,
  type ExistingTarget,
  type NewTarget,
} from './op/convert.ts';
export { planConvert, type ConvertPlan } from './op/convert-plan.ts';
export { convertFromStream, convertToStream, type StreamTarget } from './op/convert-stream.ts';
export type { Copied } from './op/copy/copy.ts';
export { allocate, type Allocated, type AllocateRequest, type HostHold } from './op/allocate.ts';
export { resize, type Resized, type ResizeRequest } from './op/resize.ts';
export { commit, type CommitOptions, type Committed } from './op/commit.ts';
export { planCommit, planRebase, type CommitPlan, type RebasePlan } from './op/chain-plan.ts';
export { rebase, type NewBacking, type Rebased, type RebaseOptions } from './op/rebase.ts';
export type { ResizeOptions, ResizeTools } from './format/driver.ts';
export type { FormatChange } from './format/qcow2/amend/amend.ts';
export type { OverlapCheck } from './format/qcow2/write/cluster-kinds.ts';
export type { Snapshot } from './format/qcow2/snapshot.ts';
export type { Working } from './core/working.ts';

// pools
export {
  Pool,
  poolHome,
  Pools,
  parsePool,
  parseVolume,
  promisedBy,
  Volume,
  WIPE_ALGORITHMS,
  writePool,
  writeVolumeDefinition,
  POOL_TYPES,
  type ActivePool,
  type BuildMode,
  type CreateVolumeOptions,
  type Discovery,
  type Forecast,
  type Permissions,
  type PoolDefinition,
  type PoolHome,
  type PoolInfo,
  type PoolsOptions,
  type PoolSource,
  type PoolType,
  type PoolUsage,
  type Promised,
  type SourceAuth,
  type SourceHost,
  type Started,
  type Timestamps,
  type TransferOptions,
  type VolumeDefinition,
  type VolumeFacts,
  type VolumeResize,
  type VolumeUpload,
  type VolumeType,
} from './pool/index.ts';

// images
export { openImageFile, secretOf, type OpenFileOptions } from './op/open.ts';
export { fileGate, namedGate, type FileGateOptions } from './op/file-gate.ts';
export { openImage, probeFormat, type Format, type OpenOptions } from './format/open.ts';
export { denyAll, type Gate, type Opened, type Reference } from './format/gate.ts';
export type { Image } from './format/image.ts';
export type { DataMapping, FormatDriver, Mapping } from './format/driver.ts';
export { nodeCodec } from './native/codec.ts';
export { nodeCrypto } from './native/crypto.ts';
export { type BlockCipher, type Crypto, type SecretRequest, type SecretSource } from './core/crypto.ts';
export type { LuksOptions } from './format/crypto/cipher-spec.ts';
export type { LuksHeader, LuksSlot } from './format/crypto/luks-header.ts';
export type { Codec } from './core/codec.ts';

// storages
export { ReadOnlyStorage, type Storage, type StorageCan, type ZeroOptions } from './core/storage.ts';
export { ExtentFlag, type Extent, type HostExtent } from './core/extent.ts';
export { ALLOCATION_POLICIES, type AllocationPolicy, type Reservable } from './core/allocation.ts';
export { FileStorage, openFile, type FileOptions } from './storage/file.ts';
export { MemoryStorage, type MemoryOptions } from './storage/memory.ts';
export { lockImage, type ImageLock, type LockUse } from './storage/lock.ts';

// layers
export { checked } from './layer/checked.ts';
export { fault, type Fault, type FaultLayer, type FaultOperation, type FaultOptions } from './layer/fault.ts';
export { readOnly } from './layer/readonly.ts';
export {
  trace,
  type TraceLayer,
  type TraceOperation,
  type TraceOptions,
  type TraceRecord,
} from './layer/trace.ts';
export { window, type WindowOptions } from './layer/window.ts';

// the rest
export {
  isSpindleError,
  SpindleError,
  type ErrorCode,
  type ErrorDetails,
  type ErrorPlace,
} from './core/errors.ts';
export { formatSize, parseSize } from './core/size.ts';
export { addonStatus, type AddonStatus } from './native/binding.ts';
export type { ZeroReport } from './native/types.ts';
