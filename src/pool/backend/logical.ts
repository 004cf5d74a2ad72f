import { randomBytes } from 'node:crypto';
import { constants, realpathSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { fillWithZeroes } from '../../core/allocation.ts';
import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { convert } from '../../op/convert.ts';
import { hostError } from '../../storage/errno.ts';
import { openFile } from '../../storage/file.ts';
import type { Backend, BuildMode, Context, Discover, ResizeVolume, VolumeRequest } from '../backend.ts';
import type { PoolDefinition, PoolUsage } from '../definition.ts';
import { withLock } from '../lock.ts';
import { jobLock } from '../locks.ts';
import { byName } from '../store.ts';
import { runTool } from '../../storage/tool.ts';
import type { VolumeFacts } from '../volume-definition.ts';
import { contentOf } from './fs.ts';
import { bytesIn, lvm, parseDevices, report, type Row } from './lvm.ts';

/** The thin pool that is made for the first thin volume, and the reserve. */
const THIN = 'spindle_thin';
const GUARD = 'spindle_guard';
/** What volumes are called while they are filled. */
const UNFINISHED = 'spindle_new_';

/** Bytes zeroed at either end of a device that is built over. */
const ENDS = 1024 ** 2;

const COLUMNS = [
  ...['lv_name', 'lv_uuid', 'lv_size', 'lv_attr', 'origin', 'origin_size', 'pool_lv', 'data_percent'],
  ...['segtype', 'stripes', 'seg_size', 'devices', 'vg_extent_size'],
];

function groupOf({ source, name }: PoolDefinition): string {
  return source.name ?? name;
}

/** LVM's rule for names; it would take others for options or paths. */
function checkLv(name: string): string {
  if (
    /^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*$/.test(name) &&
    name !== '.' &&
    name !== '..' &&
    name.length <= 120 &&
    !name.startsWith('spindle_')
  )
    return name;
  throw new SpindleError(
    'BAD_NAME',
    `'${name}' is no name of a logical volume: letters, digits and any of +_.- only`,
  );
}

/** Waits until the names of devices are there. */
async function settle(): Promise<void> {
  await runTool('udevadm', ['settle', '--timeout=10'], { timeout: 20_000 }).catch((error: unknown) => {
    if (!isSpindleError(error)) throw error;
  });
}

async function group({ pool }: Context): Promise<Row> {
  const name = groupOf(pool);
  const rows = await report('vg', ['vg_name', 'vg_size', 'vg_free', 'vg_missing_pv_count'], []);
  const found = rows.find((row) => row['vg_name'] === name);
  if (found === undefined)
    throw new SpindleError(
      'POOL_GONE',
      `there is no volume group '${name}', of which pool '${pool.name}' is made`,
    );
  return found;
}

/** @throws SpindleError POOL_GONE when disks of the volume group are missing */
async function needWhole(context: Context): Promise<Row> {
  const found = await group(context);
  const missing = bytesIn(found, 'vg_missing_pv_count');
  if (missing > 0)
    throw new SpindleError(
      'POOL_GONE',
      `the volume group '${groupOf(context.pool)}' lacks ${String(missing)} of its disks; 'pvs' and 'vgs' tell more`,
    );
  return found;
}

async function build({ pool }: Context, mode: BuildMode): Promise<void> {
  const { devices } = pool.source;
  const name = groupOf(pool);
  if (devices.length === 0)
    throw new SpindleError('BAD_OPTION', `pool '${pool.name}' names no device to build on`);
  if (mode !== 'overwrite')
    for (const device of devices) {
      const found = await contentOf(device);
      // A build that was killed leaves disks that LVM has marked and no group has.
      if (found !== undefined && !(found === 'LVM2_member' && (await isMarkedFree(device))))
        throw new SpindleError('EXISTS', `'${device}' holds ${found} already; --overwrite would destroy it`, {
          path: device,
        });
    }
  // None is touched before all are known to be free.
  else for (const device of devices) await refuseUsed(device);
  const made: string[] = [];
  try {
    for (const device of devices) {
      if (mode === 'overwrite') await zeroEnds(device);
      await lvm('pvcreate', ['--yes'], device);
      made.push(device);
    }
    await lvm('vgcreate', [], name, ...devices);
  } catch (error) {
    for (const device of made) await lvm('pvremove', ['--yes'], device).catch(() => undefined);
    throw error;
  }
}

/** @throws SpindleError IN_USE for a device that is mounted, or that the device mapper holds */
async function refuseUsed(device: string): Promise<void> {
  try {
    await (await open(device, constants.O_RDWR | constants.O_EXCL)).close();
  } catch (error) {
    throw hostError(error, device, 'have the device alone');
  }
}

async function zeroEnds(device: string): Promise<void> {
  const storage = await openFile(device, { write: true });
  try {
    const length = Math.min(ENDS, storage.size);
    await storage.writePhysicalZeroes(0, length);
    await storage.writePhysicalZeroes(storage.size - length, length);
    await storage.flush();
  } finally {
    await storage.close();
  }
}

async function usage(context: Context): Promise<PoolUsage> {
  const row = await group(context);
  const capacity = bytesIn(row, 'vg_size');
  const available = bytesIn(row, 'vg_free');
  return { capacity, allocation: capacity - available, available };
}

/** All logical volumes, spindle's own too; pools of thin ones are none. */
async function rowsOf({ pool }: Context): Promise<Row[]> {
  return report('lv', COLUMNS, [groupOf(pool)]);
}

/** The volumes that rows tell of: there is one row for each segment. */
export function volumesOf(rows: readonly Row[], groupName: string): VolumeFacts[] {
  const found = new Map<string, VolumeFacts>();
  for (const row of rows) {
    const name = row['lv_name'] ?? '';
    const attributes = row['lv_attr'] ?? '';
    // Pools of thin volumes, what is not active, and what is spindle's own.
    if (
      name === '' ||
      name.startsWith('[') ||
      attributes.startsWith('t') ||
      attributes[4] !== 'a' ||
      name === GUARD ||
      name.startsWith(UNFINISHED)
    )
      continue;
    const before = found.get(name);
    const extents = [...(before?.extents ?? []), ...extentsOf(row)];
    found.set(name, { ...(before ?? factsOf(row, name, groupName)), extents });
  }
  return [...found.values()].sort((a, b) => byName(a.name, b.name));
}

function factsOf(row: Row, name: string, groupName: string): VolumeFacts {
  const path = `/dev/${groupName}/${name}`;
  const size = bytesIn(row, 'lv_size');
  const thin = (row['pool_lv'] ?? '') !== '';
  const snapshot = !thin && (row['origin'] ?? '') !== '';
  const origin = row['origin'] ?? '';
  return {
    name,
    key: row['lv_uuid'] ?? path,
    path,
    type: 'block',
    capacity: snapshot ? bytesIn(row, 'origin_size') || size : size,
    allocation: thin ? Math.round((size * bytesIn(row, 'data_percent')) / 100) : size,
    physical: size,
    format: 'raw',
    ...(origin === '' || origin.startsWith('[')
      ? {}
      : { backing: { path: `/dev/${groupName}/${origin}`, format: 'raw' } }),
  };
}

function extentsOf(row: Row): NonNullable<VolumeFacts['extents']> {
  const unit = bytesIn(row, 'vg_extent_size');
  const stripes = Math.max(1, bytesIn(row, 'stripes'));
  const length = bytesIn(row, 'seg_size') / stripes;
  return parseDevices(row['devices'] ?? '').map(({ device, extent }) => ({
    device,
    start: extent * unit,
    end: extent * unit + length,
  }));
}

async function createVolume(context: Context, request: VolumeRequest): Promise<void> {
  const { volume, policy, backing } = request;
  const name = checkLv(volume.name);
  const into = groupOf(context.pool);
  const { capacity } = volume;
  if (volume.format !== undefined && volume.format !== 'raw')
    throw new SpindleError('UNSUPPORTED', `logical volumes are raw, not ${volume.format}`);
  if (capacity === undefined || capacity === 0)
    throw new SpindleError('BAD_SIZE', `volume '${name}' needs a capacity`);
  const thin = policy === 'thin' || (policy === undefined && (volume.allocation ?? capacity) < capacity);
  const free = (rows: readonly Row[]): readonly Row[] => {
    if (!rows.some((row) => row['lv_name'] === name)) return rows;
    throw new SpindleError('EXISTS', `storage volume '${name}' exists already`);
  };
  // What takes time to fill has a name of its own until it is complete.
  const fills = policy === 'thick-eager' || request.source !== undefined;
  const first = fills ? UNFINISHED + randomBytes(6).toString('hex') : name;
  await request.exclusively(async () => {
    const rows = free(await rowsOf(context));
    const size = `${String(capacity)}b`;
    if (backing !== undefined) {
      const origin = rows.find((row) => `/dev/${into}/${row['lv_name'] ?? ''}` === backing.path);
      if (origin === undefined)
        throw new SpindleError(
          'BAD_OPTION',
          `'${backing.path}' is no logical volume of '${into}', and cannot be below one`,
        );
      const from = `${into}/${origin['lv_name'] ?? ''}`;
      const own = (origin['pool_lv'] ?? '') === '' ? ['--size', size] : ['--setactivationskip', 'n'];
      await lvm('lvcreate', ['--yes', '--name', first, '--snapshot', ...own], from);
    } else if (thin) {
      const there = rows.find((row) => (row['lv_attr'] ?? '').startsWith('t'))?.['lv_name'];
      const pool = there ?? (await makeThinPool(into));
      const options = ['--yes', '--name', first, '--virtualsize', size, '--thinpool', pool];
      try {
        await lvm('lvcreate', options, into);
      } catch (error) {
        // Half of what was free is not kept for a volume that is not there.
        if (there === undefined) await lvm('lvremove', ['--force'], `${into}/${pool}`).catch(() => undefined);
        throw error;
      }
    } else await lvm('lvcreate', ['--yes', '--wipesignatures', 'y', '--name', first, '--size', size], into);
    await settle();
  });
  if (!fills) return;
  try {
    await fill(`/dev/${into}/${first}`, request);
    await request.exclusively(async () => {
      free(await rowsOf(context));
      await lvm('lvrename', [], into, first, name);
      await settle();
    });
  } catch (error) {
    // Nobody may be looking at it still.
    await settle();
    await lvm('lvremove', ['--force'], `${into}/${first}`).catch(() => undefined);
    throw error;
  }
}

/** Writes all of a new volume: the disk of another one, or zeroes. */
async function fill(path: string, request: VolumeRequest): Promise<void> {
  const { source, policy, gate, signal, onProgress } = request;
  if (policy === 'thick-eager') {
    const storage = await openFile(path, { write: true });
    try {
      await fillWithZeroes(storage, 0, storage.size, request);
      await storage.flush();
    } finally {
      await storage.close();
    }
  }
  if (source !== undefined)
    await convert(
      [{ path: source.path, format: source.format, gate }],
      { existing: true, path, format: 'raw' },
      { signal, onProgress },
    );
}

/** Removes what was being made when a command died; while any volume is being made, all stays. */
async function removeUnfinished(context: Context): Promise<void> {
  const { pool, home } = context;
  const busy = 'volumes are being made';
  await withLock(
    jobLock(home, pool.name),
    'exclusive',
    busy,
    async () => {
      for (const name of leftIn(await rowsOf(context)))
        // One that somebody looks at stays until the next time: the pool is no worse for it.
        await removeLeft(`${groupOf(pool)}/${name}`, name === THIN).catch((error: unknown) => {
          if (!isSpindleError(error)) throw error;
        });
    },
    0,
  ).catch((error: unknown) => {
    if (!isSpindleError(error, 'IN_USE')) throw error;
  });
}

/** An inactive thin pool is removed unasked only if it has no volumes: none that somebody has just made is lost with it. */
async function removeLeft(path: string, thinPool: boolean): Promise<void> {
  if (thinPool) await lvm('lvchange', ['--activate', 'n'], path);
  await lvm('lvremove', thinPool ? [] : ['--force'], path);
}

/** Volumes that were never completed, and then the thin pool if it has no others: it keeps space from linear ones. */
export function leftIn(rows: readonly Row[]): string[] {
  const names = new Set(rows.flatMap((row) => row['lv_name'] ?? []));
  const unfinished = [...names].filter((name) => name.startsWith(UNFINISHED));
  const used = rows.some((row) => row['pool_lv'] === THIN && !unfinished.includes(row['lv_name'] ?? ''));
  return [...unfinished, ...(names.has(THIN) && !used ? [THIN] : [])];
}

/** The thin pool for the first thin volume: half of what is free, for linear volumes want some too. */
async function makeThinPool(into: string): Promise<string> {
  await lvm('lvcreate', ['--yes', '--type', 'thin-pool', '--extents', '50%FREE', '--name', THIN], into);
  return THIN;
}

/** A volume that keeps only what changed of another one, and is nothing without that; thin ones stand alone. */
function isSnapshot(row: Row): boolean {
  return (row['origin'] ?? '') !== '' && (row['pool_lv'] ?? '') === '';
}

async function deleteVolume(context: Context, { name }: VolumeFacts): Promise<void> {
  const above = (await rowsOf(context)).find((row) => isSnapshot(row) && row['origin'] === name);
  // LVM would remove that, too.
  if (above !== undefined)
    throw new SpindleError(
      'IN_USE',
      `volume '${name}' lies below '${above['lv_name'] ?? ''}', which would be lost with it: delete that first`,
    );
  await settle();
  await lvm('lvremove', ['--force'], `${groupOf(context.pool)}/${checkLv(name)}`);
}

async function resizeVolume(
  context: Context,
  volume: VolumeFacts,
  { capacity, shrink }: ResizeVolume,
): Promise<void> {
  const name = `${groupOf(context.pool)}/${checkLv(volume.name)}`;
  if ((await rowsOf(context)).some((row) => row['lv_name'] === volume.name && isSnapshot(row)))
    throw new SpindleError(
      'UNSUPPORTED',
      `volume '${volume.name}' is a snapshot: it has the capacity of the volume below it`,
    );
  // LVM takes that for a mistake.
  if (capacity === volume.capacity) return;
  const less = capacity < volume.capacity;
  const size = ['--size', `${String(capacity)}b`];
  if (less && shrink) await lvm('lvreduce', ['--force', '--yes', ...size], name);
  else await lvm('lvextend', size, name);
  await settle();
}

async function guard(context: Context): Promise<number> {
  return (await rowsOf(context))
    .filter((row) => row['lv_name'] === GUARD)
    .slice(0, 1)
    .reduce((sum, row) => sum + bytesIn(row, 'lv_size'), 0);
}

async function setGuard(context: Context, bytes: number): Promise<void> {
  const into = groupOf(context.pool);
  if ((await guard(context)) > 0) await lvm('lvremove', ['--force'], `${into}/${GUARD}`);
  if (bytes > 0)
    await lvm(
      'lvcreate',
      ['--yes', '--activate', 'n', '--zero', 'n', '--name', GUARD, '--size', `${String(bytes)}b`],
      into,
    );
}

/** A pool that is a volume group of LVM. */
export const logicalBackend: Backend = {
  build,
  start: async (context) => {
    await needWhole(context);
    await lvm('vgchange', ['--activate', 'ay'], groupOf(context.pool));
    await settle();
  },
  stop: async ({ pool }) => {
    await settle();
    try {
      await lvm('vgchange', ['--activate', 'n'], groupOf(pool));
    } catch (error) {
      // Some are in use: those that are not are back again, as the pool stays active.
      await lvm('vgchange', ['--activate', 'ay'], groupOf(pool)).catch(() => undefined);
      throw error;
    }
  },
  delete: deleteGroup,
  check: async (context) => {
    try {
      await group(context);
      return true;
    } catch (error) {
      if (isSpindleError(error)) return false;
      throw error;
    }
  },
  refresh: async (context) => {
    await settle();
    await needWhole(context);
    await removeUnfinished(context);
  },
  usage,
  volumes: async (context) => volumesOf(await rowsOf(context), groupOf(context.pool)),
  volume: async (context, name) =>
    volumesOf(await rowsOf(context), groupOf(context.pool)).find((volume) => volume.name === name) ?? null,
  createVolume,
  deleteVolume,
  resizeVolume,
  guard,
  setGuard,
};

/** Deletes the group, and takes LVM's mark from its disks; also from those that an earlier attempt did not get to. */
async function deleteGroup(context: Context): Promise<void> {
  const { pool } = context;
  const groups = await report('vg', ['vg_name'], []);
  const there = groups.some((row) => row['vg_name'] === groupOf(pool));
  const own = new Set(pool.source.devices.map(realName));
  const left = there
    ? []
    : (await marked()).filter(({ device, of }) => of === '' && own.has(realName(device)));
  // Says that it is gone where there is nothing to do.
  if (!there && left.length === 0) await group(context);
  if (there) await lvm('vgremove', ['--force'], groupOf(pool));
  const devices = there ? pool.source.devices : left.map(({ device }) => device);
  for (const device of devices) await lvm('pvremove', ['--yes'], device);
}

/** A device has many names. */
function realName(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

/** The disks that LVM has marked, and the group of each; '': of none. */
async function marked(): Promise<{ device: string; of: string }[]> {
  const rows = await report('pv', ['pv_name', 'vg_name'], []);
  return rows.map(({ pv_name: device = '', vg_name: of = '' }) => ({ device, of }));
}

async function isMarkedFree(device: string): Promise<boolean> {
  const name = realName(device);
  return (await marked()).some((one) => one.of === '' && realName(one.device) === name);
}

/** The volume groups of this host, each with its devices. */
export const findGroups: Discover = async () => {
  const groups = new Map<string, string[]>();
  for (const { device, of } of await marked())
    if (of !== '') groups.set(of, [...(groups.get(of) ?? []), device]);
  return [...groups].map(([name, devices]) => ({ name, devices, format: 'lvm2' }));
};
