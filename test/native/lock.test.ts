import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import { addonStatus, native } from '../../src/native/binding.ts';
import { parseLocks, twins } from '../../src/native/fallback.ts';
import { addonHere, outcome, scratch } from './help.ts';

describe.runIf(addonHere)('locks on bytes', () => {
  const { open, path } = scratch();
  const addon = native();

  it('are seen through another descriptor, by the addon and by the twin, until they are dropped', () => {
    const holder = open('one');
    const prober = open('one', 'r+');
    addon.lockBytes(holder, [100, 103]);
    for (const side of [addon, twins]) {
      expect(side.findLocked(prober, [99, 101, 102, 104])).toBe(-1);
      expect(side.findLocked(prober, [99, 103, 100])).toBe(103);
    }
    expect(addon.findLocked(holder, [100, 103])).toBe(-1);
    addon.unlockBytes(holder, [103]);
    for (const side of [addon, twins]) expect(side.findLocked(prober, [103, 100])).toBe(100);
    addon.unlockBytes(holder, [100]);
    for (const side of [addon, twins]) expect(side.findLocked(prober, [103, 100])).toBe(-1);
  });

  it('are shared, and go with their descriptor', () => {
    const first = openSync(path('two'), 'w+');
    const second = open('two', 'r');
    addon.lockBytes(first, [1]);
    addon.lockBytes(second, [1]);
    const prober = open('two', 'r');
    for (const side of [addon, twins]) expect(side.findLocked(prober, [1])).toBe(1);
    addon.unlockBytes(second, [1]);
    closeSync(first);
    for (const side of [addon, twins]) expect(side.findLocked(prober, [1])).toBe(-1);
  });

  it('of another process are seen, at qemu’s offsets and beyond 4 GiB', async () => {
    const prober = open('three');
    const bytes = [100, 201, 5 * 2 ** 30];
    const script = `
      const fd = require('fs').openSync(${JSON.stringify(path('three'))}, 'r+');
      require(${JSON.stringify(addonStatus().path)}).lockBytes(fd, ${JSON.stringify(bytes)});
      console.log('locked');
      process.stdin.resume().on('end', () => process.exit());`;
    const child = spawn(process.execPath, ['-e', script], { stdio: ['pipe', 'pipe', 'inherit'] });
    await once(child.stdout, 'data');
    for (const side of [addon, twins]) {
      for (const byte of bytes) expect(side.findLocked(prober, [50, byte])).toBe(byte);
    }
    child.stdin.end();
    await once(child, 'exit');
    for (const side of [addon, twins]) expect(side.findLocked(prober, bytes)).toBe(-1);
  });

  it('cannot be taken by the twin, which drops none', async () => {
    const fd = open('four');
    expect(
      await outcome(() => {
        twins.lockBytes(fd, [1]);
      }),
    ).toEqual({ code: 'UNSUPPORTED' });
    expect(
      await outcome(() => {
        twins.unlockBytes(fd, [1]);
      }),
    ).toEqual({ value: undefined });
  });
});

it('parseLocks reads OFD and POSIX locks, and passes over flocks and waiters', () => {
  const text = `1: OFDLCK ADVISORY  READ -1 fe:00:42 100 100
2: POSIX  ADVISORY  WRITE 812 00:1f:43 0 EOF
2: -> POSIX  ADVISORY  WRITE 813 00:1f:43 0 EOF
3: FLOCK  ADVISORY  WRITE 700 fe:00:42 0 EOF
`;
  expect(parseLocks(text)).toEqual([
    { device: 'fe:00', inode: '42', start: 100, end: 100 },
    { device: '00:1f', inode: '43', start: 0, end: Infinity },
  ]);
});
