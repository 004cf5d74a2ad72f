import { SpindleError, isSpindleError } from '../core/errors.ts';
import { native } from '../native/binding.ts';
import { hostError } from './errno.ts';
import type { FileStorage } from './file.ts';
import { lockOwner } from './lock-owner.ts';

/*
 * Image locks as QEMU takes them: shared locks of the open file description on single bytes. A lock on byte 100 + i
 * says "I use permission i", one on byte 200 + i "I do not let others use permission i"; conflicts are found by looking
 * for foreign locks on the opposite byte. As all take first and look then, two that race may both fail, never both win.
 */

/** The permissions of QEMU that locks are about, by their bit. */
export const Permission = {
  /** Reads that see consistent data. */
  READ: 0,
  WRITE: 1,
  /** Writes that do not change what is read. */
  WRITE_UNCHANGED: 2,
  RESIZE: 3,
} as const;

/** The first byte of "I use permission i". */
export const USES = 100;

/** The first byte of "I do not let others use permission i". */
export const REFUSES = 200;

/**
 * What an image is opened for. `write` and `read` are a qcow2 image, or anything that relies on nobody changing it;
 * `read-raw` and `write-raw` a raw image as QEMU locks one; `snoop` reads whatever others do; `create` is held for the
 * moment in which a file is made or replaced.
 */
export type LockUse = 'write' | 'read' | 'read-raw' | 'write-raw' | 'snoop' | 'create';

/** The permissions that a use needs and those it refuses to others. */
export interface LockRule {
  readonly uses: readonly number[];
  readonly refuses: readonly number[];
  /** Whether foreign locks stop this use. */
  readonly tests: boolean;
}

const { READ, WRITE, RESIZE } = Permission;

/** The bytes of each use are those that QEMU 10 was seen to hold. */
export const LOCK_RULES: Readonly<Record<LockUse, LockRule>> = {
  write: { uses: [READ, WRITE, RESIZE], refuses: [WRITE, RESIZE], tests: true },
  read: { uses: [READ], refuses: [WRITE, RESIZE], tests: true },
  'read-raw': { uses: [READ], refuses: [], tests: true },
  'write-raw': { uses: [READ, WRITE], refuses: [WRITE], tests: true },
  snoop: { uses: [READ], refuses: [], tests: false },
  create: { uses: [WRITE, RESIZE], refuses: [RESIZE], tests: true },
};

/** The bytes that a use locks. */
export function lockedBytes(how: LockUse): number[] {
  const { uses, refuses } = LOCK_RULES[how];
  return [
    ...uses.map((permission) => USES + permission),
    ...refuses.map((permission) => REFUSES + permission),
  ];
}

/** The bytes on which no other may hold a lock for a use to be granted; users come before those who refuse. */
export function testedBytes(how: LockUse): number[] {
  const { uses, refuses, tests } = LOCK_RULES[how];
  if (!tests) return [];
  return [
    ...refuses.map((permission) => USES + permission),
    ...uses.map((permission) => REFUSES + permission),
  ];
}

/** Locks that are held. */
export interface ImageLock {
  /** Drops them; a second call does nothing. Closing the storage drops them too. */
  release(): void;
}

/** How many image locks of a storage hold each byte. */
const held = new WeakMap<FileStorage, Map<number, number>>();

/**
 * Locks the file of `storage` for a use and makes sure that no other process, nor another storage of this one, uses it
 * in a way that conflicts. Locks of one storage never conflict with each other: to go from one use to another, take the
 * new lock and release the old one. Without byte locks (no addon, or a file system that has none) nothing is held;
 * conflicts are still looked for where that works.
 * @throws IN_USE, saying what the file is used for and by which program as far as the system tells
 */
export async function lockImage(storage: FileStorage, how: LockUse): Promise<ImageLock> {
  const release = take(storage, lockedBytes(how));
  let byte: number;
  try {
    byte = find(storage, testedBytes(how));
  } catch (error) {
    release();
    throw error;
  }
  if (byte < 0) return { release };
  release();
  throw await inUse(storage, how, byte);
}

/** Takes shared locks on those of `bytes` that are not held yet. */
function take(storage: FileStorage, bytes: readonly number[]): () => void {
  const { fd } = storage;
  const counts = held.get(storage) ?? new Map<number, number>();
  if (!held.has(storage)) {
    held.set(storage, counts);
    // Closing alone would not do: a child that this process starts holds the descriptor too, until it runs its program.
    storage.beforeClose(() => {
      if (counts.size > 0) native().unlockBytes(fd, [...counts.keys()]);
    });
  }
  try {
    native().lockBytes(
      fd,
      bytes.filter((byte) => !counts.has(byte)),
    );
  } catch (error) {
    if (isSpindleError(error, 'UNSUPPORTED')) return () => undefined;
    throw hostError(error, storage.path, 'lock');
  }
  for (const byte of bytes) counts.set(byte, (counts.get(byte) ?? 0) + 1);
  let released = false;
  return () => {
    if (released) return;
    released = true;
    const last: number[] = [];
    for (const byte of bytes) {
      const left = (counts.get(byte) ?? 1) - 1;
      if (left > 0) counts.set(byte, left);
      else if (counts.delete(byte)) last.push(byte);
    }
    // Closing dropped them all, and the number may belong to another file by now.
    if (!storage.closed) native().unlockBytes(fd, last);
  };
}

function find(storage: FileStorage, bytes: readonly number[]): number {
  if (bytes.length === 0) return -1;
  try {
    return native().findLocked(storage.fd, bytes);
  } catch (error) {
    if (isSpindleError(error, 'UNSUPPORTED')) return -1;
    throw hostError(error, storage.path, 'look for locks');
  }
}

/** What the holder of a lock on a byte is doing. */
const DOING: Readonly<Record<number, string>> = {
  [USES + READ]: 'has it open for reading',
  [USES + WRITE]: 'has it open for writing',
  [USES + RESIZE]: 'has it open for writing and may resize it',
  [REFUSES + READ]: 'has it open and lets nobody else read it',
  [REFUSES + WRITE]: 'has it open and lets nobody else write it',
  [REFUSES + RESIZE]: 'has it open and lets nobody else resize it',
};

async function inUse(storage: FileStorage, how: LockUse, byte: number): Promise<SpindleError> {
  const owner = await lockOwner(storage.fd, byte);
  const who =
    owner === undefined
      ? 'another process'
      : owner.pid === process.pid
        ? 'this process itself'
        : `another process (${owner.program}, pid ${String(owner.pid)})`;
  const help =
    how === 'read' || how === 'read-raw'
      ? 'stop it first, or read without a lock (-U)'
      : 'stop it first, or shut down the virtual machine that runs on it';
  const message = `${storage.path}: in use: ${who} ${DOING[byte] ?? 'has it locked'}; ${help}`;
  return new SpindleError('IN_USE', message, { path: storage.path });
}
