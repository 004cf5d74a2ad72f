import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readSync,
  statSync,
  type BigIntStats,
} from 'node:fs';
import { dirname, resolve } from 'node:path';
import { isSpindleError } from '../core/errors.ts';
import { formatOf } from '../format/open.ts';
import { decodeExtensions } from '../format/qcow2/extensions.ts';
import { decodeHeader } from '../format/qcow2/header.ts';
import { Compatible, CryptMethod, ExtensionMagic, Incompatible } from '../format/qcow2/layout.ts';
import { errnoOf } from '../storage/errno.ts';
import type { VolumeFacts } from './volume-definition.ts';

/*
 * What a file in a pool is, as quickly as it can be told: ten thousand of them are looked at for one command. One read
 * of the start, and one more for what looks raw; done at once, as turns of the thread pool would cost more than the reads.
 */

const FIRST = 4096;
/** Where an ISO 9660 image says so. */
const ISO_AT = 0x8001;

/** Magic numbers of formats that libvirt names, which spindle lists but does not open. */
const MAGICS: readonly (readonly [at: number, bytes: string, format: string])[] = [
  [0, 'QED\0', 'qed'],
  [0, 'KDMV', 'vmdk'],
  [0, 'COWD', 'vmdk'],
  [0, '# Disk DescriptorFile', 'vmdk'],
  [0, 'conectix', 'vpc'],
  [64, '\x7f\x10\xda\xbe', 'vdi'],
  [0, 'OOOM\0\0\0\x02', 'cow'],
  [0, 'QFI\xfb\0\0\0\x01', 'qcow'],
  [0, 'Bochs Virtual HD Image', 'bochs'],
  [0, '#!/bin/sh\n#V2.0 Format\nmodprobe cloop', 'cloop'],
  [0, 'WithoutFreeSpace', 'ploop'],
  [0, 'WithouFreSpacExt', 'ploop'],
];

/** Facts of what is at `path`; null for what cannot be a volume: FIFOs, sockets, dangling links, what may not be read. */
export function probeFile(path: string, name: string): VolumeFacts | null {
  let fd: number;
  try {
    // A FIFO would wait, a device could act on being opened: both are told first.
    const stats = statSync(path, { bigint: true });
    if (stats.isDirectory()) return directoryFacts(path, name, stats);
    if (!stats.isFile()) return null;
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch {
    return null;
  }
  try {
    const stats = fstatSync(fd, { bigint: true });
    return stats.isFile() ? { ...commonFacts(path, name, stats), ...formatFacts(fd, path, stats) } : null;
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return null;
  } finally {
    closeSync(fd);
  }
}

/** Whether a path is a symbolic link. */
export function isLink(path: string): boolean {
  try {
    return lstatSync(path).isSymbolicLink();
  } catch {
    return false;
  }
}

function commonFacts(
  path: string,
  name: string,
  stats: BigIntStats,
): Pick<VolumeFacts, 'name' | 'key' | 'path' | 'permissions' | 'timestamps'> {
  const seconds = (ns: bigint): string => {
    const rest = ns % 1_000_000_000n;
    const whole = (ns / 1_000_000_000n).toString();
    return rest === 0n ? whole : `${whole}.${rest.toString().padStart(9, '0')}`;
  };
  return {
    name,
    key: path,
    path,
    permissions: { mode: Number(stats.mode & 0o7777n), owner: Number(stats.uid), group: Number(stats.gid) },
    timestamps: {
      atime: seconds(stats.atimeNs),
      mtime: seconds(stats.mtimeNs),
      ctime: seconds(stats.ctimeNs),
      btime: seconds(stats.birthtimeNs),
    },
  };
}

function directoryFacts(path: string, name: string, stats: BigIntStats): VolumeFacts {
  return {
    ...commonFacts(path, name, stats),
    type: 'dir',
    capacity: 0,
    allocation: 0,
    physical: undefined,
    format: 'dir',
  };
}

type FormatFacts = Pick<
  VolumeFacts,
  | 'type'
  | 'capacity'
  | 'allocation'
  | 'physical'
  | 'format'
  | 'compat'
  | 'clusterSize'
  | 'features'
  | 'encrypted'
  | 'backing'
>;

function formatFacts(fd: number, path: string, stats: BigIntStats): FormatFacts {
  const length = Number(stats.size);
  const raw: FormatFacts = {
    type: 'file',
    capacity: length,
    allocation: Number(stats.blocks) * 512,
    physical: length,
    format: 'raw',
  };
  const bytes = readStart(fd, FIRST, 0);
  const format = formatOf(bytes);
  if (format === 'luks') return { ...raw, encrypted: true };
  if (format === 'qcow2') {
    try {
      return { ...raw, ...qcow2Facts(fd, bytes, path, length) };
    } catch (error) {
      // Damaged, or of a version to come: its disk cannot be told.
      if (!isSpindleError(error)) throw error;
      return { ...raw, format: 'qcow2' };
    }
  }
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');
  const known = MAGICS.find(([at, magic]) => text.startsWith(magic, at));
  if (known !== undefined) return { ...raw, format: known[2] };
  if (length > ISO_AT + 5 && Buffer.from(readStart(fd, 5, ISO_AT)).toString('latin1') === 'CD001')
    return { ...raw, format: 'iso' };
  return raw;
}

function readStart(fd: number, length: number, at: number): Uint8Array {
  const into = new Uint8Array(length);
  return into.subarray(0, readSync(fd, into, 0, length, at));
}

function qcow2Facts(fd: number, first: Uint8Array, path: string, length: number): Partial<FormatFacts> {
  const padded = first.length < FIRST ? Buffer.concat([first], FIRST) : first;
  const header = decodeHeader(padded, length);
  const clusterSize = 2 ** header.clusterBits;
  const { backingFileOffset: at, backingFileSize: size } = header;
  const features = [
    (header.compatible.lo & Compatible.LAZY_REFCOUNTS) === 0 ? [] : ['lazy_refcounts'],
    (header.incompatible.lo & Incompatible.EXTENDED_L2) === 0 ? [] : ['extended_l2'],
  ].flat();
  return {
    format: 'qcow2',
    capacity: header.size,
    clusterSize,
    ...(header.version === 2 ? {} : { compat: '1.1', features }),
    ...(header.cryptMethod === CryptMethod.NONE ? {} : { encrypted: true }),
    ...(at === 0 || size === 0
      ? {}
      : { backing: backingFacts(fd, padded, path, header.headerLength, at, size) }),
  };
}

function backingFacts(
  fd: number,
  first: Uint8Array,
  path: string,
  headerLength: number,
  at: number,
  size: number,
): NonNullable<VolumeFacts['backing']> {
  const name = Buffer.from(readStart(fd, size, at)).toString('utf8');
  const all = at <= first.length ? first : readStart(fd, at, 0);
  const found = decodeExtensions(all, headerLength, at)?.find(
    ({ magic }) => magic === ExtensionMagic.BACKING_FORMAT,
  );
  const format = found === undefined ? undefined : Buffer.from(found.data).toString('utf8');
  // A name with a protocol is no path, and stands for itself.
  const isPath = !/^[a-z][a-z0-9+.-]*:/i.test(name);
  return {
    path: isPath ? resolve(dirname(path), name) : name,
    format: format ?? (isPath ? undefined : 'raw'),
  };
}
