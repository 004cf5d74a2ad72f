import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { openFile } from '../../src/storage/file.ts';
import {
  describeWithFileSystem,
  FILE_SYSTEMS,
  withFileSystem,
  type FileSystemType,
} from '../tool/filesystem.ts';
import { addonHere, outcome, run } from './help.ts';

const MIB = 1024 * 1024;
const sides = addonHere ? [native(), twins] : [twins];

/** The letters of lsattr. */
const attributes = (path: string): string => run('lsattr', '-d', path).split(' ')[0] ?? '';

/** What xfs_io says of the hint. */
const hintOf = (path: string): string => run('xfs_io', '-r', '-c', 'extsize', path).split(' ')[0] ?? '';

/** Runs `work` with a new file on a file system of the type, once for the addon and once for the twins. */
async function onEach(
  type: FileSystemType,
  work: (side: (typeof sides)[number], path: string, fd: number) => Promise<void>,
): Promise<void> {
  await withFileSystem(type, 0, async (folder) => {
    for (const side of sides) {
      const path = `${folder}/a file`;
      const fd = openSync(path, 'w+');
      try {
        await work(side, path, fd);
      } finally {
        closeSync(fd);
        await rm(path, { force: true });
      }
    }
  });
}

for (const type of FILE_SYSTEMS) {
  describeWithFileSystem(`switches of files on ${type}`, type, () => {
    it('copy-on-write goes off where there is such a switch, and stays elsewhere', async () => {
      await onEach(type, async (side, path, fd) => {
        expect(await side.setNoCow(fd), side.kind).toBe(type === 'btrfs');
        expect(attributes(path).includes('C')).toBe(type === 'btrfs');
        expect(await side.setNoCow(fd)).toBe(type === 'btrfs');
        await rm(path);
        const data = openSync(path, 'w+');
        writeSync(data, 'data');
        expect(await side.setNoCow(data), `${side.kind}: a file with data`).toBe(false);
        expect(attributes(path)).not.toContain('C');
        closeSync(data);
      });
    });

    it('the extent size hint is set where there is one, and UNSUPPORTED elsewhere', async () => {
      await onEach(type, async (side, path, fd) => {
        expect(await side.extentSizeHint(fd), side.kind).toBe(0);
        expect(await outcome(() => side.setExtentSizeHint(fd, 0))).toEqual({ value: undefined });
        const set = await outcome(() => side.setExtentSizeHint(fd, MIB));
        if (type !== 'xfs') {
          expect(set).toEqual({ code: 'UNSUPPORTED' });
          expect(await side.extentSizeHint(fd)).toBe(0);
          return;
        }
        expect(set).toEqual({ value: undefined });
        expect([await side.extentSizeHint(fd), hintOf(path)]).toEqual([MIB, `[${String(MIB)}]`]);
        expect(await outcome(() => side.setExtentSizeHint(fd, 1000)), 'no whole blocks').toEqual({
          code: 'IO',
        });
        await side.setExtentSizeHint(fd, 65_536);
        expect(hintOf(path)).toBe('[65536]');
        await side.setExtentSizeHint(fd, 0);
        expect([await side.extentSizeHint(fd), hintOf(path)]).toEqual([0, '[0]']);
        await side.setExtentSizeHint(fd, MIB);
        ftruncateSync(fd, 4 * MIB);
        writeSync(fd, 'data');
        expect(await outcome(() => side.setExtentSizeHint(fd, 65_536)), 'a file with data').toEqual({
          code: 'IO',
        });
        const reader = openSync(path, 'r');
        expect(await side.extentSizeHint(reader)).toBe(MIB);
        closeSync(reader);
      });
    });

    it('a storage does nothing, or says UNSUPPORTED, where there is no switch', async () => {
      await withFileSystem(type, 0, async (folder) => {
        const storage = await openFile(`${folder}/storage`, { create: 'exclusive' });
        try {
          await storage.setNoCow();
          expect(attributes(storage.path).includes('C')).toBe(type === 'btrfs');
          expect(await storage.extentSizeHint()).toBe(0);
          const set = await outcome(() => storage.setExtentSizeHint(65_536));
          expect(set).toEqual(type === 'xfs' ? { value: undefined } : { code: 'UNSUPPORTED' });
          expect(await storage.extentSizeHint()).toBe(type === 'xfs' ? 65_536 : 0);
        } finally {
          await storage.close();
        }
        const reader = await openFile(`${folder}/storage`);
        expect(await outcome(() => reader.setExtentSizeHint(4096))).toEqual({ code: 'READ_ONLY' });
        expect(await outcome(() => reader.setNoCow())).toEqual({ code: 'READ_ONLY' });
        await reader.close();
        expect(await outcome(() => reader.extentSizeHint())).toEqual({ code: 'CLOSED' });
      });
    });
  });
}

it.each(sides)('$kind: bad arguments and closed descriptors', async (side) => {
  for (const fd of [-1, 1.5, NaN]) {
    expect(await outcome(() => side.setNoCow(fd))).toEqual({ thrown: 'RangeError' });
    expect(await outcome(() => side.extentSizeHint(fd))).toEqual({ thrown: 'RangeError' });
    expect(await outcome(() => side.setExtentSizeHint(fd, 0))).toEqual({ thrown: 'RangeError' });
  }
  for (const bytes of [-1, 0.5, 2 ** 32]) {
    expect(await outcome(() => side.setExtentSizeHint(0, bytes))).toEqual({ thrown: 'RangeError' });
  }
  const closed = 1_000_000;
  expect(await outcome(() => side.setNoCow(closed))).toEqual({ code: 'IO' });
  expect(await outcome(() => side.extentSizeHint(closed))).toEqual({ code: 'IO' });
  expect(await outcome(() => side.setExtentSizeHint(closed, 0))).toEqual({ code: 'IO' });
});
