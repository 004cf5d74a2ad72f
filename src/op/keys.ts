import { wipe, type Crypto } from '../core/crypto.ts';
import { SpindleError } from '../core/errors.ts';
import type { Storage } from '../core/storage.ts';
import { LUKS_DEFAULTS } from '../format/crypto/cipher-spec.ts';
import type { LuksSlot } from '../format/crypto/luks-header.ts';
import type { LuksPlace } from '../format/crypto/luks-key.ts';
import {
  addSlot,
  freeSlot,
  checkNumber,
  eraseSlots,
  readLuksPlace,
  refuseLast,
  replaceSlot,
  slotsOf,
} from '../format/crypto/luks-slots.ts';
import { CryptMethod, Incompatible } from '../format/qcow2/layout.ts';
import { readMetadata, type Metadata } from '../format/qcow2/metadata.ts';
import { nodeCrypto } from '../native/crypto.ts';
import type { FileStorage } from '../storage/file.ts';
import { openLocked } from './open.ts';

/** How the image of a key slot operation is opened. */
export interface KeyOptions {
  /** `qcow2` or `luks`. Default: told from the first bytes. */
  readonly format?: string | undefined;
}

/**
 * The eight key slots of a LUKS encrypted image (qcow2, or a LUKS volume). Nobody can tell whose passphrase is in which;
 * no secret is needed.
 * @throws SpindleError UNSUPPORTED (not LUKS), and as {@link openLocked}
 */
export async function listKeys(
  path: string,
  options: KeyOptions & { readonly share?: boolean | undefined } = {},
): Promise<readonly LuksSlot[]> {
  const { storage, format } = await openLocked(path, { format: options.format, share: options.share });
  try {
    return (await luksIn(storage, format, 'info')).header.slots;
  } catch (error) {
    if (error instanceof SpindleError) error.path ??= path;
    throw error;
  } finally {
    await storage.close();
  }
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

/** A change of key slots, in the words of `qemu-img amend`. All secrets are the caller's to wipe. */
export type KeySlotChange =
  | {
      /** Adds a passphrase. */
      readonly state: 'active';
      readonly newSecret: Uint8Array;
      /** Number of the key slot, 0 to 7. Default: the first free one. */
      readonly slot?: number | undefined;
      /** Milliseconds that stretching the new passphrase takes. Default 2000. */
      readonly iterTime?: number | undefined;
    }
  | {
      /** Erases the slots that a passphrase opens, or one by its number; with both, that one if the passphrase opens it. */
      readonly state: 'inactive';
      readonly oldSecret?: Uint8Array | undefined;
      readonly slot?: number | undefined;
    };

/** What a change of key slots needs besides. */
export interface KeySlotTerms {
  /** Gives a passphrase that opens the image now; needed to add another. */
  readonly secret: () => Promise<Uint8Array | null>;
  /** Also overwrite a slot that is in use, and erase the last one: the data is lost for ever then. */
  readonly force: boolean;
}

/**
 * Sees whether key slots can be changed. Changes nothing.
 * @throws SpindleError BAD_OPTION, BAD_SECRET, ENCRYPTED (no secret was given)
 */
export async function checkKeySlots(
  crypto: Crypto,
  place: LuksPlace,
  change: KeySlotChange,
  { secret, force }: KeySlotTerms,
): Promise<void> {
  if (change.state === 'inactive') {
    refuseLast(place, await erasedSlots(crypto, place, change), force);
    return;
  }
  if (change.slot !== undefined) checkNumber(change.slot);
  if (!force || change.slot === undefined) freeSlot(place, change.slot);
  await withSecret(secret, (bytes) => slotsOf(crypto, place, bytes));
}

/**
 * Adds or erases key slots of the image at `place`.
 * @throws SpindleError as {@link checkKeySlots}, before anything is changed; UNSUPPORTED, IO
 */
export async function changeKeySlots(
  crypto: Crypto,
  place: LuksPlace,
  change: KeySlotChange,
  { secret, force }: KeySlotTerms,
): Promise<void> {
  if (change.state === 'inactive') {
    await eraseSlots(crypto, place, await erasedSlots(crypto, place, change), force);
    return;
  }
  const { newSecret, slot, iterTime = LUKS_DEFAULTS.iterTime } = change;
  const add = force ? replaceSlot : addSlot;
  await withSecret(secret, (bytes) => add(crypto, place, { secret: bytes, newSecret, iterTime, slot }));
}

async function erasedSlots(
  crypto: Crypto,
  place: LuksPlace,
  { oldSecret, slot }: Extract<KeySlotChange, { state: 'inactive' }>,
): Promise<number[]> {
  if (slot !== undefined) checkNumber(slot);
  if (oldSecret === undefined) {
    if (slot !== undefined) return [slot];
    throw new SpindleError('BAD_OPTION', 'name the key to erase by its slot or by its old secret');
  }
  const opened = await slotsOf(crypto, place, oldSecret);
  if (slot === undefined) return opened;
  if (opened.includes(slot)) return [slot];
  throw new SpindleError('BAD_SECRET', `the old secret does not open key slot ${String(slot)}`);
}

async function withSecret<T>(
  secret: KeySlotTerms['secret'],
  work: (bytes: Uint8Array) => Promise<T>,
): Promise<T> {
  const bytes = await secret();
  if (bytes === null)
    throw new SpindleError(
      'ENCRYPTED',
      'adding a key needs a secret that opens the image, and none was given',
    );
  try {
    return await work(bytes);
  } finally {
    wipe(bytes);
  }
}

/** {@link changeKeySlots} of the image in a file. @throws SpindleError as it, UNSUPPORTED (not LUKS), IN_USE */
export function changeKeySlotsIn(
  path: string,
  options: KeyOptions,
  change: KeySlotChange,
  terms: KeySlotTerms,
): Promise<void> {
  return onLuks(path, options, async (crypto, place) => {
    await checkKeySlots(crypto, place, change, terms);
    await changeKeySlots(crypto, place, change, terms);
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

async function luksIn(
  storage: FileStorage,
  format: string,
  purpose: 'data' | 'info' = 'data',
): Promise<LuksPlace> {
  if (format === 'luks') return readLuksPlace(storage, 0);
  if (format !== 'qcow2') throw notLuks(`a ${format} image`);
  return luksOf(storage, await readMetadata(storage, purpose), purpose);
}

/** The encryption header of a qcow2 image, to be changed or only looked at. @throws SpindleError UNSUPPORTED, CORRUPT */
export function luksOf(
  storage: Storage,
  { header, luks, known }: Metadata,
  purpose: 'data' | 'info' = 'data',
): LuksPlace {
  // eslint-disable-next-line no-bitwise -- a flag
  if (purpose === 'data' && (header.incompatible.lo & Incompatible.CORRUPT) !== 0)
    throw new SpindleError(
      'CORRUPT',
      'the image is marked corrupt and must be repaired before it is changed',
    );
  if (header.cryptMethod === CryptMethod.AES) throw notLuks('an image encrypted with aes');
  if (luks === null || known.crypto === undefined) throw notLuks('an image that is not encrypted');
  return { storage, at: known.crypto.offset, header: luks };
}

function notLuks(what: string): SpindleError {
  return new SpindleError('UNSUPPORTED', `${what} has no key slots; only images encrypted with luks have`);
}
