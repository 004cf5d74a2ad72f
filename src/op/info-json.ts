import type { LuksHeader } from '../format/crypto/luks-header.ts';
import type { Snapshot } from '../format/qcow2/snapshot.ts';
import { shownFileLength, type ImageInfo, type Qcow2Info } from './info.ts';

/** A value that JSON can hold. */
export type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

/**
 * Information about an image with the keys and types of `qemu-img info --output=json`. Where the allocation was counted
 * it stands under `allocation`, a key of spindle's own.
 */
export function infoJson(image: ImageInfo): { [key: string]: Json } {
  const actual: { [key: string]: Json } =
    image.actualSize === null ? {} : { 'actual-size': image.actualSize };
  return {
    children: [{ name: 'file', info: fileJson(image, actual) }],
    'virtual-size': image.virtualSize,
    filename: image.path,
    format: image.format,
    ...actual,
    ...(image.clusterSize === null ? {} : { 'cluster-size': image.clusterSize }),
    ...(image.encrypted ? { encrypted: true } : {}),
    'dirty-flag': image.dirty,
    ...(image.backingName === null
      ? {}
      : { 'backing-filename': image.backingName, 'full-backing-filename': image.backingPath }),
    ...(image.backingFormat === null || image.backingName === null
      ? {}
      : { 'backing-filename-format': image.backingFormat }),
    ...(image.snapshots.length === 0 ? {} : { snapshots: image.snapshots.map(snapshotJson) }),
    ...(image.qcow2 === null ? {} : { 'format-specific': { type: 'qcow2', data: qcow2Json(image.qcow2) } }),
    ...(image.luks === null ? {} : { 'format-specific': { type: 'luks', data: luksJson(image.luks) } }),
    ...(image.allocation === null ? {} : { allocation: { ...image.allocation } }),
  };
}

/** The file itself, as qemu-img shows the node below the format. */
function fileJson(image: ImageInfo, actual: { [key: string]: Json }): Json {
  const format = image.isDevice ? 'host_device' : 'file';
  return {
    children: [],
    'virtual-size': shownFileLength(image),
    filename: image.file,
    format,
    ...actual,
    'format-specific': {
      type: 'file',
      data: image.extentSizeHint === 0 ? {} : { 'extent-size-hint': image.extentSizeHint },
    },
    'dirty-flag': false,
  };
}

function snapshotJson(snapshot: Snapshot): Json {
  return {
    id: snapshot.id,
    name: snapshot.name,
    'vm-state-size': snapshot.vmStateSize,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': Number(snapshot.vmClock / 1_000_000_000n),
    'vm-clock-nsec': Number(snapshot.vmClock % 1_000_000_000n),
    ...(snapshot.icount === null ? {} : { icount: Number(snapshot.icount) }),
  };
}

function qcow2Json(qcow2: Qcow2Info): Json {
  return {
    compat: qcow2.compat,
    'compression-type': qcow2.compressionType,
    ...(qcow2.compat === '0.10' ? {} : { 'lazy-refcounts': qcow2.lazyRefcounts }),
    ...(qcow2.bitmaps.length === 0
      ? {}
      : {
          bitmaps: qcow2.bitmaps.map(({ name, granularity, flags }) => ({
            flags: [...flags],
            name,
            granularity,
          })),
        }),
    'refcount-bits': qcow2.refcountBits,
    ...(qcow2.encryption === null
      ? {}
      : {
          encrypt:
            qcow2.encryption === 'aes'
              ? { format: 'aes' }
              : { format: 'luks', ...luksJson(qcow2.encryption) },
        }),
    ...(qcow2.dataFile === null ? {} : { 'data-file': qcow2.dataFile, 'data-file-raw': qcow2.dataFileRaw }),
    ...(qcow2.compat === '0.10' ? {} : { corrupt: qcow2.corrupt, 'extended-l2': qcow2.extendedL2 }),
  };
}

function luksJson(luks: LuksHeader): { [key: string]: Json } {
  const [mode = '', generator = '', hash] = luks.cipherMode.split(/[-:]/);
  return {
    'cipher-alg': cipherAlgorithm(luks, mode),
    'cipher-mode': mode,
    'ivgen-alg': generator,
    ...(hash === undefined ? {} : { 'ivgen-hash-alg': hash }),
    'hash-alg': luks.hash,
    'detached-header': false,
    'payload-offset': luks.payloadOffset,
    'master-key-iters': luks.masterKeyIterations,
    uuid: luks.uuid,
    slots: luks.slots.map((slot) => ({
      active: slot.active,
      ...(slot.active ? { iters: slot.iterations, stripes: slot.stripes } : {}),
      'key-offset': slot.keyOffset,
    })),
  };
}

/** The cipher with its key length in bits, as qemu names it. XTS splits the key between two ciphers. */
function cipherAlgorithm(luks: LuksHeader, mode: string): string {
  const bits = (mode === 'xts' ? luks.keyBytes / 2 : luks.keyBytes) * 8;
  return luks.cipherName === 'cast5' ? 'cast5-128' : `${luks.cipherName}-${String(bits)}`;
}
