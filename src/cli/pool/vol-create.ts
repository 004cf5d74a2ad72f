import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../core/allocation.ts';
import { isSpindleError, SpindleError } from '../../core/errors.ts';
import {
  parseVolume,
  writeVolumeDefinition,
  type CreateVolumeOptions,
  type VolumeDefinition,
} from '../../pool/index.ts';
import { checkVolumeName } from '../../pool/names.ts';
import { parseScaled } from '../../pool/scaled.ts';
import { interruptible } from '../interrupt.ts';
import { IN_POOL, MAX_OVERCOMMIT, POOL, poolOf, poolsOf, readDescription, volumeOf } from './common.ts';
import type { Answer, Given, Param, PoolVerb } from './spec.ts';

const FILE: Param = { name: 'file', place: 'needed', does: "file with libvirt's XML of the volume" };
const PREALLOCATE: Param = {
  name: 'prealloc-metadata',
  kind: 'flag',
  does: 'qcow2: make all tables at once, and reserve the allocation if it is the whole capacity',
};
const REFLINK: Param = {
  name: 'reflink',
  kind: 'flag',
  does: 'share blocks with the volume that is copied, or fail',
};
const POLICY: readonly Param[] = [
  {
    name: 'allocation-policy',
    place: 'named',
    value: 'POLICY',
    choices: ALLOCATION_POLICIES,
    does: 'when the host gives space: at the first write, reserved now, or written now',
  },
  MAX_OVERCOMMIT,
];

function optionsOf(given: Given, pool: string): CreateVolumeOptions {
  return {
    policy: given.text('allocation-policy') as AllocationPolicy | undefined,
    preallocateMetadata: given.flag('prealloc-metadata'),
    maxOvercommit: given.number('max-overcommit'),
    reflink: given.flag('reflink'),
    signal: interruptible(),
    onProgress: given.progress(),
    onWarning: (message) => given.warn(pool, message),
  };
}

function made(volume: { readonly facts: unknown; readonly name: string }, how: string): Answer {
  return { message: `Vol ${volume.name} ${how}`, json: volume.facts };
}

function printed(definition: VolumeDefinition): Answer {
  const xml = writeVolumeDefinition(definition);
  return { data: xml, json: { xml } };
}

async function createAs(given: Given): Promise<Answer> {
  const backing = given.text('backing-vol');
  const format = given.text('backing-vol-format');
  if (backing === undefined && format !== undefined)
    throw new SpindleError('BAD_OPTION', '--backing-vol-format needs --backing-vol');
  const definition: VolumeDefinition = {
    name: checkVolumeName(given.need('name')),
    capacity: parseScaled(given.need('capacity')),
    allocation: given.number('allocation'),
    format: given.text('format'),
    backing: backing === undefined ? undefined : { path: backing, format },
  };
  if (given.flag('print-xml')) return printed(definition);
  const pool = poolOf(given);
  return made(await pool.createVolume(definition, optionsOf(given, pool.name)), 'created');
}

async function createFrom(given: Given): Promise<Answer> {
  const file = given.need('file');
  const pool = poolOf(given);
  const definition = parseVolume(readDescription(file), file);
  const input = given.text('inputpool');
  const source =
    input === undefined
      ? await pool.volume(given.need('vol')).catch((error: unknown) => {
          if (!isSpindleError(error, 'VOLUME_NOT_FOUND')) throw error;
          return poolsOf(given).findVolume(given.need('vol'));
        })
      : await poolsOf(given).find(input).volume(given.need('vol'));
  const volume = await pool.createVolumeFrom(definition, source, optionsOf(given, pool.name));
  return made(volume, `created from input vol ${source.name}`);
}

async function clone(given: Given): Promise<Answer> {
  const source = await volumeOf(given);
  const { facts, pool } = source;
  const definition: VolumeDefinition = {
    name: checkVolumeName(given.need('newname')),
    capacity: facts.capacity,
    allocation: facts.allocation,
    format: facts.format,
    compat: facts.format === 'qcow2' ? (facts.compat ?? '0.10') : undefined,
    clusterSize: facts.clusterSize,
    lazyRefcounts: facts.features?.includes('lazy_refcounts') === true ? true : undefined,
    extendedL2: facts.features?.includes('extended_l2') === true ? true : undefined,
    permissions: facts.type === 'file' ? facts.permissions : undefined,
    backing: facts.backing,
  };
  if (given.flag('print-xml')) return printed(definition);
  const volume = await pool.createVolumeFrom(definition, source, optionsOf(given, pool.name));
  return made(volume, `cloned from ${source.name}`);
}

/** Verbs that make volumes. */
export const VOL_CREATE_VERBS: Readonly<Record<string, PoolVerb>> = {
  'vol-create': {
    does: 'make a volume from XML',
    params: [
      POOL,
      FILE,
      PREALLOCATE,
      ...POLICY,
      { name: 'validate', kind: 'flag', does: 'accepted, as virsh has it' },
    ],
    examples: [
      ['images volume.xml', 'the volume that the file describes'],
      ['images volume.xml --allocation-policy thick-eager', 'every block written at once'],
    ],
    long: true,
    run: async (given) => {
      const file = given.need('file');
      const pool = poolOf(given);
      const definition = parseVolume(readDescription(file), file);
      return made(await pool.createVolume(definition, optionsOf(given, pool.name)), `created from ${file}`);
    },
  },
  'vol-create-as': {
    does: 'make a volume from arguments',
    params: [
      POOL,
      { name: 'name', place: 'needed', does: 'name of the new volume' },
      { name: 'capacity', place: 'needed', does: 'size of its disk, such as 20G' },
      {
        name: 'allocation',
        kind: 'size',
        value: 'SIZE',
        does: 'how much of it to have at once (default: all of a raw volume)',
      },
      { name: 'format', value: 'FORMAT', does: 'raw (default) or qcow2' },
      { name: 'backing-vol', value: 'VOL', does: 'the volume below it' },
      { name: 'backing-vol-format', value: 'FORMAT', does: 'format of the volume below' },
      PREALLOCATE,
      ...POLICY,
      { name: 'print-xml', kind: 'flag', does: 'print the XML, and do nothing' },
    ],
    examples: [
      ['images disk.qcow2 20G --format qcow2', 'a qcow2 volume, which grows as it is written to'],
      ['images disk.img 20G', 'a raw volume, all of it reserved'],
      ['images disk.img 20G --allocation 0', 'a raw volume that grows'],
    ],
    long: true,
    run: createAs,
  },
  'vol-create-from': {
    does: 'make a volume from XML, with the disk of another volume',
    params: [
      POOL,
      FILE,
      { name: 'vol', place: 'needed', does: 'name, key or path of the volume to copy' },
      {
        name: 'inputpool',
        value: 'POOL',
        does: 'the pool that it is in (default: the same, or any by key or path)',
      },
      PREALLOCATE,
      REFLINK,
      ...POLICY,
    ],
    examples: [
      ['images volume.xml base.img', 'the disk of base.img in a volume as described'],
      ['images volume.xml base.img --inputpool templates', 'from another pool'],
    ],
    long: true,
    run: createFrom,
  },
  'vol-clone': {
    does: 'copy a volume within its pool',
    params: [
      { name: 'vol', place: 'needed', does: 'name (with --pool), key or path of the volume to copy' },
      { name: 'newname', place: 'needed', does: 'name of the copy' },
      IN_POOL,
      PREALLOCATE,
      REFLINK,
      ...POLICY,
      { name: 'print-xml', kind: 'flag', does: 'print the XML, and do nothing' },
    ],
    examples: [
      ['base.qcow2 guest.qcow2 --pool images', 'a copy of its own'],
      ['base.img guest.img --pool images --reflink', 'a copy that shares blocks'],
    ],
    long: true,
    run: clone,
  },
};
