import { sameBytes } from '../../core/bytes.ts';
import { wipe, type Crypto } from '../../core/crypto.ts';
import { formatError, SpindleError } from '../../core/errors.ts';
import { readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import { mergeKey, splitKey } from './anti-forensic.ts';
import { specOf } from './cipher-spec.ts';
import { sectorCipher, type SectorCipher } from './sector-cipher.ts';
import {
  keyMaterialLength,
  LUKS_DIGEST_LENGTH,
  LUKS_STRIPES,
  type LuksHeader,
  type LuksSlot,
} from './luks-header.ts';

/** A decoded LUKS header, and where it begins. */
export interface LuksPlace {
  readonly storage: Storage;
  readonly at: number;
  readonly header: LuksHeader;
}

/** Iterations below which a passphrase is too easily guessed. */
const MIN_ITERATIONS = 1000;
/** A header that asks for more would keep the machine busy for minutes, for each slot. */
const MAX_ITERATIONS = 2 ** 28;

/** How long stretching is measured, in milliseconds. */
const MEASURE = 40;

/**
 * The master key, by the first active slot that the passphrase opens, and the number of that slot; null when it opens
 * none. The caller wipes the key.
 * @throws SpindleError UNSUPPORTED, LIMIT, BAD_ENCRYPTION, IO
 */
export async function findKey(
  crypto: Crypto,
  place: LuksPlace,
  passphrase: Uint8Array,
): Promise<{ key: Uint8Array; slot: number } | null> {
  const { header, storage, at } = place;
  let lost: number | undefined;
  for (const [slot, { active, keyOffset }] of header.slots.entries()) {
    if (!active) continue;
    const key = await openSlot(crypto, place, slot, passphrase);
    if (key !== null) return { key, slot };
    if (at + keyOffset + keyMaterialLength(header.keyBytes) > storage.size) lost ??= slot;
  }
  if (lost === undefined) return null;
  throw formatError('BAD_ENCRYPTION', 'LUKS header', `the end of the file cuts key slot ${String(lost)}`, {
    offset: at,
  });
}

/** The master key, when the passphrase opens this slot. */
export async function openSlot(
  crypto: Crypto,
  place: LuksPlace,
  index: number,
  passphrase: Uint8Array,
): Promise<Uint8Array | null> {
  const { header, at, storage } = place;
  const slot = header.slots[index];
  if (slot?.active !== true) return null;
  const material = new Uint8Array(keyMaterialLength(header.keyBytes));
  const cipher = await slotCipher(crypto, header, slot, passphrase);
  try {
    await readPadded(storage, material, at + slot.keyOffset);
    cipher.decrypt(material, 0);
    const key = mergeKey(crypto, header.hash, material, header.keyBytes, LUKS_STRIPES);
    if (await isMasterKey(crypto, header, key)) return key;
    wipe(key);
    return null;
  } finally {
    wipe(material);
  }
}

/** What is to be stored for a slot so that the passphrase opens it: the key, split and encrypted. */
export async function makeMaterial(
  crypto: Crypto,
  header: Pick<LuksHeader, 'cipherName' | 'cipherMode' | 'hash' | 'keyBytes'>,
  slot: LuksSlot,
  passphrase: Uint8Array,
  key: Uint8Array,
): Promise<Uint8Array> {
  const material = new Uint8Array(keyMaterialLength(header.keyBytes));
  const cipher = await slotCipher(crypto, header, slot, passphrase);
  const split = splitKey(crypto, header.hash, key, LUKS_STRIPES);
  material.set(split);
  wipe(split);
  cipher.encrypt(material, 0);
  return material;
}

/** The cipher of a slot's key material: that of the data, with the stretched passphrase for its key. */
async function slotCipher(
  crypto: Crypto,
  header: Pick<LuksHeader, 'cipherName' | 'cipherMode' | 'hash' | 'keyBytes'>,
  slot: LuksSlot,
  passphrase: Uint8Array,
): Promise<SectorCipher> {
  checkIterations(slot.iterations);
  const stretched = await crypto.pbkdf2(header.hash, passphrase, slot.salt, slot.iterations, header.keyBytes);
  try {
    return sectorCipher(crypto, specOf(header), stretched);
  } finally {
    wipe(stretched);
  }
}

/** @throws SpindleError LIMIT when stretching would take unreasonably long */
function checkIterations(iterations: number): void {
  if (iterations <= MAX_ITERATIONS) return;
  throw formatError('LIMIT', 'LUKS header', `${String(iterations)} iterations are more than spindle does`);
}

async function isMasterKey(crypto: Crypto, header: LuksHeader, key: Uint8Array): Promise<boolean> {
  return sameBytes(await digestOf(crypto, header, key), header.masterKeyDigest);
}

/** What tells the right master key. */
export function digestOf(
  crypto: Crypto,
  header: Pick<LuksHeader, 'hash' | 'masterKeySalt' | 'masterKeyIterations'>,
  key: Uint8Array,
): Promise<Uint8Array> {
  checkIterations(header.masterKeyIterations);
  return crypto.pbkdf2(
    header.hash,
    key,
    header.masterKeySalt,
    header.masterKeyIterations,
    LUKS_DIGEST_LENGTH,
  );
}

/**
 * How many iterations stretch a passphrase to `length` bytes in `milliseconds` on this machine, measured.
 * @throws SpindleError BAD_OPTION when that is more than an image may ask for
 */
export async function iterationsFor(
  crypto: Crypto,
  hash: string,
  length: number,
  milliseconds: number,
): Promise<number> {
  const sample = new Uint8Array(32);
  for (let count = MIN_ITERATIONS; ; count *= 2) {
    const start = crypto.now();
    await crypto.pbkdf2(hash, sample, sample, count, length);
    const took = crypto.now() - start;
    if (took < MEASURE && count < MAX_ITERATIONS) continue;
    const wanted = Math.floor((count / Math.max(took, 1e-3)) * milliseconds);
    if (wanted > MAX_ITERATIONS) {
      throw new SpindleError(
        'BAD_OPTION',
        `iter-time ${String(milliseconds)} is too long; choose a shorter one`,
      );
    }
    return Math.max(MIN_ITERATIONS, wanted);
  }
}
