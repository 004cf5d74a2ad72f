import { closeSync, openSync, promises as fs, read, rmSync, mkdtempSync, write } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isatty } from 'node:tty';
import { SpindleError } from '../core/errors.ts';
import { OutputClosed } from './output.ts';

/** The name of standard input, or of standard output. */
export const STREAM = '-';

/** Bytes of one read. */
const CHUNK = 1024 * 1024;

/** Standard input, piece by piece. @throws SpindleError BAD_OPTION for a terminal, IO */
export async function* standardInput(): AsyncGenerator<Uint8Array> {
  if (isatty(0))
    throw new SpindleError(
      'BAD_OPTION',
      'standard input is a terminal; an image comes from a pipe or a file',
    );
  for (;;) {
    const bytes = new Uint8Array(CHUNK);
    const count = await readSome(bytes);
    if (count === 0) return;
    yield bytes.subarray(0, count);
  }
}

function readSome(into: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    read(0, into, 0, into.length, null, (error, count) => {
      if (error === null) resolve(count);
      else if (error.code === 'EAGAIN') setTimeout(() => void readSome(into).then(resolve, reject), 5);
      else if (error.code === 'EOF') resolve(0);
      else
        reject(new SpindleError('IO', `standard input cannot be read: ${error.message}`, { cause: error }));
    });
  });
}

/** Writes everything to standard output, as fast as its reader takes it. @throws OutputClosed, SpindleError IO */
export async function toStandardOutput(pieces: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const bytes of pieces) {
    for (let done = 0; done < bytes.length;) done += await writeSome(bytes.subarray(done));
  }
}

/** @throws SpindleError BAD_OPTION when standard output is a terminal */
export function refuseTerminal(): void {
  if (!isatty(1)) return;
  throw new SpindleError('BAD_OPTION', 'standard output is a terminal; send an image to a pipe or a file');
}

function writeSome(bytes: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    write(1, bytes, 0, bytes.length, null, (error, count) => {
      if (error === null) resolve(count);
      else if (error.code === 'EAGAIN')
        setTimeout(() => {
          resolve(0);
        }, 5);
      else if (error.code === 'EPIPE') reject(new OutputClosed('standard output was closed'));
      else
        reject(
          new SpindleError('IO', `standard output cannot be written: ${error.message}`, { cause: error }),
        );
    });
  });
}

/** A folder for what has to be kept while a stream goes on, removed when the process ends, however it does. */
export function spoolFolder(wanted: string | undefined): string {
  const folder = mkdtempSync(join(wanted ?? tmpdir(), 'spindle-spool-'));
  process.once('exit', () => {
    rmSync(folder, { recursive: true, force: true });
  });
  return folder;
}

/** Keeps a stream in a file. */
export async function spool(stream: AsyncIterable<Uint8Array>, path: string): Promise<void> {
  const file = await fs.open(path, 'wx', 0o600);
  try {
    for await (const bytes of stream) await file.writeFile(bytes);
  } finally {
    await file.close();
  }
}

/** The bytes of a file in order. */
export async function* fileBytes(path: string): AsyncGenerator<Uint8Array> {
  const fd = openSync(path, 'r');
  try {
    for (;;) {
      const bytes = new Uint8Array(CHUNK);
      const count = await new Promise<number>((resolve, reject) => {
        read(fd, bytes, 0, CHUNK, null, (error, got) => {
          if (error === null) resolve(got);
          else reject(error);
        });
      });
      if (count === 0) return;
      yield bytes.subarray(0, count);
    }
  } finally {
    closeSync(fd);
  }
}

/** The first bytes of a stream, and the stream with them. */
export async function peek(
  stream: AsyncIterable<Uint8Array>,
  length: number,
): Promise<{ readonly first: Uint8Array; readonly whole: AsyncGenerator<Uint8Array> }> {
  const iterator = stream[Symbol.asyncIterator]();
  const held: Uint8Array[] = [];
  let count = 0;
  while (count < length) {
    const next = await iterator.next();
    if (next.done === true) break;
    held.push(next.value);
    count += next.value.length;
  }
  async function* whole(): AsyncGenerator<Uint8Array> {
    yield* held;
    for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) yield next.value;
  }
  return { first: Uint8Array.from(Buffer.concat(held).subarray(0, length)), whole: whole() };
}
