import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs';
import { errnoOf } from '../../storage/errno.ts';

/** Bytes of the pieces in which space is taken: the last ones go into the gaps. */
const PIECES = [1024 ** 2, 65536, 4096];

/** Bytes after which no more is taken: a store that gives more is none to be filled. */
const MOST = 2 * 1024 ** 3;

/** Takes all space that the store still gives, as other users of it would, in a file at `path`. Gives its bytes. */
export function takeAll(path: string): number {
  const file = openSync(path, 'w');
  let taken = 0;
  try {
    for (const piece of PIECES) {
      // Noise, so that no file system compresses it; each piece may differ no further.
      const bytes = Buffer.alloc(piece);
      for (let at = 0; at + 4 <= piece; at += 4)
        bytes.writeUInt32LE(Math.imul(at + taken + 1, 0x9e3779b1) >>> 0, at);
      while (taken < MOST) {
        if (!written(file, bytes, taken)) break;
        taken += piece;
      }
    }
    return taken;
  } finally {
    closeSync(file);
  }
}

function written(file: number, bytes: Buffer, at: number): boolean {
  try {
    const count = writeSync(file, bytes, 0, bytes.length, at);
    if (bytes.length > 4096) fsyncSync(file);
    return count === bytes.length;
  } catch (error) {
    const name = errnoOf(error);
    if (name === 'ENOSPC' || name === 'EDQUOT') return false;
    throw error;
  }
}
