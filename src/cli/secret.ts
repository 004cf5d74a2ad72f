import { promises as fs } from 'node:fs';
import { bytesOf } from '../core/bytes.ts';
import { wipe, type SecretSource } from '../core/crypto.ts';
import { isSpindleError, SpindleError } from '../core/errors.ts';
import { parseOptionList, type Listed } from './option-list.ts';
import { askSecret } from './prompt.ts';

/*
 * No message of this file may hold anything of what was typed as a secret: not even of an option that it cannot make
 * sense of, as that may be a secret with a comma in it.
 */

/** Gives the bytes of a secret that `--object` named. */
type SecretObject = () => Promise<Uint8Array>;

/** Where a command's secrets may come from. */
export interface SecretFlags {
  readonly object: readonly string[];
  readonly secretFile?: string | undefined;
  /** Id of the object with a passphrase that is to be added. */
  readonly newSecret?: string | undefined;
}

/** The objects of `--object`, by their ids. @throws SpindleError BAD_OPTION */
export function secretObjects(objects: readonly string[]): ReadonlyMap<string, SecretObject> {
  const described = new Map(objects.map(parseObject).map((one) => [one.id, one]));
  for (const { id, keyid } of described.values()) {
    if (keyid === undefined) continue;
    const key = described.get(keyid);
    if (key === undefined) throw bad(`the secret '${id}' has a keyid that no other object has`);
    // One step, as keys are plain secrets in practice: no chain, so no circle.
    if (key.keyid !== undefined) throw bad(`the key of the secret '${id}' is encrypted itself`);
  }
  return new Map([...described].map(([id, one]) => [id, () => bytesOfSecret(one, described)]));
}

/** The only secret that there is, those aside that others are encrypted with, and a new one. */
function onlySecret({ object: objects, newSecret }: SecretFlags): SecretObject | undefined {
  const described = objects.map(parseObject);
  const keys = new Set([newSecret, ...described.map(({ keyid }) => keyid)]);
  const [only, ...others] = described.filter(({ id }) => !keys.has(id));
  return only === undefined || others.length > 0 ? undefined : secretObjects(objects).get(only.id);
}

/** What `--object secret` says. */
interface Described {
  readonly id: string;
  readonly data: string | undefined;
  readonly file: string | undefined;
  readonly format: 'raw' | 'base64';
  /** The secret that this one is encrypted with, and the initial vector in base64. */
  readonly keyid: string | undefined;
  readonly iv: string | undefined;
}

const PROPERTIES = ['id', 'data', 'file', 'format', 'keyid', 'iv'];

function parseObject(text: string): Described {
  const [type, ...rest] = elementsOf(text);
  const name = type?.name === 'qom-type' ? type.value : type?.value === undefined ? type?.name : undefined;
  if (name !== 'secret') throw bad('spindle knows objects of the type secret only: secret,id=NAME,file=PATH');
  const values = new Map<string, string>();
  for (const { name: key, value } of rest) {
    if (value === undefined)
      throw bad('a secret is written as secret,id=NAME,file=PATH or secret,id=NAME,data=TEXT');
    if (!PROPERTIES.includes(key))
      throw bad(
        'a secret has the properties id, file, data, format, keyid and iv; double a comma inside a value',
      );
    values.set(key, value);
  }
  const id = values.get('id');
  if (id === undefined || id === '') throw bad('a secret needs an id: secret,id=NAME,file=PATH');
  const [data, file, format = 'raw'] = [values.get('data'), values.get('file'), values.get('format')];
  if ((data === undefined) === (file === undefined))
    throw bad(`the secret '${id}' needs either file or data`);
  if (format !== 'raw' && format !== 'base64')
    throw bad(`the format of the secret '${id}' must be raw or base64`);
  const [keyid, iv] = [values.get('keyid'), values.get('iv')];
  if ((keyid === undefined) !== (iv === undefined))
    throw bad(`the secret '${id}' needs both keyid and iv where it is encrypted itself`);
  return { id, data, file, format, keyid, iv };
}

async function bytesOfSecret(
  { id, data, file, format, keyid, iv }: Described,
  all: ReadonlyMap<string, Described>,
): Promise<Uint8Array> {
  const bytes = file === undefined ? bytesOf(data ?? '') : await readSecret(file);
  const plain = format === 'raw' ? bytes : decodeBase64(bytes, id);
  const key = keyid === undefined ? undefined : all.get(keyid);
  if (key === undefined) return plain;
  try {
    const opener = await bytesOfSecret(key, all);
    try {
      return await decryptSecret(id, plain, opener, decodeBase64(bytesOf(iv ?? ''), id));
    } finally {
      wipe(opener);
    }
  } finally {
    wipe(plain);
  }
}

/** Bytes of a block, and of the initial vector; bytes of a key. */
const [BLOCK, KEY] = [16, 32];

/** A secret that is encrypted with AES-256 in CBC mode, padded up to whole blocks, as QEMU takes them. */
async function decryptSecret(
  id: string,
  bytes: Uint8Array,
  key: Uint8Array,
  iv: Uint8Array,
): Promise<Uint8Array> {
  if (key.length !== KEY) throw bad(`the key of the secret '${id}' must have 32 bytes`);
  if (iv.length !== BLOCK) throw bad(`the iv of the secret '${id}' must be 16 bytes in base64`);
  if (bytes.length === 0 || bytes.length % BLOCK !== 0)
    throw bad(`the secret '${id}' is not encrypted as its keyid says: it has no whole blocks of 16 bytes`);
  const { createDecipheriv } = await import('node:crypto');
  const decipher = createDecipheriv('aes-256-cbc', key, iv).setAutoPadding(false);
  const padded = decipher.update(bytes);
  try {
    const padding = padded.at(-1) ?? 0;
    if (padding > BLOCK) throw bad(`the secret '${id}' cannot be decrypted: the key, or the iv, is another`);
    return new Uint8Array(padded.subarray(0, padded.length - padding));
  } finally {
    wipe(padded);
  }
}

function elementsOf(text: string): Listed[] {
  try {
    return parseOptionList(text);
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    throw bad('the list has an empty element or a value without a name; double a comma inside a value');
  }
}

const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const BLANKS = ' \t\r\n';

/** Decodes, and wipes `bytes`. By hand, because texts cannot be wiped. */
function decodeBase64(bytes: Uint8Array, id: string): Uint8Array {
  const decoded = new Uint8Array(Math.floor((bytes.length * 3) / 4));
  try {
    let [bits, held, length, padding, digits] = [0, 0, 0, 0, 0];
    for (const byte of bytes) {
      const letter = String.fromCharCode(byte);
      if (BLANKS.includes(letter)) continue;
      const value = BASE64.indexOf(letter);
      if (letter === '=') padding++;
      if ((value < 0 && letter !== '=') || (value >= 0 && padding > 0) || padding > 2)
        throw bad(`the secret '${id}' is not base64`);
      digits++;
      if (value < 0) continue;
      held = (held * 64 + value) % 2 ** 16;
      bits += 6;
      if (bits < 8) continue;
      bits -= 8;
      decoded[length++] = Math.floor(held / 2 ** bits) % 256;
    }
    if (digits % 4 !== 0) throw bad(`the secret '${id}' is not base64`);
    return decoded.slice(0, length);
  } finally {
    wipe(bytes, decoded);
  }
}

/** The exact bytes of a file: a line end at its end belongs to the secret. */
async function readSecret(file: string): Promise<Uint8Array> {
  try {
    const bytes = await fs.readFile(file);
    try {
      return new Uint8Array(bytes);
    } finally {
      wipe(bytes);
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const kind = code === 'ENOENT' ? 'NOT_FOUND' : code === 'EACCES' ? 'PERMISSION' : 'IO';
    const why = code === 'ENOENT' ? 'there is no such file' : `it cannot be read (${String(code)})`;
    throw new SpindleError(kind, `the file of a secret: ${why}`, { path: file, cause: error });
  }
}

/**
 * Where a command gets secrets: the object that `id` names; without an id the file of `--secret-file`, or the only
 * object there is, or the terminal. `fresh`: for an image that is being made, so that what is typed is typed twice;
 * `what` it is called there.
 * @throws SpindleError BAD_OPTION, UNSUPPORTED
 */
export function secretSource(flags: SecretFlags, id?: string, fresh = false, what?: string): SecretSource {
  const objects = secretObjects(flags.object);
  if (id !== undefined && flags.secretFile !== undefined)
    throw new SpindleError('BAD_OPTION', 'the secret is named twice: by key-secret and by --secret-file');
  const chosen = id === undefined ? undefined : objects.get(id);
  if (id !== undefined && chosen === undefined)
    throw new SpindleError(
      'BAD_OPTION',
      `no secret has the id '${id}': add --object secret,id=${id},file=PATH`,
    );
  return async ({ name, id: asked }) => {
    // An image below may have been named together with a secret of its own.
    if (asked !== undefined && asked !== id)
      return secretSource(flags, asked, fresh, what)({ name, method: 'luks' });
    if (chosen !== undefined) return chosen();
    if (flags.secretFile !== undefined) return readSecret(flags.secretFile);
    const only = onlySecret(flags);
    return only === undefined ? askSecret(name, fresh, what) : only();
  };
}

/**
 * Where the new passphrase of a key slot comes from: the object that `id` names, or the file, or the terminal, where it
 * is typed twice.
 * @throws SpindleError BAD_OPTION
 */
export function newSecretSource(flags: SecretFlags, id?: string, file?: string): SecretSource {
  const chosen = id === undefined ? undefined : secretSource({ object: flags.object }, id);
  return async (request) => {
    if (chosen !== undefined) return chosen(request);
    return file === undefined ? askSecret(request.name, true, 'New passphrase') : readSecret(file);
  };
}

function bad(message: string): SpindleError {
  return new SpindleError('BAD_OPTION', `--object: ${message}`);
}
