import { SpindleError } from './errors.ts';

/** 2^32: the weight of the high half of a 64-bit value. */
export const TWO_32 = 0x1_0000_0000;

/** A DataView over exactly the bytes of `bytes`. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * The big-endian 64-bit value at `at`, as a number.
 * @throws SpindleError LIMIT when the value is 2^53 or more: it is never rounded.
 */
export function getU64(view: DataView, at: number): number {
  const hi = view.getUint32(at);
  if (hi > 0x1f_ffff) {
    throw new SpindleError(
      'LIMIT',
      `the 64-bit value 0x${hex64(hi, view.getUint32(at + 4))} is 2^53 or more`,
    );
  }
  return hi * TWO_32 + view.getUint32(at + 4);
}

/** Writes `value` (0 to 2^53 - 1) as a big-endian 64-bit value at `at`. */
export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / TWO_32));
  view.setUint32(at + 4, value >>> 0);
}

/** The 16 hex digits of a 64-bit value given as two halves. */
export function hex64(hi: number, lo: number): string {
  return hi.toString(16).padStart(8, '0') + lo.toString(16).padStart(8, '0');
}

/** `value` in hexadecimal with its 0x. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

/** Whether every byte is zero. */
export function isZero(bytes: Uint8Array): boolean {
  const length = bytes.byteLength;
  const head = Math.min(length, (4 - (bytes.byteOffset & 3)) & 3);
  for (let at = 0; at < head; at++) if (bytes[at] !== 0) return false;
  if (head === length) return true;
  const words = new Int32Array(bytes.buffer, bytes.byteOffset + head, Math.floor((length - head) / 4));
  for (const word of words) if (word !== 0) return false;
  for (let at = head + words.length * 4; at < length; at++) if (bytes[at] !== 0) return false;
  return true;
}

const decoder = new TextDecoder('utf-8', { fatal: false });
const encoder = new TextEncoder();

/** UTF-8 bytes as text; bytes that are not UTF-8 become U+FFFD. */
export function textOf(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/** The UTF-8 bytes of `text`. */
export function bytesOf(text: string): Uint8Array {
  return encoder.encode(text);
}

/** Whether two byte arrays hold the same bytes. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  const aligned = a.byteOffset % 4 === 0 && b.byteOffset % 4 === 0;
  const words = aligned ? Math.floor(a.length / 4) : 0;
  const left = new Int32Array(a.buffer, aligned ? a.byteOffset : 0, words);
  const right = new Int32Array(b.buffer, aligned ? b.byteOffset : 0, words);
  for (let i = 0; i < words; i++) if (left[i] !== right[i]) return false;
  for (let i = words * 4; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
