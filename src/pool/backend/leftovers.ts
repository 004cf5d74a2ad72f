import { createHash, randomBytes } from 'node:crypto';
import { lstatSync, readdirSync, readFileSync, unlinkSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';

/*
 * A volume is made under a name of its own, `.spindle-new-HOST-RANDOM`, and takes its real one when it is complete. Who
 * crashes leaves such a file. Those of this host are removed when no volume is being made here, which the caller knows
 * from the lock; those of other hosts, which may share the directory, when they are old.
 */

const PREFIX = '.spindle-new-';
/** Milliseconds after which a file of another host is left over. */
const OLD = 7 * 24 * 3600 * 1000;

let host: string | undefined;

/** Eight digits that tell this host. */
function hostTag(): string {
  if (host === undefined) {
    let id = hostname();
    try {
      id = readFileSync('/etc/machine-id', 'utf8').trim() || id;
    } catch {
      // The name must do.
    }
    host = createHash('sha256').update(id).digest('hex').slice(0, 8);
  }
  return host;
}

/** A path in `folder` for a volume that is being made. */
export function unfinishedPath(folder: string): string {
  return join(folder, `${PREFIX}${hostTag()}-${randomBytes(8).toString('hex')}`);
}

/** Removes what crashes left in `folder`; how many files. `idle`: no volume of the pool is being made on this host. */
export function removeUnfinished(folder: string, idle: boolean): number {
  let removed = 0;
  for (const name of readdirSync(folder)) {
    // The file that replaceFile fills has a further dot in front.
    const own = name.startsWith('..') ? name.slice(1) : name;
    if (!own.startsWith(PREFIX)) continue;
    const path = join(folder, name);
    const ours = own.startsWith(`${PREFIX}${hostTag()}-`);
    try {
      const stats = lstatSync(path);
      if (!stats.isFile() || (ours ? !idle : Date.now() - stats.mtimeMs < OLD)) continue;
      unlinkSync(path);
      removed++;
    } catch {
      // Somebody else was faster.
    }
  }
  return removed;
}
