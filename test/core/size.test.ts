import { describe, expect, it } from 'vitest';
import { isSpindleError, printable } from '../../src/core/errors.ts';
import { formatSize, parseSize } from '../../src/core/size.ts';

const K = 1024;

describe('parseSize', () => {
  const good: [string, number][] = [
    ['0', 0],
    ['512', 512],
    ['007', 7],
    ['1b', 1],
    ['1B', 1],
    ['64k', 64 * K],
    ['64K', 64 * K],
    ['1m', K ** 2],
    ['10G', 10 * K ** 3],
    ['2t', 2 * K ** 4],
    ['7P', 7 * K ** 5],
    ['0E', 0],
    ['1.5G', 1.5 * K ** 3],
    ['.5k', 512],
    ['1.k', K],
    ['0.1k', 102],
    ['1.0001k', 1024],
    ['0x200', 512],
    ['0X1fF', 511],
    [' 512', 512],
    ['\t+1k', K],
    ['+0x10', 16],
    ['9007199254740991', 2 ** 53 - 1],
    ['0x1fffffffffffff', 2 ** 53 - 1],
    ['0x1b', 27],
    ['0x1e', 30],
  ];
  for (const [text, size] of good) {
    it(`takes ${JSON.stringify(text)}`, () => {
      expect(parseSize(text)).toBe(size);
    });
  }

  const bad = [
    ...[
      '',
      ' ',
      '+',
      '.',
      '.k',
      'k',
      '1.5',
      '1.',
      '1.5b',
      '-1',
      '-1k',
      '1 k',
      '1k ',
      '1kk',
      '1MB',
      '1MiB',
      '1KiB',
    ],
    ...[
      '1e3',
      '1e3k',
      '0x',
      '0x1k',
      '0x1.8',
      '0x1G',
      '1,5G',
      '1_000',
      '++1',
      '+-1',
      'Infinity',
      'NaN',
      '1x',
      '½k',
    ],
    ...[
      '9007199254740992',
      '0x20000000000000',
      '8P',
      '1E',
      '99999999999999999999',
      '0xffffffffffffffff',
      '1k\n2',
    ],
  ];
  for (const text of bad) {
    it(`refuses ${JSON.stringify(text)}`, () => {
      let error: unknown;
      try {
        parseSize(text);
      } catch (caught) {
        error = caught;
      }
      if (!isSpindleError(error, 'BAD_SIZE')) expect.fail('it was accepted, or failed otherwise');
      expect(error.message).toContain(printable(text));
    });
  }
});

describe('formatSize', () => {
  it('uses three digits and a binary unit', () => {
    const cases: [number, string][] = [
      [0, '0 B'],
      [1, '1 B'],
      [999, '999 B'],
      [1000, '0.977 KiB'],
      [1024, '1 KiB'],
      [1536, '1.5 KiB'],
      [1024 ** 3 * 10, '10 GiB'],
      [1024 ** 2 * 999, '999 MiB'],
      [1024 ** 2 * 1000, '0.977 GiB'],
      [196_624, '192 KiB'],
      [2 ** 53 - 1, '8 PiB'],
    ];
    for (const [bytes, text] of cases) expect(formatSize(bytes)).toBe(text);
  });
});
