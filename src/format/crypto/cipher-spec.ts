import { SpindleError } from '../../core/errors.ts';
import { LUKS_HASHES, type LuksHeader } from './luks-header.ts';

/** How a cipher is applied to the blocks of a sector. */
export type CipherMode = 'ecb' | 'cbc' | 'ctr' | 'xts';

/** How the initial vector of a sector is made from its number. */
export type IvGenerator = 'plain' | 'plain64' | 'essiv';

/** How sectors are encrypted, but for the key. */
export interface CipherSpec {
  readonly cipher: string;
  readonly mode: CipherMode;
  readonly generator: IvGenerator;
  /** The hash of ESSIV; null for the other generators. */
  readonly generatorHash: string | null;
}

/** The spec that a decoded header names. */
export function specOf(header: Pick<LuksHeader, 'cipherName' | 'cipherMode'>): CipherSpec {
  // The decoder let only known words through.
  const [mode, generator, hash] = header.cipherMode.split(/[-:]/);
  return {
    cipher: header.cipherName,
    mode: mode as CipherMode,
    generator: generator as IvGenerator,
    generatorHash: hash ?? null,
  };
}

/** The mode field of a header: for example `cbc-essiv:sha256`. */
export function modeField(spec: CipherSpec): string {
  const hash = spec.generatorHash === null ? '' : `:${spec.generatorHash}`;
  return `${spec.mode}-${spec.generator}${hash}`;
}

/** The options of a new LUKS header, with the names and values of qemu-img. */
export interface LuksOptions {
  readonly cipherAlg: string;
  readonly cipherMode: string;
  readonly ivgenAlg: string;
  /** The hash of ESSIV; the other generators ignore it. */
  readonly ivgenHashAlg: string | null;
  readonly hashAlg: string;
  /** Milliseconds that stretching the passphrase takes on this machine. */
  readonly iterTime: number;
}

/** What a header gets about which nothing was said. */
export const LUKS_DEFAULTS: LuksOptions = {
  cipherAlg: 'aes-256',
  cipherMode: 'xts',
  ivgenAlg: 'plain64',
  ivgenHashAlg: null,
  hashAlg: 'sha256',
  iterTime: 2000,
};

/** Bytes of the keys of each cipher. */
const KEY_BYTES: Readonly<Record<string, number>> = {
  'aes-128': 16,
  'aes-192': 24,
  'aes-256': 32,
  'serpent-128': 16,
  'serpent-192': 24,
  'serpent-256': 32,
  'twofish-128': 16,
  'twofish-192': 24,
  'twofish-256': 32,
  'cast5-128': 16,
  sm4: 16,
};

/** The ciphers that `cipher-alg` names. */
export const CIPHER_ALGS: readonly string[] = Object.keys(KEY_BYTES);
/** The values of `cipher-mode`. */
export const CIPHER_MODES: readonly CipherMode[] = ['cbc', 'ctr', 'ecb', 'xts'];
/** The values of `ivgen-alg`. */
export const IV_GENERATORS: readonly IvGenerator[] = ['essiv', 'plain', 'plain64'];

/**
 * What the options come to: a spec, and the bytes of its key (twice those of the cipher for XTS, which uses two).
 * @throws SpindleError BAD_OPTION
 */
export function resolveLuksOptions(options: LuksOptions): { spec: CipherSpec; keyBytes: number } {
  const { cipherAlg, ivgenHashAlg, iterTime } = options;
  const cipherKey = KEY_BYTES[cipherAlg];
  if (cipherKey === undefined) throw oneOf('cipher-alg', CIPHER_ALGS, cipherAlg);
  const mode = CIPHER_MODES.find((one) => one === options.cipherMode);
  if (mode === undefined) throw oneOf('cipher-mode', CIPHER_MODES, options.cipherMode);
  const generator = IV_GENERATORS.find((one) => one === options.ivgenAlg);
  if (generator === undefined) throw oneOf('ivgen-alg', IV_GENERATORS, options.ivgenAlg);
  if (!LUKS_HASHES.includes(options.hashAlg)) throw oneOf('hash-alg', LUKS_HASHES, options.hashAlg);
  if (ivgenHashAlg !== null && !LUKS_HASHES.includes(ivgenHashAlg))
    throw oneOf('ivgen-hash-alg', LUKS_HASHES, ivgenHashAlg);
  if (!Number.isSafeInteger(iterTime) || iterTime < 1)
    throw bad(`iter-time must be 1 or more milliseconds, not ${String(iterTime)}`);
  if (mode === 'xts' && cipherAlg === 'cast5-128')
    throw bad('cast5-128 cannot be used with cipher-mode=xts: its blocks are too small');
  const cipher = cipherAlg.split('-')[0] ?? cipherAlg;
  return {
    spec: {
      cipher,
      mode,
      generator,
      generatorHash: generator === 'essiv' ? (ivgenHashAlg ?? 'sha256') : null,
    },
    keyBytes: mode === 'xts' ? cipherKey * 2 : cipherKey,
  };
}

function oneOf(name: string, values: readonly string[], value: string): SpindleError {
  return bad(`${name} must be one of ${values.join(', ')}, not '${value}'`);
}

function bad(message: string): SpindleError {
  return new SpindleError('BAD_OPTION', message);
}
