import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { errnoOf, hostError } from '../../storage/errno.ts';
import type { Backend, Context, Discover } from '../backend.ts';
import type { PoolDefinition, SourceAuth } from '../definition.ts';
import { checkVolumeName, checkWord } from '../names.ts';
import { byName } from '../store.ts';
import { runTool, type ToolResult } from '../../storage/tool.ts';
import type { VolumeFacts } from '../volume-definition.ts';

/** The port of iSCSI. */
const PORT = 3260;
/** Milliseconds that a portal may take, and that names of devices may take to appear. */
const PORTAL_TIME = 60_000;
const NAMES_TIME = 10_000;
/** The most bytes of a file with a secret. */
const SECRET_BYTES = 4096;
/** What iscsiadm ends with: there are no sessions; the session is there already. */
const NO_SESSION = 21;
const PRESENT = 15;

/** Where the kernel tells of sessions and devices. */
export interface IscsiPlaces {
  readonly sys: string;
  /** How long to wait for names of devices, in milliseconds. */
  readonly patience: number;
}

function iscsiadm(
  args: readonly string[],
  expect: readonly number[] = [0],
  hide?: string,
): Promise<ToolResult> {
  return runTool('iscsiadm', args, { timeout: PORTAL_TIME, expect, ...(hide === undefined ? {} : { hide }) });
}

function portalOf({
  name,
  port = PORT,
}: {
  readonly name: string;
  readonly port?: number | undefined;
}): string {
  const host = name.includes(':') && !name.startsWith('[') ? `[${name}]` : name;
  return `${host}:${String(port)}`;
}

function sourceOf({ source, name }: PoolDefinition): { portal: string; target: string } {
  const [host] = source.hosts;
  const [target] = source.devices;
  if (host === undefined || target === undefined)
    throw new SpindleError('BAD_XML', `pool '${name}' has no server, or no target`);
  return { portal: portalOf(host), target };
}

/** A session of this host with a target. */
export interface Session {
  readonly id: string;
  readonly target: string;
}

/** The sessions in what iscsiadm prints: `tcp: [3] 127.0.0.1:3260,1 iqn.2024-01.lab:t1 (non-flash)`. */
export function parseSessions(text: string): Session[] {
  return Array.from(text.matchAll(/^\S+:\s+\[(\d+)\]\s+\S+\s+(\S+)/gm), ([, id = '', target = '']) => ({
    id,
    target,
  }));
}

async function sessionOf(target: string): Promise<string | undefined> {
  const { stdout } = await iscsiadm(['--mode', 'session'], [0, NO_SESSION]);
  return parseSessions(stdout).find((session) => session.target === target)?.id;
}

async function needSession({ pool }: Context): Promise<string> {
  const { target } = sourceOf(pool);
  const session = await sessionOf(target);
  if (session !== undefined) return session;
  throw new SpindleError(
    'POOL_GONE',
    `there is no session with target '${target}' of pool '${pool.name}' any more`,
  );
}

/** The secret of a definition: a file among spindle's, which only its owner may read. */
function secretOf({ home }: Context, { secret }: SourceAuth): string {
  const name = secret.usage ?? secret.uuid;
  if (name === undefined) throw new SpindleError('BAD_XML', 'the secret has neither a usage nor a UUID');
  const path = join(home.secrets, checkVolumeName(name));
  try {
    // One file, looked at and read by its descriptor: its name may lead to another one in a moment.
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    try {
      const stats = fstatSync(fd);
      if (!stats.isFile() || stats.size > SECRET_BYTES)
        throw new SpindleError('BAD_SECRET', 'a file with a CHAP secret in it is needed', { path });
      if ((stats.mode & 0o077) !== 0)
        throw new SpindleError('PERMISSION', 'others may read this secret: chmod 600', { path });
      return readFileSync(fd, 'utf8').replace(/\r?\n$/, '');
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    if (errnoOf(error) === 'ENOENT')
      throw new SpindleError(
        'BAD_SECRET',
        `put the CHAP secret '${name}' there, readable for its owner only`,
        { path },
      );
    throw isSpindleError(error) ? error : hostError(error, path, 'read the secret');
  }
}

/** An interface of iscsiadm that speaks under a name; made where there is none. */
async function interfaceFor(initiator: string): Promise<string> {
  const { stdout } = await iscsiadm(['--mode', 'iface'], [0, NO_SESSION]);
  const found = stdout.split('\n').find((line) => line.trim().endsWith(`,${initiator}`));
  if (found !== undefined) return found.split(' ')[0] ?? '';
  const name = `spindle-${createHash('sha256').update(initiator).digest('hex').slice(0, 8)}`;
  await iscsiadm(['--mode', 'iface', '--interface', name, '--op', 'new'], [0, PRESENT]);
  await iscsiadm([
    '--mode',
    'iface',
    '--interface',
    name,
    '--op',
    'update',
    '--name',
    'iface.initiatorname',
    '--value',
    initiator,
  ]);
  return name;
}

async function start(context: Context): Promise<void> {
  const { pool } = context;
  const { portal, target } = sourceOf(pool);
  if ((await sessionOf(target)) !== undefined) return;
  const { initiator, auth } = pool.source;
  const secret = auth === undefined ? undefined : secretOf(context, auth);
  const through = initiator === undefined ? [] : ['--interface', await interfaceFor(initiator)];
  const node = ['--mode', 'node', '--portal', portal, '--targetname', target, ...through];
  await iscsiadm([...node, '--op', 'new']);
  try {
    await logIn(node, auth, secret);
  } catch (error) {
    // The record holds the secret, and a system may log in by it when it starts.
    await iscsiadm([...node, '--op', 'delete']).catch(() => undefined);
    throw error;
  }
  await settle();
}

async function logIn(
  node: readonly string[],
  auth: SourceAuth | undefined,
  secret: string | undefined,
): Promise<void> {
  if (auth !== undefined && secret !== undefined) {
    const values = { authmethod: 'CHAP', username: auth.username, password: secret };
    for (const [name, value] of Object.entries(values))
      await iscsiadm(
        [...node, '--op', 'update', '--name', `node.session.auth.${name}`, '--value', value],
        [0],
        secret,
      );
  }
  await iscsiadm([...node, '--login'], [0, PRESENT], secret);
}

async function settle(): Promise<void> {
  await runTool('udevadm', ['settle', '--timeout=10'], { timeout: 20_000 }).catch((error: unknown) => {
    if (!isSpindleError(error)) throw error;
  });
}

/** A logical unit of a session. */
interface Unit {
  readonly name: string;
  /** Name of the block device. */
  readonly node: string;
  readonly size: number;
}

function listed(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw hostError(error, path, 'list');
  }
}

function textIn(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

/** The disks (0) and drives (5) of a session, from what the kernel tells. */
function unitsOf(sys: string, session: string): Unit[] {
  const device = join(sys, 'class', 'iscsi_session', `session${session}`, 'device');
  return listed(device)
    .filter((name) => name.startsWith('target'))
    .flatMap((target) =>
      listed(join(device, target)).map((address) => ({ address, path: join(device, target, address) })),
    )
    .flatMap(({ address, path }) => {
      const [, bus, target, lun] = /^\d+:(\d+):(\d+):(\d+)$/.exec(address) ?? [];
      // There are other files beside the addresses.
      if (bus === undefined || target === undefined || lun === undefined) return [];
      const type = textIn(join(path, 'type'));
      const [node] = listed(join(path, 'block'));
      if (node === undefined || (type !== '0' && type !== '5')) return [];
      return [
        {
          name: `unit:${bus}:${target}:${lun}`,
          node,
          size: Number(textIn(join(path, 'block', node, 'size'))) * 512,
        },
      ];
    });
}

/** A name of a device that stays: the first link in the target directory that leads to it. */
function stablePath(folder: string, node: string): string | undefined {
  if (folder === '/dev') return `/dev/${node}`;
  for (const name of listed(folder).sort()) {
    try {
      if (realpathSync(join(folder, name)).endsWith(`/${node}`)) return join(folder, name);
    } catch {
      // A link to what is gone.
    }
  }
  return undefined;
}

async function volumesIn(context: Context, places: IscsiPlaces): Promise<VolumeFacts[]> {
  const session = await needSession(context);
  const end = Date.now() + places.patience;
  const units = unitsOf(places.sys, session);
  const found: VolumeFacts[] = [];
  for (const { name, node, size } of units) {
    let path = stablePath(context.pool.target.path, node);
    while (path === undefined && Date.now() < end) {
      await sleep(100);
      path = stablePath(context.pool.target.path, node);
    }
    if (path === undefined) continue;
    found.push({
      name,
      key: await keyOf(path),
      path,
      type: 'block',
      capacity: size,
      allocation: size,
      physical: size,
      format: 'raw',
    });
  }
  return found.sort((a, b) => byName(a.name, b.name));
}

/** What the device says of itself, which stays when paths change. */
async function keyOf(path: string): Promise<string> {
  try {
    const { stdout } = await runTool('scsi_id', ['--replace-whitespace', '--whitelisted', '--device', path], {
      timeout: 10_000,
    });
    return stdout.trim() || path;
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    return path;
  }
}

/** A pool that is an iSCSI target; its volumes are the logical units, which only the server makes. */
export function iscsiBackendAt(places: IscsiPlaces): Backend {
  const volumes = (context: Context): Promise<VolumeFacts[]> => volumesIn(context, places);
  return {
    start,
    stop: async ({ pool }) => {
      const { portal, target } = sourceOf(pool);
      if ((await sessionOf(target)) === undefined) return;
      await iscsiadm(
        ['--mode', 'node', '--portal', portal, '--targetname', target, '--logout'],
        [0, NO_SESSION],
      );
    },
    check: async ({ pool }) => {
      try {
        return (await sessionOf(sourceOf(pool).target)) !== undefined;
      } catch (error) {
        if (isSpindleError(error)) return false;
        throw error;
      }
    },
    refresh: async (context) => {
      await iscsiadm(['--mode', 'session', '--sid', await needSession(context), '--rescan']);
      await settle();
    },
    usage: async (context) => {
      const capacity = (await volumes(context)).reduce((sum, volume) => sum + volume.capacity, 0);
      return { capacity, allocation: capacity, available: 0 };
    },
    volumes,
    volume: async (context, name) => (await volumes(context)).find((volume) => volume.name === name) ?? null,
  };
}

/** {@link iscsiBackendAt} of this host. */
export const iscsiBackend = iscsiBackendAt({ sys: '/sys', patience: NAMES_TIME });

/** The targets of a portal. */
export const findTargets: Discover = async ({ host, port, initiator }) => {
  if (host === undefined)
    throw new SpindleError('BAD_OPTION', 'name the server whose targets are looked for');
  if (port !== undefined && !(Number.isInteger(port) && port > 0 && port < 65536))
    throw new SpindleError('BAD_OPTION', 'the port is a number from 1 to 65535');
  const through =
    initiator === undefined ? [] : ['--interface', await interfaceFor(checkWord('the initiator', initiator))];
  const portal = portalOf({ name: checkWord('the host', host), port });
  const { stdout } = await iscsiadm([
    ...['--mode', 'discovery', '--type', 'sendtargets', '--portal', portal, '--op', 'nonpersistent'],
    ...through,
  ]);
  const targets = Array.from(stdout.matchAll(/^\S+,\d+\s+(\S+)/gm), ([, target = '']) => target);
  return [...new Set(targets)].map((target) => ({ hosts: [{ name: host, port }], devices: [target] }));
};
