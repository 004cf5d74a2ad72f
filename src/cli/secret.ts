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
}

/** The objects of `--object`, by their ids. @throws SpindleError BAD_OPTION, UNSUPPORTED */
export function secretObjects(objects: readonly string[]): ReadonlyMap<string, SecretObject> {
  return new Map(objects.map(parseObject));
}

function parseObject(text: string): [string, SecretObject] {
  const [type, ...rest] = elementsOf(text);
  const name = type?.name === 'qom-type' ? type.value : type?.value === undefined ? type?.name : undefined;
  if (name !== 'secret') throw bad('spindle knows objects of the type secret only: secret,id=NAME,file=PATH');
  const values = new Map<string, string>();
  for (const { name: key, value } of rest) {
    if (value === undefined)
      throw bad('a secret is written as secret,id=NAME,file=PATH or secret,id=NAME,data=TEXT');
    if (key === 'keyid' || key === 'iv')
      throw new SpindleError(
        'UNSUPPORTED',
        '--object secret: secrets that are encrypted themselves are not supported',
      );
    if (!['id', 'data', 'file', 'format'].includes(key))
      throw bad('a secret has the properties id, file, data and format; double a comma inside a value');
    values.set(key, value);
  }
  const id = values.get('id');
  if (id === undefined || id === '') throw bad('a secret needs an id: secret,id=NAME,file=PATH');
  const [data, file, format = 'raw'] = [values.get('data'), values.get('file'), values.get('format')];
  if ((data === undefined) === (file === undefined))
    throw bad(`the secret '${id}' needs either file or data`);
  if (format !== 'raw' && format !== 'base64')
    throw bad(`the format of the secret '${id}' must be raw or base64`);
  return [
    id,
    async () => {
      const bytes = file === undefined ? bytesOf(data ?? '') : await readSecret(file);
      return format === 'raw' ? bytes : decodeBase64(bytes, id);
    },
  ];
}

function elementsOf(text: string): Listed[] {
  try {
    return parseOptionList(text);
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    throw bad('the list has an empty element or a value without a name; double a comma inside a value');
  }
}

function decodeBase64(bytes: Uint8Array, id: string): Uint8Array {
  const text = Buffer.from(bytes).toString('latin1').replace(/\s/g, '');
  wipe(bytes);
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text) || text.length % 4 !== 0)
    throw bad(`the secret '${id}' is not base64`);
  return new Uint8Array(Buffer.from(text, 'base64'));
}

/** The exact bytes of a file: a line end at its end belongs to the secret. */
async function readSecret(file: string): Promise<Uint8Array> {
  try {
    return new Uint8Array(await fs.readFile(file));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const kind = code === 'ENOENT' ? 'NOT_FOUND' : code === 'EACCES' ? 'PERMISSION' : 'IO';
    const why = code === 'ENOENT' ? 'there is no such file' : `it cannot be read (${String(code)})`;
    throw new SpindleError(kind, `the file of a secret: ${why}`, { path: file, cause: error });
  }
}

/**
 * Where a command gets secrets: the object that `id` names; without an id the file of `--secret-file`, or the only
 * object there is, or the terminal. `fresh`: for an image that is being made, so that what is typed is typed twice.
 * @throws SpindleError BAD_OPTION, UNSUPPORTED
 */
export function secretSource(flags: SecretFlags, id?: string, fresh = false): SecretSource {
  const objects = secretObjects(flags.object);
  if (id !== undefined && flags.secretFile !== undefined)
    throw new SpindleError('BAD_OPTION', 'the secret is named twice: by key-secret and by --secret-file');
  const chosen = id === undefined ? undefined : objects.get(id);
  if (id !== undefined && chosen === undefined)
    throw new SpindleError(
      'BAD_OPTION',
      `no secret has the id '${id}': add --object secret,id=${id},file=PATH`,
    );
  return async ({ name }) => {
    if (chosen !== undefined) return chosen();
    if (flags.secretFile !== undefined) return readSecret(flags.secretFile);
    const [only, ...others] = objects.values();
    if (only !== undefined && others.length === 0) return only();
    return askSecret(name, fresh);
  };
}

function bad(message: string): SpindleError {
  return new SpindleError('BAD_OPTION', `--object: ${message}`);
}
