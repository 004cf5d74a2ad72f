import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { isSpindleError, type SpindleError } from '../../src/core/errors.ts';
import { native } from '../../src/native/binding.ts';
import { openFile, type FileStorage } from '../../src/storage/file.ts';
import { LOCK_RULES, lockImage, lockedBytes, type LockUse } from '../../src/storage/lock.ts';
import { expectCode } from '../suite/storage.ts';
import { tempPath } from '../tool/temp.ts';

const addon = native().kind === 'addon';
const USES = Object.keys(LOCK_RULES) as LockUse[];

const open: FileStorage[] = [];
const programs: ChildProcess[] = [];

afterEach(async () => {
  for (const storage of open.splice(0)) await storage.close();
  for (const program of programs.splice(0)) await stop(program);
});

async function opened(path: string): Promise<FileStorage> {
  const storage = await openFile(path, { write: true });
  open.push(storage);
  return storage;
}

function rawFile(): string {
  const path = tempPath('raw');
  writeFileSync(path, new Uint8Array(65536));
  return path;
}

describe('the lock table', () => {
  it('locks the bytes that QEMU locks', () => {
    expect(Object.fromEntries(USES.map((how) => [how, lockedBytes(how)]))).toEqual({
      write: [100, 101, 103, 201, 203],
      read: [100, 201, 203],
      'read-raw': [100],
      'write-raw': [100, 101, 201],
      snoop: [100],
      create: [101, 103, 203],
    });
  });
});

describe.runIf(addon)('locks of two storages', () => {
  /** Whether the second may come while the first is there. */
  const together: Readonly<Record<LockUse, readonly LockUse[]>> = {
    write: ['snoop', 'read-raw'],
    read: ['read', 'read-raw', 'snoop'],
    'read-raw': ['write', 'read', 'read-raw', 'write-raw', 'snoop', 'create'],
    'write-raw': ['read-raw', 'snoop'],
    snoop: ['write', 'read', 'read-raw', 'write-raw', 'snoop', 'create'],
    create: ['read-raw', 'snoop'],
  };

  for (const first of USES) {
    for (const second of USES) {
      const agree = together[first].includes(second);
      it(`${second} ${agree ? 'may join' : 'is refused by'} ${first}`, async () => {
        const path = rawFile();
        const [one, two] = [await opened(path), await opened(path)];
        await lockImage(one, first);
        if (agree) await lockImage(two, second);
        else {
          await expectCode(lockImage(two, second), 'IN_USE');
          // What was taken for the attempt is gone again.
          expect(native().findLocked(one.fd, [100, 101, 102, 103, 201, 203])).toBe(-1);
        }
      });
    }
  }

  it('do not conflict within one storage, and go when released or closed', async () => {
    const path = rawFile();
    const [one, two] = [await opened(path), await opened(path)];
    const reader = await lockImage(one, 'read');
    const writer = await lockImage(one, 'write');
    reader.release();
    reader.release();
    await expectCode(lockImage(two, 'read'), 'IN_USE');
    expect(native().findLocked(two.fd, [100])).toBe(100);
    writer.release();
    expect(native().findLocked(two.fd, [100, 101, 103, 201, 203])).toBe(-1);
    await lockImage(one, 'write');
    await one.close();
    await lockImage(two, 'write');
  });

  it('say that it is this process itself', async () => {
    const path = rawFile();
    const [one, two] = [await opened(path), await opened(path)];
    await lockImage(one, 'write');
    const error = await failure(lockImage(two, 'read'));
    expect(error.message).toMatch(/: in use: this process itself has it open for writing; .*-U/);
    expect(error.path).toBe(path);
  });
});

const qemuMissing = missing('qemu-io');

describe.runIf(addon && qemuMissing === undefined)('locks beside qemu-io', () => {
  function image(): string {
    const path = tempPath('qcow2');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, '1M']);
    return path;
  }

  it('finds a writer, and names it', async () => {
    const path = image();
    const program = await start(['-f', 'qcow2', path]);
    const storage = await opened(path);
    for (const how of ['read', 'write', 'create', 'write-raw'] as const) {
      const error = await failure(lockImage(storage, how));
      expect(error.code).toBe('IN_USE');
      expect(error.path).toBe(path);
      expect(error.message).toContain('has it open for writing');
      expect(error.message).toContain(`(qemu-io, pid ${String(program.pid)})`);
    }
    await lockImage(storage, 'snoop');
    await stop(program);
    await lockImage(storage, 'write');
  });

  it('finds a reader, and joins it', async () => {
    const path = image();
    const program = await start(['-r', '-f', 'qcow2', path]);
    const storage = await opened(path);
    const error = await failure(lockImage(storage, 'write'));
    expect(error.message).toMatch(/lets nobody else write it/);
    expect(error.message).toContain(`pid ${String(program.pid)}`);
    await expectCode(lockImage(storage, 'create'), 'IN_USE');
    await lockImage(storage, 'read');
  });

  it('finds a writer of a raw image', async () => {
    const path = rawFile();
    await start(['-f', 'raw', path]);
    const storage = await opened(path);
    await expectCode(lockImage(storage, 'write-raw'), 'IN_USE');
    await expectCode(lockImage(storage, 'read'), 'IN_USE');
    await lockImage(storage, 'read-raw');
  });

  it('keeps qemu-io out', async () => {
    const path = image();
    const storage = await opened(path);
    const writer = await lockImage(storage, 'write');
    expect(tryQemu(['-f', 'qcow2', path])).toContain('lock');
    expect(tryQemu(['-r', '-f', 'qcow2', path])).toContain('lock');
    expect(tryQemu(['-r', '-U', '-f', 'qcow2', path])).toBe('');
    writer.release();
    const reader = await lockImage(storage, 'read');
    expect(tryQemu(['-f', 'qcow2', path])).toContain('lock');
    expect(tryQemu(['-r', '-f', 'qcow2', path])).toBe('');
    reader.release();
    await lockImage(storage, 'snoop');
    expect(tryQemu(['-f', 'qcow2', path])).toBe('');
  });

  it('keeps qemu-io out of a raw image', async () => {
    const path = rawFile();
    const storage = await opened(path);
    await lockImage(storage, 'write-raw');
    expect(tryQemu(['-f', 'raw', path])).toContain('lock');
    expect(tryQemu(['-r', '-f', 'raw', path])).toBe('');
  });
});

/** Starts qemu-io and waits until it has opened its image. */
async function start(args: string[]): Promise<ChildProcess> {
  const program = spawn('qemu-io', args, { stdio: ['pipe', 'pipe', 'inherit'] });
  programs.push(program);
  program.stdin.write('length\n');
  await once(program.stdout, 'data');
  return program;
}

async function stop(program: ChildProcess): Promise<void> {
  if (program.exitCode !== null) return;
  const exit = once(program, 'exit');
  program.stdin?.end();
  await exit;
}

/** What qemu-io complains about when it opens an image; nothing when it can. */
function tryQemu(args: string[]): string {
  try {
    execFileSync('qemu-io', ['-c', 'length', ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    return '';
  } catch (error) {
    return String((error as { stderr?: Buffer }).stderr ?? error);
  }
}

function missing(program: string): string | undefined {
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore' });
    return undefined;
  } catch (error) {
    if (process.env['SPINDLE_REQUIRE_JUDGES'] === '1') throw error;
    return String(error);
  }
}

async function failure(attempt: Promise<unknown>): Promise<SpindleError> {
  try {
    await attempt;
  } catch (error) {
    if (isSpindleError(error)) return error;
    throw error;
  }
  throw new Error('it did not fail');
}

describe.runIf(addon)('locks of a closed storage', () => {
  it('are gone, though a child process holds the descriptor', async () => {
    const path = tempPath('forked');
    writeFileSync(path, new Uint8Array(4096));
    const first = await openFile(path, { write: true });
    await lockImage(first, 'write');
    // Every child does, between fork and exec.
    const child = spawn('sleep', ['30'], { stdio: ['ignore', 'ignore', 'ignore', first.fd] });
    try {
      await first.close();
      const second = await openFile(path, { write: true });
      await lockImage(second, 'write');
      await second.close();
    } finally {
      child.kill();
    }
  });
});
