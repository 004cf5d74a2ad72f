import { ftruncateSync, fsyncSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { openFile } from '../../src/storage/file.ts';
import { addonHere, run, scratch } from './help.ts';

const LENGTH = 256 * 1024;
const content = new Uint8Array(LENGTH).map((_, i) => (i * 7 + (i >> 8)) & 0xff);

describe('reads from the page cache', () => {
  const { open, path } = scratch();

  function filled(name: string): number {
    const fd = open(name);
    writeSync(fd, content);
    fsyncSync(fd);
    return fd;
  }

  /** Has the kernel forget what it holds of a file. */
  const forget = (name: string): string =>
    run('dd', `of=${path(name)}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none');

  it.runIf(addonHere)(
    'give what is there, up to the end of the file, and nothing that would have to be waited for',
    async () => {
      const fd = filled('one');
      const addon = native();
      const into = new Uint8Array(5000);
      expect(addon.readCached(fd, into, 1000)).toBe(5000);
      expect(into).toEqual(content.slice(1000, 6000));
      expect(addon.readCached(fd, into, LENGTH - 10)).toBe(10);
      expect(addon.readCached(fd, into, LENGTH)).toBe(0);
      // It is asked to, and need not at once.
      await expect
        .poll(
          () => {
            forget('one');
            return addon.readCached(fd, into, 128 * 1024);
          },
          { timeout: 20_000 },
        )
        .toBe(-1);
    },
  );

  it('are nothing that the twin has', () => {
    const fd = filled('two');
    expect(twins.readCached(fd, new Uint8Array(8), 0)).toBe(-1);
    for (const side of [native(), twins]) {
      expect(() => side.readCached(-1, new Uint8Array(8), 0)).toThrow(RangeError);
      expect(() => side.readCached(fd, new Uint8Array(8), -1)).toThrow(RangeError);
    }
  });

  it('a storage reads the same warm and cold, in parts and as a whole', async () => {
    filled('three');
    const storage = await openFile(path('three'));
    try {
      for (const prepare of [() => undefined, () => void forget('three')]) {
        for (let at = 0; at < LENGTH; at += 10_000) {
          if (at % 50_000 === 0) prepare();
          const into = new Uint8Array(Math.min(30_000, LENGTH - at));
          await storage.read(into, at);
          expect(Buffer.compare(into, content.subarray(at, at + into.length))).toBe(0);
        }
      }
    } finally {
      await storage.close();
    }
  });

  it('a storage tells a file that was cut behind its back', async () => {
    const fd = filled('four');
    const storage = await openFile(path('four'));
    try {
      ftruncateSync(fd, 1000);
      await expect(storage.read(new Uint8Array(500), 800)).rejects.toMatchObject({ code: 'IO' });
    } finally {
      await storage.close();
    }
  });

  it('many in a row leave the event loop its turns', async () => {
    filled('five');
    const storage = await openFile(path('five'));
    try {
      let turns = 0;
      let going = true;
      const turn = (): void => {
        turns++;
        if (going) setImmediate(turn);
      };
      setImmediate(turn);
      const into = new Uint8Array(512);
      for (let i = 0; i < 20_000; i++) await storage.read(into, (i % 2000) * 64);
      going = false;
      expect(turns).toBeGreaterThan(60);
    } finally {
      await storage.close();
    }
  });
});
