import * as fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { native } from '../../src/native/binding.ts';
import { openFile } from '../../src/storage/file.ts';
import { lockImage } from '../../src/storage/lock.ts';
import { removeLeftovers, replaceFile } from '../../src/storage/replace.ts';
import { expectCode } from '../suite/storage.ts';
import { attachLoop, noLoop } from '../tool/loop.ts';
import { tempDir, umask } from '../tool/temp.ts';

const HELLO = new TextEncoder().encode('hello');

async function build(storage: Awaited<ReturnType<typeof openFile>>): Promise<void> {
  await storage.resize(HELLO.length);
  await storage.write(HELLO, 0);
}

/** A directory with one file in it. */
function withTarget(): { directory: string; target: string } {
  const directory = tempDir();
  const target = `${directory}/disk.raw`;
  fs.writeFileSync(target, 'old');
  return { directory, target };
}

describe('replaceFile', () => {
  it('makes a new file with mode 0644 less the umask', async () => {
    const directory = tempDir();
    await replaceFile(`${directory}/new`, build);
    expect(fs.readFileSync(`${directory}/new`, 'utf8')).toBe('hello');
    expect(fs.statSync(`${directory}/new`).mode & 0o7777).toBe(0o644 & ~umask());
    expect(fs.readdirSync(directory)).toEqual(['new']);
  });

  it('replaces a file and keeps its mode and owner', async () => {
    const { directory, target } = withTarget();
    fs.chmodSync(target, 0o640);
    if (process.geteuid?.() === 0) fs.chownSync(target, 1234, 2345);
    const { uid, gid, ino } = fs.statSync(target);
    await replaceFile(target, async (storage) => {
      await build(storage);
      expect(fs.readFileSync(target, 'utf8')).toBe('old');
      expect(fs.readdirSync(directory).some((name) => name.startsWith('.disk.raw.spindle-'))).toBe(true);
    });
    const after = fs.statSync(target);
    expect(fs.readFileSync(target, 'utf8')).toBe('hello');
    expect([after.mode & 0o7777, after.uid, after.gid]).toEqual([0o640, uid, gid]);
    expect(after.ino).not.toBe(ino);
    expect(fs.readdirSync(directory)).toEqual(['disk.raw']);
  });

  it('accepts that the builder closes the storage', async () => {
    const { target } = withTarget();
    await replaceFile(target, async (storage) => {
      await build(storage);
      await storage.close();
    });
    expect(fs.readFileSync(target, 'utf8')).toBe('hello');
  });

  it('follows symbolic links, also dangling ones', async () => {
    const { directory, target } = withTarget();
    fs.mkdirSync(`${directory}/sub`);
    fs.symlinkSync('../disk.raw', `${directory}/sub/one`);
    fs.symlinkSync('sub/one', `${directory}/two`);
    await replaceFile(`${directory}/two`, build);
    expect(fs.readFileSync(target, 'utf8')).toBe('hello');
    fs.symlinkSync('later', `${directory}/dangling`);
    await replaceFile(`${directory}/dangling`, build);
    expect(fs.readFileSync(`${directory}/later`, 'utf8')).toBe('hello');
    expect(fs.lstatSync(`${directory}/dangling`).isSymbolicLink()).toBe(true);
    expect(fs.readdirSync(directory).sort()).toEqual(['dangling', 'disk.raw', 'later', 'sub', 'two']);
    fs.symlinkSync('circle', `${directory}/circle`);
    await expectCode(replaceFile(`${directory}/circle`, build), 'NOT_FOUND');
  });

  it('leaves the old file alone when the builder fails', async () => {
    const { directory, target } = withTarget();
    const before = fs.statSync(target);
    const attempt = replaceFile(target, async (storage) => {
      await build(storage);
      throw new Error('the builder gave up');
    });
    await expect(attempt).rejects.toThrow('the builder gave up');
    const after = fs.statSync(target);
    expect([after.ino, after.mtimeMs, after.mode]).toEqual([before.ino, before.mtimeMs, before.mode]);
    expect(fs.readFileSync(target, 'utf8')).toBe('old');
    expect(fs.readdirSync(directory)).toEqual(['disk.raw']);
  });

  it('makes nothing when the builder of a new file fails', async () => {
    const directory = tempDir();
    await expect(replaceFile(`${directory}/new`, () => Promise.reject(new Error('no')))).rejects.toThrow(
      'no',
    );
    expect(fs.readdirSync(directory)).toEqual([]);
  });

  it('tells failures about the file that was asked for', async () => {
    const { target } = withTarget();
    const attempt = replaceFile(target, (storage) => storage.resize(2 ** 52));
    const error = await attempt.catch((caught: unknown) => caught);
    if (!isSpindleError(error)) throw error;
    expect(error.path).toBe(target);
    expect(error.message).toContain(target);
    expect(error.message).not.toContain('.spindle-');
    expect(fs.readFileSync(target, 'utf8')).toBe('old');
  });

  it('refuses what cannot be replaced', async () => {
    const directory = tempDir();
    fs.mkdirSync(`${directory}/sub`);
    const never = (): Promise<void> => Promise.reject(new Error('the builder ran'));
    await expectCode(replaceFile(directory, never), 'NOT_A_FILE');
    await expectCode(replaceFile(`${directory}/sub/`, never), 'NOT_A_FILE');
    await expectCode(replaceFile('/dev/null', never), 'NOT_A_FILE');
    await expectCode(replaceFile(`${directory}/missing/file`, never), 'NOT_FOUND');
    expect(fs.readdirSync(directory)).toEqual(['sub']);
  });

  it.runIf(process.geteuid?.() === 0)(
    'leaves the old file in a directory that may not be written',
    async () => {
      const { directory, target } = withTarget();
      fs.chmodSync(target, 0o666);
      fs.chmodSync(directory, 0o555);
      process.seteuid?.(65534);
      try {
        await expectCode(replaceFile(target, build), 'PERMISSION');
        await expectCode(replaceFile(`${directory}/new`, build), 'PERMISSION');
        expect(fs.readFileSync(target, 'utf8')).toBe('old');
      } finally {
        process.seteuid?.(0);
      }
      fs.chmodSync(directory, 0o777);
      fs.chmodSync(target, 0o444);
      process.seteuid?.(65534);
      try {
        await expectCode(replaceFile(target, build), 'PERMISSION');
      } finally {
        process.seteuid?.(0);
      }
      expect(fs.readdirSync(directory)).toEqual(['disk.raw']);
      expect(fs.readFileSync(target, 'utf8')).toBe('old');
    },
  );

  it('takes names as long as the file system allows', async () => {
    const directory = tempDir();
    const name = 'ü'.repeat(127);
    await replaceFile(`${directory}/${name}`, build);
    expect(fs.readdirSync(directory)).toEqual([name]);
  });

  it('removes what is under way when asked to at once', async () => {
    const { directory, target } = withTarget();
    const attempt = replaceFile(target, async (storage) => {
      await build(storage);
      removeLeftovers();
      expect(fs.readdirSync(directory)).toEqual(['disk.raw']);
    });
    await expectCode(attempt, 'NOT_FOUND');
    expect(fs.readFileSync(target, 'utf8')).toBe('old');
    removeLeftovers();
  });

  it.runIf(native().kind === 'addon')(
    'refuses a file that another has open, before and after building',
    async () => {
      const { directory, target } = withTarget();
      const other = await openFile(target, { write: true });
      const lock = await lockImage(other, 'write');
      await expectCode(
        replaceFile(target, () => Promise.reject(new Error('the builder ran'))),
        'IN_USE',
      );
      lock.release();
      const attempt = replaceFile(target, async (storage) => {
        await build(storage);
        await lockImage(other, 'read');
      });
      await expectCode(attempt, 'IN_USE');
      expect(fs.readFileSync(target, 'utf8')).toBe('old');
      expect(fs.readdirSync(directory)).toEqual(['disk.raw']);
      await other.close();
    },
  );

  it.runIf(noLoop() === undefined)('fills a block device in place', async () => {
    const device = attachLoop(new Uint8Array(65536).fill(1));
    try {
      await replaceFile(device.path, async (storage) => {
        expect(storage.isDevice).toBe(true);
        await storage.write(HELLO, 0);
      });
      const storage = await openFile(device.path);
      const into = new Uint8Array(6);
      await storage.read(into, 0);
      await storage.close();
      expect(into).toEqual(Uint8Array.of(...HELLO, 1));
    } finally {
      device.detach();
    }
  });
});
