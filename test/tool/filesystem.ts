/** Small file systems on loop devices, to see what spindle does on each of them. Needs root. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describeUnlessMissing, run } from './qemu.ts';

/** The file systems that tests may ask for. */
export type FileSystemType = 'ext2' | 'ext4' | 'xfs' | 'btrfs';

/** Those that images live on; ext2 is the one that cannot reserve space. */
export const FILE_SYSTEMS: readonly FileSystemType[] = ['ext4', 'xfs', 'btrfs'];

/** The smallest size in MiB at which mkfs agrees. */
export const SMALLEST: Readonly<Record<FileSystemType, number>> = { ext2: 8, ext4: 8, xfs: 300, btrfs: 114 };

const MAKE: Readonly<Record<FileSystemType, readonly [string, ...string[]]>> = {
  ext2: ['mkfs.ext2', '-q', '-F'],
  ext4: ['mkfs.ext4', '-q', '-F'],
  xfs: ['mkfs.xfs', '-q', '-f'],
  btrfs: ['mkfs.btrfs', '-q', '-f'],
};

/** Makes a file system on a sparse file and mounts it at `folder`/mnt. Gives the function that unmounts it. */
async function mountNew(type: FileSystemType, sizeMB: number, folder: string): Promise<() => Promise<void>> {
  const image = join(folder, 'disk.img');
  const point = join(folder, 'mnt');
  await mkdir(point);
  const file = await open(image, 'w');
  try {
    await file.truncate(Math.max(sizeMB, SMALLEST[type]) * 1024 * 1024);
  } finally {
    await file.close();
  }
  const [program, ...args] = MAKE[type];
  await run(program, [...args, image]);
  await run('mount', ['-t', type, '-o', 'loop', image, point]);
  return async () => {
    const { code } = await run('umount', [point], { expect: 'any' });
    // Busy: something in the test still holds a file open. Let go of it now; the kernel finishes when it closes.
    if (code !== 0) await run('umount', ['-l', point]);
  };
}

/**
 * Makes and mounts a small file system (at least {@link SMALLEST}; the file is sparse), runs `work` with its folder,
 * and always unmounts and removes it.
 */
export async function withFileSystem<T>(
  type: FileSystemType,
  sizeMB: number,
  work: (folder: string) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), `spindle-${type}-`));
  let unmount: (() => Promise<void>) | undefined;
  try {
    unmount = await mountNew(type, sizeMB, folder);
    return await work(join(folder, 'mnt'));
  } finally {
    await unmount?.();
    await rm(folder, { recursive: true, force: true, maxRetries: 3 });
  }
}

/** Whether the kernel lists the file system now. */
function supported(type: FileSystemType): boolean {
  return readFileSync('/proc/filesystems', 'utf8')
    .split('\n')
    .some((line) => line.trim().split(/\s+/).at(-1) === type);
}

/** Says why file systems of the type cannot be mounted here. */
function probe(type: FileSystemType): string | undefined {
  if (process.platform !== 'linux') return 'Linux, for loop devices';
  if (process.getuid?.() !== 0) return `root, to mount ${type}`;
  const [program] = MAKE[type];
  if (spawnSync(program, ['-V']).error !== undefined) return program;
  if (supported(type)) return undefined;
  spawnSync('modprobe', [type]); // may itself be missing: then the kernel has what it has
  return supported(type) ? undefined : `a kernel that mounts ${type}`;
}

const known = new Map<FileSystemType, string | undefined>();

/** Why the file system cannot be mounted here, or undefined when it can. */
export function fileSystemMissing(type: FileSystemType): string | undefined {
  if (!known.has(type)) known.set(type, probe(type));
  return known.get(type);
}

/** A block of tests that mounts the file system; skipped or failed where that cannot be, as describeWithQemu does. */
export function describeWithFileSystem(name: string, type: FileSystemType, block: () => void): void {
  describeUnlessMissing(name, fileSystemMissing(type), block);
}
