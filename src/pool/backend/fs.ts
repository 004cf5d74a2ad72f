import { SpindleError } from '../../core/errors.ts';
import type { Backend, BuildMode, Context } from '../backend.ts';
import type { PoolDefinition } from '../definition.ts';
import { runTool } from '../../storage/tool.ts';
import { checkedFiles } from './checked-files.ts';
import { buildDirectory, deleteDirectory } from './files.ts';
import { isMounted, mountedOn, mountPool, needMount, unmountPool } from './mounted.ts';

/** Milliseconds that making a file system may take. */
const FORMAT_TIME = 600_000;

/** What makes each mkfs write over what a device holds, and not ask. */
const FORCE: Readonly<Record<string, readonly string[]>> = {
  ext2: ['-F'],
  ext3: ['-F'],
  ext4: ['-F'],
  xfs: ['-f'],
  vfat: ['-I'],
};

function deviceOf({ source, name }: PoolDefinition): string {
  const [device] = source.devices;
  if (device === undefined) throw new SpindleError('BAD_XML', `pool '${name}' has no device`);
  return device;
}

/** What a device holds, as blkid tells; undefined for nothing. */
export async function contentOf(device: string): Promise<string | undefined> {
  // 2: nothing was found.
  const args = ['--probe', '--output', 'value', '--match-tag', 'TYPE', '--match-tag', 'PTTYPE', '--', device];
  const { stdout, code } = await runTool('blkid', args, { expect: [0, 2, 8] });
  if (code === 8) return 'several things at once';
  return code === 2 ? undefined : (stdout.trim().split('\n')[0] ?? '');
}

async function build({ pool }: Context, mode: BuildMode): Promise<void> {
  await buildDirectory(pool);
  if (mode === 'plain') return;
  const device = deviceOf(pool);
  const format = pool.source.format ?? 'auto';
  if (format === 'auto')
    throw new SpindleError(
      'BAD_OPTION',
      `pool '${pool.name}' says no format to build: its source needs <format type='ext4'/> or another`,
    );
  const found = mode === 'overwrite' ? undefined : await contentOf(device);
  if (found !== undefined)
    throw new SpindleError('EXISTS', `'${device}' holds ${found} already; --overwrite would destroy it`, {
      path: device,
    });
  // Its own program: `mkfs -t` would keep `--` for itself where no option of the file system stands before it.
  await runTool(`mkfs.${format}`, [...(FORCE[format] ?? []), '--', device], { timeout: FORMAT_TIME });
}

const ready = (context: Context): Promise<void> => needMount(context, [deviceOf(context.pool)], false);

/** A pool that is a file system on a device. */
export const fsBackend: Backend = {
  ...checkedFiles(ready),
  build,
  start: (context) => {
    const { format = 'auto' } = context.pool.source;
    return mountPool(context, deviceOf(context.pool), format, []);
  },
  stop: (context) => unmountPool(context, [deviceOf(context.pool)]),
  delete: ({ pool }) => {
    if (mountedOn(pool.target.path) !== undefined)
      throw new SpindleError('IN_USE', 'something is mounted there', { path: pool.target.path });
    return deleteDirectory(pool);
  },
  check: ({ pool }) => Promise.resolve(isMounted(pool, [deviceOf(pool)])),
};
