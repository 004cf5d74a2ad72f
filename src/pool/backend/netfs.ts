import { SpindleError } from '../../core/errors.ts';
import type { Backend, Context, Discover } from '../backend.ts';
import type { PoolDefinition } from '../definition.ts';
import { checkWord } from '../names.ts';
import { runTool } from '../../storage/tool.ts';
import { checkedFiles } from './checked-files.ts';
import { buildDirectory, deleteDirectory } from './files.ts';
import { isMounted, mountedOn, mountPool, needMount, unmountPool } from './mounted.ts';

/** What is mounted, by the names that the kernel may show it under. */
function sourcesOf({ source, name }: PoolDefinition): [string, ...string[]] {
  const host = source.hosts[0]?.name;
  if (host === undefined || source.dir === undefined)
    throw new SpindleError('BAD_XML', `pool '${name}' has no server, or no directory of one`);
  if (source.format === 'cifs') return [`//${host}/${source.dir.replace(/^\/+/, '')}`];
  const shown = host.includes(':') && !host.startsWith('[') ? `[${host}]` : host;
  return [`${shown}:${source.dir}`, `${shown}:${source.dir}/`];
}

function start(context: Context): Promise<void> {
  const { source } = context.pool;
  const sources = sourcesOf(context.pool);
  const { format = 'auto' } = source;
  const version = source.protocol === undefined ? [] : [`nfsvers=${source.protocol}`];
  const more = format === 'glusterfs' ? ['direct-io-mode=1'] : format === 'cifs' ? ['guest'] : version;
  return mountPool(context, sources[0], format === 'auto' ? undefined : format, more, sources);
}

/** Takes the mount away; without waiting for a server that does not answer. */
async function stop(context: Context): Promise<void> {
  const sources = sourcesOf(context.pool);
  const answers = await needMount(context, sources, true).then(
    () => true,
    () => false,
  );
  await unmountPool(context, sources, answers ? [] : ['--force', '--lazy']);
}

const ready = (context: Context): Promise<void> => needMount(context, sourcesOf(context.pool), true);

/** A pool that is a directory of a server: NFS, and what else mount(8) can mount. */
export const netfsBackend: Backend = {
  ...checkedFiles(ready),
  build: ({ pool }) => buildDirectory(pool),
  start,
  stop,
  delete: ({ pool }) => {
    if (mountedOn(pool.target.path) !== undefined)
      throw new SpindleError('IN_USE', 'something is mounted there', { path: pool.target.path });
    return deleteDirectory(pool);
  },
  check: ({ pool }) => Promise.resolve(isMounted(pool, sourcesOf(pool))),
};

/** The directories that an NFS server exports. */
export const findExports: Discover = async ({ host }) => {
  if (host === undefined)
    throw new SpindleError('BAD_OPTION', 'name the server whose exports are looked for');
  checkWord('the host', host);
  const { stdout } = await runTool('showmount', ['--no-headers', '--exports', host], { timeout: 30_000 });
  return parseExports(stdout).map((dir) => ({ hosts: [{ name: host }], dir, format: 'nfs' }));
};

/** The directories in what showmount prints: each line a path, and to whom it is exported. */
export function parseExports(text: string): string[] {
  return text.split('\n').flatMap((line) => /^(\/.*?)(?:\s+\S+)?\s*$/.exec(line)?.[1] ?? []);
}
