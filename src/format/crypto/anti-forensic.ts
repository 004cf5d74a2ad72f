/* eslint-disable no-bitwise -- keys are masked bit by bit */
import { TWO_32, viewOf } from '../../core/bytes.ts';
import { wipe, type Crypto } from '../../core/crypto.ts';

/*
 * Before a key is stored it is spread over many stripes, all of which are needed to get it back: erasing any of them,
 * or losing the block that holds it, destroys the key. The key is the last stripe, masked by what the others mix to.
 */

/** `stripes` times the bytes of `key`, from which {@link mergeKey} makes it again. */
export function splitKey(crypto: Crypto, hash: string, key: Uint8Array, stripes: number): Uint8Array {
  const split = new Uint8Array(key.length * stripes);
  const last = key.length * (stripes - 1);
  crypto.random(split.subarray(0, last));
  const mask = mix(crypto, hash, split, key.length, stripes);
  for (let i = 0; i < key.length; i++) split[last + i] = (mask[i] ?? 0) ^ (key[i] ?? 0);
  wipe(mask);
  return split;
}

/** The key of `length` bytes that {@link splitKey} split. */
export function mergeKey(
  crypto: Crypto,
  hash: string,
  split: Uint8Array,
  length: number,
  stripes: number,
): Uint8Array {
  const key = mix(crypto, hash, split, length, stripes);
  xorStripe(key, split, length * (stripes - 1));
  return key;
}

/** All stripes but the last, mixed. */
function mix(crypto: Crypto, hash: string, split: Uint8Array, length: number, stripes: number): Uint8Array {
  const mixed = new Uint8Array(length);
  for (let stripe = 0; stripe < stripes - 1; stripe++) {
    xorStripe(mixed, split, stripe * length);
    diffuse(crypto, hash, mixed);
  }
  return mixed;
}

function xorStripe(into: Uint8Array, split: Uint8Array, at: number): void {
  for (let i = 0; i < into.length; i++) into[i] = (into[i] ?? 0) ^ (split[at + i] ?? 0);
}

/** Replaces each piece of the length of a digest by the digest of its number and itself, cut to what fits. */
function diffuse(crypto: Crypto, hash: string, bytes: Uint8Array): void {
  const number = new Uint8Array(4);
  let size = bytes.length;
  for (let at = 0, index = 0; at < bytes.length; at += size, index++) {
    viewOf(number).setUint32(0, index % TWO_32);
    // The length of a digest is known once there is one.
    if (index === 0) size = crypto.hash(hash).length;
    const piece = bytes.subarray(at, at + size);
    const digest = crypto.hash(hash, number, piece);
    piece.set(digest.subarray(0, piece.length));
    wipe(digest);
  }
}
