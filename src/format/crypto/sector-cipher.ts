/* eslint-disable no-bitwise -- modes of ciphers are made of bits */
import { wipe, type BlockCipher, type Crypto } from '../../core/crypto.ts';
import { TWO_32, viewOf } from '../../core/bytes.ts';
import { formatError } from '../../core/errors.ts';
import type { CipherMode, CipherSpec } from './cipher-spec.ts';

/** Bytes that have an initial vector of their own. */
export const SECTOR = 512;

/** Encrypts and decrypts whole sectors, in place. `sector` is the number of the first one. */
export interface SectorCipher {
  encrypt(bytes: Uint8Array, sector: number): void;
  decrypt(bytes: Uint8Array, sector: number): void;
}

/** Sectors that are worked on together: enough for few calls into the runtime, few enough for the processor's cache. */
const BATCH = 128;

/**
 * The sector cipher of a spec and a key. The modes are made here from the bare block cipher, so that each exists
 * wherever the block cipher does, and so that many sectors go through it in one call. `key` may be wiped afterwards.
 * @throws SpindleError UNSUPPORTED, BAD_ENCRYPTION when the parts do not fit together
 */
export function sectorCipher(crypto: Crypto, spec: CipherSpec, key: Uint8Array): SectorCipher {
  const half = key.length / 2;
  const isXts = spec.mode === 'xts';
  if (isXts && half % 1 !== 0) throw misfit(`a key of ${String(key.length)} bytes cannot be halved for XTS`);
  const cipher = crypto.blockCipher(spec.cipher, isXts ? key.subarray(0, half) : key);
  if (isXts && cipher.blockSize !== 16) throw misfit(`${spec.cipher} has blocks too small for XTS`);
  const tweak = isXts ? crypto.blockCipher(spec.cipher, key.subarray(half)) : null;
  const vectors = vectorMaker(crypto, spec, key, cipher.blockSize);
  return batched(transformOf(spec.mode, cipher, tweak), vectors, spec.mode === 'ecb');
}

/**
 * The cipher of qcow2's first kind of encryption: AES-128-CBC whose key is the passphrase itself, cut or padded with
 * zeroes to 16 bytes. Nothing tells a wrong passphrase.
 */
export function legacyCipher(crypto: Crypto, passphrase: Uint8Array): SectorCipher {
  const key = new Uint8Array(16);
  key.set(passphrase.subarray(0, 16));
  try {
    const spec: CipherSpec = { cipher: 'aes', mode: 'cbc', generator: 'plain64', generatorHash: null };
    return sectorCipher(crypto, spec, key);
  } finally {
    wipe(key);
  }
}

/** Initial vectors of consecutive sectors, one block each. */
type VectorMaker = (sector: number, count: number) => Uint8Array;

function vectorMaker(crypto: Crypto, spec: CipherSpec, key: Uint8Array, blockSize: number): VectorMaker {
  const numbers: VectorMaker = (sector, count) => {
    const vectors = new Uint8Array(count * blockSize);
    const view = viewOf(vectors);
    for (let i = 0; i < count; i++) {
      view.setUint32(i * blockSize, (sector + i) % TWO_32, true);
      if (spec.generator !== 'plain')
        view.setUint32(i * blockSize + 4, Math.floor((sector + i) / TWO_32), true);
    }
    return vectors;
  };
  if (spec.generator !== 'essiv') return numbers;
  // The number of the sector, encrypted with a key that is a hash of the key.
  const salt = crypto.hash(spec.generatorHash ?? '', key);
  try {
    const cipher = crypto.blockCipher(spec.cipher, salt);
    return (sector, count) => cipher.encrypt(numbers(sector, count));
  } finally {
    wipe(salt);
  }
}

/** Works on `bytes`, whole sectors that start with the initial vectors `vectors`. */
interface Transform {
  encrypt(bytes: Uint8Array, vectors: Uint8Array): void;
  decrypt(bytes: Uint8Array, vectors: Uint8Array): void;
}

function transformOf(mode: CipherMode, cipher: BlockCipher, tweak: BlockCipher | null): Transform {
  switch (mode) {
    case 'ecb':
      return {
        encrypt: (bytes) => {
          bytes.set(cipher.encrypt(bytes));
        },
        decrypt: (bytes) => {
          bytes.set(cipher.decrypt(bytes));
        },
      };
    case 'cbc':
      return cbc(cipher);
    case 'ctr':
      return ctr(cipher);
    case 'xts':
      return xts(cipher, tweak ?? cipher);
  }
}

function batched(transform: Transform, vectors: VectorMaker, unused: boolean): SectorCipher {
  const run = (direction: 'encrypt' | 'decrypt', bytes: Uint8Array, sector: number): void => {
    if (bytes.length % SECTOR !== 0) throw new RangeError('only whole sectors can be encrypted');
    for (let at = 0; at < bytes.length; at += BATCH * SECTOR) {
      const part = bytes.subarray(at, at + BATCH * SECTOR);
      const count = part.length / SECTOR;
      const initial = unused ? new Uint8Array(0) : vectors(sector + at / SECTOR, count);
      // Words are worked on, so the bytes must lie on a word.
      if (part.byteOffset % 4 === 0) transform[direction](part, initial);
      else {
        const aligned = part.slice();
        transform[direction](aligned, initial);
        part.set(aligned);
      }
    }
  };
  return {
    encrypt: (bytes, sector) => {
      run('encrypt', bytes, sector);
    },
    decrypt: (bytes, sector) => {
      run('decrypt', bytes, sector);
    },
  };
}

/** Words of 32 bits over bytes that lie on a word. */
function words(bytes: Uint8Array): Uint32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
}

function xorInto(target: Uint32Array, other: Uint32Array): void {
  for (let i = 0; i < target.length; i++) target[i] = (target[i] ?? 0) ^ (other[i] ?? 0);
}

/*
 * Encrypting chains each block to the one before it in its sector, so the sectors of a batch go side by side: all first
 * blocks in one call, then all second ones. Decrypting needs no such thing.
 */
function cbc(cipher: BlockCipher): Transform {
  const size = cipher.blockSize;
  return {
    encrypt: (bytes, vectors) => {
      let chain = vectors;
      const row = new Uint8Array(vectors.length);
      for (let block = 0; block < SECTOR; block += size) {
        gather(bytes, block, size, row);
        xorInto(words(row), words(chain));
        chain = cipher.encrypt(row);
        for (let i = 0, at = block; i < chain.length; i += size, at += SECTOR)
          bytes.set(chain.subarray(i, i + size), at);
      }
    },
    decrypt: (bytes, vectors) => {
      const before = new Uint8Array(bytes.length);
      before.set(bytes.subarray(0, bytes.length - size), size);
      for (let i = 0, at = 0; at < bytes.length; i += size, at += SECTOR)
        before.set(vectors.subarray(i, i + size), at);
      bytes.set(cipher.decrypt(bytes));
      xorInto(words(bytes), words(before));
    },
  };
}

/** Copies the block at `block` of each sector into `row`. */
function gather(bytes: Uint8Array, block: number, size: number, row: Uint8Array): void {
  for (let i = 0, at = block; i < row.length; i += size, at += SECTOR)
    row.set(bytes.subarray(at, at + size), i);
}

/** The initial vector is a big-endian counter, one up for each block. */
function ctr(cipher: BlockCipher): Transform {
  const size = cipher.blockSize;
  const apply = (bytes: Uint8Array, vectors: Uint8Array): void => {
    const counters = new Uint8Array(bytes.length);
    for (let at = 0; at < bytes.length; at += size) {
      const isFirst = at % SECTOR === 0;
      const from = isFirst ? (at / SECTOR) * size : at - size;
      counters.set((isFirst ? vectors : counters).subarray(from, from + size), at);
      if (!isFirst) countUp(counters, at, size);
    }
    xorInto(words(bytes), words(cipher.encrypt(counters)));
  };
  return { encrypt: apply, decrypt: apply };
}

function countUp(bytes: Uint8Array, at: number, size: number): void {
  for (let i = at + size - 1; i >= at; i--) {
    bytes[i] = ((bytes[i] ?? 0) + 1) & 0xff;
    if (bytes[i] !== 0) return;
  }
}

/** Each block is masked before and after by a tweak: the encrypted initial vector, doubled from block to block. */
function xts(cipher: BlockCipher, tweak: BlockCipher): Transform {
  const masksFor = (length: number, vectors: Uint8Array): Uint32Array => {
    const starts = words(tweak.encrypt(vectors));
    const masks = new Uint32Array(length / 4);
    const perSector = SECTOR / 4;
    for (let start = 0, at = 0; at < masks.length; start += 4) {
      // Four little-endian words of one 128-bit number.
      let a = starts[start] ?? 0;
      let b = starts[start + 1] ?? 0;
      let c = starts[start + 2] ?? 0;
      let d = starts[start + 3] ?? 0;
      for (const end = at + perSector; at < end; at += 4) {
        masks[at] = a;
        masks[at + 1] = b;
        masks[at + 2] = c;
        masks[at + 3] = d;
        const carry = (d >>> 31) * 0x87;
        d = (d << 1) | (c >>> 31);
        c = (c << 1) | (b >>> 31);
        b = (b << 1) | (a >>> 31);
        a = (a << 1) ^ carry;
      }
    }
    return masks;
  };
  const apply = (direction: 'encrypt' | 'decrypt', bytes: Uint8Array, vectors: Uint8Array): void => {
    const masks = masksFor(bytes.length, vectors);
    const own = words(bytes);
    xorInto(own, masks);
    bytes.set(cipher[direction](bytes));
    xorInto(own, masks);
  };
  return {
    encrypt: (bytes, vectors) => {
      apply('encrypt', bytes, vectors);
    },
    decrypt: (bytes, vectors) => {
      apply('decrypt', bytes, vectors);
    },
  };
}

function misfit(message: string): Error {
  return formatError('BAD_ENCRYPTION', 'LUKS header', message);
}
