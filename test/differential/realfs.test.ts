import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { expectAgreement } from '../tool/agree.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { growTree } from '../tool/tree.ts';
import { readWhole } from '../tool/whole.ts';

const MIB = 1024 ** 2;
const GB = 1000 ** 3;

/** Bytes of the file system: room for the tree, and some that stays empty. */
const DISK = 1600 * MIB;

/** A full read takes no more memory than this, whatever the image: Node itself takes the better part. */
const MOST_MEMORY = 250 * MIB;

const MINUTES = 60_000;

/** Programs of e2fsprogs are not on every PATH. */
process.env['PATH'] = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`;

const noMke2fs = spawnSync('mke2fs', ['-V']).error === undefined ? undefined : 'mke2fs (e2fsprogs)';

qemu.describeUnlessMissing('a real file system of 1 GB', noMke2fs ?? qemu.qemuMissing(), () => {
  const random = new Random(seedOf('realfs'));
  let folder = '';
  let raw = '';
  let content = '';

  beforeAll(async () => {
    folder = tempDir();
    raw = join(folder, 'disk.raw');
    const tree = join(folder, 'tree');
    await mkdir(tree);
    expect(await growTree(tree, random), 'bytes of data in the tree').toBeGreaterThan(GB);
    await writeFile(raw, '');
    await truncate(raw, DISK);
    await qemu.run('mke2fs', ['-q', '-t', 'ext4', '-d', tree, raw], { timeout: 5 * MINUTES });
    await rm(tree, { recursive: true });
    content = await hashOf(raw);
  }, 10 * MINUTES);

  /** Expects that qemu and spindle agree about an image, and that a full read of it gives `sha256`. */
  async function expectContent(path: string, format: string, sha256: string): Promise<void> {
    const read = await readWhole(path, format);
    expect(read.sha256, `content (SPINDLE_SEED=${String(random.seed)})`).toBe(sha256);
    expect(read.bytes).toBe(DISK);
    expect(read.mostMemory, 'memory that a full read takes').toBeLessThan(MOST_MEMORY);
    await expectAgreement(path, { format });
    const rate = (read.bytes / MIB / read.seconds).toFixed(0);
    if (process.env['SPINDLE_MEASURE'] === '1') {
      console.log(
        `${path.split('.').at(-1) ?? ''}: ${rate} MiB/s, ${(read.mostMemory / MIB).toFixed(0)} MiB RSS`,
      );
    }
  }

  it('raw', { timeout: 15 * MINUTES }, () => expectContent(raw, 'raw', content));

  it.for([
    ['qcow2', []],
    ['zlib', ['-c']],
    ['zstd', ['-c', '-o', 'compression_type=zstd']],
  ] as const)('%s', { timeout: 15 * MINUTES }, async ([name, flags]) => {
    const path = join(folder, `disk.${name}`);
    // Several coroutines, and out of order: the clusters of the image are scattered.
    const args = ['convert', '-m', '2', '-W', '-f', 'raw', '-O', 'qcow2', ...flags, raw, path];
    await qemu.qemuImg(args, { timeout: 10 * MINUTES });
    await expectContent(path, 'qcow2', content);
    await rm(path);
  });

  it('an overlay with changes', { timeout: 15 * MINUTES }, async () => {
    const path = join(folder, 'disk.overlay');
    await qemu.create(path, undefined, { backing: { path: raw, format: 'raw' } });
    await qemu.fill(path, changes(random), { timeout: 5 * MINUTES });
    const scratch = join(folder, 'scratch');
    const changed = await qemu.contentHash(path, scratch, { timeout: 5 * MINUTES });
    expect(changed).not.toBe(content);
    await expectContent(path, 'qcow2', changed);
    await rm(path);
    expect(await hashOf(raw), 'the file below').toBe(content);
  });
});

/** Writes, zeroes and discards all over the disk, from a sector to a few MiB. */
function changes(random: Random): qemu.Fill[] {
  return Array.from({ length: 120 }, (): qemu.Fill => {
    const most = random.pick([512, 4096, 65_536, 300_000, 4 * MIB]);
    const length = Math.max(512, random.below(most / 512) * 512);
    const at = random.below((DISK - length) / 512) * 512;
    const kind = random.below(10);
    if (kind < 6) return { do: 'write', at, length, pattern: random.between(1, 255) };
    return kind < 8 ? { do: 'zero', at, length, unmap: kind === 7 } : { do: 'discard', at, length };
  });
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: MIB })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}
