/** Images for the differential test of check: of all kinds, made by the judges, and damaged at random. */
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { qemuImg, qemuIo } from '../../tool/qemu.ts';
import type { Random } from '../../tool/random.ts';

/** What an image is made of. */
export interface Style {
  readonly name: string;
  readonly cluster: number;
  readonly bits: number;
  readonly v2?: boolean;
  readonly extended?: boolean;
  readonly compressed?: boolean;
  readonly snapshots?: number;
  readonly bitmaps?: boolean;
  readonly luks?: boolean;
  readonly backing?: boolean;
  readonly dataFile?: boolean;
}

function style(cluster: number, bits: number, more: Omit<Style, 'name' | 'cluster' | 'bits'> = {}): Style {
  const traits = Object.entries(more).map(([key, value]) =>
    value === true ? key : `${key} ${String(value)}`,
  );
  return {
    name: [`${String(cluster)}-byte clusters`, `${String(bits)}-bit refcounts`, ...traits].join(', '),
    cluster,
    bits,
    ...more,
  };
}

/** The grid: each cluster size, each refcount width, and each feature, alone and with others. */
export const STYLES: readonly Style[] = [
  style(512, 16),
  style(512, 1, { compressed: true }),
  style(512, 2, { snapshots: 2, backing: true }),
  style(512, 64, { snapshots: 1, compressed: true }),
  style(512, 16, { v2: true, snapshots: 2 }),
  style(512, 8, { bitmaps: true, snapshots: 1 }),
  style(4096, 1),
  style(4096, 2, { compressed: true }),
  style(4096, 4, { compressed: true, snapshots: 2 }),
  style(4096, 8, { backing: true, snapshots: 1 }),
  style(4096, 16, { compressed: true, bitmaps: true, snapshots: 2, backing: true }),
  style(4096, 32, { luks: true, snapshots: 1 }),
  style(4096, 64, { bitmaps: true }),
  style(4096, 16, { v2: true, compressed: true, snapshots: 1, backing: true }),
  style(4096, 16, { dataFile: true, bitmaps: true }),
  style(16_384, 16, { extended: true, compressed: true, snapshots: 1 }),
  style(16_384, 1, { extended: true, backing: true }),
  style(16_384, 16, { extended: true, dataFile: true }),
  style(65_536, 16, { compressed: true, snapshots: 2, bitmaps: true }),
  style(65_536, 1),
  style(65_536, 32, { extended: true, luks: true }),
  style(65_536, 16, { v2: true }),
  style(2_097_152, 16, { snapshots: 1 }),
  style(2_097_152, 64, { extended: true, compressed: true }),
];

/** An image and where its tables are, as it was made. */
export interface CheckedImage {
  readonly path: string;
  /** Arguments that name it to qemu. */
  readonly source: readonly string[];
  readonly bytes: Buffer;
  readonly entrySize: number;
  readonly clusterSize: number;
  /** Host offsets of entries in bytes. */
  readonly l1: readonly number[];
  readonly l2: readonly number[];
  readonly refcountTable: readonly number[];
  readonly refcountBlocks: readonly number[];
}

/** Makes an image of that style with random content. */
export async function makeImage(
  folder: string,
  name: string,
  style: Style,
  random: Random,
): Promise<CheckedImage> {
  const path = join(folder, `${name}.qcow2`);
  const size = Math.max(style.cluster * random.between(100, 200), 131_072);
  const limit = Math.min(size, 16 << 20);
  const virtual = style.cluster === 2_097_152 ? limit : size;
  const options = [`cluster_size=${String(style.cluster)}`];
  if (style.v2 === true) options.push('compat=0.10');
  else options.push(`refcount_bits=${String(style.bits)}`);
  if (style.extended === true) options.push('extended_l2=on');
  if (style.dataFile === true) options.push(`data_file=${join(folder, `${name}.img`)}`);
  const secret: string[] = [];
  if (style.luks === true) {
    secret.push('--object', 'secret,id=s,data=spindle');
    options.push('encrypt.format=luks', 'encrypt.key-secret=s', 'encrypt.iter-time=10');
  }
  const backing: string[] = [];
  if (style.backing === true) {
    const base = join(folder, `${name}.raw`);
    await writeFile(base, random.bytes(Math.floor(virtual / 2)));
    backing.push('-b', base, '-F', 'raw');
  }
  await qemuImg([
    'create',
    '-q',
    ...secret,
    '-f',
    'qcow2',
    '-o',
    options.join(','),
    ...backing,
    path,
    String(virtual),
  ]);
  if (style.bitmaps === true) {
    await qemuImg(['bitmap', '--add', '-g', '4k', path, 'one']);
    await qemuImg(['bitmap', '--add', '-g', '64k', '--disable', path, 'two']);
  }
  const image =
    style.luks === true
      ? [
          ...secret,
          '--image-opts',
          `driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=${path}`,
        ]
      : ['-f', 'qcow2', path];
  // qemu-img snapshot takes a bare path only where it needs no secret. It fails where refcounts are too narrow.
  const named = style.luks === true ? image : [path];
  for (let layer = 0; layer <= (style.snapshots ?? 0); layer++) {
    if (layer > 0) await qemuImg(['snapshot', '-c', `layer ${String(layer)}`, ...named], { expect: 'any' });
    const commands = Array.from({ length: 12 }, () => command(style, virtual, random));
    await qemuIo([...commands.flatMap((one) => ['-c', one]), ...image], { expect: 'any' });
  }
  return locate(path, image);
}

function command(style: Style, size: number, random: Random): string {
  const clusters = Math.floor(size / style.cluster);
  const first = random.below(clusters);
  const count = Math.min(random.between(1, 8), clusters - first);
  const range = `${String(first * style.cluster)} ${String(count * style.cluster)}`;
  const small = `${String(first * style.cluster + random.below(style.cluster))} 512`;
  const pattern = String(random.between(1, 255));
  const kind = random.below(10);
  if (style.compressed === true && kind < 5) {
    return `write -c -P ${pattern} ${String(first * style.cluster)} ${String(style.cluster)}`;
  }
  if (kind < 5) return `write -P ${pattern} ${range}`;
  if (kind < 6) return `write -P ${pattern} ${small}`;
  if (kind < 7) return `write -z ${range}`;
  if (kind < 8) return `write -z -u ${range}`;
  if (kind < 9) return `discard ${range}`;
  return `write -z ${small}`;
}

const OFFSET = 0x00ff_ffff_ffff_fe00n;

/** Finds the tables of a sound image. BigInt on purpose: this is an oracle of its own. */
function locate(path: string, source: readonly string[]): CheckedImage {
  const bytes = readFileSync(path);
  const u64 = (at: number): bigint => (at + 8 <= bytes.length ? bytes.readBigUInt64BE(at) : 0n);
  const entries = (at: number, count: number): number[] =>
    Array.from({ length: count }, (_, i) => at + i * 8).filter((one) => one + 8 <= bytes.length);
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  const isV3 = bytes.readUInt32BE(4) === 3;
  const entrySize = isV3 && (bytes.readUInt32BE(76) & 16) !== 0 ? 16 : 8;
  const l1 = entries(Number(u64(40)), bytes.readUInt32BE(36));
  let at = Number(u64(64));
  for (let i = 0; i < bytes.readUInt32BE(60); i++) {
    l1.push(...entries(Number(u64(at)), bytes.readUInt32BE(at + 8)));
    at += 40 + bytes.readUInt32BE(at + 36) + bytes.readUInt16BE(at + 12) + bytes.readUInt16BE(at + 14);
    at = Math.ceil(at / 8) * 8;
  }
  const tables = new Set(l1.map((one) => Number(u64(one) & OFFSET)).filter((offset) => offset !== 0));
  const l2 = [...tables].flatMap((table) => {
    const all = Array.from({ length: clusterSize / entrySize }, (_, i) => table + i * entrySize);
    const used = all.filter((one) => one + entrySize <= bytes.length && u64(one) !== 0n);
    return [...used, ...all.slice(0, Math.ceil(used.length / 4) + 1)].filter(
      (one) => one + entrySize <= bytes.length,
    );
  });
  const refcountTable = entries(Number(u64(48)), (bytes.readUInt32BE(56) * clusterSize) / 8);
  return {
    path,
    source,
    bytes,
    entrySize,
    clusterSize,
    l1,
    l2,
    refcountTable: refcountTable.slice(0, 64),
    refcountBlocks: refcountTable.map((one) => Number(u64(one))).filter((offset) => offset !== 0),
  };
}

/** One change to an image: bytes as they were, and where. */
export interface Change {
  readonly at: number;
  readonly before: Buffer;
  readonly what: string;
}

/** Damages an image in one to three places. */
export function mutate(image: CheckedImage, random: Random): Change[] {
  const changes: Change[] = [];
  const fd = openSync(image.path, 'r+');
  try {
    for (let count = random.pick([1, 1, 1, 2, 3]); count > 0; count--) {
      const [what, at, value] = damage(image, random);
      if (at + value.length > image.bytes.length) continue;
      changes.push({ at, before: image.bytes.subarray(at, at + value.length), what });
      writeSync(fd, value, 0, value.length, at);
    }
  } finally {
    closeSync(fd);
  }
  return changes;
}

/** Undoes {@link mutate}. */
export function restore(image: CheckedImage, changes: readonly Change[]): void {
  const fd = openSync(image.path, 'r+');
  try {
    for (const { at, before } of changes) writeSync(fd, before, 0, before.length, at);
  } finally {
    closeSync(fd);
  }
}

function damage(image: CheckedImage, random: Random): [what: string, at: number, value: Buffer] {
  const kind = random.below(10);
  if (kind < 3) {
    // The refcounts of clusters that exist stand at the beginning of the blocks.
    const used = Math.min(image.clusterSize, Math.ceil(image.bytes.length / image.clusterSize) * 2 + 8);
    const at = random.pick(image.refcountBlocks) + random.below(used);
    const value = Buffer.from([random.pick([0, 1, 2, 3, 255, random.below(256)])]);
    return [`refcount byte at ${String(at)} := ${value.toString('hex')}`, at, value];
  }
  if (kind < 4) return entryDamage('refcount table', random.pick(image.refcountTable), image, random);
  if (kind < 6) return entryDamage('L1', random.pick(image.l1), image, random);
  const at = random.pick(image.l2);
  if (image.entrySize === 16 && random.chance(0.3)) return entryDamage('L2 bitmap', at + 8, image, random);
  return entryDamage('L2', at, image, random);
}

function entryDamage(
  name: string,
  at: number,
  image: CheckedImage,
  random: Random,
): [what: string, at: number, value: Buffer] {
  const value = Buffer.alloc(8);
  if (at + 8 <= image.bytes.length) image.bytes.copy(value, 0, at, at + 8);
  const clusters = Math.ceil(image.bytes.length / image.clusterSize) + 2;
  const flags = value.readBigUInt64BE(0) & ~OFFSET;
  switch (random.below(9)) {
    case 0:
      value.fill(0);
      break;
    case 1: // any bit
      value.writeBigUInt64BE(value.readBigUInt64BE(0) ^ (1n << BigInt(random.below(64))));
      break;
    case 2: // the copied flag
      value.writeBigUInt64BE(value.readBigUInt64BE(0) ^ (1n << 63n));
      break;
    case 3: // another cluster
    case 4:
      value.writeBigUInt64BE(flags | BigInt(random.below(clusters) * image.clusterSize));
      break;
    case 5: // a place that is not aligned
      value.writeBigUInt64BE(
        flags | BigInt(random.below(clusters) * image.clusterSize + 512 * random.below(8)),
      );
      break;
    case 6: // another entry
      image.bytes.copy(value, 0, random.pick(image.l2));
      break;
    case 7: // flags alone
      value.writeBigUInt64BE(value.readBigUInt64BE(0) ^ (1n << BigInt(random.pick([0, 61, 62, 63]))));
      break;
    default:
      value.set(random.bytes(8));
  }
  return [`${name} entry at ${String(at)} := ${value.toString('hex')}`, at, value];
}
