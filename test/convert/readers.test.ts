import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { convert } from '../../src/op/convert.ts';
import { describeWithPython, readWithPython } from '../tool/python-reader.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

describeWithPython('what convert compresses, read by Python', () => {
  const seed = seedOf('test/convert/readers');
  it.each([512, 4096, 65_536, 2 ** 21])('clusters of %i bytes', async (clusterSize) => {
    const dir = tempDir();
    const random = new Random(seed + clusterSize);
    const units = Math.min(300, (24 * 2 ** 20) / clusterSize);
    const disk = new Uint8Array(units * clusterSize - 512);
    for (let at = 0; at < disk.length; at += clusterSize) {
      const kind = random.below(4);
      const end = Math.min(disk.length, at + clusterSize);
      // Zeroes, noise, text of few letters, and repeats from further back than a small window reaches.
      if (kind === 1) disk.set(random.bytes(end - at), at);
      if (kind === 2)
        disk.set(
          random.bytes(end - at).map((byte) => 97 + (byte & 7)),
          at,
        );
      if (kind === 3) {
        const piece = random.bytes(Math.min(end - at, 5000));
        for (let done = at; done < end; done += piece.length) disk.set(piece.subarray(0, end - done), done);
      }
    }
    const raw = join(dir, 'a.raw');
    const packed = join(dir, 'a.qcow2');
    writeFileSync(raw, disk);
    await convert(
      [{ path: raw, format: 'raw' }],
      { path: packed, format: 'qcow2', qcow2: { clusterSize } },
      { compress: true },
    );
    const found = readWithPython(packed);
    expect(found.sha256).toBe(createHash('sha256').update(readFileSync(raw)).digest('hex'));
    expect(found.decoded).toBeGreaterThan(units / 8);
  });
});
