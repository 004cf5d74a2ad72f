import type { Storage } from '../../core/storage.ts';
import { readLuksPlace } from '../crypto/luks-slots.ts';
import { unlockLuks, type Unlocking } from '../crypto/unlock.ts';
import { LuksDriver } from './driver.ts';

/**
 * The driver of the LUKS volume in `storage`. Without a secret its data cannot be read.
 * @throws SpindleError BAD_ENCRYPTION, BAD_SECRET, UNSUPPORTED, LIMIT
 */
export async function openLuks(storage: Storage, how: Unlocking): Promise<LuksDriver> {
  const place = await readLuksPlace(storage, 0);
  const plain = await unlockLuks(place, storage, place.header.payloadOffset, how);
  return new LuksDriver(storage, place.header, plain);
}
