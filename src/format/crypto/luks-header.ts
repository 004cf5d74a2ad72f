import { bytesOf, textOf, viewOf } from '../../core/bytes.ts';
import { formatError, type SpindleError } from '../../core/errors.ts';

/** Bytes of the fixed part of a LUKS1 header, all eight key slots included. */
export const LUKS_HEADER_LENGTH = 592;

/** The magic, and version 1. */
const LUKS_START = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe, 0x00, 0x01];
const SLOT_AT = 208;
const SLOT_LENGTH = 48;
const SLOT_ACTIVE = 0x00ac_71f3;
const SLOT_INACTIVE = 0x0000_dead;
const SECTOR = 512;
/** Key material starts here, and each slot's at a multiple of it. Sectors. */
const KEY_ALIGNMENT = 8;
const SALT_LENGTH = 32;

/** Key slots of a header. */
export const LUKS_SLOTS = 8;
/** Parts that a key is split into before it is stored. */
export const LUKS_STRIPES = 4000;
/** Bytes of the digest that tells the right master key. */
export const LUKS_DIGEST_LENGTH = 20;

/** The hashes that LUKS headers name. */
export const LUKS_HASHES = ['md5', 'sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160', 'sm3'];
const CIPHERS = ['aes', 'cast5', 'serpent', 'twofish', 'sm4'];
/** Mode of operation, then how the initial vector is made; ESSIV names its hash. */
const MODE = new RegExp(`^(ecb|cbc|xts|ctr)-(plain|plain64|essiv:(${LUKS_HASHES.join('|')}))$`);

/** One key slot of a LUKS1 header. */
export interface LuksSlot {
  readonly active: boolean;
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Bytes from the start of the LUKS header. */
  readonly keyOffset: number;
  readonly stripes: number;
}

/** A LUKS1 header without its secrets. */
export interface LuksHeader {
  readonly cipherName: string;
  /** For example `xts-plain64`. */
  readonly cipherMode: string;
  readonly hash: string;
  /** Bytes from the start of the LUKS header to the data. */
  readonly payloadOffset: number;
  readonly keyBytes: number;
  /** What {@link LUKS_DIGEST_LENGTH} bytes stretched from the right master key are. */
  readonly masterKeyDigest: Uint8Array;
  readonly masterKeySalt: Uint8Array;
  readonly masterKeyIterations: number;
  readonly uuid: string;
  readonly slots: readonly LuksSlot[];
}

/**
 * Decodes a LUKS1 header of {@link LUKS_HEADER_LENGTH} bytes that lies at host offset `offset`.
 * @throws SpindleError BAD_ENCRYPTION
 */
export function decodeLuks(bytes: Uint8Array, offset: number): LuksHeader {
  const view = viewOf(bytes);
  const bad = (message: string, at: number): SpindleError =>
    formatError('BAD_ENCRYPTION', 'LUKS header', message, { offset: offset + at });
  // 0 - magic
  if (bytes.length < LUKS_HEADER_LENGTH || LUKS_START.slice(0, 6).some((byte, at) => bytes[at] !== byte)) {
    throw bad('not a LUKS header', 0);
  }
  // 6 - version
  if (view.getUint16(6) !== 1)
    throw bad(`LUKS version ${String(view.getUint16(6))}; spindle knows version 1`, 6);
  // 8, 40, 72 - cipher name, cipher mode, hash: 32 bytes each
  const text = (at: number, length: number): string => {
    const field = bytes.subarray(at, at + length);
    const end = field.indexOf(0);
    if (end < 0) throw bad('a text field without an end', at);
    return textOf(field.subarray(0, end));
  };
  // 104 - payload offset, 108 - key bytes, 112 - master key digest, 132 - its salt, 164 - its iterations
  const payloadOffset = view.getUint32(104) * SECTOR;
  const keyBytes = view.getUint32(108);
  const masterKeyIterations = view.getUint32(164);
  if (masterKeyIterations === 0) throw bad('no iterations for the master key', 164);
  if (keyBytes === 0 || keyBytes > 1024) throw bad(`a key of ${String(keyBytes)} bytes`, 108);
  const slots = Array.from({ length: LUKS_SLOTS }, (_, index): LuksSlot => {
    // 208 + 48 n: state, iterations, salt (32), key sector, stripes
    const at = SLOT_AT + index * SLOT_LENGTH;
    const state = view.getUint32(at);
    const iterations = view.getUint32(at + 4);
    const keySector = view.getUint32(at + 40);
    const stripes = view.getUint32(at + 44);
    if (state !== SLOT_ACTIVE && state !== SLOT_INACTIVE)
      throw bad(`key slot ${String(index)} has an unknown state`, at);
    if (stripes !== LUKS_STRIPES)
      throw bad(`key slot ${String(index)} has ${String(stripes)} stripes instead of 4000`, at + 44);
    if (state === SLOT_ACTIVE && iterations === 0)
      throw bad(`key slot ${String(index)} has no iterations`, at + 4);
    if (keySector < KEY_ALIGNMENT) throw bad(`key slot ${String(index)} lies on the header`, at + 40);
    const salt = bytes.slice(at + 8, at + 8 + SALT_LENGTH);
    return { active: state === SLOT_ACTIVE, iterations, salt, keyOffset: keySector * SECTOR, stripes };
  });
  const area = keyMaterialLength(keyBytes);
  slots.forEach((slot, index) => {
    if (slot.keyOffset + area > payloadOffset)
      throw bad(`key slot ${String(index)} runs into the data`, SLOT_AT);
    for (const [other, second] of slots.entries()) {
      if (other > index && Math.abs(second.keyOffset - slot.keyOffset) < area) {
        throw bad(`key slots ${String(index)} and ${String(other)} overlap`, SLOT_AT);
      }
    }
  });
  const cipherName = text(8, 32);
  const cipherMode = text(40, 32);
  const hash = text(72, 32);
  if (!CIPHERS.includes(cipherName)) throw bad(`cipher '${cipherName}' is unknown`, 8);
  if (!MODE.test(cipherMode)) throw bad(`cipher mode '${cipherMode}' is unknown`, 40);
  if (!LUKS_HASHES.includes(hash)) throw bad(`hash '${hash}' is unknown`, 72);
  return {
    cipherName,
    cipherMode,
    hash,
    payloadOffset,
    keyBytes,
    masterKeyDigest: bytes.slice(112, 112 + LUKS_DIGEST_LENGTH),
    masterKeySalt: bytes.slice(132, 132 + SALT_LENGTH),
    masterKeyIterations,
    uuid: text(168, 40),
    slots,
  };
}

/** Whether `bytes` begin like a LUKS header of the version that spindle knows. */
export function looksLikeLuks(bytes: Uint8Array): boolean {
  return LUKS_START.every((byte, at) => bytes[at] === byte);
}

/** Bytes of one slot's key material, in whole sectors. */
export function keyMaterialLength(keyBytes: number): number {
  return Math.ceil((keyBytes * LUKS_STRIPES) / SECTOR) * SECTOR;
}

/** Where a new header puts its slots' key material and the data. Bytes from the start of the header. */
export function luksLayout(keyBytes: number): {
  readonly keyOffsets: readonly number[];
  readonly payloadOffset: number;
} {
  const unit = KEY_ALIGNMENT * SECTOR;
  const stride = Math.ceil(keyMaterialLength(keyBytes) / unit) * unit;
  return {
    keyOffsets: Array.from({ length: LUKS_SLOTS }, (_, index) => unit + index * stride),
    payloadOffset: unit + LUKS_SLOTS * stride,
  };
}

/** The {@link LUKS_HEADER_LENGTH} bytes of a header: what {@link decodeLuks} reads. */
export function encodeLuks(header: LuksHeader): Uint8Array {
  const bytes = new Uint8Array(LUKS_HEADER_LENGTH);
  const view = viewOf(bytes);
  bytes.set(LUKS_START, 0);
  bytes.set(bytesOf(header.cipherName), 8);
  bytes.set(bytesOf(header.cipherMode), 40);
  bytes.set(bytesOf(header.hash), 72);
  view.setUint32(104, header.payloadOffset / SECTOR);
  view.setUint32(108, header.keyBytes);
  bytes.set(header.masterKeyDigest, 112);
  bytes.set(header.masterKeySalt, 132);
  view.setUint32(164, header.masterKeyIterations);
  bytes.set(bytesOf(header.uuid), 168);
  header.slots.forEach((slot, index) => {
    bytes.set(encodeLuksSlot(slot), luksSlotAt(index));
  });
  return bytes;
}

/** Where the entry of a slot stands, from the start of the header. */
export function luksSlotAt(index: number): number {
  return SLOT_AT + index * SLOT_LENGTH;
}

/** The entry of one slot. */
export function encodeLuksSlot(slot: LuksSlot): Uint8Array {
  const bytes = new Uint8Array(SLOT_LENGTH);
  const view = viewOf(bytes);
  view.setUint32(0, slot.active ? SLOT_ACTIVE : SLOT_INACTIVE);
  view.setUint32(4, slot.iterations);
  bytes.set(slot.salt, 8);
  view.setUint32(40, slot.keyOffset / SECTOR);
  view.setUint32(44, slot.stripes);
  return bytes;
}
