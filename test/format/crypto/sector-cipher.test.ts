import { createCipheriv } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type { CipherMode, IvGenerator } from '../../../src/format/crypto/cipher-spec.ts';
import { mergeKey, splitKey } from '../../../src/format/crypto/anti-forensic.ts';
import { iterationsFor } from '../../../src/format/crypto/luks-key.ts';
import { sectorCipher } from '../../../src/format/crypto/sector-cipher.ts';
import { nodeCrypto } from '../../../src/native/crypto.ts';
import { withRandom } from '../../tool/random.ts';

/** One sector by OpenSSL's own mode. */
function judged(mode: string, key: Uint8Array, vector: Uint8Array, bytes: Uint8Array): Buffer {
  const bits = (mode === 'xts' ? key.length / 2 : key.length) * 8;
  const cipher = createCipheriv(`aes-${String(bits)}-${mode}`, key, mode === 'ecb' ? null : vector);
  return cipher.setAutoPadding(false).update(bytes);
}

function vectorOf(sector: number, generator: IvGenerator): Uint8Array {
  const vector = new Uint8Array(16);
  new DataView(vector.buffer).setBigUint64(0, BigInt(sector), true);
  if (generator === 'plain') vector.fill(0, 4);
  return vector;
}

describe('sector ciphers', () => {
  for (const mode of ['ecb', 'cbc', 'ctr', 'xts'] as CipherMode[]) {
    for (const generator of ['plain', 'plain64'] as const) {
      it(`${mode} ${generator} is what OpenSSL makes of each sector, wherever the bytes lie`, () =>
        withRandom(`sectors ${mode} ${generator}`, async (random) => {
          const crypto = await nodeCrypto();
          const key = random.bytes(mode === 'xts' ? 64 : 32);
          const spec = { cipher: 'aes', mode, generator, generatorHash: null };
          const cipher = sectorCipher(crypto, spec, key);
          for (const sector of [0, 7, 2 ** 32 - 3, 2 ** 40 + 5]) {
            const count = random.pick([1, 2, 128, 300]);
            const shift = random.below(5);
            const buffer = new Uint8Array(shift + count * 512);
            const bytes = buffer.subarray(shift);
            const plain = random.bytes(count * 512);
            bytes.set(plain);
            cipher.encrypt(bytes, sector);
            const expected = Buffer.concat(
              Array.from({ length: count }, (_, i) =>
                judged(mode, key, vectorOf(sector + i, generator), plain.subarray(i * 512, i * 512 + 512)),
              ),
            );
            expect(Buffer.compare(bytes, expected)).toBe(0);
            cipher.decrypt(bytes, sector);
            expect(Buffer.compare(bytes, plain)).toBe(0);
          }
        }));
    }
  }

  it('refuse parts of sectors, unknown ciphers and keys of no length', async () => {
    const crypto = await nodeCrypto();
    const spec = { cipher: 'aes', mode: 'xts', generator: 'plain64', generatorHash: null } as const;
    const cipher = sectorCipher(crypto, spec, new Uint8Array(64));
    expect(() => {
      cipher.encrypt(new Uint8Array(100), 0);
    }).toThrow(RangeError);
    expect(() => sectorCipher(crypto, spec, new Uint8Array(33))).toThrow(/halved/);
    expect(() => sectorCipher(crypto, spec, new Uint8Array(40))).toThrow(/160 bits/);
    expect(() => sectorCipher(crypto, { ...spec, cipher: 'serpent' }, new Uint8Array(64))).toThrow(/serpent/);
    expect(() => crypto.hash('crc32')).toThrow(/crc32/);
    await expect(crypto.pbkdf2('crc32', new Uint8Array(1), new Uint8Array(1), 1, 1)).rejects.toMatchObject({
      code: 'UNSUPPORTED',
    });
  });
});

describe('keys', () => {
  it('come back from their stripes, and from no other', async () => {
    const crypto = await nodeCrypto();
    for (const [hash, length] of [
      ['sha1', 16],
      ['sha256', 64],
      ['sha512', 24],
    ] as const) {
      const key = new Uint8Array(length);
      crypto.random(key);
      const split = splitKey(crypto, hash, key, 50);
      expect(mergeKey(crypto, hash, split, length, 50)).toEqual(key);
      split[3] = (split[3] ?? 0) ^ 1;
      expect(mergeKey(crypto, hash, split, length, 50)).not.toEqual(key);
    }
  });

  it('are stretched for as long as the clock says', async () => {
    const real = await nodeCrypto();
    let time = 0;
    // A machine that does 10 iterations in a millisecond.
    const crypto = {
      ...real,
      now: () => time,
      pbkdf2: (_hash: string, _secret: Uint8Array, _salt: Uint8Array, count: number, length: number) => {
        time += count / 10;
        return Promise.resolve(new Uint8Array(length));
      },
    };
    expect(await iterationsFor(crypto, 'sha256', 64, 2000)).toBe(20_000);
    expect(await iterationsFor(crypto, 'sha256', 64, 1)).toBe(1000);
    await expect(iterationsFor(crypto, 'sha256', 64, 1e9)).rejects.toMatchObject({ code: 'BAD_OPTION' });
  });
});
