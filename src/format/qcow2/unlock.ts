import type { Storage } from '../../core/storage.ts';
import type { PlainData } from '../crypto/encrypted-storage.ts';
import { unlockLegacy, unlockLuks, type Unlocking } from '../crypto/unlock.ts';
import { CryptMethod } from './layout.ts';
import type { Metadata } from './metadata.ts';

/**
 * The guest data of an image in the clear; undefined where it is not encrypted. `data` is what holds the data clusters:
 * `storage`, or the external data file.
 * @throws SpindleError BAD_SECRET, UNSUPPORTED, LIMIT, BAD_ENCRYPTION
 */
export async function unlockQcow2(
  storage: Storage,
  metadata: Metadata,
  data: Storage,
  how: Unlocking,
): Promise<PlainData | undefined> {
  if (metadata.header.cryptMethod === CryptMethod.AES) return unlockLegacy(data, how);
  if (metadata.luks === null || metadata.known.crypto === undefined) return undefined;
  const place = { storage, at: metadata.known.crypto.offset, header: metadata.luks };
  return unlockLuks(place, data, 0, how);
}
