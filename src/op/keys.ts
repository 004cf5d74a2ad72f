import type { Crypto } from '../core/crypto.ts';
import { SpindleError } from '../core/errors.ts';
import { LUKS_DEFAULTS } from '../format/crypto/cipher-spec.ts';
import type { LuksPlace } from '../format/crypto/luks-key.ts';
import { addSlot, eraseSlots, readLuksPlace, slotsOf } from '../format/crypto/luks-slots.ts';
import { CryptMethod, Incompatible } from '../format/qcow2/layout.ts';
import { readMetadata } from '../format/qcow2/metadata.ts';
import { nodeCrypto } from '../native/crypto.ts';
import type { FileStorage } from '../storage/file.ts';
import { openLocked } from './open.ts';

/** How the image of a key slot operation is opened. */
export interface KeyOptions {
  /** `qcow2` or `luks`. Default: told from the first bytes. */
  readonly format?: string | undefined;
}

/** A passphrase to be added. Both secrets are the caller's to wipe. */
export interface AddKeyOptions extends KeyOptions {
  /** A passphrase that opens the image now. */
  readonly secret: Uint8Array;
  readonly newSecret: Uint8Array;
  /** Milliseconds that stretching the new passphrase takes. Default 2000. */
  readonly iterTime?: number | undefined;
  /** Number of the key slot, 0 to 7. Default: the first free one. */
  readonly slot?: number | undefined;
}

/** Which key slots are erased: those that a passphrase opens, or one by its number. */
export interface RemoveKeyOptions extends KeyOptions {
  readonly secret?: Uint8Array | undefined;
  readonly slot?: number | undefined;
  /** Also when no key slot is left, so that nobody can ever read the data again. */
  readonly force?: boolean | undefined;
}

/**
 * Makes a further passphrase open a LUKS encrypted image (qcow2, or a LUKS volume); gives the number of its key slot.
 * @throws SpindleError BAD_SECRET, BAD_OPTION, UNSUPPORTED (not LUKS), IN_USE, and as {@link openLocked}
 */
export async function addKey(path: string, options: AddKeyOptions): Promise<number> {
  const { secret, newSecret, slot, iterTime = LUKS_DEFAULTS.iterTime } = options;
  return onLuks(path, options, (crypto, place) =>
    addSlot(crypto, place, { secret, newSecret, iterTime, slot }),
  );
}

/**
 * Erases key slots, so that their passphrases open the image no more; gives their numbers. Copies of the old header
 * (snapshots of the host's file system, backups) can still be opened with them.
 * @throws SpindleError BAD_SECRET, BAD_OPTION (the last key without `force`), UNSUPPORTED, IN_USE, and as
 * {@link openLocked}
 */
export async function removeKey(path: string, options: RemoveKeyOptions): Promise<number[]> {
  const { secret, slot, force = false } = options;
  if ((secret === undefined) === (slot === undefined))
    throw new SpindleError('BAD_OPTION', 'name the key by its secret or by the number of its slot');
  return onLuks(path, options, async (crypto, place) => {
    const slots = secret === undefined ? [slot ?? 0] : await slotsOf(crypto, place, secret);
    await eraseSlots(crypto, place, slots, force);
    return slots;
  });
}

/**
 * Puts a new passphrase in the place of an old one: adds the new one, and only then erases the old one. Needs a free
 * key slot. Gives the number of the new slot.
 * @throws SpindleError as {@link addKey} and {@link removeKey}
 */
export async function changeKey(path: string, options: Omit<AddKeyOptions, 'slot'>): Promise<number> {
  const { secret, newSecret, iterTime = LUKS_DEFAULTS.iterTime } = options;
  return onLuks(path, options, async (crypto, place) => {
    const old = await slotsOf(crypto, place, secret);
    const added = await addSlot(crypto, place, { secret, newSecret, iterTime });
    await eraseSlots(crypto, await readLuksPlace(place.storage, place.at), old, false);
    return added;
  });
}

async function onLuks<T>(
  path: string,
  options: KeyOptions,
  work: (crypto: Crypto, place: LuksPlace) => Promise<T>,
): Promise<T> {
  const { storage, format } = await openLocked(path, { format: options.format, write: true });
  try {
    return await work(await nodeCrypto(), await luksIn(storage, format));
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
}

async function luksIn(storage: FileStorage, format: string): Promise<LuksPlace> {
  if (format === 'luks') return readLuksPlace(storage, 0);
  const notLuks = (what: string): SpindleError =>
    new SpindleError('UNSUPPORTED', `${what} has no key slots; only images encrypted with luks have`);
  if (format !== 'qcow2') throw notLuks(`a ${format} image`);
  const { header, luks, known } = await readMetadata(storage, 'data');
  // eslint-disable-next-line no-bitwise -- a flag
  if ((header.incompatible.lo & Incompatible.CORRUPT) !== 0)
    throw new SpindleError(
      'CORRUPT',
      'the image is marked corrupt and must be repaired before it is changed',
    );
  if (header.cryptMethod === CryptMethod.AES) throw notLuks('an image encrypted with aes');
  if (luks === null || known.crypto === undefined) throw notLuks('an image that is not encrypted');
  return { storage, at: known.crypto.offset, header: luks };
}
