import { writeSync } from 'node:fs';

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

/** `text` without line breaks and control characters, which names inside images may hold. */
export function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, ' ').replace(CONTROL, escaped);
}

/** `text` as it may be shown: control characters, which could steer a terminal, are spelled out. */
export function shown(text: string): string {
  return text.replace(CONTROL, escaped);
}

const CONTROL = /[\u0000-\u001f\u007f-\u009f]/g;

function escaped(character: string): string {
  return `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
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
