import type { AllocationPolicy } from '../../core/allocation.ts';
import { SpindleError } from '../../core/errors.ts';
import { stopIfAborted, type Working } from '../../core/working.ts';
import type { Storage } from '../../core/storage.ts';
import { HostSpace, isDevice, UNIT, type Tally } from './host.ts';

/** Bytes between two reports. */
const STEP = 1024 ** 3;

/** What is done, and how. */
export interface Doing extends Working {
  readonly policy: AllocationPolicy;
  /** Count only. */
  readonly plan: boolean;
  readonly tally: Tally;
}

/**
 * Gives a file without tables (raw, or a LUKS volume with its header) another policy. No byte of it changes, so no secret
 * is needed.
 * @throws SpindleError UNSUPPORTED before anything is changed; NO_SPACE, ABORTED
 */
export async function allocateFlat(storage: Storage, doing: Doing): Promise<void> {
  const { policy, tally, plan, signal, onProgress } = doing;
  refuseDevice(storage, policy);
  const space = new HostSpace(storage, tally, !plan, signal);
  const { size } = storage;
  for (let at = 0; at < size;) {
    stopIfAborted(signal);
    const length = Math.min(STEP, size - at);
    if (policy === 'thick-lazy') await space.reserve(at, length);
    else if (policy === 'thick-eager') await space.writeOut(at, length);
    else await space.punchZeroes(at, length, UNIT);
    at += length;
    onProgress?.(at, size);
  }
  if (!plan) await storage.flush();
}

/** @throws SpindleError UNSUPPORTED for what makes no sense */
function refuseDevice(storage: Storage, policy: AllocationPolicy): void {
  if (policy !== 'thick-lazy' || !isDevice(storage)) return;
  const message =
    'the space of a block device cannot be reserved: it has it, or takes it when it is written to; ' +
    'use thick-eager to write all of it, or thin to give zeroes back';
  throw new SpindleError('UNSUPPORTED', message);
}
