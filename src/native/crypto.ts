import type { BlockCipher, Crypto } from '../core/crypto.ts';
import { SpindleError } from '../core/errors.ts';

type NodeCrypto = typeof import('node:crypto');

/** Cryptography by node:crypto, which is loaded when this is called first: most images need none. */
export async function nodeCrypto(): Promise<Crypto> {
  const node = await import('node:crypto');
  return {
    hash(name, ...parts) {
      const hash = guarded(`the hash ${name}`, () => node.createHash(known(node, name)));
      for (const part of parts) hash.update(part);
      return plain(hash.digest());
    },
    pbkdf2(hash, passphrase, salt, iterations, length) {
      return new Promise((resolve, reject) => {
        // Asked first: a hash that is not there must not look like a failure of the work.
        const digest = known(node, hash);
        node.pbkdf2(passphrase, salt, iterations, length, digest, (error, key) => {
          if (error === null) resolve(plain(key));
          else reject(missing(`the hash ${hash}`, error));
        });
      });
    },
    blockCipher: (name, key) => blockCipher(node, name, key),
    random: (into) => {
      node.randomFillSync(into);
    },
    now: () => performance.now(),
  };
}

function known(node: NodeCrypto, hash: string): string {
  if (node.getHashes().includes(hash)) return hash;
  throw missing(`the hash ${hash}`);
}

function blockCipher(node: NodeCrypto, name: string, key: Uint8Array): BlockCipher {
  const bits = key.length * 8;
  const what = `the cipher ${name} with keys of ${String(bits)} bits`;
  const info = node.getCipherInfo(name === 'aes' ? `aes-${String(bits)}-ecb` : `${name}-ecb`);
  if (info === undefined || info.keyLength !== key.length) throw missing(what);
  // One object for each direction does for all blocks: in ECB nothing is carried from one call to the next.
  const make = <T extends { setAutoPadding(on: boolean): unknown }>(
    create: (name: string, key: Uint8Array, iv: null) => T,
  ): T =>
    guarded(what, () => {
      const cipher = create(info.name, key, null);
      cipher.setAutoPadding(false);
      return cipher;
    });
  const encryptor = make(node.createCipheriv);
  const decryptor = make(node.createDecipheriv);
  return {
    blockSize: info.blockSize ?? 16,
    encrypt: (blocks) => plain(encryptor.update(blocks)),
    decrypt: (blocks) => plain(decryptor.update(blocks)),
  };
}

function plain(buffer: Buffer): Uint8Array {
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.length);
}

function guarded<T>(what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof SpindleError) throw error;
    throw missing(what, error);
  }
}

function missing(what: string, cause?: unknown): SpindleError {
  return new SpindleError('UNSUPPORTED', `${what} is not in this build of Node (OpenSSL)`, { cause });
}
