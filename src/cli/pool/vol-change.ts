import { ALLOCATION_POLICIES, type AllocationPolicy } from '../../core/allocation.ts';
import { SpindleError } from '../../core/errors.ts';
import { parseScaled } from '../../pool/scaled.ts';
import { WIPE_ALGORITHMS, type TransferOptions } from '../../pool/index.ts';
import { stoppable } from '../interrupt.ts';
import { IN_POOL, LIBVIRT, MAX_OVERCOMMIT, VOL, volumeOf } from './common.ts';
import type { Answer, Given, Param, PoolVerb } from './spec.ts';

async function resize(given: Given): Promise<Answer> {
  const volume = await volumeOf(given);
  const text = given.need('capacity');
  // virsh takes a number below zero for a difference.
  const below = text.startsWith('-');
  const delta = given.flag('delta') || below;
  const bytes = parseScaled(below ? text.slice(1) : text);
  const shrink = given.flag('shrink');
  if (below && !shrink)
    throw new SpindleError(
      'BAD_OPTION',
      `volume '${volume.name}': to make it smaller, which loses what is cut off, use --shrink`,
    );
  const capacity = await volume.resize(bytes, {
    delta,
    shrink,
    allocate: given.flag('allocate'),
    maxOvercommit: given.number('max-overcommit'),
    onWarning: (message) => given.warn(volume.pool.name, message),
  });
  return {
    message: `Size of volume '${volume.name}' successfully changed ${delta ? 'by' : 'to'} ${below ? text.slice(1) : text}`,
    json: { name: volume.name, capacity },
  };
}

const TRANSFER: readonly Param[] = [
  { name: 'offset', kind: 'count', value: 'BYTES', does: 'where in the volume to begin (default: 0)' },
  { name: 'length', kind: 'count', value: 'BYTES', does: 'the most to move (default: all)' },
  { name: 'sparse', kind: 'flag', does: 'holes stay holes' },
];

const LOCAL: Param = { name: 'file', place: 'needed', does: 'a local file' };

function transferOf(given: Given): TransferOptions {
  return {
    offset: given.number('offset'),
    length: given.number('length'),
    sparse: given.flag('sparse'),
    signal: stoppable(),
    onProgress: given.progress(),
  };
}

/** Verbs that change volumes and move their bytes. */
export const VOL_CHANGE_VERBS: Readonly<Record<string, PoolVerb>> = {
  'vol-delete': {
    does: 'remove a volume, and what it holds',
    params: [VOL, IN_POOL],
    examples: [
      ['disk.qcow2 --pool images', 'by its name'],
      ['/srv/images/disk.qcow2', 'by its path'],
    ],
    run: async (given) => {
      const volume = await volumeOf(given);
      await volume.delete();
      return { message: `Vol ${volume.name} deleted`, json: { name: volume.name } };
    },
  },
  'vol-resize': {
    does: 'give a volume another capacity',
    params: [
      VOL,
      { name: 'capacity', place: 'needed', does: 'the new capacity, such as 40G' },
      IN_POOL,
      { name: 'allocate', kind: 'flag', does: 'reserve all of it (raw)' },
      { name: 'delta', kind: 'flag', does: 'the number is a difference' },
      { name: 'shrink', kind: 'flag', does: 'it may become smaller, and lose what is cut off' },
      MAX_OVERCOMMIT,
    ],
    examples: [
      ['disk.qcow2 40G --pool images', 'forty GiB'],
      ['disk.qcow2 10G --delta --pool images', 'ten GiB more'],
    ],
    run: resize,
  },
  'vol-allocate': {
    does: 'make a volume thin or thick where it is',
    params: [VOL, { name: 'policy', place: 'needed', does: ALLOCATION_POLICIES.join(', ') }, IN_POOL],
    examples: [
      ['disk.qcow2 thick-lazy --pool images', 'reserve all of its space'],
      ['disk.qcow2 thin --pool images', 'give back what holds only zeroes'],
    ],
    long: true,
    run: async (given) => {
      const volume = await volumeOf(given);
      const policy = given.need('policy') as AllocationPolicy;
      const done = await volume.allocate(policy, { signal: stoppable(), onProgress: given.progress() });
      return { message: `Vol ${volume.name} is ${policy}`, json: { name: volume.name, ...done } };
    },
  },
  'vol-wipe': {
    does: 'write over all that a volume holds',
    params: [
      VOL,
      IN_POOL,
      { name: 'algorithm', value: 'NAME', choices: WIPE_ALGORITHMS, does: 'what is written (default: zero)' },
    ],
    examples: [
      ['disk.img --pool images', 'zeroes'],
      ['disk.img --pool images --algorithm dod', 'three passes, and one that reads them back'],
    ],
    long: true,
    run: async (given) => {
      const volume = await volumeOf(given);
      await volume.wipe(given.text('algorithm'), { signal: stoppable(), onProgress: given.progress() });
      return { message: `Vol ${volume.name} wiped`, json: { name: volume.name } };
    },
  },
  'vol-upload': {
    does: 'write a local file into a volume',
    params: [VOL, LOCAL, IN_POOL, ...TRANSFER, MAX_OVERCOMMIT],
    examples: [
      ['disk.img image.raw --pool images', 'from its start'],
      ['disk.img image.raw --pool images --offset 1048576 --sparse', 'further on; holes become holes'],
    ],
    long: true,
    run: async (given) => {
      const volume = await volumeOf(given);
      const bytes = await volume.upload(given.need('file'), {
        ...transferOf(given),
        maxOvercommit: given.number('max-overcommit'),
        onWarning: (message) => given.warn(volume.pool.name, message),
      });
      return { json: { name: volume.name, bytes } };
    },
  },
  'vol-download': {
    does: 'write what is in a volume to a local file',
    params: [VOL, LOCAL, IN_POOL, ...TRANSFER, LIBVIRT],
    examples: [
      ['disk.img copy.raw --pool images --sparse', 'all of it'],
      ['disk.img boot.raw --pool images --length 512', 'the first sector'],
    ],
    long: true,
    run: async (given) => {
      const volume = await volumeOf(given);
      const bytes = await volume.download(given.need('file'), transferOf(given));
      return { json: { name: volume.name, bytes } };
    },
  },
};
