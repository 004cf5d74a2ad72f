import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { tempPath } from './temp.ts';

/** A loop device over a temporary file, and how to take it away. */
export interface LoopDevice {
  readonly path: string;
  /** The file behind it. */
  readonly file: string;
  detach(): void;
}

/** Makes a loop device of a file with `content`; its sectors are 512 or 4096 bytes. Needs root. */
export function attachLoop(content: Uint8Array, sector = 512): LoopDevice {
  const file = tempPath('loop');
  writeFileSync(file, content);
  const flags = ['--find', '--show', '--sector-size', String(sector), file];
  const path = execFileSync('losetup', flags, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();
  return {
    path,
    file,
    detach: () => {
      execFileSync('losetup', ['--detach', path]);
    },
  };
}

/** Why there are no loop devices here, or undefined. With SPINDLE_REQUIRE_JUDGES=1 that is an error instead. */
export function noLoop(): string | undefined {
  try {
    attachLoop(new Uint8Array(1024 ** 2)).detach();
    return undefined;
  } catch (error) {
    if (process.env['SPINDLE_REQUIRE_JUDGES'] === '1') throw error;
    return error instanceof Error ? error.message : String(error);
  }
}
