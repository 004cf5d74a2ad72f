import { fstatSync, readlinkSync, statfsSync, statSync } from 'node:fs';
import { isSpindleError } from '../core/errors.ts';
import { checkDescriptor, checkExtentSizeHint } from './arguments.ts';
import { nodeError, systemError } from './errno.ts';
import { GIVEN_FILE, runProgram, type Program } from './program.ts';

/* The twins of `native/src/flags.rs`. */

const CHATTR: Program = { name: 'chattr', package: 'e2fsprogs', call: 'ioctl FS_IOC_SETFLAGS' };
const LSATTR: Program = { name: 'lsattr', package: 'e2fsprogs', call: 'ioctl FS_IOC_GETFLAGS' };
const GET_HINT: Program = { name: 'xfs_io', package: 'xfsprogs', call: 'ioctl FS_IOC_FSGETXATTR' };
const SET_HINT: Program = { name: 'xfs_io', package: 'xfsprogs', call: 'ioctl FS_IOC_FSSETXATTR' };

/** statfs(2) types: the file system with the one switch, and the one with the other. */
const BTRFS = 0x9123_683en;
const XFS = 0x5846_5342n;

/** The twin of {@link Native.setNoCow}. */
export async function setNoCow(fd: number): Promise<boolean> {
  checkDescriptor(fd);
  const path = pathOf(fd, CHATTR);
  if (path === undefined || fileSystemOf(fd, CHATTR) !== BTRFS) return false;
  let off = false;
  try {
    await runProgram(CHATTR, ['+C', path], { fd });
    await runProgram(LSATTR, ['-d', path], { fd }, (line) => {
      off = /^\S*C/.test(line);
      return true;
    });
  } catch (error) {
    if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
  }
  return off;
}

/** The twin of {@link Native.extentSizeHint}. */
export async function extentSizeHint(fd: number): Promise<number> {
  checkDescriptor(fd);
  if (fileSystemOf(fd, GET_HINT) !== XFS) return 0;
  let hint = 0;
  await runProgram(GET_HINT, ['-r', '-c', 'extsize', GIVEN_FILE], { fd }, (line) => {
    hint = Number(/^\[(\d+)\]/.exec(line)?.[1] ?? hint);
    return true;
  });
  return hint;
}

/** The twin of {@link Native.setExtentSizeHint}. */
export async function setExtentSizeHint(fd: number, bytes: number): Promise<void> {
  checkExtentSizeHint(fd, bytes);
  if ((await extentSizeHint(fd)) === bytes) return;
  // The program says that a file system is not its own with exit code 0.
  if (fileSystemOf(fd, SET_HINT) !== XFS) throw systemError('EOPNOTSUPP', SET_HINT.call, { fd });
  await runProgram(SET_HINT, ['-c', `extsize ${String(bytes)}`, GIVEN_FILE], { fd });
}

/** The type of the file system that a descriptor is on. 0 where there is no /proc. @throws IO when it is not open */
function fileSystemOf(fd: number, program: Program): bigint {
  identify(fd);
  try {
    return BigInt.asUintN(32, statfsSync(`/proc/self/fd/${String(fd)}`, { bigint: true }).type);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 0n;
    throw nodeError(error, program.call, { fd });
  }
}

/**
 * The name of the file that a descriptor is open on: chattr refuses the symbolic links of /proc. Undefined where it has
 * none any more.
 */
function pathOf(fd: number, program: Program): string | undefined {
  const own = identify(fd);
  try {
    const path = readlinkSync(`/proc/self/fd/${String(fd)}`);
    const named = statSync(path, { bigint: true });
    return named.dev === own.dev && named.ino === own.ino ? path : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw nodeError(error, program.call, { fd });
  }
}

function identify(fd: number): { dev: bigint; ino: bigint } {
  try {
    return fstatSync(fd, { bigint: true });
  } catch (error) {
    throw nodeError(error, 'fcntl', { fd });
  }
}
