import { SpindleError } from '../core/errors.ts';
import { permissionsElement, permissionsOf, type Permissions } from './definition.ts';
import { checkVolumeName } from './names.ts';
import { inUnit } from './scaled.ts';
import { childOf, element, parseXml, textElement, textOf, writeXml, type Built, type Xml } from './xml.ts';

/** What is asked of a new volume. Sizes in bytes. */
export interface VolumeDefinition {
  readonly name: string;
  /** Undefined: that of the volume below. */
  readonly capacity: number | undefined;
  /** Bytes to have from the start; undefined: all. */
  readonly allocation?: number | undefined;
  /** `raw` (default) or `qcow2`. */
  readonly format?: string | undefined;
  readonly compat?: string | undefined;
  readonly clusterSize?: number | undefined;
  readonly lazyRefcounts?: boolean | undefined;
  readonly extendedL2?: boolean | undefined;
  readonly noCow?: boolean | undefined;
  readonly permissions?: Permissions | undefined;
  /** The volume below: its path, or in a pool its name. */
  readonly backing?: { readonly path: string; readonly format?: string | undefined } | undefined;
}

/** A kind of volume. */
export type VolumeType = 'file' | 'block' | 'dir';

/** Seconds and nanoseconds, as a decimal number of seconds. */
export interface Timestamps {
  readonly atime: string;
  readonly mtime: string;
  readonly ctime: string;
  readonly btime: string;
}

/** What is known of a volume. Sizes in bytes. */
export interface VolumeFacts {
  readonly name: string;
  /** What tells it from all others: its path, or what the backend has as well (UUID of an LV, id of a LUN). */
  readonly key: string;
  readonly path: string;
  readonly type: VolumeType;
  /** What the guest sees. */
  readonly capacity: number;
  /** What it takes of the pool now. */
  readonly allocation: number;
  /** Length of the file or device; undefined for a directory. */
  readonly physical: number | undefined;
  readonly format: string | undefined;
  readonly permissions?: Permissions | undefined;
  readonly timestamps?: Timestamps | undefined;
  /** qcow2, from version 3 on. */
  readonly compat?: string | undefined;
  readonly clusterSize?: number | undefined;
  readonly features?: readonly string[] | undefined;
  readonly encrypted?: boolean | undefined;
  readonly backing?: { readonly path: string; readonly format?: string | undefined } | undefined;
  /** Where a logical volume lies. */
  readonly extents?:
    readonly { readonly device: string; readonly start: number; readonly end: number }[] | undefined;
}

/** Reads libvirt's XML of a volume that is to be made. @throws SpindleError BAD_XML, BAD_NAME, BAD_SIZE */
export function parseVolume(text: string, what = 'the volume description'): VolumeDefinition {
  const root = parseXml(text, what);
  const bad = (why: string): SpindleError => new SpindleError('BAD_XML', `${what}: ${why}`);
  if (root.name !== 'volume') throw bad(`the element is <${root.name}>, not <volume>`);
  const name = textOf(root, 'name');
  if (name === undefined) throw bad('the volume has no <name>');
  const target = childOf(root, 'target');
  const below = childOf(root, 'backingStore');
  const path = textOf(below, 'path');
  const capacity = sizeOf(root, 'capacity');
  if (capacity === undefined && path === undefined) throw bad('the volume has no <capacity>');
  const features = childOf(target, 'features');
  return {
    name: checkVolumeName(name),
    capacity,
    allocation: sizeOf(root, 'allocation'),
    format: childOf(target, 'format')?.attributes['type'],
    compat: textOf(target, 'compat'),
    clusterSize: sizeOf(target, 'clusterSize'),
    lazyRefcounts: childOf(features, 'lazy_refcounts') === undefined ? undefined : true,
    extendedL2: childOf(features, 'extended_l2') === undefined ? undefined : true,
    noCow: childOf(target, 'nocow') === undefined ? undefined : true,
    permissions: permissionsOf(childOf(target, 'permissions'), bad),
    backing: path === undefined ? undefined : { path, format: childOf(below, 'format')?.attributes['type'] },
  };
}

function sizeOf(xml: Xml | undefined, name: string): number | undefined {
  const found = childOf(xml, name);
  return found === undefined ? undefined : inUnit(found.text, found.attributes['unit']);
}

const bytes = (name: string, value: number | undefined): Built | undefined =>
  value === undefined ? undefined : element(name, { unit: 'bytes' }, String(value));

/** libvirt's XML of a volume that is to be made. */
export function writeVolumeDefinition(volume: VolumeDefinition): string {
  const { backing } = volume;
  const features = [
    volume.lazyRefcounts === true ? element('lazy_refcounts') : undefined,
    volume.extendedL2 === true ? element('extended_l2') : undefined,
  ];
  return writeXml(
    element('volume', {}, [
      textElement('name', volume.name),
      bytes('capacity', volume.capacity),
      bytes('allocation', volume.allocation),
      element('target', {}, [
        volume.format === undefined ? undefined : element('format', { type: volume.format }),
        permissionsElement(volume.permissions),
        textElement('compat', volume.compat),
        volume.noCow === true ? element('nocow') : undefined,
        volume.clusterSize === undefined
          ? undefined
          : element('clusterSize', { unit: 'B' }, String(volume.clusterSize)),
        features.some((feature) => feature !== undefined) ? element('features', {}, features) : undefined,
      ]),
      backing === undefined
        ? undefined
        : element('backingStore', {}, [
            textElement('path', backing.path),
            backing.format === undefined ? undefined : element('format', { type: backing.format }),
          ]),
    ]),
  );
}

/** libvirt's XML of a volume as it is. `below` is what is known of the volume that it lies on. */
export function writeVolume(volume: VolumeFacts, below?: VolumeFacts): string {
  const { backing, extents = [] } = volume;
  const devices = [...new Set(extents.map(({ device }) => device))];
  return writeXml(
    element('volume', { type: volume.type }, [
      textElement('name', volume.name),
      textElement('key', volume.key),
      devices.length === 0
        ? undefined
        : element(
            'source',
            {},
            devices.map((path) =>
              element(
                'device',
                { path },
                extents
                  .filter(({ device }) => device === path)
                  .map(({ start, end }) => element('extent', { start: String(start), end: String(end) })),
              ),
            ),
          ),
      bytes('capacity', volume.capacity),
      bytes('allocation', volume.allocation),
      bytes('physical', volume.physical),
      element('target', {}, [
        textElement('path', volume.path),
        volume.format === undefined ? undefined : element('format', { type: volume.format }),
        permissionsElement(volume.permissions),
        timestampsElement(volume.timestamps),
        textElement('compat', volume.compat),
        volume.clusterSize === undefined
          ? undefined
          : element('clusterSize', { unit: 'B' }, String(volume.clusterSize)),
        volume.compat === undefined
          ? undefined
          : element(
              'features',
              {},
              (volume.features ?? []).map((name) => element(name)),
            ),
      ]),
      backing === undefined
        ? undefined
        : element('backingStore', {}, [
            textElement('path', backing.path),
            element('format', { type: backing.format ?? 'raw' }),
            permissionsElement(below?.permissions),
            timestampsElement(below?.timestamps),
          ]),
    ]),
  );
}

function timestampsElement(times: Timestamps | undefined): Built | undefined {
  if (times === undefined) return undefined;
  return element('timestamps', {}, [
    textElement('atime', times.atime),
    textElement('mtime', times.mtime),
    textElement('ctime', times.ctime),
    textElement('btime', times.btime),
  ]);
}
