import { bytesOf, sameBytes } from '../../../core/bytes.ts';
import { SpindleError } from '../../../core/errors.ts';
import { readAvailable } from '../../../core/read.ts';
import type { Storage } from '../../../core/storage.ts';
import { fromHex, sha256, toHex } from './hash.ts';
import type { Patch, RepairStep } from './step.ts';

/*
 * The journal of a repair: a text file. Each line is the first 16 hex digits of the sha256 of the rest, a blank, and an
 * object in JSON. A line that is cut or damaged ends the journal, because the image is changed only after the lines
 * about the change are durable.
 */

/** The first line: which image the journal belongs to. */
export interface JournalHead {
  readonly spindleRepairJournal: 1;
  /** As it was named. For people only: a file may be moved. */
  readonly path: string;
  /** Bytes of the file before the repair. */
  readonly size: number;
  /** sha256 of the first bytes of the file before the repair. */
  readonly header: string;
}

/** A change. Past the end that the file had there is nothing to restore: the hash of what was written is enough. */
export type JournalChange =
  | { readonly at: number; readonly before: string; readonly after: string }
  | { readonly at: number; readonly length: number; readonly sha256: string };

/** A line of a journal. */
export type JournalLine =
  JournalHead | { readonly step: string } | JournalChange | { readonly done: string; readonly size: number };

/** Bytes at the start of the file that tell an image from others. */
export const HEADER_HASHED = 512;

/** Bytes of a change in one line. */
const LINE_BYTES = 64 * 1024;

/** sha256 of the start of an image, in hex. */
export async function headerHash(storage: Storage): Promise<string> {
  return toHex(await sha256(await readAvailable(storage, 0, HEADER_HASHED)));
}

/** Writes a journal to an empty storage that can be resized. What was recorded is durable when the call resolves. */
export class JournalWriter {
  readonly #journal: Storage;
  readonly #path: string;
  #size = -1;
  #step = '';

  /** `path` is the name of the image, for people. */
  constructor(journal: Storage, path: string) {
    this.#journal = journal;
    this.#path = path;
  }

  /** A step begins. */
  async begin(image: Storage, step: RepairStep): Promise<void> {
    this.#step = step.name;
    const lines: JournalLine[] = [];
    if (this.#size < 0) {
      this.#size = image.size;
      const header = await headerHash(image);
      lines.push({ spindleRepairJournal: 1, path: this.#path, size: this.#size, header });
    }
    await this.#append([...lines, { step: step.name }]);
  }

  /** Changes that are about to be made. */
  async record(patches: readonly Patch[]): Promise<void> {
    const lines: JournalLine[] = [];
    for (const { at, bytes, before } of patches) {
      const inside = Math.max(0, Math.min(bytes.length, this.#size - at));
      for (let from = 0; from < inside; from += LINE_BYTES) {
        const to = Math.min(from + LINE_BYTES, inside);
        const old = toHex(before.subarray(from, to));
        lines.push({ at: at + from, before: old, after: toHex(bytes.subarray(from, to)) });
      }
      if (inside === bytes.length) continue;
      const rest = bytes.subarray(inside);
      lines.push({ at: at + inside, length: rest.length, sha256: toHex(await sha256(rest)) });
    }
    await this.#append(lines);
  }

  /** The step is done, and durable; the file has so many bytes. */
  async done(size: number): Promise<void> {
    await this.#append([{ done: this.#step, size }]);
  }

  async #append(lines: readonly JournalLine[]): Promise<void> {
    let text = '';
    for (const line of lines) {
      const body = JSON.stringify(line);
      text += `${await lineSum(body)} ${body}\n`;
    }
    const bytes = bytesOf(text);
    const at = this.#journal.size;
    await this.#journal.resize(at + bytes.length);
    await this.#journal.write(bytes, at);
    await this.#journal.flush();
  }
}

async function lineSum(body: string): Promise<string> {
  return toHex(await sha256(bytesOf(body))).slice(0, 16);
}

/** A journal, read as far as it is whole. */
export interface Journal {
  readonly head: JournalHead;
  /** All changes, in the order in which they were made. */
  readonly changes: readonly JournalChange[];
  /** Changes before this one are certain to have been made; those from it on may not. */
  readonly certain: number;
  /** Numbers of the changes with which steps begin. */
  readonly steps: readonly number[];
  /** Bytes of the image after the last step that was finished; null when none was. */
  readonly size: number | null;
}

/**
 * Reads a journal up to the first line that is damaged; memory is about its size.
 * @throws SpindleError BAD_OPTION when this is no journal
 */
export async function readJournal(storage: Storage): Promise<Journal> {
  let head: JournalHead | null = null;
  const changes: JournalChange[] = [];
  const steps: number[] = [];
  let certain = 0;
  let size: number | null = null;
  for await (const text of wholeLines(storage)) {
    const body = text.slice(17);
    if (text.slice(0, 16) !== (await lineSum(body))) break;
    const line = parseLine(body);
    if (line === null) break;
    if ('spindleRepairJournal' in line) head ??= line;
    else if ('step' in line) steps.push(changes.length);
    else if ('done' in line) [certain, size] = [changes.length, line.size];
    else changes.push(line);
  }
  if (head === null)
    throw new SpindleError(
      'BAD_OPTION',
      'this is no journal of a repair, or it is damaged from its first line on',
    );
  return { head, changes, certain, steps, size };
}

/** Null for what no journal holds, whatever its sum. */
function parseLine(body: string): JournalLine | null {
  try {
    const line: unknown = JSON.parse(body);
    return typeof line === 'object' && line !== null ? (line as JournalLine) : null;
  } catch {
    return null;
  }
}

/** Bytes of a journal read at a time. */
const READ = 1024 ** 2;

async function* wholeLines(storage: Storage): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = '';
  for (let at = 0; at < storage.size; at += READ) {
    const parts = (rest + decoder.decode(await readAvailable(storage, at, READ), { stream: true })).split(
      '\n',
    );
    rest = parts.pop() ?? '';
    yield* parts;
  }
}

/** Restores, newest change first, what a repair replaced. */
export async function undoChanges(image: Storage, { head, changes, steps }: Journal): Promise<void> {
  const starts = new Set(steps);
  for (let i = changes.length - 1; i >= 0; i--) {
    const change = changes[i];
    if (change !== undefined && 'before' in change) {
      const bytes = fromHex(change.before);
      if (!sameBytes(await readAvailable(image, change.at, bytes.length), bytes))
        await image.write(bytes, change.at);
    }
    // Steps go back one by one, as they came.
    if (starts.has(i)) await image.flush();
  }
  if (image.size > head.size && image.can.resize) await image.resize(head.size);
  await image.flush();
}
