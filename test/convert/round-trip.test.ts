// A root file system of more than 1 GB goes through every way that a disk can take, on the command line.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, truncateSync, writeFileSync } from 'node:fs';
import { copyFile, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { beforeAll, expect, it } from 'vitest';
import { builtCli, MAIN } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';
import { growTree } from '../tool/tree.ts';

const MIB = 1024 ** 2;
const DISK = 1600 * MIB;
const MINUTES = 60_000;

process.env['PATH'] = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`;
const lacking = ['mke2fs', 'debugfs', 'e2fsck'].filter(
  (program) => spawnSync(program, ['-V']).error !== undefined,
);
const missing = lacking.length > 0 ? lacking.join(', ') : qemu.qemuMissing();

async function hashOf(from: NodeJS.ReadableStream): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of from) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

const hashOfFile = (path: string): Promise<string> => hashOf(createReadStream(path, { highWaterMark: MIB }));

qemu.describeUnlessMissing('a root file system of 1 GB, there and back', missing, () => {
  let folder = '';
  let content = '';
  let changed = '';
  const at = (name: string): string => join(folder, name);

  async function spindle(...args: readonly string[]): Promise<void> {
    await qemu.run(process.execPath, [MAIN, ...args], { cwd: folder, timeout: 10 * MINUTES });
  }

  /** Runs `spindle` with a file as its standard input, and hands out its standard output. */
  async function piped<T>(
    args: readonly string[],
    input: string | null,
    take: (output: NodeJS.ReadableStream) => Promise<T>,
  ): Promise<T> {
    const child = spawn(process.execPath, [MAIN, ...args], {
      cwd: folder,
      stdio: [input === null ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    });
    let errors = '';
    child.stderr?.on('data', (text: Buffer) => (errors += text.toString()));
    const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
    const fed =
      input === null || child.stdin === null
        ? Promise.resolve()
        : pipeline(createReadStream(input, { highWaterMark: MIB }), child.stdin);
    if (child.stdout === null) throw new Error('no standard output');
    const [taken] = await Promise.all([take(child.stdout), fed]);
    expect(await ended, errors).toBe(0);
    return taken;
  }

  async function expectWhole(image: string, sha256: string): Promise<void> {
    const judged = await qemu.check(at(image), { timeout: 5 * MINUTES });
    expect(judged.code, judged.stderr).toBe(0);
    expect(await qemu.contentHash(at(image), at('scratch'), { timeout: 5 * MINUTES }), image).toBe(sha256);
  }

  beforeAll(async () => {
    await builtCli();
    folder = tempDir();
    const tree = at('tree');
    await mkdir(tree);
    const random = new Random(seedOf('round trip'));
    expect(await growTree(tree, random), 'bytes of data in the tree').toBeGreaterThan(1000 ** 3);
    writeFileSync(at('disk.raw'), '');
    truncateSync(at('disk.raw'), DISK);
    await qemu.run('mke2fs', ['-q', '-t', 'ext4', '-d', tree, at('disk.raw')], { timeout: 5 * MINUTES });
    await rm(tree, { recursive: true });
    content = await hashOfFile(at('disk.raw'));
    // The same file system some work later.
    await copyFile(at('disk.raw'), at('later.raw'));
    writeFileSync(at('new'), random.bytes(5 * MIB + 777));
    for (const command of [`write ${at('new')} new`, 'mkdir more', `write ${at('new')} more/again`, 'rm new'])
      await qemu.run('debugfs', ['-w', '-R', command, at('later.raw')]);
    changed = await hashOfFile(at('later.raw'));
    expect(changed).not.toBe(content);
  }, 10 * MINUTES);

  it('raw, qcow2, compressed, overlay, commit, rebase, raw', { timeout: 20 * MINUTES }, async () => {
    await spindle('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'a.qcow2');
    await expectWhole('a.qcow2', content);
    await spindle('convert', '-c', '-O', 'qcow2', 'a.qcow2', 'c.qcow2');
    await expectWhole('c.qcow2', content);
    // An overlay that holds what the work changed, and nothing else.
    await spindle('create', '-q', '-f', 'qcow2', '-b', 'later.raw', '-F', 'raw', 'o.qcow2');
    await spindle('rebase', '-b', 'c.qcow2', '-F', 'qcow2', 'o.qcow2');
    await expectWhole('o.qcow2', changed);
    await spindle('commit', '-q', 'o.qcow2');
    await expectWhole('c.qcow2', changed);
    await spindle('rebase', '-b', 'disk.raw', '-F', 'raw', 'o.qcow2');
    await expectWhole('o.qcow2', changed);
    await spindle('convert', '-O', 'raw', 'o.qcow2', 'back.raw');
    expect(await hashOfFile(at('back.raw'))).toBe(changed);
    await qemu.run('e2fsck', ['-fn', at('back.raw')], { timeout: 5 * MINUTES });
    expect(await hashOfFile(at('disk.raw')), 'what nobody wrote to').toBe(content);
    for (const name of ['a.qcow2', 'back.raw', 'o.qcow2']) await rm(at(name));
  });

  it('through pipes', { timeout: 20 * MINUTES }, async () => {
    const into = (name: string) => (output: NodeJS.ReadableStream) =>
      pipeline(output, createWriteStream(at(name)));
    await piped(['convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', '-'], null, into('p.qcow2'));
    await expectWhole('p.qcow2', content);
    await piped(['convert', '-f', 'raw', '-O', 'qcow2', '-', 'q.qcow2'], at('disk.raw'), hashOf);
    await expectWhole('q.qcow2', content);
    await rm(at('q.qcow2'));
    await piped(['convert', '-c', '-O', 'qcow2', 'p.qcow2', '-'], null, into('z.qcow2'));
    await expectWhole('z.qcow2', content);
    // Both ends at once.
    expect(await piped(['convert', '-O', 'raw', '-', '-'], at('z.qcow2'), hashOf)).toBe(content);
    await piped(['convert', '-O', 'raw', 'c.qcow2', '-'], null, into('last.raw'));
    expect(await hashOfFile(at('last.raw'))).toBe(changed);
    await qemu.run('e2fsck', ['-fn', at('last.raw')], { timeout: 5 * MINUTES });
  });
});
