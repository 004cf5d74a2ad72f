import { expect, it } from 'vitest';
import { create } from '../../../src/op/create.ts';
import { secretOf } from '../../../src/op/open.ts';
import {
  afterwards,
  createEncrypted,
  encryptedSource,
  expectContent,
  openEncrypted,
  PASSPHRASE,
  randomPieces,
  writeWithQemu,
} from '../../tool/encrypted.ts';
import * as qemu from '../../tool/qemu.ts';
import { withRandom } from '../../tool/random.ts';
import { tempPath } from '../../tool/temp.ts';
import { shareOf } from '../../tool/share.ts';

const SIZE = 1024 * 1024;

interface Kind {
  readonly cipher: string;
  readonly mode: string;
  readonly ivgen: string;
  readonly hash: string;
}

const VECTORS = ['plain', 'plain64', 'essiv:sha256', 'essiv:md5'];
const HASHES = ['sha1', 'sha256', 'sha512', 'md5', 'sha224', 'sha384', 'ripemd160'];

/** Every cipher, mode and vector, each with one of the hashes in turn. */
const KINDS: Kind[] = ['aes-128', 'aes-192', 'aes-256'].flatMap((cipher, i) =>
  ['xts', 'cbc', 'ctr', 'ecb'].flatMap((mode, j) =>
    VECTORS.map((ivgen, k) => ({
      cipher,
      mode,
      ivgen,
      hash: HASHES[(i * 16 + j * 4 + k) % HASHES.length] ?? '',
    })),
  ),
);

/** QEMU 10.0 aborts when it makes key material that is not made of whole sectors. */
function qemuAborts({ cipher, mode }: Kind): boolean {
  return cipher === 'aes-192' && mode !== 'xts';
}

function options(kind: Kind): Record<string, string> {
  const [ivgen = '', ivhash] = kind.ivgen.split(':');
  return {
    format: 'luks',
    'cipher-alg': kind.cipher,
    'cipher-mode': kind.mode,
    'ivgen-alg': ivgen,
    ...(ivhash === undefined ? {} : { 'ivgen-hash-alg': ivhash }),
    'hash-alg': kind.hash,
    'iter-time': '10',
  };
}

const nameOf = (kind: Kind): string => `${kind.cipher} ${kind.mode} ${kind.ivgen} ${kind.hash}`;

qemu.describeWithQemu('LUKS in qcow2, every mode', () => {
  // qemu takes seconds to make an image, so one vector of each mode; all are opened by both sides below.
  const theirs = KINDS.filter(
    (kind, index) => !qemuAborts(kind) && (index + Math.floor(index / 4)) % 4 === 0,
  );
  for (const kind of theirs) {
    it(`${nameOf(kind)}: made and filled by qemu, read here`, () =>
      withRandom(`luks by qemu ${nameOf(kind)}`, async (random) => {
        const path = tempPath('theirs.qcow2');
        await createEncrypted(path, SIZE, 'qcow2', options(kind), {
          cluster_size: random.pick(['512', '4k', '64k']),
        });
        const pieces = randomPieces(random, SIZE, 12);
        await writeWithQemu(pieces, encryptedSource(path, 'qcow2'));
        const image = await openEncrypted(path);
        try {
          await expectContent(image, afterwards(pieces, SIZE), random);
        } finally {
          await image.close();
        }
      }));
  }

  for (const kind of shareOf('LUKS modes', KINDS)) {
    it(`${nameOf(kind)}: made here`, () =>
      withRandom(`luks by spindle ${nameOf(kind)}`, async (random) => {
        const path = tempPath('ours.qcow2');
        const [ivgenAlg = '', ivgenHashAlg = null] = kind.ivgen.split(':');
        await create({
          path,
          format: 'qcow2',
          size: SIZE,
          preallocation: random.pick(['off', 'metadata', 'falloc', 'full'] as const),
          qcow2: { clusterSize: random.pick([512, 4096, 65536]) },
          encryption: {
            secret: secretOf(PASSPHRASE),
            luks: {
              cipherAlg: kind.cipher,
              cipherMode: kind.mode,
              ivgenAlg,
              ivgenHashAlg,
              hashAlg: kind.hash,
              iterTime: 10,
            },
          },
        });
        const source = encryptedSource(path, 'qcow2');
        const pieces = qemuAborts(kind) ? [] : randomPieces(random, SIZE, 12);
        if (!qemuAborts(kind)) {
          expect(await qemu.holds(path, { at: 0, length: SIZE, pattern: 0 }, { source })).toBe(true);
          await writeWithQemu(pieces, source);
          expect(await qemu.check(path, { source })).toMatchObject({ code: 0 });
        }
        const image = await openEncrypted(path);
        try {
          await expectContent(image, afterwards(pieces, SIZE), random);
        } finally {
          await image.close();
        }
      }));
  }

  for (const cipher of ['serpent-256', 'twofish-128', 'cast5-128']) {
    it(`${cipher} is not there: says so`, async () => {
      const path = tempPath('theirs.qcow2');
      const made = { format: 'luks', 'cipher-alg': cipher, 'cipher-mode': 'cbc', 'iter-time': '10' };
      await createEncrypted(path, SIZE, 'qcow2', made);
      const name = cipher.split('-')[0] ?? '';
      await expect(openEncrypted(path)).rejects.toMatchObject({
        code: 'UNSUPPORTED',
        message: expect.stringContaining(name) as string,
        path,
      });
    });
  }
});
