import { fileURLToPath } from 'node:url';
import { run } from './qemu.ts';

/** A full read of an image by a process of its own. */
export interface WholeRead {
  readonly sha256: string;
  /** Virtual size. */
  readonly bytes: number;
  readonly seconds: number;
  /** The most memory that the process had at any time (RSS), in bytes. */
  readonly mostMemory: number;
}

/** Reads all guest content of an image through the library in a new process, in pieces of 1 MiB. */
export async function readWhole(path: string, format: string): Promise<WholeRead> {
  const program = fileURLToPath(new URL('read-whole.ts', import.meta.url));
  const { stdout } = await run(process.execPath, ['--import', 'tsx', program, path, format], {
    timeout: 600_000,
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
  });
  return JSON.parse(stdout) as WholeRead;
}
