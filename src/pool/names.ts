import { SpindleError } from '../core/errors.ts';

/** The most bytes of a file name. */
const NAME_BYTES = 255;

/** Names that spindle gives to its own files in a pool: what is being made, and the guard reserve. */
const OWN = /^\.{1,2}spindle-(new|guard)/;

/** Whether a file in a pool is spindle's own, and no volume. */
export function isOwnFile(name: string): boolean {
  return OWN.test(name);
}

/** Whether a name holds characters that no line can show. */
export function hasControls(name: string): boolean {
  return /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/.test(name);
}

function checkName(what: string, name: string, bytes: number): void {
  const bad = (why: string): SpindleError => new SpindleError('BAD_NAME', `${what} '${name}' ${why}`);
  if (name.trim() === '') throw bad('is empty');
  if (name === '.' || name === '..') throw bad('is a directory, not a name');
  if (name.includes('/')) throw bad("cannot contain '/'");
  if (hasControls(name)) throw bad('cannot contain line breaks or control characters');
  if (name.startsWith('-')) throw bad("cannot begin with '-': tools would take it for an option");
  if (Buffer.byteLength(name) > bytes) throw bad(`is longer than ${String(bytes)} bytes`);
}

/** @throws SpindleError BAD_NAME for what cannot be the name of a pool */
export function checkPoolName(name: string): string {
  checkName('the pool name', name, NAME_BYTES - '.xml'.length - 20);
  // A beginning with a dot is for files that are not yet definitions.
  if (name.startsWith('.')) throw new SpindleError('BAD_NAME', `the pool name '${name}' begins with a dot`);
  return name;
}

/** @throws SpindleError BAD_NAME for what cannot be the name of a volume */
export function checkVolumeName(name: string): string {
  checkName('the volume name', name, NAME_BYTES);
  if (isOwnFile(name))
    throw new SpindleError(
      'BAD_NAME',
      `the volume name '${name}' is one of those that spindle keeps for itself`,
    );
  return name;
}

/**
 * A path as it is kept: absolute, without a slash at the end.
 * @throws SpindleError BAD_NAME for one that is relative, climbs (`..`), or holds control characters
 */
export function checkPath(what: string, path: string): string {
  const bad = (why: string): SpindleError => new SpindleError('BAD_NAME', `${what} '${path}' ${why}`);
  if (!path.startsWith('/')) throw bad('must be absolute: begin it with /');
  if (hasControls(path)) throw bad('cannot contain line breaks or control characters');
  const parts = path.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..')) throw bad("cannot contain '..'");
  if (parts.length === 0) throw bad('is the root of all files');
  return `/${parts.join('/')}`;
}

/** A word that a tool gets as an argument. @throws SpindleError BAD_NAME for what it could take for something else */
export function checkWord(what: string, word: string): string {
  const bad = (why: string): SpindleError => new SpindleError('BAD_NAME', `${what} '${word}' ${why}`);
  if (word === '') throw bad('is empty');
  if (word.startsWith('-')) throw bad("cannot begin with '-'");
  if (/\s/.test(word) || hasControls(word)) throw bad('cannot contain blanks or control characters');
  return word;
}
