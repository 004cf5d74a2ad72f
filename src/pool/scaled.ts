import { SpindleError } from '../core/errors.ts';

/*
 * Sizes as virsh takes and shows them, which is not how qemu-img does: `10MB` are 10,000,000 bytes, there are no
 * fractions, and what is shown has two decimals.
 */

const LETTERS = 'KMGTPE';

/**
 * The bytes of a whole number with an optional unit: `B`; `K`, `KiB`, `M`...: powers of 1024; `KB`, `MB`...: of 1000.
 * @throws SpindleError BAD_SIZE
 */
export function parseScaled(text: string): number {
  const [, digits, unit = ''] = /^(\d+)\s*([A-Za-z]*)$/.exec(text) ?? [];
  const weight = digits === undefined ? undefined : weightOf(unit);
  if (digits === undefined || weight === undefined)
    throw new SpindleError(
      'BAD_SIZE',
      `malformed size '${text}': a whole number with an optional unit, such as 512, 64K, 10GiB or 10GB (of 1000)`,
    );
  return bounded(Number(digits) * weight, text);
}

/** The bytes of `text`, a whole number, in `unit` as descriptions have it; none is bytes. @throws SpindleError BAD_SIZE */
export function inUnit(text: string, unit: string | undefined): number {
  const weight = unit === undefined ? 1 : weightOf(unit);
  if (weight === undefined || !/^\d+$/.test(text))
    throw new SpindleError('BAD_SIZE', `malformed size '${text}' in unit '${unit ?? 'bytes'}'`);
  return bounded(Number(text) * weight, text);
}

function weightOf(unit: string): number | undefined {
  const upper = unit.toUpperCase();
  if (upper === '' || upper === 'B' || upper === 'BYTES' || upper === 'BYTE') return 1;
  const power = LETTERS.indexOf(upper.charAt(0)) + 1;
  if (power === 0) return undefined;
  if (upper.length === 1 || upper.slice(1) === 'IB') return 1024 ** power;
  return upper.slice(1) === 'B' ? 1000 ** power : undefined;
}

function bounded(bytes: number, text: string): number {
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new SpindleError('BAD_SIZE', `'${text}' is too large: sizes end below 8 PiB (2^53 bytes)`);
}

/** A size for people, as virsh shows it: `10.00 GiB`. */
export function formatScaled(bytes: number): string {
  let unit = -1;
  let value = bytes;
  while (value >= 1024 && unit < LETTERS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(2)} ${unit < 0 ? 'B' : `${LETTERS.charAt(unit)}iB`}`;
}
