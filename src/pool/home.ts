import { readFileSync, statSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';

/** Where pools are kept. */
export interface PoolHome {
  /** Definitions, one file a pool, and `autostart` beside them. */
  readonly config: string;
  /** What is active, and locks: gone after a reboot. */
  readonly run: string;
  /** What is to be remembered for long: samples of how pools fill. */
  readonly state: string;
  /** Files with CHAP secrets, named by the usage or UUID that definitions give. */
  readonly secrets: string;
  /** Tells one run of the system from the next: what was active in another one is not active. */
  readonly bootId: string;
}

/**
 * The directories of the system for root, else those of the user (XDG). The variable SPINDLE_POOLS names a directory to
 * keep all of them in.
 */
export function poolHome(env: NodeJS.ProcessEnv = process.env): PoolHome {
  const bootId = readBootId();
  const own = env['SPINDLE_POOLS'];
  if (own !== undefined && own !== '')
    return {
      config: join(own, 'config'),
      run: join(own, 'run'),
      state: join(own, 'state'),
      secrets: join(own, 'secrets'),
      bootId,
    };
  if (process.geteuid?.() === 0)
    return {
      config: '/etc/spindle/storage',
      run: '/run/spindle/storage',
      state: '/var/lib/spindle/storage',
      secrets: '/etc/spindle/secrets',
      bootId,
    };
  const config = env['XDG_CONFIG_HOME'] ?? join(homedir(), '.config');
  const state = env['XDG_STATE_HOME'] ?? join(homedir(), '.local', 'state');
  return {
    config: join(config, 'spindle', 'storage'),
    run: join(runtimeOf(env), 'storage'),
    state: join(state, 'spindle', 'storage'),
    secrets: join(config, 'spindle', 'secrets'),
    bootId,
  };
}

/** The files of libvirt, which spindle reads and never writes. */
export interface LibvirtHome {
  readonly config: string;
  readonly run: string;
}

/** Where libvirt keeps pools: of the system for root, else those of the user's session. */
export function libvirtHome(env: NodeJS.ProcessEnv = process.env): LibvirtHome {
  const own = env['SPINDLE_LIBVIRT'];
  if (own !== undefined && own !== '') return { config: join(own, 'config'), run: join(own, 'run') };
  if (process.geteuid?.() === 0) return { config: '/etc/libvirt/storage', run: '/run/libvirt/storage' };
  const config = env['XDG_CONFIG_HOME'] ?? join(homedir(), '.config');
  const runtime = env['XDG_RUNTIME_DIR'] ?? `/run/user/${String(process.geteuid?.() ?? 0)}`;
  return {
    config: join(config, 'libvirt', 'storage'),
    run: join(runtime, 'libvirt', 'storage', 'run'),
  };
}

/** A directory of the user that a reboot clears; without one, a directory in /tmp, where the boot id tells. */
function runtimeOf(env: NodeJS.ProcessEnv): string {
  const given = env['XDG_RUNTIME_DIR'];
  if (given !== undefined && given !== '') return join(given, 'spindle');
  const uid = String(process.geteuid?.() ?? 0);
  const usual = `/run/user/${uid}`;
  try {
    if (statSync(usual).isDirectory()) return join(usual, 'spindle');
  } catch {
    // There is none.
  }
  return join(tmpdir(), `spindle-${uid}`);
}

function readBootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return 'unknown';
  }
}
