import { promises as fs, statfsSync } from 'node:fs';
import type { StorageCan } from '../core/storage.ts';
import { native } from '../native/binding.ts';
import type { Opened } from './open.ts';

/*
 * What a file system or device can do, found out without touching the file: a trial punch would change its times.
 */

/** The statfs(2) types of file systems whose files can be punched. */
const PUNCHING = new Set([
  0xef53n, // ext4
  0x58465342n, // xfs
  0x9123683en, // btrfs
  0xca451a4en, // bcachefs
  0xf2f52010n, // f2fs
  0x01021994n, // tmpfs
  0x794c7630n, // overlayfs: as the one below
  0x6969n, // nfs, from version 4.2 on
  0xff534d42n, // cifs
  0xfe534d42n, // smb2
  0x2fc12fc1n, // zfs
  0x00c36400n, // ceph
  0x01161970n, // gfs2
  0x7461636fn, // ocfs2
  0x65735546n, // fuse
  0x958458f6n, // hugetlbfs
]);

/** Device numbers of file systems whose files can be punched: to ask costs a turn of the thread pool at each opening. */
const punching = new Set<bigint>();

/** Whether files at `path`, on the file system `device`, can be punched, as far as the type of that tells. */
async function filesPunch(path: string, device: bigint): Promise<boolean> {
  if (native().kind !== 'addon') return false;
  if (punching.has(device)) return true;
  try {
    const { type } = await fs.statfs(path, { bigint: true });
    if (!PUNCHING.has(BigInt.asUintN(32, type))) return false;
    punching.add(device);
    return true;
  } catch {
    return false;
  }
}

/** Whether the block device `rdev` (as in st_rdev) takes discards. */
async function deviceDiscards(rdev: bigint): Promise<boolean> {
  if (native().kind !== 'addon') return false;
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  const device = `/sys/dev/block/${major.toString()}:${minor.toString()}`;
  // A partition has no queue of its own.
  for (const queue of [`${device}/queue`, `${device}/../queue`]) {
    try {
      return Number(await fs.readFile(`${queue}/discard_max_bytes`, 'utf8')) > 0;
    } catch {
      continue;
    }
  }
  return false;
}

/** What can be done, and whether the file system tells what it holds. */
export interface Abilities {
  readonly can: StorageCan;
  readonly fiemap: boolean;
}

/** What can be done with a file or device that was opened so. */
export async function abilities(
  path: string,
  opened: Opened,
  write: boolean,
  direct: boolean,
): Promise<Abilities> {
  const { fd, stats, isDevice, size } = opened;
  const punch = write && !isDevice && (await filesPunch(path, stats.dev));
  const tells = isDevice ? NOTHING : await whatFilesTell(fd, stats.dev, size);
  return {
    can: {
      write,
      resize: write && !isDevice,
      zero: punch || (write && isDevice && native().kind === 'addon'),
      discard: punch || (write && isDevice && (await deviceDiscards(stats.rdev))),
      extents: tells.extents,
      direct,
    },
    fiemap: tells.fiemap,
  };
}

/** What a file system tells of its files. */
interface Tells {
  readonly extents: boolean;
  readonly fiemap: boolean;
}

const NOTHING: Tells = { extents: false, fiemap: false };

/** By device number, what file systems tell that tell all of extents: to ask costs turns of the thread pool at each opening. */
const known = new Map<bigint, Tells>();

async function whatFilesTell(fd: number, device: bigint, size: number): Promise<Tells> {
  const before = known.get(device);
  if (before !== undefined) return before;
  const tells = {
    extents: await works(() => native().dataExtents(fd, 0, size, 1)),
    fiemap: await works(() => native().fiemap(fd, 0, Math.max(size, 1), 1, false)),
  };
  if (tells.extents && tells.fiemap) known.set(device, tells);
  return tells;
}

async function works(attempt: () => Promise<unknown>): Promise<boolean> {
  try {
    await attempt();
    return true;
  } catch {
    return false;
  }
}

/** XFS: the one file system whose files have extent size hints. */
const XFS = 0x58465342n;

/** Whether the file system of a descriptor has extent size hints: a quick look, where asking costs a turn of the thread pool. */
export function hasExtentSizeHints(fd: number): boolean {
  try {
    return BigInt.asUintN(32, statfsSync(`/proc/self/fd/${String(fd)}`, { bigint: true }).type) === XFS;
  } catch {
    return true;
  }
}

/** Bytes that the file system of a descriptor has left for whoever runs this; null where it does not say. */
export function freeSpaceOf(fd: number): number | null {
  try {
    const { bavail, bfree, bsize } = statfsSync(`/proc/self/fd/${String(fd)}`);
    const blocks = process.getuid?.() === 0 ? bfree : bavail;
    return blocks * bsize;
  } catch {
    return null;
  }
}
