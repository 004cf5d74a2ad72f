import { SpindleError } from './errors.ts';

const SUFFIX: Readonly<Record<string, number>> = {
  b: 1,
  k: 1024,
  m: 1024 ** 2,
  g: 1024 ** 3,
  t: 1024 ** 4,
  p: 1024 ** 5,
  e: 1024 ** 6,
};

/**
 * Parses a size as qemu-img does: decimal or 0x-hexadecimal bytes, or a decimal number (with a fraction if wanted) and
 * one suffix b, k, M, G, T, P or E of any case, each 1024 times the one before. Leading blanks and a plus sign pass.
 * A fraction of a byte is dropped.
 * @throws SpindleError BAD_SIZE for anything else, a negative number, or 2^53 and more.
 */
export function parseSize(text: string): number {
  const hexadecimal = /^\s*\+?0[xX]([0-9a-fA-F]+)$/.exec(text);
  if (hexadecimal?.[1] !== undefined) return bounded(text, Number.parseInt(hexadecimal[1], 16));
  const decimal = /^\s*\+?(\d*)(?:(\.)(\d*))?([bkmgtpe])?$/i.exec(text);
  const [, whole = '', point, fraction = '', suffix] = decimal ?? [];
  if (
    decimal === null ||
    (whole === '' && fraction === '') ||
    (point !== undefined && suffix === undefined)
  ) {
    throw badSize(
      text,
      'a size is a number with an optional suffix k, M, G, T, P or E, such as 512, 64k or 1.5G',
    );
  }
  const unit = SUFFIX[(suffix ?? 'b').toLowerCase()] ?? 1;
  if (unit === 1 && point !== undefined) throw badSize(text, 'a byte has no fraction');
  return bounded(text, Math.trunc(Number(`${whole || '0'}.${fraction || '0'}`) * unit));
}

function bounded(text: string, value: number): number {
  if (!Number.isSafeInteger(value)) throw badSize(text, 'sizes end below 8 PiB (2^53 bytes)');
  return value;
}

function badSize(text: string, why: string): SpindleError {
  return new SpindleError('BAD_SIZE', `invalid size '${text}': ${why}`);
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** A size for people: at most three significant digits and a binary unit, such as `1.5 GiB`. */
export function formatSize(bytes: number): string {
  let unit = 0;
  let value = bytes;
  // From 1000 on the next unit is used, so that three digits always do.
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${String(threeDigits(value))} ${UNITS[unit] ?? ''}`;
}

/** Rounded to three significant digits; from the middle between two to the even one, as printf does. */
function threeDigits(value: number): number {
  const unit = 10 ** (2 - Math.floor(Math.log10(value || 1)));
  const below = Math.floor(value * unit);
  const isMiddle = value * unit - below === 0.5;
  return isMiddle && below % 2 === 0 ? below / unit : Number(value.toPrecision(3));
}
