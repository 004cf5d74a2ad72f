import { randomUUID } from 'node:crypto';
import { SpindleError } from '../core/errors.ts';
import { checkPath, checkPoolName, checkWord, hasControls } from './names.ts';
import {
  childOf,
  childrenOf,
  element,
  parseXml,
  textElement,
  textOf,
  writeXml,
  type Built,
  type Xml,
} from './xml.ts';

/** The kinds of pools, by libvirt's words. */
export const POOL_TYPES = ['dir', 'fs', 'netfs', 'logical', 'iscsi'] as const;

/** A kind of pool: a directory, a file system on a device, one of a server (NFS), a volume group (LVM), an iSCSI target. */
export type PoolType = (typeof POOL_TYPES)[number];

/** Formats of sources, the default first. */
export const SOURCE_FORMATS: Readonly<Partial<Record<PoolType, readonly string[]>>> = {
  fs: [
    'auto',
    'ext2',
    'ext3',
    'ext4',
    'ufs',
    'iso9660',
    'udf',
    'gfs',
    'gfs2',
    'vfat',
    'hfs+',
    'xfs',
    'ocfs2',
    'vmfs',
  ],
  netfs: ['auto', 'nfs', 'glusterfs', 'cifs'],
  logical: ['lvm2', 'unknown'],
};

/** The namespace of mount options in libvirt's XML. */
const MOUNT_NAMESPACE = 'http://libvirt.org/schemas/storagepool/fs/1.0';

/** A server. */
export interface SourceHost {
  readonly name: string;
  readonly port?: number | undefined;
}

/** Who logs in to a target, and where the secret is found: a file of that name among the secrets of spindle. */
export interface SourceAuth {
  readonly type: string;
  readonly username: string;
  readonly secret: { readonly uuid?: string | undefined; readonly usage?: string | undefined };
}

/** What a pool is made of. */
export interface PoolSource {
  readonly hosts: readonly SourceHost[];
  /** Devices; of iscsi the name of the target. */
  readonly devices: readonly string[];
  /** The directory that a server exports. */
  readonly dir?: string | undefined;
  /** The volume group. */
  readonly name?: string | undefined;
  readonly format?: string | undefined;
  /** The name that an iSCSI initiator gives itself. */
  readonly initiator?: string | undefined;
  readonly auth?: SourceAuth | undefined;
  /** The version of NFS. */
  readonly protocol?: string | undefined;
  readonly vendor?: string | undefined;
  readonly product?: string | undefined;
}

/** Mode (low 12 bits) and owners; what is left out is left as it comes. */
export interface Permissions {
  readonly mode?: number | undefined;
  readonly owner?: number | undefined;
  readonly group?: number | undefined;
  readonly label?: string | undefined;
}

/** What a pool is: all that a definition says. */
export interface PoolDefinition {
  readonly type: PoolType;
  readonly name: string;
  readonly uuid: string;
  readonly source: PoolSource;
  readonly target: { readonly path: string; readonly permissions?: Permissions | undefined };
  /** Copy-on-write of the file system for files in the pool (btrfs). */
  readonly cow?: boolean | undefined;
  readonly mountOptions: readonly string[];
}

/** How full a pool is, in bytes. */
export interface PoolUsage {
  readonly capacity: number;
  readonly allocation: number;
  readonly available: number;
}

/** Reads libvirt's XML of a pool. A pool without a UUID gets one. @throws SpindleError BAD_XML, BAD_NAME, UNSUPPORTED */
export function parsePool(text: string, what = 'the pool description'): PoolDefinition {
  return poolOf(parseXml(text, what), what);
}

/** {@link parsePool} of an element that was read. @throws SpindleError BAD_XML, BAD_NAME, UNSUPPORTED */
export function poolOf(root: Xml, what: string): PoolDefinition {
  const bad = (why: string): SpindleError => new SpindleError('BAD_XML', `${what}: ${why}`);
  if (root.name !== 'pool') throw bad(`the element is <${root.name}>, not <pool>`);
  const { type } = root.attributes;
  if (type === undefined) throw bad("<pool> has no attribute 'type'");
  const source = sourceOf(childOf(root, 'source'), bad);
  const name = textOf(root, 'name') ?? (type === 'logical' ? source.name : undefined);
  if (name === undefined) throw bad('the pool has no <name>');
  const target = childOf(root, 'target');
  const cow = childOf(childOf(root, 'features'), 'cow')?.attributes['state'];
  const mount = root.children.find(
    (child) => child.name === 'mount_opts' && child.namespace === MOUNT_NAMESPACE,
  );
  return checkDefinition({
    type: type as PoolType,
    name,
    uuid: textOf(root, 'uuid') ?? randomUUID(),
    source,
    target: {
      path: textOf(target, 'path') ?? '',
      permissions: permissionsOf(childOf(target, 'permissions'), bad),
    },
    cow: cow === undefined ? undefined : cow === 'yes',
    mountOptions: childrenOf(mount, 'option').flatMap(({ attributes }) => attributes['name'] ?? []),
  });
}

/** A definition whose every name and path was looked at, as it is kept. @throws SpindleError BAD_XML, BAD_NAME, UNSUPPORTED */
export function checkDefinition(given: PoolDefinition): PoolDefinition {
  const { type, source } = given;
  const bad = (why: string): SpindleError => new SpindleError('BAD_XML', `pool '${given.name}': ${why}`);
  if (!POOL_TYPES.includes(type))
    throw new SpindleError('UNSUPPORTED', `pool type '${type}' is none of ${POOL_TYPES.join(', ')}`);
  const name = checkPoolName(given.name);
  const uuid = given.uuid.toLowerCase().replaceAll('-', '');
  if (!/^[0-9a-f]{32}$/.test(uuid)) throw bad(`'${given.uuid}' is no UUID`);
  for (const { name: host, port } of source.hosts) {
    checkWord('the host', host);
    if (port !== undefined && (!Number.isInteger(port) || port < 1 || port > 65535))
      throw bad('the port is no port');
  }
  const formats = SOURCE_FORMATS[type];
  const format = formats === undefined ? undefined : (source.format ?? formats[0]);
  if (format !== undefined && formats?.includes(format) !== true)
    throw bad(`there is no source format '${format}' for pools of type ${type}`);
  if (source.protocol !== undefined && !/^[0-9]+(\.[0-9]+)?$/.test(source.protocol))
    throw bad(`'${source.protocol}' is no version of a protocol`);
  for (const option of given.mountOptions)
    if (option.includes(',') || hasControls(option) || option === '')
      throw bad(`'${option}' is no mount option`);
  const group = type === 'logical' ? checkGroup(source.name ?? name) : undefined;
  return {
    ...given,
    name,
    uuid: uuid.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-'),
    source: {
      ...source,
      ...needed(given, bad),
      format,
      ...(group === undefined ? {} : { name: group }),
    },
    target: {
      ...given.target,
      path: group === undefined ? targetPath(given, bad) : `/dev/${group}`,
    },
  };
}

function targetPath({ target, type }: PoolDefinition, bad: (why: string) => SpindleError): string {
  if (target.path === '') throw bad('the target has no <path>');
  const path = checkPath('the target path', target.path);
  if (type === 'iscsi' && path !== '/dev' && !path.startsWith('/dev/'))
    throw bad('the target path must be below /dev');
  return path;
}

/** LVM's own rule for names. */
function checkGroup(name: string): string {
  if (/^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*$/.test(name) && name !== '.' && name !== '..' && name.length <= 127)
    return name;
  throw new SpindleError('BAD_NAME', `the volume group '${name}' has letters, digits and any of +_.- only`);
}

/** What each kind of pool cannot be without, looked at. */
function needed({ type, source }: PoolDefinition, bad: (why: string) => SpindleError): Partial<PoolSource> {
  const { hosts, devices, dir } = source;
  if ((type === 'netfs' || type === 'iscsi') && hosts.length !== 1) throw bad('the source needs one <host>');
  if ((type === 'fs' || type === 'iscsi') && devices.length !== 1) throw bad('the source needs one <device>');
  if (type === 'netfs') {
    if (dir === undefined) throw bad('the source needs a <dir>');
    return {
      dir:
        source.format === 'cifs' || source.format === 'glusterfs'
          ? checkWord('the export', dir)
          : checkExport(dir),
    };
  }
  if (type === 'fs' || type === 'logical')
    return { devices: devices.map((device) => checkPath('the source device', device)) };
  if (type === 'iscsi')
    return { devices: devices.map((device) => checkTarget('the target', device)), ...initiator(source) };
  return {};
}

function checkExport(dir: string): string {
  return dir === '/' ? dir : checkPath('the exported directory', dir);
}

function initiator({ initiator: name }: PoolSource): Partial<PoolSource> {
  return name === undefined ? {} : { initiator: checkTarget('the initiator', name) };
}

/** The name of an iSCSI node becomes part of a path (by-path), so that no slash may be in it. */
function checkTarget(what: string, name: string): string {
  checkWord(what, name);
  if (/^[A-Za-z0-9.:_-]{1,223}$/.test(name)) return name;
  throw new SpindleError(
    'BAD_NAME',
    `${what} '${name}' is no iSCSI name: letters, digits, '.', ':' and '-' only`,
  );
}

function sourceOf(source: Xml | undefined, bad: (why: string) => SpindleError): PoolSource {
  const attribute = (name: string, of: string): string | undefined => childOf(source, name)?.attributes[of];
  const auth = childOf(source, 'auth');
  const secret = childOf(auth, 'secret')?.attributes;
  if (auth !== undefined && (auth.attributes['username'] === undefined || secret === undefined))
    throw bad('<auth> needs a username and a <secret>');
  return {
    hosts: childrenOf(source, 'host').map(({ attributes: { name = '', port } }) => ({
      name,
      port: port === undefined ? undefined : Number(port),
    })),
    devices: childrenOf(source, 'device').map(({ attributes: { path = '' } }) => path),
    dir: attribute('dir', 'path'),
    name: textOf(source, 'name'),
    format: attribute('format', 'type'),
    initiator: childOf(childOf(source, 'initiator'), 'iqn')?.attributes['name'],
    auth:
      auth === undefined
        ? undefined
        : {
            type: auth.attributes['type'] ?? 'chap',
            username: auth.attributes['username'] ?? '',
            secret: { uuid: secret?.['uuid'], usage: secret?.['usage'] },
          },
    protocol: attribute('protocol', 'ver'),
    vendor: attribute('vendor', 'name'),
    product: attribute('product', 'name'),
  };
}

/** The `<permissions>` of a target. @throws what `bad` makes, for a mode or owner that is none */
export function permissionsOf(
  xml: Xml | undefined,
  bad: (why: string) => SpindleError,
): Permissions | undefined {
  if (xml === undefined) return undefined;
  const mode = textOf(xml, 'mode');
  if (mode !== undefined && !/^0?[0-7]{1,4}$/.test(mode))
    throw bad(`'${mode}' is no mode: octal digits, such as 0711`);
  const number = (name: string): number | undefined => {
    const text = textOf(xml, name);
    // -1 stands for whoever it is.
    if (text === undefined || text === '-1') return undefined;
    if (!/^\d{1,10}$/.test(text)) throw bad(`'${text}' is no ${name}: a number`);
    return Number(text);
  };
  return {
    mode: mode === undefined ? undefined : Number.parseInt(mode, 8),
    owner: number('owner'),
    group: number('group'),
    label: textOf(xml, 'label'),
  };
}

/** `<permissions>`, where there is anything to say. */
export function permissionsElement(permissions: Permissions | undefined): Built | undefined {
  const { mode, owner, group, label } = permissions ?? {};
  if ([mode, owner, group, label].every((value) => value === undefined)) return undefined;
  return element('permissions', {}, [
    textElement('mode', mode === undefined ? undefined : `0${mode.toString(8).padStart(3, '0')}`),
    textElement('owner', owner),
    textElement('group', group),
    textElement('label', label),
  ]);
}

/**
 * The element `<pool>` in libvirt's order. `usage` and `permissions` are those of an active pool; without `sizes` there
 * are none, as in what is to be defined.
 */
export function poolElement(
  pool: PoolDefinition,
  live: { usage?: PoolUsage | undefined; permissions?: Permissions | undefined; sizes?: boolean } = {},
): Built {
  const { source, target, mountOptions } = pool;
  const { usage, permissions = target.permissions, sizes = true } = live;
  const size = (name: string, bytes: number | undefined): Built | undefined =>
    sizes ? element(name, { unit: 'bytes' }, String(bytes ?? 0)) : undefined;
  const named = (name: string, value: string | undefined): Built | undefined =>
    value === undefined ? undefined : element(name, { name: value });
  const namespace = mountOptions.length === 0 ? undefined : MOUNT_NAMESPACE;
  return element('pool', { type: pool.type, 'xmlns:fs': namespace }, [
    textElement('name', pool.name),
    textElement('uuid', pool.uuid),
    size('capacity', usage?.capacity),
    size('allocation', usage?.allocation),
    size('available', usage?.available),
    pool.cow === undefined
      ? undefined
      : element('features', {}, [element('cow', { state: pool.cow ? 'yes' : 'no' })]),
    element('source', {}, [
      ...source.hosts.map(({ name, port }) =>
        element('host', { name, port: port === undefined ? undefined : String(port) }),
      ),
      ...source.devices.map((path) => element('device', { path })),
      source.dir === undefined ? undefined : element('dir', { path: source.dir }),
      source.initiator === undefined
        ? undefined
        : element('initiator', {}, [element('iqn', { name: source.initiator })]),
      textElement('name', source.name),
      source.format === undefined ? undefined : element('format', { type: source.format }),
      source.auth === undefined
        ? undefined
        : element('auth', { type: source.auth.type, username: source.auth.username }, [
            element('secret', { ...source.auth.secret }),
          ]),
      source.protocol === undefined ? undefined : element('protocol', { ver: source.protocol }),
      named('vendor', source.vendor),
      named('product', source.product),
    ]),
    element('target', {}, [textElement('path', target.path), permissionsElement(permissions)]),
    namespace === undefined
      ? undefined
      : element(
          'fs:mount_opts',
          {},
          mountOptions.map((name) => element('fs:option', { name })),
        ),
  ]);
}

/** libvirt's XML of a pool. */
export function writePool(pool: PoolDefinition, live?: Parameters<typeof poolElement>[1]): string {
  return writeXml(poolElement(pool, live));
}
