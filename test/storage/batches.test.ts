import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { openFile } from '../../src/storage/file.ts';
import { expectCode } from '../suite/storage.ts';
import { describeWithFileSystem, withFileSystem } from '../tool/filesystem.ts';
import { Random } from '../tool/random.ts';
import { tempPath } from '../tool/temp.ts';

const SIZE = 4 * 1024 * 1024;
const addon = native().kind === 'addon';

describe('small requests', () => {
  it.each([false, ...(addon ? [true] : [])])(
    'many at once do what one after the other would (direct: %s)',
    async (direct) => {
      const seed = Date.now() % 1_000_000;
      console.log(`seed ${String(seed)}`);
      const random = new Random(seed);
      const path = tempPath();
      const expected = random.bytes(SIZE);
      writeFileSync(path, expected);
      const storage = await openFile(path, { write: true, direct });
      try {
        for (let round = 0; round < 20; round++) {
          // Each unit has one request at most, so that all of them may run together.
          const units = Array.from({ length: SIZE / 16_384 }, (_, unit) => unit).filter(
            () => random.below(2) === 0,
          );
          await Promise.all(
            units.map(async (unit) => {
              const block = random.below(4) > 0 ? 4096 : 1;
              const length = block * (1 + random.below(16_384 / block / 2));
              const at = unit * 16_384 + block * random.below((16_384 - length) / block + 1);
              if (random.below(2) === 0) {
                const bytes = random.bytes(length);
                expected.set(bytes, at);
                await storage.write(bytes, at);
              } else {
                const into = new Uint8Array(length);
                await storage.read(into, at);
                expect(Buffer.compare(into, expected.subarray(at, at + length))).toBe(0);
              }
            }),
          );
        }
        const all = new Uint8Array(SIZE);
        await storage.read(all, 0);
        expect(Buffer.compare(all, expected)).toBe(0);
      } finally {
        await storage.close();
      }
    },
  );

  it('of one place are done in the order in which they came', async () => {
    const path = tempPath();
    writeFileSync(path, new Uint8Array(SIZE));
    const storage = await openFile(path, { write: true });
    try {
      const writes = Array.from({ length: 200 }, (_, i) =>
        storage.write(new Uint8Array(100 + i).fill(i + 1), 5000 + (i % 7)),
      );
      await Promise.all(writes);
      const into = new Uint8Array(1);
      await storage.read(into, 5050);
      expect(into[0]).toBe(200);
    } finally {
      await storage.close();
    }
  });

  it('are done when a close has ended that came after them, and refused after it', async () => {
    const path = tempPath();
    writeFileSync(path, new Uint8Array(SIZE));
    const storage = await openFile(path, { write: true });
    const writes = Array.from({ length: 100 }, (_, i) =>
      storage.write(new Uint8Array(512).fill(9), i * 4096),
    );
    await storage.close();
    await expectCode(storage.write(new Uint8Array(1), 0), 'CLOSED');
    await expectCode(storage.read(new Uint8Array(1), 0), 'CLOSED');
    await Promise.all(writes);
    const again = await openFile(path);
    try {
      const into = new Uint8Array(512);
      for (let i = 0; i < 100; i++) {
        await again.read(into, i * 4096);
        expect(into.every((byte) => byte === 9)).toBe(true);
      }
    } finally {
      await again.close();
    }
  });

  it('that fail are told each by itself: a file that was cut off meanwhile', async () => {
    const path = tempPath();
    writeFileSync(path, new Uint8Array(SIZE).fill(3));
    const storage = await openFile(path);
    try {
      truncateSync(path, SIZE / 2);
      const reads = Array.from({ length: 64 }, async (_, i) => {
        const into = new Uint8Array(4096);
        await storage.read(into, (i * SIZE) / 64);
        return into.every((byte) => byte === 3);
      });
      const results = await Promise.allSettled(reads);
      for (const [i, result] of results.entries()) {
        if (i < 32) expect(result).toEqual({ status: 'fulfilled', value: true });
        else expect(result).toMatchObject({ status: 'rejected', reason: { code: 'IO' } });
      }
    } finally {
      await storage.close();
    }
  });
});

describeWithFileSystem('small writes on a full disk', 'ext4', () => {
  it.each([false, ...(addon ? [true] : [])])(
    'fail alone, and the others hold (direct: %s)',
    async (direct) => {
      await withFileSystem('ext4', 16, async (folder) => {
        const path = join(folder, 'sparse');
        writeFileSync(path, '');
        truncateSync(path, 64 * 1024 * 1024);
        const storage = await openFile(path, { write: true, direct });
        try {
          const results = await Promise.allSettled(
            Array.from({ length: 8192 }, (_, i) =>
              storage.write(new Uint8Array(4096).fill(1 + (i % 250)), i * 8192),
            ),
          );
          const failed = results.filter(({ status }) => status === 'rejected');
          expect(failed.length).toBeGreaterThan(1000);
          expect(failed.length).toBeLessThan(8192);
          for (const one of failed) expect(one).toMatchObject({ reason: { code: 'NO_SPACE' } });
          const into = new Uint8Array(4096);
          for (const [i, { status }] of results.entries()) {
            if (status === 'rejected') continue;
            await storage.read(into, i * 8192);
            expect(into.every((byte) => byte === 1 + (i % 250))).toBe(true);
          }
        } finally {
          await storage.close();
        }
      });
    },
  );
});
