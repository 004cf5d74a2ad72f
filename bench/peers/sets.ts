import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;

/** Numbers that depend on the seed only (mulberry32): whole, below `limit`. */
export function seeded(seed: number): (limit: number) => number {
  let state = seed >>> 0;
  return (limit) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

/** Bytes that no compressor makes smaller. */
function noise(seed: number, length: number): Buffer {
  const words = new Uint32Array(length / 4);
  let state = seed | 1;
  for (let at = 0; at < words.length; at++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[at] = state;
  }
  return Buffer.from(words.buffer);
}

/** Lines of a log and of a configuration, as most files of a server are: to about a third with a general compressor. */
function prose(seed: number, length: number): Buffer {
  const next = seeded(seed);
  const letters = 'etaoinshrdlucmfwypvbgkjqxz';
  const word = (): string =>
    Array.from({ length: 2 + next(8) }, () => letters[Math.min(next(26), next(26))]).join('');
  const words = Array.from({ length: 4000 }, word);
  const parts: string[] = [];
  let size = 0;
  while (size < length) {
    const picked = Array.from({ length: 4 + next(9) }, () => words[Math.min(next(4000), next(4000))]);
    const line = `${String(1_700_000_000 + next(1e7))} ${picked.join(' ')} id=${next(2 ** 32).toString(16)}\n`;
    parts.push(line);
    size += line.length;
  }
  return Buffer.from(parts.join(''), 'latin1').subarray(0, length);
}

/** Makes `path` with `make`, under another name until it is complete; one that is there is kept. */
function once(path: string, make: (unfinished: string) => void): string {
  if (existsSync(path)) return path;
  const unfinished = `${path}.part`;
  rmSync(unfinished, { force: true });
  make(unfinished);
  spawnSync('sync', [unfinished]);
  renameSync(unfinished, path);
  return path;
}

function sparse(
  path: string,
  size: number,
  fill: (write: (bytes: Buffer, at: number) => void) => void,
): void {
  const fd = openSync(path, 'w');
  try {
    ftruncateSync(fd, size);
    fill((bytes, at) => writeSync(fd, bytes, 0, bytes.length, at));
  } finally {
    closeSync(fd);
  }
}

/**
 * A raw disk as that of a virtual machine: 16 GiB with 1.5 GiB of data in runs of 4 KiB to 8 MiB, 60% of it text,
 * 30% random and 10% zeroes that were written.
 */
export function vmDisk(folder: string, seed: number): string {
  return once(join(folder, 'vm.raw'), (path) => {
    const next = seeded(seed);
    const pools = [prose(seed + 1, 32 * MIB), noise(seed + 2, 32 * MIB), Buffer.alloc(32 * MIB)];
    sparse(path, 16 * GIB, (write) => {
      const runs = 1600;
      const slot = (16 * GIB) / runs;
      let left = 1.5 * GIB;
      for (let run = 0; run < runs && left > 0; run++) {
        const share = left / (runs - run);
        // Most runs are small, most bytes are in large ones; the mean is the share.
        const wanted = next(10) < 7 ? 4096 * (1 + next(64)) : share * (1.5 + next(3));
        const length = Math.min(left, 8 * MIB, Math.max(4096, Math.floor(wanted / 4096) * 4096));
        const kind = next(10);
        const pool = pools[kind < 6 ? 0 : kind < 9 ? 1 : 2] as Buffer;
        const from = next((pool.length - length) / 512) * 512;
        const start = Math.floor((run * slot + next(slot - length)) / 4096) * 4096;
        write(pool.subarray(from, from + length), start);
        left -= length;
      }
    });
  });
}

/** A raw disk of 8 GiB with 40,000 scattered pieces of 4 to 16 KiB. */
export function fragmentedDisk(folder: string, seed: number): string {
  return once(join(folder, 'fragmented.raw'), (path) => {
    const next = seeded(seed);
    const pool = noise(seed, 4 * MIB);
    sparse(path, 8 * GIB, (write) => {
      const pieces = 40_000;
      const slot = Math.floor((8 * GIB) / pieces / 4096) * 4096;
      for (let piece = 0; piece < pieces; piece++) {
        const length = 4096 * (1 + next(4));
        const from = next((pool.length - length) / 512) * 512;
        write(pool.subarray(from, from + length), piece * slot + 4096 * next((slot - length) / 4096));
      }
    });
  });
}

/** A real root file system: what this machine has in `/usr`, 1.5 GiB of it at the most, as ext4 in 4 GiB. */
export function rootDisk(folder: string): string {
  return once(join(folder, 'root.raw'), (path) => {
    const root = join(folder, 'root');
    rmSync(root, { recursive: true, force: true });
    const files = spawnSync(
      'bash',
      [
        '-c',
        // In the order of names until there is enough.
        `set -o pipefail; mkdir "$1" && cd /usr && { find . -xdev -type f -size -16M -printf '%s %p\\0' | sort -z -k2 |
         awk -v RS='\\0' -v ORS='\\0' '{ sum += $1; if (sum > 1500000000) exit; sub(/^[0-9]+ /, ""); print }' || true; } |
         tar --null -T - -cf - | tar -C "$1" -xf -`,
        'bash',
        root,
      ],
      { encoding: 'utf8' },
    );
    if (files.status !== 0) throw new Error(`the files for a root file system: ${files.stderr}`);
    const made = spawnSync('mke2fs', ['-q', '-t', 'ext4', '-d', root, '-F', path, '4G'], {
      encoding: 'utf8',
    });
    rmSync(root, { recursive: true, force: true });
    if (made.status !== 0) throw new Error(`mke2fs: ${made.stderr}`);
  });
}
