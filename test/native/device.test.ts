import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { twins } from '../../src/native/fallback.ts';
import { addonHere, outcome, rootHere, run, scratch } from './help.ts';

const MIB = 1024 * 1024;
const sides = addonHere ? [native(), twins] : [twins];

describe.runIf(rootHere)('a block device', () => {
  const { open, path } = scratch();
  let device = '';
  beforeAll(() => {
    writeFileSync(path('disk'), Buffer.alloc(8 * MIB, 0xa5));
    device = run('losetup', '--find', '--show', path('disk'));
  });
  afterAll(() => {
    if (device !== '') run('losetup', '--detach', device);
  });

  it.each(sides)('$kind: deviceInfo tells its sizes', async (side) => {
    const info = await side.deviceInfo(open(device, 'r'));
    expect(info).toEqual({ size: 8 * MIB, logicalSector: 512, physicalSector: 512 });
    const sectors = run('blockdev', '--getsize64', '--getss', '--getpbsz', device).split('\n').map(Number);
    expect(sectors).toEqual([info.size, info.logicalSector, info.physicalSector]);
  });

  it.each(sides)('$kind: dataExtents says that all is data, to the end', async (side) => {
    const fd = open(device, 'r');
    expect(await side.dataExtents(fd, 4096, 100 * MIB, 10)).toEqual([4096, 8 * MIB]);
    expect(await side.dataExtents(fd, 9 * MIB, MIB, 10)).toEqual([]);
    expect(await outcome(() => side.fiemap(fd, 0, MIB, 10, false))).toEqual({ code: 'UNSUPPORTED' });
  });

  it.each(sides)('$kind: deviceZeroOut and deviceDiscard do their range and no more', async (side) => {
    const fd = open(device, 'r+');
    for (const work of ['deviceZeroOut', 'deviceDiscard'] as const) {
      writeFileSync(device, Buffer.alloc(8 * MIB, 0xa5));
      run('sync', device);
      await side[work](fd, MIB, 2 * MIB);
      const bytes = readFileSync(device);
      expect(bytes.subarray(0, MIB).every((byte) => byte === 0xa5)).toBe(true);
      expect(bytes.subarray(MIB, 3 * MIB).every((byte) => byte === 0)).toBe(true);
      expect(bytes.subarray(3 * MIB).every((byte) => byte === 0xa5)).toBe(true);
    }
  });

  it.each(sides)(
    '$kind: refuses ranges off the sectors and past the end, and a read-only descriptor',
    async (side) => {
      const fd = open(device, 'r+');
      for (const work of ['deviceZeroOut', 'deviceDiscard'] as const) {
        expect(await outcome(() => side[work](fd, 100, 512))).toEqual({ code: 'IO' });
        expect(await outcome(() => side[work](fd, 8 * MIB, 512))).toEqual({ code: 'IO' });
        expect(await outcome(() => side[work](open(device, 'r'), 0, 512))).toEqual({ code: 'READ_ONLY' });
        expect(await outcome(() => side[work](fd, 0, 0))).toEqual({ value: undefined });
      }
    },
  );

  it.each(sides)('$kind: writeZeroes zeroes odd ranges', async (side) => {
    writeFileSync(device, Buffer.alloc(8 * MIB, 0xa5));
    const fd = open(device, 'r+');
    const report = await side.writeZeroes(fd, 1000, 3 * MIB);
    expect(report.way).toBe(side.kind === 'addon' ? 'offload' : 'buffered');
    if (side.kind === 'addon')
      expect(report.written).toBe(3 * MIB - (3 * MIB + 1000 - 4096 - ((3 * MIB + 1000) % 4096)));
    const bytes = readFileSync(device);
    expect(bytes.subarray(0, 1000).every((byte) => byte === 0xa5)).toBe(true);
    expect(bytes.subarray(1000, 3 * MIB + 1000).every((byte) => byte === 0)).toBe(true);
    expect(bytes.subarray(3 * MIB + 1000).every((byte) => byte === 0xa5)).toBe(true);
  });
});
