import { writeSync } from 'node:fs';
import { printable } from '../core/errors.ts';

/*
 * Writes to the standard streams by descriptor: process.stdout would load the terminal and network modules of Node,
 * which costs a tenth of the time that a short command takes.
 */

/** The reader of standard output is gone: there is nobody left to work for, which is no failure. */
export class OutputClosed extends Error {}

/** Writes to standard output, all of it. @throws OutputClosed when its reader is gone */
export function out(text: string): void {
  writeAll(1, text);
}

/** Writes one line to standard error. A failure to do so is nobody's to hear. */
export function complain(line: string): void {
  try {
    writeAll(2, `${oneLine(line)}\n`);
  } catch {
    // As above.
  }
}

/** Replaces the line that a terminal shows on standard error; an empty text removes it. */
export function overwrite(line: string): void {
  try {
    writeAll(2, `\r\u001b[K${line}`);
  } catch {
    // As above.
  }
}

/** `text` without line breaks and control characters, which names inside images may hold. */
export function oneLine(text: string): string {
  return printable(text.replace(/\s*\n\s*/g, ' '));
}

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let done = 0; done < bytes.length;) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'EPIPE') throw new OutputClosed('standard output was closed');
      if (code !== 'EAGAIN') throw error;
      // Somebody made the pipe non-blocking and it is full.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
}

/** Gathers output that comes in many small pieces. */
export class OutputBuffer {
  #text = '';

  /** Adds text; what has gathered is written from time to time. */
  add(text: string): void {
    this.#text += text;
    if (this.#text.length >= 65536) this.flush();
  }

  /** Writes what has gathered. */
  flush(): void {
    const text = this.#text;
    this.#text = '';
    if (text !== '') out(text);
  }
}
