import type { Storage } from '../core/storage.ts';
import { checkImage, type CheckOptions, type CheckResult } from '../format/qcow2/check/check.ts';
import { readMetadata } from '../format/qcow2/metadata.ts';

/**
 * Checks the metadata of the qcow2 image in `storage`; nothing is changed, and no other file is opened.
 * @throws SpindleError what {@link readMetadata} throws when the image cannot even be opened; ABORTED; IO
 */
export async function check(storage: Storage, options: CheckOptions = {}): Promise<CheckResult> {
  return checkImage(storage, await readMetadata(storage, 'check'), options);
}

/** The object that `qemu-img check --output=json` prints: the same keys, each absent when it would be zero. */
export interface CheckJson {
  readonly filename: string;
  readonly format: string;
  readonly 'check-errors': number;
  readonly 'image-end-offset'?: number;
  readonly corruptions?: number;
  readonly leaks?: number;
  readonly 'total-clusters'?: number;
  readonly 'allocated-clusters'?: number;
  readonly 'fragmented-clusters'?: number;
  readonly 'compressed-clusters'?: number;
}

/** A result in the shape of qemu-img. `filename` and `format` are given back as they are. */
export function checkJson(result: CheckResult, filename: string, format: string): CheckJson {
  const optional = {
    'image-end-offset': result.imageEndOffset,
    'total-clusters': result.totalClusters,
    corruptions: result.corruptions,
    leaks: result.leaks,
    'allocated-clusters': result.allocatedClusters,
    'fragmented-clusters': result.fragmentedClusters,
    'compressed-clusters': result.compressedClusters,
  };
  return {
    filename,
    format,
    'check-errors': result.checkErrors,
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== 0)),
  };
}

/** The exit code of `qemu-img check`: 0 clean, 1 not all could be checked, 2 corrupt, 3 only leaks. */
export function checkExitCode(result: CheckResult): 0 | 1 | 2 | 3 {
  if (result.checkErrors > 0) return 1;
  if (result.corruptions > 0) return 2;
  return result.leaks > 0 ? 3 : 0;
}
