import { InvalidArgumentError } from 'commander';

/** A plain number, as qemu-img takes it: decimal or hexadecimal, with no suffix. */
export function numberValue(text: string): number {
  if (/^\s*\+?(\d+|0[xX][0-9a-fA-F]+)$/.test(text)) return Number(text.replace('+', ''));
  throw new InvalidArgumentError('it takes a number');
}
