import { SpindleError } from './errors.ts';

/** How long work can be stopped, and who hears how far it is. */
export interface Working {
  /** Stops the work: it fails with ABORTED and leaves nothing half made. */
  readonly signal?: AbortSignal | undefined;
  /** Told the bytes done and the bytes in all, from time to time and at the end. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** @throws SpindleError ABORTED when the work is to stop */
export function stopIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) {
    throw new SpindleError('ABORTED', 'stopped on request', { cause: signal.reason });
  }
}
