/** A block cipher with its key, over whole blocks that do not depend on each other (ECB). */
export interface BlockCipher {
  /** Bytes of a block. */
  readonly blockSize: number;
  /** A new array with each block encrypted. The length must be a multiple of the block size. */
  encrypt(blocks: Uint8Array): Uint8Array;
  /** A new array with each block decrypted. */
  decrypt(blocks: Uint8Array): Uint8Array;
}

/**
 * Cryptographic primitives, supplied by the runtime so that format code stays free of it. Names are those of LUKS:
 * `aes`, `serpent`, `sm4`...; `sha256`, `ripemd160`...
 */
export interface Crypto {
  /** The digest of the parts one after the other. @throws SpindleError UNSUPPORTED when the hash is not there */
  hash(name: string, ...parts: readonly Uint8Array[]): Uint8Array;
  /** Stretches a passphrase (PBKDF2), off the main thread. @throws SpindleError UNSUPPORTED as {@link hash} */
  pbkdf2(
    hash: string,
    passphrase: Uint8Array,
    salt: Uint8Array,
    iterations: number,
    length: number,
  ): Promise<Uint8Array>;
  /** @throws SpindleError UNSUPPORTED when the cipher is not there, or not with keys of this length */
  blockCipher(name: string, key: Uint8Array): BlockCipher;
  /** Fills `into` with random bytes fit for keys. */
  random(into: Uint8Array): void;
  /** Milliseconds of a clock that never goes back. */
  now(): number;
}

/** Which data an encrypted image asks a secret for. */
export interface SecretRequest {
  /** Name under which the image was opened. */
  readonly name: string | undefined;
  /** How the image is encrypted. */
  readonly method: 'luks' | 'aes';
  /** Which secret the name of the image asks for, where it says so. */
  readonly id?: string | undefined;
}

/**
 * Gives the passphrase of an encrypted image as bytes, or null where there is none: then the image opens, but its data
 * cannot be read. Whoever asked wipes the bytes, so each answer must be an array of its own.
 */
export type SecretSource = (request: SecretRequest) => Promise<Uint8Array | null>;

/** Overwrites bytes that were secret. Copies inside the runtime are beyond reach. */
export function wipe(...secrets: readonly (Uint8Array | null | undefined)[]): void {
  for (const secret of secrets) secret?.fill(0);
}
