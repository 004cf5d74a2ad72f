import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import benny from 'benny';
import type { Image } from '../src/format/image.ts';
import { decodeHeader, encodeHeader } from '../src/format/qcow2/header.ts';
import { create } from '../src/op/create.ts';
import { info } from '../src/op/info.ts';
import { map } from '../src/op/map.ts';
import { openImageFile } from '../src/op/open.ts';

const KIB = 1024;
const MIB = 1024 ** 2;
const GIB = 1024 ** 3;
const CLUSTER = 64 * KIB;

/** Bytes that compress to about a third. */
const text = Uint8Array.from({ length: 2 * MIB }, (_, at) => 97 + ((at * at + (at >> 5)) % 23));

/** Single operations in process, one suite a subject and a case a state of clusters; operations a second with their spread. */
export async function runMicro(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'spindle-bench-'));
  try {
    const mapped = join(folder, 'mapped.qcow2');
    await create({ path: mapped, format: 'qcow2', size: GIB, preallocation: 'metadata' });
    await inspecting(mapped);
    await tables(mapped);
    await reading(folder);
    await writing(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function inspecting(mapped: string): Promise<void> {
  await suite('inspecting', {
    info: async () => {
      await info(mapped);
    },
    'open and close': async () => {
      await (await openImageFile(mapped)).close();
    },
  });
}

/** Decoding and encoding of what the format keeps. */
async function tables(mapped: string): Promise<void> {
  const file = await openImageFile(mapped, { format: 'raw' });
  const header = new Uint8Array(CLUSTER);
  await file.read(header, 0);
  const parsed = decodeHeader(header, file.size);
  const warm = await openImageFile(mapped);
  for await (const _ of map(warm)) continue;
  await suite('tables', {
    'header, decode': () => {
      decodeHeader(header, file.size);
    },
    'header, encode': () => {
      encodeHeader(parsed);
    },
    'map of 1 GiB, cold L2': async () => {
      const image = await openImageFile(mapped);
      for await (const _ of map(image)) continue;
      await image.close();
    },
    'map of 1 GiB, warm L2': async () => {
      for await (const _ of map(warm)) continue;
    },
    'new image, 1 GiB with all tables': async () => {
      await create({ path: `${mapped}.new`, format: 'qcow2', size: GIB, preallocation: 'metadata' });
    },
  });
  await warm.close();
  await file.close();
}

/** An image with data in every second cluster, `compressed` or not. */
async function filled(path: string, compression: 'zlib' | 'zstd' | null, backing?: string): Promise<string> {
  await create({
    path,
    format: 'qcow2',
    size: 64 * MIB,
    ...(compression === null ? {} : { qcow2: { compressionType: compression } }),
    ...(backing === undefined ? {} : { backing: { name: backing, format: 'qcow2' } }),
  });
  const image = await openImageFile(path, { write: true });
  for (let at = 0; at < image.size && backing === undefined; at += 2 * CLUSTER)
    if (compression === null) await image.write(text.subarray(0, CLUSTER), at);
    else await image.writeCompressed?.(text.subarray(0, CLUSTER), at);
  await image.close();
  return path;
}

async function reading(folder: string): Promise<void> {
  const path = await filled(join(folder, 'data.qcow2'), null);
  const open = new Map<string, Image>();
  const opened = async (name: string, from: string): Promise<Image> => {
    const image = await openImageFile(from);
    open.set(name, image);
    return image;
  };
  const data = await opened('data', path);
  const zlib = await opened('zlib', await filled(join(folder, 'zlib.qcow2'), 'zlib'));
  const zstd = await opened('zstd', await filled(join(folder, 'zstd.qcow2'), 'zstd'));
  const middle = await filled(join(folder, 'middle.qcow2'), null, path);
  const chain = await opened('chain', await filled(join(folder, 'top.qcow2'), null, middle));
  const [small, large] = [new Uint8Array(4 * KIB), new Uint8Array(MIB)];
  const next = steps(data.size);
  await suite('reading', {
    '4 KiB of data, cold L2': async () => {
      const image = await openImageFile(path);
      await image.read(small, 0);
      await image.close();
    },
    '4 KiB of data, warm L2': () => data.read(small, next()),
    '4 KiB that was never written': () => data.read(small, next() + CLUSTER),
    '4 KiB through a chain of three': () => chain.read(small, next()),
    '4 KiB of a zlib cluster that is kept': () => zlib.read(small, 0),
    '4 KiB of a zlib cluster, decoded': () => zlib.read(small, next()),
    '4 KiB of a zstd cluster that is kept': () => zstd.read(small, 0),
    '4 KiB of a zstd cluster, decoded': () => zstd.read(small, next()),
    '1 MiB over sixteen clusters': () => data.read(large, next() % (32 * MIB)),
  });
  for (const image of open.values()) await image.close();
}

/** Each on an image that is made anew when its disk has been used up. */
async function writing(folder: string): Promise<void> {
  const base = join(folder, 'data.qcow2');
  const [small, cluster] = [text.subarray(0, 4 * KIB), text.subarray(0, CLUSTER)];
  const thin = new Scratch(join(folder, 'thin.qcow2'));
  const cow = new Scratch(join(folder, 'cow.qcow2'), base);
  const zeroes = new Scratch(join(folder, 'zeroes.qcow2'));
  const packed = new Scratch(join(folder, 'packed.qcow2'));
  const whole = new Scratch(join(folder, 'whole.qcow2'));
  const data = await openImageFile(await filled(join(folder, 'written.qcow2'), null), { write: true });
  const next = steps(data.size);
  await suite('writing', {
    '4 KiB over data': () => data.write(small, next()),
    '4 KiB into a new cluster': () => thin.use((image, at) => image.write(small, at)),
    '4 KiB with copy-on-write from a backing file': () => cow.use((image, at) => image.write(small, at)),
    'a whole new cluster': () => whole.use((image, at) => image.write(cluster, at)),
    'a whole cluster, compressed': () =>
      packed.use(async (image, at) => image.writeCompressed?.(cluster, at)),
    'zeroes over a whole cluster': () => zeroes.use((image, at) => image.zero(at, CLUSTER)),
  });
  await Promise.all([data, thin, cow, zeroes, packed, whole].map((one) => one.close()));
}

/** An image of which every cluster is used once. */
class Scratch {
  readonly #path: string;
  readonly #backing: string | undefined;
  #image: Image | null = null;
  #at = 0;

  constructor(path: string, backing?: string) {
    this.#path = path;
    this.#backing = backing;
  }

  async use(work: (image: Image, at: number) => Promise<void>): Promise<void> {
    if (this.#image === null || this.#at >= this.#image.size) await this.#renew();
    const at = this.#at;
    this.#at += this.#backing === undefined ? CLUSTER : 2 * CLUSTER;
    if (this.#image !== null) await work(this.#image, at);
  }

  async #renew(): Promise<void> {
    await this.close();
    rmSync(this.#path, { force: true });
    const backing = this.#backing === undefined ? {} : { backing: { name: this.#backing, format: 'qcow2' } };
    const size = this.#backing === undefined ? 4 * GIB : 64 * MIB;
    await create({ path: this.#path, format: 'qcow2', size, ...backing });
    this.#image = await openImageFile(this.#path, { write: true });
    this.#at = 0;
  }

  async close(): Promise<void> {
    await this.#image?.close();
  }
}

/** Offsets of clusters with data, each far from the last. */
function steps(size: number): () => number {
  let at = 0;
  return () => {
    at = (at + 194 * CLUSTER) % size;
    return at;
  };
}

async function suite(
  name: string,
  cases: Readonly<Record<string, () => Promise<void> | void>>,
): Promise<void> {
  await benny.suite(
    name,
    ...Object.entries(cases).map(([title, work]) => benny.add(title, work)),
    benny.cycle(),
    benny.complete(),
  );
}
