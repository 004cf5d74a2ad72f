import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { must } from './run.ts';

/** A file system in a file, mounted until {@link LoopMount.end}. */
export interface LoopMount {
  readonly kind: 'xfs' | 'btrfs';
  readonly folder: string;
  end(): void;
}

/** Makes a file system of so many GiB in a sparse file and mounts it. Needs root. @throws Error */
export function loopMount(kind: LoopMount['kind'], gib: number, folder: string): LoopMount {
  const image = join(folder, `${kind}-${String(gib)}.img`);
  const point = join(folder, `${kind}-${String(gib)}`);
  rmSync(image, { force: true });
  const fd = openSync(image, 'w');
  ftruncateSync(fd, gib * 1024 ** 3);
  closeSync(fd);
  must(`mkfs.${kind}`, '-q', image);
  mkdirSync(point, { recursive: true });
  must('mount', '-o', 'loop', image, point);
  return {
    kind,
    folder: point,
    end() {
      must('umount', point);
      rmSync(image, { force: true });
    },
  };
}
