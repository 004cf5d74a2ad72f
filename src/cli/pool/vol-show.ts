import { formatScaled } from '../../pool/scaled.ts';
import { IN_POOL, LIBVIRT, POOL, poolOf, VOL, volumeOf } from './common.ts';
import type { Answer, Given, PoolVerb } from './spec.ts';
import { labelled, table } from './table.ts';

async function list(given: Given): Promise<Answer> {
  const volumes = await poolOf(given).volumes();
  const head = ['Name', 'Path'];
  if (!given.flag('details'))
    return {
      data: table(
        head,
        volumes.map(({ name, path }) => [name, path]),
        given.quiet,
      ),
      json: volumes,
    };
  const rows = volumes.map(({ name, path, type, capacity, allocation }) => [
    ...[name, path, type],
    ...[formatScaled(capacity), formatScaled(allocation)],
  ]);
  return { data: table([...head, 'Type', 'Capacity', 'Allocation'], rows, given.quiet), json: volumes };
}

async function info(given: Given): Promise<Answer> {
  const { facts } = await volumeOf(given);
  const size = (bytes: number): string =>
    given.flag('bytes') ? `${String(bytes)} bytes` : formatScaled(bytes);
  const data = labelled([
    ['Name', facts.name],
    ['Type', facts.type],
    ['Capacity', size(facts.capacity)],
    given.flag('physical')
      ? ['Physical', size(facts.physical ?? facts.allocation)]
      : ['Allocation', size(facts.allocation)],
  ]);
  return { data, json: facts };
}

const one =
  (pick: (given: Given) => Promise<Record<string, string>>): PoolVerb['run'] =>
  async (given) => {
    const json = await pick(given);
    return { data: `${Object.values(json)[0] ?? ''}\n`, json };
  };

/** Verbs that tell of volumes. */
export const VOL_SHOW_VERBS: Readonly<Record<string, PoolVerb>> = {
  'vol-list': {
    does: 'list the volumes of a pool',
    params: [POOL, { name: 'details', kind: 'flag', does: 'tell their kinds and sizes, too' }, LIBVIRT],
    examples: [
      ['images', 'names and paths'],
      ['images --details', 'and sizes'],
    ],
    run: list,
  },
  'vol-info': {
    does: 'tell of a volume, and how large it is',
    params: [
      VOL,
      IN_POOL,
      { name: 'bytes', kind: 'flag', does: 'sizes in bytes' },
      { name: 'physical', kind: 'flag', does: 'the length of its file instead of its allocation' },
      LIBVIRT,
    ],
    examples: [
      ['disk.qcow2 --pool images', 'for people'],
      ['/srv/images/disk.qcow2 --bytes', 'found by its path'],
    ],
    run: info,
  },
  'vol-dumpxml': {
    does: 'print the XML of a volume',
    params: [VOL, IN_POOL, LIBVIRT],
    examples: [
      ['disk.qcow2 --pool images', 'by its name'],
      ['/srv/images/disk.qcow2', 'by its path'],
    ],
    run: async (given) => {
      const xml = (await volumeOf(given)).xml();
      return { data: xml, json: { xml } };
    },
  },
  'vol-path': {
    does: 'tell the path of a volume',
    params: [VOL, IN_POOL, LIBVIRT],
    examples: [
      ['disk.qcow2 --pool images', 'by its name'],
      ['disk.qcow2 images', 'the same'],
    ],
    run: one(async (given) => ({ path: (await volumeOf(given)).facts.path })),
  },
  'vol-key': {
    does: 'tell the key of a volume',
    params: [VOL, IN_POOL, LIBVIRT],
    examples: [
      ['disk.qcow2 --pool images', 'by its name'],
      ['/srv/images/disk.qcow2', 'by its path'],
    ],
    run: one(async (given) => ({ key: (await volumeOf(given)).facts.key })),
  },
  'vol-name': {
    does: 'tell the name of a volume by its key or path',
    params: [VOL, LIBVIRT],
    examples: [
      ['/srv/images/disk.qcow2', 'its name in its pool'],
      ['/srv/images/disk.qcow2 --libvirt', 'in a pool of libvirt'],
    ],
    run: one(async (given) => ({ name: (await volumeOf(given)).name })),
  },
  'vol-pool': {
    does: 'tell the pool of a volume by its key or path',
    params: [VOL, { name: 'uuid', kind: 'flag', does: 'its UUID instead of its name' }, LIBVIRT],
    examples: [
      ['/srv/images/disk.qcow2', 'the name of its pool'],
      ['/srv/images/disk.qcow2 --uuid', 'its UUID'],
    ],
    run: one(async (given) => {
      const { pool } = await volumeOf(given);
      return given.flag('uuid') ? { uuid: pool.uuid } : { name: pool.name };
    }),
  },
};
