import { isSpindleError, SpindleError } from '../../core/errors.ts';
import { formatScaled } from '../../pool/scaled.ts';
import { POOL_TYPES, type Pool, type PoolInfo, type PoolType, type Promised } from '../../pool/index.ts';
import { sourcesOf, sourcesXml } from '../../pool/sources-xml.ts';
import { LIBVIRT, POOL, poolOf, poolsOf, readDescription } from './common.ts';
import type { Answer, Given, Param, PoolVerb } from './spec.ts';
import { labelled, table } from './table.ts';

const yes = (value: boolean): string => (value ? 'yes' : 'no');

/** What is told of a pool, as JSON. */
function jsonOf(info: PoolInfo, promised?: Promised | null, guard?: number): Record<string, unknown> {
  const { name, uuid, type, active, persistent, autostart, usage } = info;
  return {
    ...{ name, uuid, type, state: active ? 'running' : 'inactive', persistent, autostart },
    ...{
      capacity: usage?.capacity ?? null,
      allocation: usage?.allocation ?? null,
      available: usage?.available ?? null,
    },
    ...(promised === undefined
      ? {}
      : {
          promised: promised?.promised ?? null,
          ratio: promised?.ratio ?? null,
          volumes: promised?.volumes ?? null,
        }),
    ...(guard === undefined ? {} : { guard }),
  };
}

async function info(given: Given): Promise<Answer> {
  const pool = poolOf(given);
  const known = await pool.info();
  const { usage } = known;
  const promised = usage === null ? null : await pool.promised(usage);
  const guard = usage === null ? 0 : await pool.guard();
  const size = (bytes: number): string => (given.flag('bytes') ? String(bytes) : formatScaled(bytes));
  const data = labelled([
    ['Name', known.name],
    ['UUID', known.uuid],
    ['State', known.active ? 'running' : 'inactive'],
    ['Persistent', yes(known.persistent)],
    ['Autostart', yes(known.autostart)],
    ...(usage === null
      ? []
      : ([
          ['Capacity', size(usage.capacity)],
          ['Allocation', size(usage.allocation)],
          ['Available', size(usage.available)],
        ] as const)),
    promised === null ? undefined : ['Promised', size(promised.promised)],
    promised === null ? undefined : ['Ratio', promised.ratio.toFixed(2)],
    guard === 0 ? undefined : ['Guard', size(guard)],
  ]);
  return { data, json: jsonOf(known, promised, guard) };
}

const LIST: readonly Param[] = [
  { name: 'inactive', kind: 'flag', does: 'those that are not active' },
  { name: 'all', kind: 'flag', does: 'active ones and others' },
  { name: 'transient', kind: 'flag', does: 'those without a definition' },
  { name: 'persistent', kind: 'flag', does: 'those with a definition' },
  { name: 'autostart', kind: 'flag', does: 'those that are started with the system' },
  { name: 'no-autostart', kind: 'flag', does: 'those that are not' },
  { name: 'type', value: 'TYPES', does: 'those of some kinds, such as dir,logical' },
  { name: 'details', kind: 'flag', does: 'tell how full they are, too' },
  { name: 'uuid', kind: 'flag', does: 'their UUIDs only' },
  { name: 'name', kind: 'flag', does: 'their names only' },
  LIBVIRT,
];

function typesOf(given: Given): Set<string> | null {
  const text = given.text('type');
  if (text === undefined) return null;
  const types = text.split(',');
  const wrong = types.find((type) => !(POOL_TYPES as readonly string[]).includes(type));
  if (wrong === undefined) return new Set(types);
  throw new SpindleError('BAD_OPTION', `invalid pool type '${wrong}'; there are ${POOL_TYPES.join(', ')}`);
}

/** What is told of a pool in a list. One out of reach is told without its sizes. */
async function listed(pool: Pool, given: Given): Promise<PoolInfo> {
  try {
    return await pool.info();
  } catch (error) {
    if (!isSpindleError(error)) throw error;
    given.warn(pool.name, error.message);
    return pool.info({ sizes: false });
  }
}

async function list(given: Given): Promise<Answer> {
  const details = given.flag('details');
  if (details && (given.flag('name') || given.flag('uuid')))
    throw new SpindleError('BAD_OPTION', '--details goes with neither --name nor --uuid');
  const types = typesOf(given);
  const found: PoolInfo[] = [];
  for (const pool of poolsOf(given).all()) {
    if (types !== null && !types.has(pool.type)) continue;
    const one = await listed(pool, given);
    const states = given.flag('all') || one.active !== given.flag('inactive');
    const keeps =
      given.flag('persistent') === given.flag('transient') || one.persistent === given.flag('persistent');
    const starts =
      given.flag('autostart') === given.flag('no-autostart') || one.autostart === given.flag('autostart');
    if (states && keeps && starts) found.push(one);
  }
  const json = found.map((one) => jsonOf(one));
  if (given.flag('uuid') || given.flag('name')) {
    const lines = found.map(({ uuid, name }) =>
      [given.flag('uuid') ? uuid : [], given.flag('name') ? name : []].flat().join(' '),
    );
    return { data: lines.map((line) => `${line}\n`).join(''), json };
  }
  if (!details) {
    const rows = found.map(({ name, active, autostart }) => [
      name,
      active ? 'active' : 'inactive',
      yes(autostart),
    ]);
    return { data: table(['Name', 'State', 'Autostart'], rows, given.quiet), json };
  }
  const size = (bytes: number | undefined): string => (bytes === undefined ? '-' : formatScaled(bytes));
  const rows = found.map(({ name, active, autostart, persistent, usage }) => [
    ...[name, active ? 'running' : 'inactive', yes(autostart), yes(persistent)],
    ...[size(usage?.capacity), size(usage?.allocation), size(usage?.available)],
  ]);
  const head = ['Name', 'State', 'Autostart', 'Persistent', 'Capacity', 'Allocation', 'Available'];
  return { data: table(head, rows, given.quiet), json };
}

async function forecast(given: Given): Promise<Answer> {
  const { samples, span, growth, usage, full } = await poolOf(given).forecast();
  const days = (milliseconds: number): string => `${(milliseconds / 86_400_000).toFixed(1)} days`;
  const when = full === null ? undefined : Number.isFinite(full) && full < 8.64e15 ? new Date(full) : null;
  const told =
    growth === null
      ? 'unknown: the samples are too few, or too close together'
      : when === undefined
        ? 'never, as it goes: the pool does not fill'
        : when === null
          ? 'not in this era'
          : `${when.toISOString().slice(0, 16).replace('T', ' ')} UTC, in ${days(when.getTime() - Date.now())}`;
  const data = labelled([
    ['Samples', `${String(samples)} in ${days(span)}`],
    ['Available', formatScaled(usage.available)],
    ['Growth', growth === null ? '-' : `${growth < 0 ? '-' : ''}${formatScaled(Math.abs(growth))} a day`],
    ['Full', told],
  ]);
  const json = {
    samples,
    span: span / 1000,
    growthPerDay: growth,
    ...usage,
    full: when?.toISOString() ?? null,
  };
  return { data, json };
}

function typeOf(given: Given): PoolType {
  const type = given.need('type');
  if ((POOL_TYPES as readonly string[]).includes(type)) return type as PoolType;
  throw new SpindleError('BAD_OPTION', `there is no pool type '${type}'; there are ${POOL_TYPES.join(', ')}`);
}

const TYPE: Param = { name: 'type', place: 'needed', does: 'kind of pool: netfs, logical or iscsi' };

/** Verbs that tell of pools. */
export const SHOW_VERBS: Readonly<Record<string, PoolVerb>> = {
  'pool-list': {
    does: 'list pools',
    params: LIST,
    examples: [
      ['--all', 'inactive ones, too'],
      ['--all --details', 'and how full they are'],
      ['--libvirt --all', 'those that libvirt has'],
    ],
    run: list,
  },
  'pool-info': {
    does: 'tell of a pool, how full it is, and what it has promised',
    params: [POOL, { name: 'bytes', kind: 'flag', does: 'sizes in bytes' }, LIBVIRT],
    examples: [
      ['images', 'for people'],
      ['images --bytes', 'sizes in bytes'],
    ],
    run: info,
  },
  'pool-forecast': {
    does: 'tell when a pool will be full, as far as its past tells',
    params: [POOL],
    examples: [
      ['images', 'from how full it was at earlier commands'],
      ['images --output json', 'for scripts'],
    ],
    run: forecast,
  },
  'pool-name': {
    does: 'tell the name of the pool with a UUID',
    params: [POOL, LIBVIRT],
    examples: [
      ['3f1c4ea0-46c3-4d2b-9d54-0d4ad3f02a4c', 'its name'],
      ['3f1c4ea0-46c3-4d2b-9d54-0d4ad3f02a4c --libvirt', 'of a pool that libvirt has'],
    ],
    run: (given) => {
      const { name } = poolOf(given);
      return Promise.resolve({ data: `${name}\n`, json: { name } });
    },
  },
  'pool-uuid': {
    does: 'tell the UUID of the pool with a name',
    params: [POOL, LIBVIRT],
    examples: [
      ['images', 'its UUID'],
      ['images --libvirt', 'of a pool that libvirt has'],
    ],
    run: (given) => {
      const { uuid } = poolOf(given);
      return Promise.resolve({ data: `${uuid}\n`, json: { uuid } });
    },
  },
  'find-storage-pool-sources': {
    does: 'find what pools of a kind could be made of',
    params: [
      TYPE,
      { name: 'srcSpec', place: 'optional', does: "file with libvirt's XML of a <source>: its host" },
    ],
    examples: [
      ['logical', 'the volume groups of this host'],
      ['netfs source.xml', 'what a server exports'],
    ],
    run: async (given) => {
      const spec = given.text('srcSpec');
      const asked = spec === undefined ? {} : sourcesOf(readDescription(spec), spec);
      const found = await poolsOf(given).sources(typeOf(given), asked);
      return { data: sourcesXml(found), json: found };
    },
  },
  'find-storage-pool-sources-as': {
    does: 'find what pools of a kind could be made of, from arguments',
    params: [
      TYPE,
      { name: 'host', place: 'optional', does: 'the server to ask (netfs, iscsi)' },
      { name: 'port', place: 'optional', does: 'its port' },
      { name: 'initiator', value: 'IQN', does: 'name that the initiator gives itself (iscsi)' },
    ],
    examples: [
      ['netfs nas', 'what a server exports'],
      ['iscsi san 3260', 'the targets of a portal'],
    ],
    run: async (given) => {
      const port = given.text('port');
      const found = await poolsOf(given).sources(typeOf(given), {
        host: given.text('host'),
        port: port === undefined ? undefined : Number(port),
        initiator: given.text('initiator'),
      });
      return { data: sourcesXml(found), json: found };
    },
  },
};
