import { spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SpindleError } from '../../core/errors.ts';
import { checkDefinition, type PoolDefinition, type PoolType } from '../../pool/definition.ts';
import { parsePool, POOL_TYPES, Pools, writePool } from '../../pool/index.ts';
import { buildMode, LIBVIRT, OVERWRITE, POOL, poolOf, poolsOf, readDescription } from './common.ts';
import type { Answer, Given, Param, PoolVerb } from './spec.ts';

const FILE: Param = { name: 'file', place: 'needed', does: "file with libvirt's XML of the pool" };

/** The source and target of a pool, in virsh's order. */
const AS: readonly Param[] = [
  { name: 'name', place: 'needed', does: 'name of the pool' },
  { name: 'type', place: 'needed', does: `kind of the pool: ${POOL_TYPES.join(', ')}` },
  { name: 'source-host', value: 'HOST', does: 'server of the source (netfs, iscsi)' },
  { name: 'source-path', value: 'PATH', does: 'directory that the server exports (netfs)' },
  { name: 'source-dev', value: 'DEVICE', repeats: true, does: 'device (fs, logical), or target (iscsi)' },
  { name: 'source-name', value: 'NAME', does: 'volume group (logical)' },
  { name: 'target', value: 'PATH', does: 'where the volumes are found' },
  { name: 'source-format', value: 'FORMAT', does: 'format of the source, such as nfs, ext4 or lvm2' },
  { name: 'auth-type', value: 'TYPE', does: 'how to log in: chap' },
  { name: 'auth-username', value: 'NAME', does: 'who logs in' },
  { name: 'secret-usage', value: 'NAME', does: 'name of the secret' },
  { name: 'secret-uuid', value: 'UUID', does: 'UUID of the secret' },
  { name: 'source-protocol-ver', value: 'VERSION', place: 'named', does: 'version of NFS, such as 4.2' },
  {
    name: 'source-initiator',
    value: 'IQN',
    place: 'named',
    does: 'name that the initiator gives itself (iscsi)',
  },
  { name: 'print-xml', kind: 'flag', does: 'print the XML, and do nothing' },
];

function definitionOf(given: Given): PoolDefinition {
  const host = given.text('source-host');
  const username = given.text('auth-username');
  const type = given.need('type');
  if (!(POOL_TYPES as readonly string[]).includes(type))
    throw new SpindleError(
      'BAD_OPTION',
      `there is no pool type '${type}'; there are ${POOL_TYPES.join(', ')}`,
    );
  return checkDefinition({
    type: type as PoolType,
    name: given.need('name'),
    uuid: randomUUID(),
    source: {
      hosts: host === undefined ? [] : [{ name: host }],
      devices: given.all('source-dev'),
      dir: given.text('source-path'),
      name: given.text('source-name'),
      format: given.text('source-format'),
      initiator: given.text('source-initiator'),
      auth:
        username === undefined
          ? undefined
          : {
              type: given.text('auth-type') ?? 'chap',
              username,
              secret: { usage: given.text('secret-usage'), uuid: given.text('secret-uuid') },
            },
      protocol: given.text('source-protocol-ver'),
    },
    target: { path: given.text('target') ?? '' },
    mountOptions: [],
  });
}

function printed(pool: PoolDefinition): Answer {
  const xml = writePool(pool, { sizes: false });
  return { data: xml, json: { xml } };
}

async function defineFile(given: Given): Promise<Answer> {
  const file = given.need('file');
  // Taken over: its own file stays, and libvirt keeps it until it is undefined there.
  const theirs = given.flag('libvirt') ? new Pools({ libvirt: true }).find(file).definition() : null;
  const pool = await new Pools().define(theirs ?? parsePool(readDescription(file), file));
  return {
    message: `Pool ${pool.name} defined from ${theirs === null ? file : 'libvirt'}`,
    json: { name: pool.name, uuid: pool.uuid },
  };
}

function words(text: string): string[] {
  return text.split(/\s+/).filter((word) => word !== '');
}

async function edit(given: Given): Promise<Answer> {
  const pool = poolOf(given);
  const defined = pool.definition() ?? undefined;
  const before = defined === undefined ? await pool.xml({ inactive: true }) : writePool(defined);
  const folder = mkdtempSync(join(tmpdir(), 'spindle-edit-'));
  try {
    const path = join(folder, 'pool.xml');
    writeFileSync(path, before, { mode: 0o600 });
    const [editor = 'vi', ...args] = words(process.env['VISUAL'] ?? process.env['EDITOR'] ?? 'vi');
    const done = spawnSync(editor, [...args, path], { stdio: 'inherit' });
    if (done.error !== undefined || done.status !== 0)
      throw new SpindleError('TOOL_FAILED', `the editor '${editor}' failed; nothing was changed`, {
        cause: done.error,
      });
    const after = readDescription(path);
    const json = { name: pool.name, changed: after !== before };
    if (after === before) return { message: `Pool ${pool.name} XML configuration not changed.`, json };
    const edited = parsePool(after, 'the edited description');
    if (edited.name !== pool.name || edited.uuid !== pool.uuid)
      throw new SpindleError(
        'BAD_XML',
        'the name and the UUID of a pool cannot be edited; nothing was changed',
      );
    await pool.pools.define(edited, { instead: defined });
    return { message: `Pool ${pool.name} XML configuration edited.`, json };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Verbs that say what pools there are. */
export const DEFINE_VERBS: Readonly<Record<string, PoolVerb>> = {
  'pool-define': {
    does: 'define a pool from XML, or define it anew',
    params: [
      FILE,
      { name: 'libvirt', kind: 'flag', does: 'take over the pool of that name from libvirt' },
      {
        name: 'validate',
        kind: 'flag',
        does: 'accepted, as virsh has it: descriptions are always looked at',
      },
    ],
    examples: [
      ['pool.xml', 'the pool that the file describes, as virsh pool-dumpxml prints it'],
      ['default --libvirt', 'the pool that libvirt has under that name'],
    ],
    run: defineFile,
  },
  'pool-define-as': {
    does: 'define a pool from arguments',
    params: AS,
    examples: [
      ['images dir --target /srv/images', 'a directory'],
      ['images dir - - - - /srv/images', 'the same, by place'],
      ['shared netfs --source-host nas --source-path /export --target /srv/shared', 'an NFS export'],
    ],
    run: async (given) => {
      const definition = definitionOf(given);
      if (given.flag('print-xml')) return printed(definition);
      const pool = await poolsOf(given).define(definition);
      return { message: `Pool ${pool.name} defined`, json: { name: pool.name, uuid: pool.uuid } };
    },
  },
  'pool-create': {
    does: 'make and start a pool from XML, without a definition',
    params: [FILE, { name: 'build', kind: 'flag', does: 'build it first' }, ...OVERWRITE],
    examples: [
      ['pool.xml', 'a pool that is gone when it is stopped'],
      ['pool.xml --build', 'built first'],
    ],
    run: async (given) => {
      const file = given.need('file');
      const build = given.flag('build') ? buildMode(given) : undefined;
      const pool = await poolsOf(given).create(parsePool(readDescription(file), file), { build });
      return {
        message: `Pool ${pool.name} created from ${file}`,
        json: { name: pool.name, uuid: pool.uuid },
      };
    },
  },
  'pool-create-as': {
    does: 'make and start a pool from arguments, without a definition',
    params: [...AS, { name: 'build', kind: 'flag', does: 'build it first' }, ...OVERWRITE],
    examples: [
      ['scratch dir --target /var/tmp/scratch --build', 'a directory, made if it is not there'],
      ['scratch dir --target /var/tmp/scratch --print-xml', 'only its XML'],
    ],
    run: async (given) => {
      const definition = definitionOf(given);
      if (given.flag('print-xml')) return printed(definition);
      const build = given.flag('build') ? buildMode(given) : undefined;
      const pool = await poolsOf(given).create(definition, { build });
      return { message: `Pool ${pool.name} created`, json: { name: pool.name, uuid: pool.uuid } };
    },
  },
  'pool-edit': {
    does: 'edit the XML of a pool with $VISUAL or $EDITOR',
    params: [POOL],
    examples: [
      ['images', 'in the editor that is set'],
      ['images --quiet', 'without a message'],
    ],
    run: edit,
  },
  'pool-undefine': {
    does: 'forget the definition of a pool that is not active',
    params: [POOL],
    examples: [
      ['images', 'what it holds stays'],
      ['images --output json', 'for scripts'],
    ],
    run: async (given) => {
      const pool = poolOf(given);
      await pool.undefine();
      return { message: `Pool ${pool.name} has been undefined`, json: { name: pool.name } };
    },
  },
  'pool-dumpxml': {
    does: 'print the XML of a pool',
    params: [POOL, { name: 'inactive', kind: 'flag', does: 'as it will be started next' }, LIBVIRT],
    examples: [
      ['images', 'as it is'],
      ['images --inactive', 'as it is defined'],
    ],
    run: async (given) => {
      const xml = await poolOf(given).xml({ inactive: given.flag('inactive') });
      return { data: xml, json: { xml } };
    },
  },
};
