import { accessSync, constants } from 'node:fs';
import { createRequire } from 'node:module';
import { release } from 'node:os';
import { addonStatus, type AddonStatus } from '../../native/binding.ts';

/** What spindle runs on. */
export interface Host {
  readonly spindle: string;
  readonly node: string;
  readonly platform: string;
  readonly kernel: string;
  readonly addon: AddonStatus;
  /** fs-ext finds holes where the addon is missing. */
  readonly fsExt: boolean;
  /** Where the programs are that stand in for the addon; null: not here. */
  readonly tools: Readonly<Record<string, string | null>>;
}

const TOOLS = ['fallocate', 'blkdiscard', 'filefrag'];

/** Looks at the host. */
export function lookAtHost(): Host {
  const load = createRequire(import.meta.url);
  return {
    spindle: (load('../../../package.json') as { version: string }).version,
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    kernel: release(),
    addon: addonStatus(),
    fsExt: loads(() => load('fs-ext')),
    tools: Object.fromEntries(TOOLS.map((name) => [name, findProgram(name)])),
  };
}

function loads(work: () => unknown): boolean {
  try {
    work();
    return true;
  } catch {
    return false;
  }
}

/** Looks where the twins look. */
function findProgram(name: string): string | null {
  const folders = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin:/usr/bin`.split(':');
  for (const folder of folders) {
    const path = `${folder}/${name}`;
    if (
      folder !== '' &&
      loads(() => {
        accessSync(path, constants.X_OK);
      })
    )
      return path;
  }
  return null;
}
