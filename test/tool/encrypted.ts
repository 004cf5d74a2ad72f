import { expect } from 'vitest';
import type { Image } from '../../src/format/image.ts';
import { openImageFile, secretOf, type OpenFileOptions } from '../../src/op/open.ts';
import * as qemu from './qemu.ts';
import type { Random } from './random.ts';

/** The passphrase of the encrypted fixtures, and of most images of these tests. */
export const PASSPHRASE = 'spindle';

/** The arguments by which qemu opens an encrypted image. */
export function encryptedSource(path: string, format: string, passphrase = PASSPHRASE): string[] {
  const id = format === 'luks' ? 'key-secret=s' : 'encrypt.key-secret=s';
  const data = passphrase.replaceAll(',', ',,');
  return [
    ...['--object', `secret,id=s,data=${data}`],
    ...['--image-opts', `driver=${format},${id},file.filename=${path}`],
  ];
}

/** Creates an encrypted image with qemu-img, quickly. `options` have the names without `encrypt.`. */
export async function createEncrypted(
  path: string,
  size: number,
  format: 'qcow2' | 'luks',
  options: Readonly<Record<string, string>> = {},
  more: Readonly<Record<string, string>> = {},
): Promise<void> {
  const named = Object.entries({ 'key-secret': 's', ...options }).map(([name, value]): [string, string] => [
    format === 'luks' ? name : `encrypt.${name}`,
    value,
  ]);
  const list = qemu.optionList({ ...Object.fromEntries(named), ...more });
  const object = ['--object', `secret,id=s,data=${PASSPHRASE}`];
  await qemu.qemuImg(['create', '-q', ...object, '-f', format, '-o', list, path, String(size)]);
}

/** Opens an encrypted image with the library. */
export function openEncrypted(
  path: string,
  options: OpenFileOptions & { readonly passphrase?: string } = {},
): Promise<Image> {
  const { passphrase = PASSPHRASE, ...rest } = options;
  return openImageFile(path, { secret: secretOf(passphrase), ...rest });
}

/** A piece of a disk that is filled with one byte. */
export interface Piece {
  readonly at: number;
  readonly length: number;
  readonly pattern: number;
}

/** Random pieces of a disk, some of them not made of whole sectors, that may overwrite each other. */
export function randomPieces(random: Random, size: number, count: number): Piece[] {
  return Array.from({ length: count }, () => {
    const unit = random.pick([1, 512, 4096]);
    const at = Math.floor(random.below(size) / unit) * unit;
    const most = Math.min(size - at, random.pick([700, 9000, 200_000]));
    const length = Math.max(1, Math.min(most, Math.ceil((1 + random.below(most)) / unit) * unit));
    return { at, length, pattern: random.between(1, 255) };
  });
}

/** What a disk of zeroes holds after the pieces were written one after the other. */
export function afterwards(pieces: readonly Piece[], size: number): Uint8Array {
  const content = new Uint8Array(size);
  for (const { at, length, pattern } of pieces) content.fill(pattern, at, at + length);
  return content;
}

/** Writes the pieces with qemu-io. */
export async function writeWithQemu(pieces: readonly Piece[], source: readonly string[]): Promise<void> {
  const commands = pieces.flatMap(({ at, length, pattern }) => [
    '-c',
    `write -P ${String(pattern)} ${String(at)} ${String(length)}`,
  ]);
  const { stdout, stderr } = await qemu.qemuIo([...commands, ...source]);
  if (/fail|rror/.test(stdout + stderr)) throw new Error(stdout + stderr);
}

/** Expects that an image reads as `content`: whole, and in random parts. */
export async function expectContent(image: Image, content: Uint8Array, random: Random): Promise<void> {
  expect(image.size).toBe(content.length);
  const whole = new Uint8Array(content.length);
  await image.read(whole, 0);
  expect(Buffer.compare(whole, content), 'content').toBe(0);
  for (let i = 0; i < 20; i++) {
    const at = random.below(content.length);
    const part = new Uint8Array(random.below(Math.min(5000, content.length - at)));
    await image.read(part, at);
    expect(Buffer.compare(part, content.subarray(at, at + part.length)), `at ${String(at)}`).toBe(0);
  }
}
