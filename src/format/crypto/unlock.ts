import { wipe, type Crypto, type SecretSource } from '../../core/crypto.ts';
import type { Storage } from '../../core/storage.ts';
import { specOf } from './cipher-spec.ts';
import { lockedData, plainData, type PlainData } from './encrypted-storage.ts';
import { findKey, type LuksPlace } from './luks-key.ts';
import { badSecret } from './luks-slots.ts';
import { legacyCipher, sectorCipher } from './sector-cipher.ts';

/** What opening an encrypted image needs. */
export interface Unlocking {
  /** Name under which the image was opened. */
  readonly name: string | undefined;
  /** Default: no secret, so that the data stays unreadable. */
  readonly secret?: SecretSource | undefined;
  /** Asked for only when there is something to decrypt. */
  readonly crypto?: (() => Promise<Crypto>) | undefined;
}

/**
 * The data of a LUKS encrypted image in `data`, in the clear. Initial vectors count from offset `origin` of `data`.
 * @throws SpindleError BAD_SECRET, UNSUPPORTED, LIMIT, BAD_ENCRYPTION
 */
export async function unlockLuks(
  place: LuksPlace,
  data: Storage,
  origin: number,
  how: Unlocking,
): Promise<PlainData> {
  return withSecret('luks', how, async (crypto, secret) => {
    const found = await findKey(crypto, place, secret);
    if (found === null) throw badSecret();
    try {
      const cipher = sectorCipher(crypto, specOf(place.header), found.key);
      return plainData(data, cipher, { from: 'host', origin });
    } finally {
      wipe(found.key);
    }
  });
}

/** The data of an image with qcow2's first kind of encryption, in the clear. No passphrase is wrong here. */
export async function unlockLegacy(data: Storage, how: Unlocking): Promise<PlainData> {
  return withSecret('aes', how, (crypto, secret) =>
    Promise.resolve(plainData(data, legacyCipher(crypto, secret), { from: 'guest' })),
  );
}

async function withSecret(
  method: 'luks' | 'aes',
  how: Unlocking,
  work: (crypto: Crypto, secret: Uint8Array) => Promise<PlainData>,
): Promise<PlainData> {
  if (how.secret === undefined || how.crypto === undefined) return lockedData;
  const secret = await how.secret({ name: how.name, method });
  if (secret === null) return lockedData;
  try {
    return await work(await how.crypto(), secret);
  } finally {
    wipe(secret);
  }
}
