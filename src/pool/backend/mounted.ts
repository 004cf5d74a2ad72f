import { readFileSync, realpathSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { SpindleError } from '../../core/errors.ts';
import { hostError } from '../../storage/errno.ts';
import type { Context } from '../backend.ts';
import type { PoolDefinition } from '../definition.ts';
import { runTool } from '../../storage/tool.ts';

/*
 * Pools that are mounted on their target: fs and netfs.
 */

/** Options that no pool goes without: a stranger's image must not bring devices or programs. */
const OPTIONS = ['nodev', 'nosuid', 'noexec'];

/** Milliseconds that mounting may take, and that a server may take to answer. */
const MOUNT_TIME = 90_000;
const ANSWER_TIME = 10_000;

/** A mount: what is mounted, and where. */
export interface Mount {
  readonly source: string;
  readonly target: string;
}

/** The mounts of this host, the latest last. */
export function parseMounts(text: string): Mount[] {
  const plain = (field: string): string =>
    field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
  return text.split('\n').flatMap((line) => {
    const [source, target] = line.split(' ');
    return source === undefined || target === undefined
      ? []
      : [{ source: plain(source), target: plain(target) }];
  });
}

/** What is mounted on a directory now; undefined for nothing. Asks no server. */
export function mountedOn(target: string): string | undefined {
  return parseMounts(readFileSync('/proc/self/mounts', 'utf8')).findLast((mount) => mount.target === target)
    ?.source;
}

/** Whether what is mounted on the target is the source of the pool. */
export function isMounted(pool: PoolDefinition, sources: readonly string[]): boolean {
  const source = mountedOn(pool.target.path);
  if (source === undefined) return false;
  return sources.includes(source) || sources.map(realOf).includes(realOf(source));
}

/** A loop device or a link in /dev/disk has other names. */
function realOf(path: string): string {
  if (!path.startsWith('/dev/')) return path;
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

/** Mounts a source on the target of a pool, which is made if it is not there. What is mounted already stays. */
export async function mountPool(
  { pool }: Context,
  source: string,
  type: string | undefined,
  options: readonly string[],
  sources: readonly string[] = [source],
): Promise<void> {
  const { path } = pool.target;
  if (isMounted(pool, sources)) return;
  const other = mountedOn(path);
  if (other !== undefined)
    throw new SpindleError(
      'IN_USE',
      `'${other}' is mounted there; pool '${pool.name}' needs the place for '${source}'`,
      {
        path,
      },
    );
  await mkdir(path, { recursive: true }).catch((error: unknown) => {
    throw hostError(error, path, 'make the directory of the pool');
  });
  const words = [...OPTIONS, ...options, ...pool.mountOptions].join(',');
  const kind = type === undefined ? [] : ['-t', type];
  await runTool('mount', ['-o', words, ...kind, '--', source, path], { timeout: MOUNT_TIME });
}

/** Takes the mount away, where it is there. */
export async function unmountPool(
  { pool }: Context,
  sources: readonly string[],
  how: readonly string[] = [],
): Promise<void> {
  if (!isMounted(pool, sources)) return;
  await runTool('umount', [...how, '--', pool.target.path], { timeout: MOUNT_TIME });
}

/**
 * Makes sure that the pool is mounted, and that whoever serves it answers: what asks a server that is gone would wait for
 * ever, and so a program that can be given up asks first.
 * @throws SpindleError POOL_GONE
 */
export async function needMount({ pool }: Context, sources: readonly string[], asks: boolean): Promise<void> {
  const { path } = pool.target;
  if (!isMounted(pool, sources))
    throw new SpindleError(
      'POOL_GONE',
      `'${sources[0] ?? ''}' of pool '${pool.name}' is not mounted there any more`,
      { path },
    );
  if (!asks) return;
  try {
    await runTool('stat', ['--file-system', '--format=%T', '--', path], { timeout: ANSWER_TIME });
  } catch (error) {
    if (!(error instanceof SpindleError)) throw error;
    const why =
      error.code === 'TOOL_TIMEOUT' ? `did not answer within ${String(ANSWER_TIME / 1000)} s` : error.message;
    throw new SpindleError('POOL_GONE', `the server '${sources[0] ?? ''}' of pool '${pool.name}' ${why}`, {
      path,
      cause: error,
    });
  }
}
