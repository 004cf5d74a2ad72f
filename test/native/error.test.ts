import { closeSync, openSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { systemError } from '../../src/native/errno.ts';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { addonHere, have, outcome, scratch } from './help.ts';

const sides = addonHere ? [native(), twins] : [twins];

describe.each(sides.map((side) => [side.kind, side] as const))('failures of the %s', (_kind, side) => {
  const { open, path } = scratch();

  it('a descriptor that is not open is IO', async () => {
    const fd = openSync(path('closed'), 'w+');
    closeSync(fd);
    // A number far above what is open: `fd` itself may be taken again by now.
    const closed = 900_000 + fd;
    for (const work of [
      () => side.fallocate(closed, 'reserve', 0, 4096),
      () => side.writeZeroes(closed, 0, 4096),
      () => side.dataExtents(closed, 0, 4096, 1),
      () => side.fiemap(closed, 0, 4096, 1, false),
      () => side.deviceInfo(closed),
      () => side.deviceDiscard(closed, 0, 4096),
      () => side.findLocked(closed, [1]),
    ]) {
      expect(await outcome(work), String(work)).toEqual({ code: 'IO' });
    }
  });

  it('a descriptor opened for reading is READ_ONLY', async () => {
    writeSync(open('read-only'), Buffer.alloc(4096, 1));
    const fd = open('read-only', 'r');
    expect(await outcome(() => side.fallocate(fd, 'punch', 0, 4096))).toEqual({ code: 'READ_ONLY' });
    expect(await outcome(() => side.writeZeroes(fd, 0, 4096))).toEqual({ code: 'READ_ONLY' });
  });

  it.runIf(have('fallocate'))('lengths past what a file can be are LIMIT', async () => {
    const fd = open('huge');
    expect(await outcome(() => side.fallocate(fd, 'reserve', 0, Number.MAX_SAFE_INTEGER))).toEqual({
      code: 'LIMIT',
    });
    if (side.kind === 'twin') return;
    expect(await outcome(() => side.writeZeroes(fd, 2 ** 52, 4096))).toEqual({ code: 'LIMIT' });
  });

  it('numbers that are none are RangeError, and nothing panics', async () => {
    const fd = open('numbers');
    const range = { thrown: 'RangeError' };
    for (const bad of [-1, NaN, 0.5, Infinity, 2 ** 53]) {
      for (const work of [
        () => side.fallocate(bad === 2 ** 53 ? NaN : bad, 'reserve', 0, 1),
        () => side.fallocate(fd, 'reserve', bad, 1),
        () => side.fallocate(fd, 'punch', 0, bad),
        () => side.writeZeroes(fd, bad, 1),
        () => side.writeZeroes(fd, 0, bad),
        () => side.dataExtents(fd, bad, 1, 1),
        () => side.dataExtents(fd, 0, 1, bad),
        () => side.fiemap(fd, 0, bad, 1, false),
        () => side.fiemap(fd, 0, 1, bad, false),
        () => side.zeroUnits(new Uint8Array(8), bad),
        () => side.deviceInfo(bad),
        () => side.deviceDiscard(fd, bad, 1),
        () => side.deviceZeroOut(fd, 0, bad),
        () => side.alignedBuffer(bad, 512),
        () => side.alignedBuffer(512, bad),
        () => {
          side.lockBytes(fd, [bad]);
        },
        () => side.findLocked(fd, [bad]),
      ]) {
        expect(await outcome(work), `${String(bad)} ${String(work)}`).toEqual(range);
      }
    }
    expect(await outcome(() => side.fallocate(fd, 'reserve', Number.MAX_SAFE_INTEGER, 1))).toEqual(range);
    expect(await outcome(() => side.zeroUnits(new Uint8Array(8), 0))).toEqual(range);
    expect(await outcome(() => side.alignedBuffer(512, 3))).toEqual(range);
    expect(await outcome(() => side.alignedBuffer(0, 512))).toEqual(range);
  });

  it('what is neither file nor device is UNSUPPORTED', async () => {
    const fd = open('/dev/null', 'r+');
    expect(await outcome(() => side.fallocate(fd, 'reserve', 0, 4096))).toEqual({ code: 'UNSUPPORTED' });
    expect(await outcome(() => side.fiemap(fd, 0, 4096, 1, false))).toEqual({ code: 'UNSUPPORTED' });
  });

  it('one line says the call, the range and the reason', async () => {
    writeSync(open('line'), Buffer.alloc(4096, 1));
    const fd = open('line', 'r');
    await expect(side.fallocate(fd, 'punch', 512, 1024)).rejects.toThrow(
      `fallocate (punch) of 1024 bytes at 512 on descriptor ${String(fd)}: opened for reading only (EBADF, errno 9)`,
    );
  });
});

describe('twins without their programs', () => {
  const { open } = scratch();

  it('are UNSUPPORTED, and name the package', async () => {
    const fd = open('file');
    // The system's own folders are searched whatever PATH says, so a program that is surely missing is named instead.
    const { runProgram } = await import('../../src/native/program.ts');
    const missing = { name: 'no-such-program', package: 'util-linux', call: 'fallocate' };
    await expect(runProgram(missing, [], { fd })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringContaining('util-linux') as string,
    });
  });
});

describe('systemError', () => {
  it.each([
    ['ENOSPC', 'fallocate', 'NO_SPACE'],
    ['EDQUOT', 'pwrite', 'NO_SPACE'],
    ['EFBIG', 'pwrite', 'LIMIT'],
    ['EOPNOTSUPP', 'fallocate', 'UNSUPPORTED'],
    ['ENOSYS', 'fallocate', 'UNSUPPORTED'],
    ['ENOTTY', 'ioctl FIEMAP', 'UNSUPPORTED'],
    ['EINVAL', 'fallocate', 'UNSUPPORTED'],
    ['EINVAL', 'pwrite', 'IO'],
    ['EACCES', 'open', 'PERMISSION'],
    ['EPERM', 'fallocate', 'PERMISSION'],
    ['EROFS', 'fallocate', 'READ_ONLY'],
    ['EBADF', 'pwrite', 'READ_ONLY'],
    ['EBADF', 'fcntl', 'IO'],
    ['EAGAIN', 'fcntl F_OFD_SETLK', 'IN_USE'],
    ['EIO', 'pwrite', 'IO'],
  ])('%s from %s is %s', (errno, call, code) => {
    expect(systemError(errno, call).code).toBe(code);
  });

  it('numbers and names are one', () => {
    const subject = { fd: 5, offset: 0, length: 4096 };
    const error = systemError(28, 'pwrite', subject);
    expect(error.code).toBe('NO_SPACE');
    expect(error.message).toBe(systemError('ENOSPC', 'pwrite', subject).message);
    expect(error.message).toBe(
      'pwrite of 4096 bytes at 0 on descriptor 5: no space left on device (ENOSPC, errno 28)',
    );
    expect(systemError(9999, 'pwrite').code).toBe('IO');
  });
});
