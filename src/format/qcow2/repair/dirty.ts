import { SpindleError } from '../../../core/errors.ts';
import type { Storage } from '../../../core/storage.ts';
import { Incompatible } from '../layout.ts';
import { readMetadata, type Metadata } from '../metadata.ts';
import { applyRepair } from './apply.ts';
import { planRepair } from './plan.ts';

/** Plans that are carried out one after the other at most. */
const ROUNDS = 4;

/**
 * Makes the refcounts of an image that is marked dirty anew from its tables, and clears the mark; returns what the
 * header says then. Power may fail at any time: the image stays marked, and is no worse.
 * @throws SpindleError DIRTY when other damage than refcounts stays; and what {@link planRepair} throws
 */
export async function repairDirty(storage: Storage): Promise<Metadata> {
  let keepCounts = false;
  let why = 'its tables are damaged';
  for (let round = 0; round < ROUNDS; round++) {
    const plan = await planRepair(storage, await readMetadata(storage, 'check'), 'all', { keepCounts });
    keepCounts = plan.keepsCounts;
    why = plan.left[0]?.message ?? why;
    const { patches } = await applyRepair(storage, plan);
    const metadata = await readMetadata(storage, 'data');
    if ((metadata.header.incompatible.lo & Incompatible.DIRTY) === 0) return metadata;
    if (patches === 0) break;
  }
  throw new SpindleError(
    'DIRTY',
    `the image was not closed by the program that wrote it last, and could not be repaired on opening: ${why}; look at it with check`,
  );
}
