import { closeSync, fstatSync, fsyncSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { addonHere, have, outcome, rootHere, run, scratch } from './help.ts';

const MIB = 1024 * 1024;
const sides = addonHere ? [native(), twins] : [twins];
const FILE_SYSTEMS = [
  ['ext4', 'mkfs.ext4', '-q', '-F'],
  ['xfs', 'mkfs.xfs', '-q', '-f'],
  ['btrfs', 'mkfs.btrfs', '-q', '-f'],
] as const;

describe.each(FILE_SYSTEMS)('zeroes written on %s', (name, mkfs, ...flags) => {
  const runs = rootHere && (have(mkfs) || process.env['SPINDLE_REQUIRE_JUDGES'] === '1');
  const { path } = scratch();
  let mount = '';
  beforeAll(() => {
    if (!runs) return;
    run('truncate', '-s', '512M', path('image'));
    run(mkfs, ...flags, path('image'));
    mkdirSync(path('mount'));
    run('mount', '-o', 'loop', path('image'), path('mount'));
    mount = path('mount');
  });
  afterAll(() => {
    if (mount !== '') run('umount', mount);
  });

  /** Extents that begin within `length`, by e2fsprogs: XFS keeps some in reserve past the end while a file is open. */
  const judge = (file: string, length: number): string[] =>
    run('filefrag', '-v', '-s', '-b1', file)
      .split('\n')
      .filter((line) => Number(/^ +\d+: +(\d+)\.\./.exec(line)?.[1] ?? Infinity) < length);

  describe.runIf(runs).each(sides)('by the $kind', (side) => {
    const file = (what: string): { path: string; fd: number } => {
      const at = `${mount}/${what}-${side.kind}`;
      return { path: at, fd: openSync(at, 'w+') };
    };

    it.each([
      ['fresh space', 40 * MIB, () => Promise.resolve()],
      ['odd lengths', 10 * MIB + 777, () => Promise.resolve()],
      ['reserved space', 24 * MIB, (fd: number) => side.fallocate(fd, 'reserve', 0, 24 * MIB)],
      [
        'a mixture',
        24 * MIB,
        async (fd: number) => {
          writeSync(fd, Buffer.alloc(16 * MIB, 1));
          await side.fallocate(fd, 'punch', 4 * MIB, 4 * MIB);
          await side.fallocate(fd, 'zero-range', 12 * MIB, MIB);
          await side.fallocate(fd, 'reserve-keep-size', 16 * MIB, 8 * MIB);
        },
      ],
    ] as const)('%s is allocated, and no extent is unwritten', async (what, length, prepare) => {
      const { path: at, fd } = file(what.replace(' ', '-'));
      try {
        await prepare(fd);
        await side.writeZeroes(fd, 0, length);
        fsyncSync(fd);
        const lines = judge(at, length);
        expect(lines.length).toBeGreaterThan(0);
        expect(lines.join('\n')).not.toMatch(/unwritten|delalloc/);
        const { size, blocks } = fstatSync(fd);
        expect(size).toBe(length);
        expect(blocks * 512).toBeGreaterThanOrEqual(length);
        const extents = await side.fiemap(fd, 0, length, 1e6, true);
        expect(extents.some((extent) => extent.unwritten || extent.delayed)).toBe(false);
        expect(extents.reduce((sum, extent) => sum + extent.length, 0)).toBe(length);
      } finally {
        closeSync(fd);
      }
    });

    it('a full file system is NO_SPACE, whoever asks', async () => {
      const { fd } = file('full');
      try {
        expect(await outcome(() => side.fallocate(fd, 'reserve', 0, 4096 * MIB))).toEqual({
          code: 'NO_SPACE',
        });
        expect(await outcome(() => side.writeZeroes(fd, 0, 4096 * MIB))).toEqual({ code: 'NO_SPACE' });
      } finally {
        closeSync(fd);
        run('rm', `${mount}/full-${side.kind}`);
      }
    });

    it('its kinds agree with the addon’s', async () => {
      const { fd, path: at } = file('kinds');
      try {
        writeSync(fd, Buffer.alloc(MIB, 1));
        writeSync(fd, 'tail', 10 * MIB);
        await side.fallocate(fd, 'reserve', 4 * MIB, MIB);
        if (name !== 'ext4') run('cp', '--reflink=always', at, `${at}-clone`);
        const extents = await side.fiemap(fd, 0, 100 * MIB, 100, true);
        expect(extents).toEqual(await native().fiemap(fd, 0, 100 * MIB, 100, true));
        expect(extents.some((extent) => extent.unwritten && extent.logical === 4 * MIB)).toBe(true);
        expect(extents[0]?.shared).toBe(name !== 'ext4');
        const small = file('inline');
        writeSync(small.fd, 'tiny');
        expect(await side.fiemap(small.fd, 0, MIB, 9, true)).toEqual(
          await native().fiemap(small.fd, 0, MIB, 9, true),
        );
        closeSync(small.fd);
      } finally {
        closeSync(fd);
      }
    });

    it.runIf(addonHere)('findLocked sees a lock', () => {
      const { fd, path: at } = file('locked');
      const holder = openSync(at, 'r');
      native().lockBytes(holder, [100]);
      expect(side.findLocked(fd, [99, 100])).toBe(100);
      closeSync(holder);
      expect(side.findLocked(fd, [99, 100])).toBe(-1);
      closeSync(fd);
    });
  });
});
