import { printable } from '../core/errors.ts';
import { formatSize } from '../core/size.ts';
import { infoJson, type Json } from '../op/info-json.ts';
import { shownFileLength, type ImageInfo } from '../op/info.ts';
import { allocationLines } from './allocation-text.ts';
import { snapshotTable } from './snapshot-table.ts';

/** What is known of an image, for people: the lines of qemu-img, then how the disk lies on the host where known. */
export function infoText(image: ImageInfo): string {
  const line = (name: string, value: string | null): string[] =>
    value === null ? [] : [`${name}: ${printable(value)}`];
  const diskSize = image.actualSize === null ? 'unavailable' : formatSize(image.actualSize);
  const lines = [
    ...line('image', image.path),
    ...line('file format', image.format),
    ...line('virtual size', exactSize(image.virtualSize)),
    ...line('disk size', diskSize),
    ...line('encrypted', image.encrypted ? 'yes' : null),
    ...line('cluster_size', image.clusterSize === null ? null : String(image.clusterSize)),
    ...line('cleanly shut down', image.dirty ? 'no' : null),
    ...line('backing file', backing(image)),
    ...line('backing file format', image.backingName === null ? null : image.backingFormat),
    ...snapshotTable(image.snapshots),
    ...formatLines(image),
    "Child node '/file':",
    ...line('    filename', image.file),
    ...line('    protocol type', image.isDevice ? 'host_device' : 'file'),
    ...line('    file length', exactSize(shownFileLength(image))),
    ...line('    disk size', diskSize),
    ...(image.extentSizeHint === 0
      ? []
      : ['    Format specific information:', `        extent size hint: ${String(image.extentSizeHint)}`]),
    ...(image.allocation === null ? [] : allocationLines(image.allocation)),
  ];
  return lines.map((text) => `${text}\n`).join('');
}

/** `10 MiB (10485760 bytes)`. */
function exactSize(bytes: number): string {
  return `${formatSize(bytes)} (${String(bytes)} bytes)`;
}

function backing({ backingName, backingPath }: ImageInfo): string | null {
  if (backingName === null || backingPath === null || backingPath === backingName) return backingName;
  return `${backingName} (actual path: ${backingPath})`;
}

function formatLines(image: ImageInfo): string[] {
  const specific = infoJson(image)['format-specific'];
  if (specific === undefined || specific === null || typeof specific !== 'object' || Array.isArray(specific))
    return [];
  return ['Format specific information:', ...nested(specific['data'] ?? null, 1)];
}

/** The order in which qemu-img shows an encryption block and its key slots; scripts may rely on it. */
const ENCRYPT_ORDER = [
  ...[
    'ivgen-alg',
    'detached-header',
    'hash-alg',
    'cipher-alg',
    'uuid',
    'ivgen-hash-alg',
    'format',
    'cipher-mode',
  ],
  ...['slots', 'active', 'iters', 'key-offset', 'stripes', 'payload-offset', 'master-key-iters'],
];

/** A JSON value as an indented tree. */
function nested(value: Json, depth: number): string[] {
  if (value === null || typeof value !== 'object') return [];
  const indent = '    '.repeat(depth);
  const entries = Array.isArray(value)
    ? value.map((item, index) => [`[${String(index)}]`, item] as const)
    : inOrder(value).map(([key, item]) => [key.replaceAll('-', ' '), item] as const);
  return entries.flatMap(([key, item]) =>
    typeof item === 'object' && item !== null
      ? [`${indent}${key}:`, ...nested(item, depth + 1)]
      : [`${indent}${key}: ${printable(String(item))}`],
  );
}

function inOrder(value: { [key: string]: Json }): (readonly [string, Json])[] {
  const entries = Object.entries(value);
  if (!('payload-offset' in value) && !('key-offset' in value)) return entries;
  return entries.sort(([a], [b]) => ENCRYPT_ORDER.indexOf(a) - ENCRYPT_ORDER.indexOf(b));
}
