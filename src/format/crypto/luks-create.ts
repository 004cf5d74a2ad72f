import { wipe, type Crypto } from '../../core/crypto.ts';
import { modeField, resolveLuksOptions, type LuksOptions } from './cipher-spec.ts';
import { digestOf, iterationsFor, makeMaterial } from './luks-key.ts';
import {
  encodeLuks,
  LUKS_DIGEST_LENGTH,
  LUKS_SLOTS,
  LUKS_STRIPES,
  luksLayout,
  type LuksHeader,
  type LuksSlot,
} from './luks-header.ts';
import { sectorCipher, type SectorCipher } from './sector-cipher.ts';

/** A new LUKS header with one key slot. */
export interface NewLuks {
  /** The header and the key material of its first slot; zeroes follow up to the payload. */
  readonly bytes: Uint8Array;
  /** Bytes from the header to the data. */
  readonly payloadOffset: number;
  readonly cipher: SectorCipher;
}

/** Bytes that a header made with these options takes, up to the data. @throws SpindleError BAD_OPTION */
export function luksLength(options: LuksOptions): number {
  return luksLayout(resolveLuksOptions(options).keyBytes).payloadOffset;
}

/**
 * Makes a random master key and a header from which the passphrase gets it.
 * @throws SpindleError BAD_OPTION, UNSUPPORTED
 */
export async function makeLuks(
  crypto: Crypto,
  options: LuksOptions,
  passphrase: Uint8Array,
): Promise<NewLuks> {
  const { spec, keyBytes } = resolveLuksOptions(options);
  const { keyOffsets, payloadOffset } = luksLayout(keyBytes);
  const key = new Uint8Array(keyBytes);
  crypto.random(key);
  try {
    const cipher = sectorCipher(crypto, spec, key);
    const hash = options.hashAlg;
    const base = {
      cipherName: spec.cipher,
      cipherMode: modeField(spec),
      hash,
      payloadOffset,
      keyBytes,
      // The master key is random: an eighth of the time is plenty.
      masterKeyIterations: await iterationsFor(
        crypto,
        hash,
        LUKS_DIGEST_LENGTH,
        options.iterTime / LUKS_SLOTS,
      ),
      masterKeySalt: random(crypto, 32),
      uuid: randomUuid(crypto),
    };
    const slots = keyOffsets.map((keyOffset): LuksSlot => ({
      active: false,
      iterations: 0,
      salt: new Uint8Array(32),
      keyOffset,
      stripes: LUKS_STRIPES,
    }));
    const first: LuksSlot = {
      active: true,
      iterations: await iterationsFor(crypto, hash, keyBytes, options.iterTime),
      salt: random(crypto, 32),
      keyOffset: keyOffsets[0] ?? 0,
      stripes: LUKS_STRIPES,
    };
    const header: LuksHeader = {
      ...base,
      masterKeyDigest: await digestOf(crypto, base, key),
      slots: [first, ...slots.slice(1)],
    };
    const material = await makeMaterial(crypto, header, first, passphrase, key);
    const bytes = new Uint8Array(first.keyOffset + material.length);
    bytes.set(encodeLuks(header), 0);
    bytes.set(material, first.keyOffset);
    return { bytes, payloadOffset, cipher };
  } finally {
    wipe(key);
  }
}

/** Random bytes. */
export function random(crypto: Crypto, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  crypto.random(bytes);
  return bytes;
}

function randomUuid(crypto: Crypto): string {
  const bytes = random(crypto, 16);
  bytes[6] = 0x40 + ((bytes[6] ?? 0) % 16);
  bytes[8] = 0x80 + ((bytes[8] ?? 0) % 64);
  const text = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return text.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
