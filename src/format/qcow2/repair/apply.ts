import { stopIfAborted } from '../../../core/working.ts';
import type { Storage } from '../../../core/storage.ts';
import { checkImage, type CheckResult } from '../check/check.ts';
import { readMetadata } from '../metadata.ts';
import type { JournalWriter } from './journal.ts';
import type { Patch, RepairPlan, RepairStep } from './step.ts';

/** How a repair is carried out. */
export interface ApplyOptions {
  /** Keeps what each change replaces, durably before it is made. */
  readonly journal?: JournalWriter | undefined;
  /** Stops between two changes, with ABORTED: the image is no worse than before, and can be repaired later. */
  readonly signal?: AbortSignal | undefined;
  /** Told each step before it begins. */
  readonly onStep?: ((step: RepairStep) => void) | undefined;
  /** Told the bytes that the final check has read, and how many there are. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** What a repair did. */
export interface Applied {
  /** What a check says afterwards. */
  readonly after: CheckResult;
  /** Changes made. */
  readonly patches: number;
  /** Bytes written. */
  readonly bytes: number;
}

/** Bytes, and patches, that are written between two flushes of the journal at most. */
const BATCH_BYTES = 1024 ** 2;
const BATCH_PATCHES = 8192;

/**
 * Carries out a plan, step by step, each durable before the next, then checks the image, and only if that finds nothing
 * but leaks takes the last step.
 * @throws SpindleError ABORTED, IO, NO_SPACE
 */
export async function applyRepair(
  storage: Storage,
  plan: RepairPlan,
  options: ApplyOptions = {},
): Promise<Applied> {
  const writer = new StepWriter(storage, options);
  for (const step of plan.steps) await writer.run(step);
  const metadata = await readMetadata(storage, 'check');
  const after = await checkImage(storage, metadata, {
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    ...(options.onProgress === undefined ? {} : { onProgress: options.onProgress }),
  });
  if (plan.finish !== null && after.corruptions === 0 && after.checkErrors === 0)
    await writer.run(plan.finish);
  return { after, patches: writer.patches, bytes: writer.bytes };
}

/** Writes the patches of steps: what lies side by side with one write, and in batches that the journal knows before. */
class StepWriter {
  patches = 0;
  bytes = 0;
  readonly #storage: Storage;
  readonly #options: ApplyOptions;
  #batch: Patch[] = [];
  #batchBytes = 0;

  constructor(storage: Storage, options: ApplyOptions) {
    this.#storage = storage;
    this.#options = options;
  }

  async run(step: RepairStep): Promise<void> {
    const { journal, signal, onStep } = this.#options;
    stopIfAborted(signal);
    onStep?.(step);
    await journal?.begin(this.#storage, step);
    if (step.size !== undefined && step.size > this.#storage.size) await this.#storage.resize(step.size);
    for await (const patch of step.patches()) {
      this.#batch.push(patch);
      this.#batchBytes += patch.bytes.length;
      if (this.#batchBytes >= BATCH_BYTES || this.#batch.length >= BATCH_PATCHES) await this.#write();
    }
    await this.#write();
    await this.#storage.flush();
    await journal?.done(this.#storage.size);
  }

  async #write(): Promise<void> {
    const batch = this.#batch;
    if (batch.length === 0) return;
    this.#batch = [];
    this.#batchBytes = 0;
    stopIfAborted(this.#options.signal);
    await this.#options.journal?.record(batch);
    for (let from = 0; from < batch.length;) {
      const at = batch[from]?.at ?? 0;
      let end = at;
      let to = from;
      for (let next = batch[to]; next?.at === end; next = batch[++to]) end += next.bytes.length;
      const bytes = new Uint8Array(end - at);
      for (const patch of batch.slice(from, to)) bytes.set(patch.bytes, patch.at - at);
      // A table may run past the end of the file.
      if (end > this.#storage.size) await this.#storage.resize(end);
      await this.#storage.write(bytes, at);
      this.patches += to - from;
      this.bytes += bytes.length;
      from = to;
    }
  }
}
