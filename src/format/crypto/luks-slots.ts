import { wipe, type Crypto } from '../../core/crypto.ts';
import { SpindleError } from '../../core/errors.ts';
import { readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import { random } from './luks-create.ts';
import {
  decodeLuks,
  encodeLuksSlot,
  keyMaterialLength,
  LUKS_HEADER_LENGTH,
  LUKS_SLOTS,
  LUKS_STRIPES,
  luksSlotAt,
  type LuksSlot,
} from './luks-header.ts';
import { findKey, iterationsFor, makeMaterial, openSlot, type LuksPlace } from './luks-key.ts';

/** Reads the LUKS header at `at`. @throws SpindleError BAD_ENCRYPTION, IO */
export async function readLuksPlace(storage: Storage, at: number): Promise<LuksPlace> {
  const bytes = new Uint8Array(LUKS_HEADER_LENGTH);
  await readPadded(storage, bytes, at);
  return { storage, at, header: decodeLuks(bytes, at) };
}

/** The error of a passphrase that opens no slot. */
export function badSecret(): SpindleError {
  return new SpindleError('BAD_SECRET', 'the secret opens none of the key slots');
}

/** A key slot to be added. */
export interface NewSlot {
  /** A passphrase that opens the image now. */
  readonly secret: Uint8Array;
  readonly newSecret: Uint8Array;
  /** Milliseconds that stretching the new passphrase takes. */
  readonly iterTime: number;
  /** Number of the slot; default: the first free one. */
  readonly slot?: number | undefined;
}

/**
 * Makes a second passphrase open the image, and gives the number of its slot. Everything of the slot is durable before
 * it is switched on, so that a crash leaves it off.
 * @throws SpindleError BAD_SECRET, BAD_OPTION when no slot or not this one is free, UNSUPPORTED, IO
 */
export async function addSlot(crypto: Crypto, place: LuksPlace, wanted: NewSlot): Promise<number> {
  const { header, storage, at } = place;
  const index = freeSlot(place, wanted.slot);
  const before = header.slots[index];
  if (before === undefined) throw new RangeError('no such slot');
  const found = await findKey(crypto, place, wanted.secret);
  if (found === null) throw badSecret();
  try {
    const slot: LuksSlot = {
      active: true,
      iterations: await iterationsFor(crypto, header.hash, header.keyBytes, wanted.iterTime),
      salt: random(crypto, 32),
      keyOffset: before.keyOffset,
      stripes: LUKS_STRIPES,
    };
    const material = await makeMaterial(crypto, header, slot, wanted.newSecret, found.key);
    const entryAt = at + luksSlotAt(index);
    await storage.write(material, at + slot.keyOffset);
    // An entry may span two sectors; the word that switches it on does not.
    await storage.write(encodeLuksSlot({ ...slot, active: false }), entryAt);
    await storage.flush();
    await storage.write(encodeLuksSlot(slot).subarray(0, 4), entryAt);
    await storage.flush();
    return index;
  } finally {
    wipe(found.key);
  }
}

/**
 * The same, also where the slot is in use. At any moment one key at least opens the image: if the old key is the only
 * one, the new one waits in a free slot until its own is empty.
 * @throws SpindleError as {@link addSlot}
 */
export async function replaceSlot(crypto: Crypto, place: LuksPlace, wanted: NewSlot): Promise<number> {
  const { slot, newSecret, secret } = wanted;
  const { slots } = place.header;
  if (slot === undefined || slots[slot]?.active !== true) return addSlot(crypto, place, wanted);
  const anew = (): Promise<LuksPlace> => readLuksPlace(place.storage, place.at);
  const opened = await slotsOf(crypto, place, secret);
  if (opened.some((index) => index !== slot)) {
    await eraseSlots(crypto, place, [slot], false);
    return addSlot(crypto, await anew(), wanted);
  }
  const waiting = await addSlot(crypto, place, { ...wanted, slot: undefined });
  await eraseSlots(crypto, await anew(), [slot], false);
  await addSlot(crypto, await anew(), { ...wanted, secret: newSecret });
  await eraseSlots(crypto, await anew(), [waiting], false);
  return slot;
}

/** The first free slot, or the one that is wanted. @throws SpindleError BAD_OPTION when it is not free */
export function freeSlot(place: LuksPlace, wanted: number | undefined): number {
  const { slots } = place.header;
  if (wanted === undefined) {
    const free = slots.findIndex((slot) => !slot.active);
    if (free < 0) throw new SpindleError('BAD_OPTION', 'all eight key slots are in use; remove one first');
    return free;
  }
  checkNumber(wanted);
  if (slots[wanted]?.active === true)
    throw new SpindleError('BAD_OPTION', `key slot ${String(wanted)} is in use; remove it first`);
  return wanted;
}

/** @throws SpindleError BAD_OPTION for what is no number of a key slot */
export function checkNumber(slot: number): void {
  if (!Number.isInteger(slot) || slot < 0 || slot >= LUKS_SLOTS)
    throw new SpindleError('BAD_OPTION', `key slots are numbered 0 to 7, not ${String(slot)}`);
}

/** Which slots the passphrase opens. @throws SpindleError BAD_SECRET when there is none */
export async function slotsOf(crypto: Crypto, place: LuksPlace, secret: Uint8Array): Promise<number[]> {
  const opened: number[] = [];
  for (const index of place.header.slots.keys()) {
    const key = await openSlot(crypto, place, index, secret);
    if (key !== null) opened.push(index);
    wipe(key);
  }
  if (opened.length === 0) throw badSecret();
  return opened;
}

/**
 * Erases key slots: their passphrases open the image no more. The key material goes first, so that no crash leaves a
 * slot that is off and yet holds a key.
 * @throws SpindleError BAD_OPTION for a slot that is not in use, or when none would be left and it is not `force`
 */
export async function eraseSlots(
  crypto: Crypto,
  place: LuksPlace,
  erased: readonly number[],
  force: boolean,
): Promise<void> {
  const { header, storage, at } = place;
  refuseLast(place, erased, force);
  const length = keyMaterialLength(header.keyBytes);
  for (const index of erased) {
    const slot = header.slots[index];
    if (slot !== undefined) await storage.write(random(crypto, length), at + slot.keyOffset);
  }
  await storage.flush();
  for (const index of erased) {
    const slot = header.slots[index];
    if (slot === undefined) continue;
    const empty: LuksSlot = { ...slot, active: false, iterations: 0, salt: new Uint8Array(32) };
    // Off first: an active slot without iterations would make the header unreadable, were the entry written half.
    await storage.write(encodeLuksSlot(empty).subarray(0, 4), at + luksSlotAt(index));
    await storage.flush();
    await storage.write(encodeLuksSlot(empty), at + luksSlotAt(index));
  }
  await storage.flush();
}

/**
 * Sees that key slots can be erased. Changes nothing.
 * @throws SpindleError BAD_OPTION for a slot that is not in use, or when none would be left and it is not `force`
 */
export function refuseLast({ header }: LuksPlace, erased: readonly number[], force: boolean): void {
  for (const index of erased) {
    checkNumber(index);
    if (header.slots[index]?.active !== true)
      throw new SpindleError('BAD_OPTION', `key slot ${String(index)} is not in use`);
  }
  const left = header.slots.some((slot, index) => slot.active && !erased.includes(index));
  if (!left && !force) {
    throw new SpindleError(
      'BAD_OPTION',
      'no key slot would be left and the data would be lost for ever; force it if that is wanted',
    );
  }
}
