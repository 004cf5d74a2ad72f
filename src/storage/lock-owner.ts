import { fstatSync, promises as fs, readdirSync, readFileSync } from 'node:fs';

/** A process that holds a lock. */
export interface LockOwner {
  readonly pid: number;
  /** Its program name, as in `ps -o comm`. */
  readonly program: string;
}

/** Descriptors looked at before the search is given up, and the milliseconds it may take. */
const MOST_DESCRIPTORS = 200_000;
const MOST_TIME = 5000;

/**
 * Who holds a lock of an open file description on `byte` of the file of `fd`, by what /proc tells of other processes
 * (those of one's own user; all for root). Undefined when that cannot be found out, for whatever reason.
 */
export async function lockOwner(fd: number, byte: number): Promise<LockOwner | undefined> {
  try {
    return await search(fd, byte);
  } catch {
    return undefined;
  }
}

async function search(fd: number, byte: number): Promise<LockOwner | undefined> {
  const file = fstatSync(fd, { bigint: true });
  const deadline = performance.now() + MOST_TIME;
  let descriptors = 0;
  for (const pid of await fs.readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    // One turn of the loop for each process. What /proc tells is in memory: a turn of a thread for each would take longer.
    await new Promise(setImmediate);
    for (const name of descriptorsOf(pid)) {
      if (++descriptors > MOST_DESCRIPTORS || performance.now() > deadline) return undefined;
      if (Number(pid) === process.pid && Number(name) === fd) continue;
      if (!holdsLock(infoOf(pid, name), file.ino, byte)) continue;
      // The lock line has no device that can be trusted (btrfs): the descriptor itself tells.
      const held = await fs.stat(`/proc/${pid}/fd/${name}`, { bigint: true }).catch(() => undefined);
      if (held?.dev !== file.dev || held.ino !== file.ino) continue;
      return { pid: Number(pid), program: (await fs.readFile(`/proc/${pid}/comm`, 'utf8')).trim() };
    }
  }
  return undefined;
}

/** The open descriptors of a process; none of one that is gone by now, or belongs to somebody else. */
function descriptorsOf(pid: string): string[] {
  try {
    return readdirSync(`/proc/${pid}/fdinfo`);
  } catch {
    return [];
  }
}

function infoOf(pid: string, descriptor: string): string {
  try {
    return readFileSync(`/proc/${pid}/fdinfo/${descriptor}`, 'utf8');
  } catch {
    return '';
  }
}

/** Lines such as `lock:	1: OFDLCK ADVISORY  READ -1 fd:01:5242 100 101`: device and inode, first and last byte. */
function holdsLock(info: string, inode: bigint, byte: number): boolean {
  for (const match of info.matchAll(/^lock:.*:(\d+) (\d+) (\d+|EOF)$/gm)) {
    const [, ino = '', start, end] = match;
    if (BigInt(ino) !== inode || Number(start) > byte) continue;
    if (end === 'EOF' || Number(end) >= byte) return true;
  }
  return false;
}
