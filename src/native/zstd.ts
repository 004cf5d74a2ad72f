import { createContext, Script } from 'node:vm';
import { Decompress } from 'fzstd';
import { TWO_32, viewOf } from '../core/bytes.ts';
import { SpindleError } from '../core/errors.ts';

/*
 * The twin of `native/src/codec.rs`. fzstd decodes blocks, and trusts them: it allocates the window that a header asks
 * for, skips checksums, drops what passes the end of a block in silence, and can be kept busy for minutes by a few
 * hostile bytes. So frames are taken apart here (RFC 8878, 3.1.1), checked, and handed over one by one, with a header
 * that asks for no more than the output, and a time limit.
 */

/** Largest window that a frame may declare: what libzstd, and so QEMU, accepts unless told otherwise. */
const MAX_WINDOW = 2 ** 27;

/** No block, compressed or not, holds more. */
const MAX_BLOCK = 128 * 1024;

const MAGIC = 0xfd2f_b528;
const SKIPPABLE = 0x184d_2a5;

/** A frame found in a source; offsets are within it. */
interface Frame {
  readonly blocks: number;
  readonly blocksEnd: number;
  readonly end: number;
  /** Undefined where the header does not say. */
  readonly contentSize: number | undefined;
  /** Low half of the XXH64 of the content. */
  readonly checksum: number | undefined;
}

/**
 * Decodes frame after frame of `source` until `into` is full; skippable frames are passed over, and what follows the
 * last frame needed is not looked at.
 * @throws SpindleError BAD_COMPRESSED
 */
export function decompressFrames(source: Uint8Array, into: Uint8Array): void {
  let at = 0;
  let filled = 0;
  while (filled < into.length) {
    const skipped = skippableLength(source, at);
    if (skipped > 0) {
      at += skipped;
      continue;
    }
    const frame = findFrame(source, at);
    const target = into.subarray(filled);
    filled += decodeFrame(source.subarray(frame.blocks, frame.blocksEnd), frame, target);
    at = frame.end;
  }
}

/** The length of the skippable frame at `at`, or 0 where there is none. */
function skippableLength(source: Uint8Array, at: number): number {
  need(source, at, 4);
  const view = viewOf(source);
  if (view.getUint32(at, true) >>> 4 !== SKIPPABLE) return 0;
  need(source, at, 8);
  const length = 8 + view.getUint32(at + 4, true);
  need(source, at, length);
  return length;
}

function findFrame(source: Uint8Array, start: number): Frame {
  need(source, start, 6);
  const view = viewOf(source);
  if (view.getUint32(start, true) !== MAGIC) throw damaged('no zstd frame where one must begin');
  const flags = view.getUint8(start + 4);
  if ((flags & 8) !== 0) throw damaged('a reserved bit of the frame header is set');
  const single = (flags & 0x20) !== 0;
  let at = start + 5;
  if (!single) {
    const descriptor = view.getUint8(at++);
    const base = 2 ** (10 + (descriptor >> 3));
    if (base + (base / 8) * (descriptor & 7) > MAX_WINDOW) {
      throw damaged('a frame declares a window over 128 MiB');
    }
  }
  const dictionaryLength = [0, 1, 2, 4][flags & 3] ?? 0;
  need(source, at, dictionaryLength);
  if (source.subarray(at, at + dictionaryLength).some((byte) => byte !== 0)) {
    throw damaged('a frame needs a dictionary');
  }
  at += dictionaryLength;
  const sizeLength = [single ? 1 : 0, 2, 4, 8][flags >> 6] ?? 0;
  need(source, at, sizeLength);
  const contentSize = readSize(view, at, sizeLength);
  at += sizeLength;
  const blocks = at;
  for (let last = false; !last;) {
    need(source, at, 3);
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    const length = header >>> 3;
    if (length > MAX_BLOCK) throw damaged('a block is larger than 128 KiB');
    last = (header & 1) !== 0;
    // A run-length block stores one byte, whatever its length.
    at += 3 + ((header & 6) === 2 ? 1 : length);
    need(source, at, 0);
  }
  const blocksEnd = at;
  if ((flags & 4) === 0) return { blocks, blocksEnd, end: at, contentSize, checksum: undefined };
  need(source, at, 4);
  return { blocks, blocksEnd, end: at + 4, contentSize, checksum: view.getUint32(at, true) };
}

function readSize(view: DataView, at: number, length: number): number | undefined {
  if (length === 1) return view.getUint8(at);
  if (length === 2) return view.getUint16(at, true) + 256;
  if (length === 4) return view.getUint32(at, true);
  if (length === 8) return view.getUint32(at, true) + view.getUint32(at + 4, true) * TWO_32;
  return undefined;
}

/** Decodes the blocks of a frame into the front of `into`. The bytes that came out. */
function decodeFrame(blocks: Uint8Array, frame: Frame, into: Uint8Array): number {
  if (frame.contentSize !== undefined && frame.contentSize > into.length) throw tooLong();
  // One segment of the output's size, or of a block's: no match of a sound frame reaches further back.
  const whole = new Uint8Array(9 + blocks.length);
  const view = viewOf(whole);
  view.setUint32(0, MAGIC, true);
  view.setUint8(4, 0xa0);
  view.setUint32(5, Math.max(into.length, MAX_BLOCK), true);
  whole.set(blocks, 9);
  let filled = 0;
  limitTime(into.length, () => {
    const decoder = new Decompress((chunk) => {
      if (chunk.length > into.length - filled) throw tooLong();
      into.set(chunk, filled);
      filled += chunk.length;
    });
    decoder.push(whole, true);
  });
  if (frame.contentSize !== undefined && frame.contentSize !== filled) {
    throw damaged('a frame holds another number of bytes than it declares');
  }
  if (frame.checksum !== undefined && frame.checksum !== xxh64Low(into.subarray(0, filled))) {
    throw damaged('the checksum of a frame does not match');
  }
  return filled;
}

let runner: { readonly context: { work: () => void }; readonly script: Script } | undefined;

/** Runs `work`, which is synchronous, for at most a second and two more for every MiB of output. */
function limitTime(size: number, work: () => void): void {
  runner ??= { context: createContext({ work }) as { work: () => void }, script: new Script('work()') };
  runner.context.work = work;
  try {
    runner.script.runInContext(runner.context, { timeout: 1000 + Math.ceil(size / 512) });
  } catch (error) {
    if (error instanceof SpindleError) throw error;
    throw damaged(error instanceof Error ? error.message : 'damaged', error);
  } finally {
    runner.context.work = nothing;
  }
}

function nothing(): void {
  // Lets go of the buffers.
}

function need(source: Uint8Array, at: number, length: number): void {
  if (at + length > source.length) throw damaged('the frames end before the output is full');
}

function tooLong(): SpindleError {
  return damaged('a frame decodes past the end of the output');
}

function damaged(reason: string, cause?: unknown): SpindleError {
  return new SpindleError('BAD_COMPRESSED', `zstd: ${reason}`, { cause });
}

const P1 = 0x9e37_79b1_85eb_ca87n;
const P2 = 0xc2b2_ae3d_27d4_eb4fn;
const P3 = 0x1656_67b1_9e37_79f9n;
const P4 = 0x85eb_ca77_c2b2_ae63n;
const P5 = 0x27d4_eb2f_1656_67c5n;

/** The low 32 bits of XXH64 with seed 0. Slow (BigInt), which is bearable: QEMU writes no checksums. */
function xxh64Low(bytes: Uint8Array): number {
  const view = viewOf(bytes);
  const u64 = (value: bigint): bigint => BigInt.asUintN(64, value);
  const rotate = (value: bigint, by: bigint): bigint => u64((value << by) | (value >> (64n - by)));
  const round = (state: bigint, lane: bigint): bigint => u64(rotate(u64(state + lane * P2), 31n) * P1);
  let at = 0;
  let hash = P5;
  if (bytes.length >= 32) {
    let [a, b, c, d] = [u64(P1 + P2), P2, 0n, u64(-P1)];
    for (; at + 32 <= bytes.length; at += 32) {
      a = round(a, view.getBigUint64(at, true));
      b = round(b, view.getBigUint64(at + 8, true));
      c = round(c, view.getBigUint64(at + 16, true));
      d = round(d, view.getBigUint64(at + 24, true));
    }
    hash = u64(rotate(a, 1n) + rotate(b, 7n) + rotate(c, 12n) + rotate(d, 18n));
    for (const state of [a, b, c, d]) hash = u64((hash ^ round(0n, state)) * P1 + P4);
  }
  hash = u64(hash + BigInt(bytes.length));
  for (; at + 8 <= bytes.length; at += 8) {
    hash = u64(rotate(hash ^ round(0n, view.getBigUint64(at, true)), 27n) * P1 + P4);
  }
  if (at + 4 <= bytes.length) {
    hash = u64(rotate(hash ^ u64(BigInt(view.getUint32(at, true)) * P1), 23n) * P2 + P3);
    at += 4;
  }
  for (; at < bytes.length; at++) {
    hash = u64(rotate(hash ^ u64(BigInt(view.getUint8(at)) * P5), 11n) * P1);
  }
  hash = u64((hash ^ (hash >> 33n)) * P2);
  hash = u64((hash ^ (hash >> 29n)) * P3);
  return Number((hash ^ (hash >> 32n)) & 0xffff_ffffn);
}
