import { alignUp } from '../core/align.ts';
import { SpindleError } from '../core/errors.ts';
import { readPadded } from '../core/read.ts';
import type { Storage } from '../core/storage.ts';
import { stopIfAborted, type Working } from '../core/working.ts';
import { DiskImage } from '../format/disk-image.ts';
import { createQcow2 } from '../format/qcow2/create.ts';
import { readMetadata } from '../format/qcow2/metadata.ts';
import { Qcow2WriteDriver } from '../format/qcow2/write/driver.ts';
import { openImage } from '../format/open.ts';
import type { Image } from '../format/image.ts';
import { nodeCodec } from '../native/codec.ts';
import { nodeCrypto } from '../native/crypto.ts';
import { MemoryStorage } from '../storage/memory.ts';
import { CHUNK } from './copy/chunks.ts';
import { CopyJob } from './copy/copy.ts';
import { layOut, type Piece } from './copy/layout.ts';
import { imageSource, joinedSource, type Run, type SourceDisk } from './copy/source.ts';
import type { ConvertOptions, ConvertSource, NewTarget } from './convert.ts';
import { createFilled, decide, type Created, type CreateRequest } from './create.ts';
import { openImageFile } from './open.ts';

/** The image that a stream is. */
export type StreamTarget = Pick<NewTarget, 'format' | 'qcow2' | 'backing'>;

/**
 * The disks of one or more images, one after the other, as the bytes of a raw or qcow2 image, in order: for a pipe. In
 * one pass and without a file between: the tables of a qcow2 image are laid out beforehand, from what the sources say of
 * holes and zeroes. The same sources and options make the same bytes.
 * @throws SpindleError UNSUPPORTED (what cannot be laid out beforehand), and as {@link convert}
 */
export async function* convertToStream(
  sources: readonly ConvertSource[],
  target: StreamTarget,
  working: Working = {},
): AsyncGenerator<Uint8Array> {
  const images: Image[] = [];
  try {
    for (const source of sources) images.push(await openImageFile(source.path, { ...source, steady: true }));
    const disk = joinedSource(images.map((image) => imageSource(image, target.backing !== undefined)));
    const made = await decide({ path: '-', ...target, size: alignUp(disk.size, 512) });
    if (made.format === 'raw') yield* rawBytes(disk, made.size, working);
    else if (made.qcow2 === null || made.qcow2.dataFile !== null || made.preallocation !== 'off')
      throw new SpindleError('UNSUPPORTED', `such an image cannot be written to a pipe without a spool file`);
    else yield* qcow2Bytes(disk, made, working);
  } finally {
    await Promise.all(images.map((image) => image.close()));
  }
}

async function* rawBytes(
  disk: SourceDisk,
  size: number,
  { signal, onProgress }: Working,
): AsyncGenerator<Uint8Array> {
  const zeroes = new Uint8Array(CHUNK);
  const bytesOf = async function* ({ at, length, kind }: Run): AsyncGenerator<Uint8Array> {
    for (let done = 0; done < length;) {
      stopIfAborted(signal);
      const part = Math.min(CHUNK, length - done);
      if (kind === 'zero') yield zeroes.subarray(0, part);
      else {
        const bytes = new Uint8Array(part);
        await disk.read(bytes, at + done);
        yield bytes;
      }
      done += part;
      onProgress?.(at + done, size);
    }
  };
  for await (const runs of disk.runs()) for (const run of runs) yield* bytesOf(run);
  if (size > disk.size) yield zeroes.subarray(0, size - disk.size);
}

async function* qcow2Bytes(disk: SourceDisk, made: Created, working: Working): AsyncGenerator<Uint8Array> {
  if (made.qcow2 === null) throw new TypeError('not a qcow2 image');
  const tables = new MemoryStorage();
  await createQcow2(tables, made.qcow2);
  const metadata = await readMetadata(tables, 'data');
  // Opened without its backing file: new clusters hold whole units of the disk, so nothing is read from below.
  const options = { backed: made.qcow2.backing !== null, plain: undefined };
  const driver = await Qcow2WriteDriver.open(tables, metadata, null, nodeCodec, options);
  const image = new DiskImage(driver, tables, null);
  const pieces = await layOut(disk, image, working.signal);
  await driver.close();
  yield* sequence(tables, pieces, disk, working);
}

/** The file that `tables` and the pieces of `disk` are together. */
async function* sequence(
  tables: Storage,
  pieces: readonly Piece[],
  disk: SourceDisk,
  { signal, onProgress }: Working,
): AsyncGenerator<Uint8Array> {
  const end = Math.max(tables.size, ...pieces.slice(-1).map(({ host, length }) => host + length));
  const last: Piece = { host: end, at: 0, length: 0 };
  let at = 0;
  for (const piece of [...pieces, last]) {
    for (; at < piece.host; at += Math.min(CHUNK, piece.host - at)) {
      stopIfAborted(signal);
      const bytes = new Uint8Array(Math.min(CHUNK, piece.host - at));
      await readPadded(tables, bytes, at);
      yield bytes;
    }
    for (let done = 0; done < piece.length;) {
      stopIfAborted(signal);
      const bytes = new Uint8Array(Math.min(CHUNK, piece.length - done));
      await disk.read(bytes, piece.at + done);
      yield bytes;
      done += bytes.length;
    }
    at = piece.host + piece.length;
    onProgress?.(at, end);
  }
}

/** Bytes of the disk that a stream of unknown length is given first; it doubles when they do not suffice. */
const FIRST_SIZE = 1024 ** 4;

/**
 * Makes an image of a disk whose bytes come in order and without a length known beforehand, as from a pipe; the result is
 * the size of the disk, which is rounded up to whole sectors.
 * @throws SpindleError as {@link convert}
 */
export async function convertFromStream(
  stream: AsyncIterable<Uint8Array>,
  target: NewTarget,
  options: ConvertOptions = {},
): Promise<{ readonly size: number }> {
  const { allocation, lasting, direct, existing: _, ...request } = target;
  const thick = (allocation ?? 'thin') !== 'thin' || (target.preallocation ?? 'off') !== 'off';
  if (thick)
    throw new SpindleError('BAD_OPTION', 'a stream of unknown length makes a thin image', {
      path: target.path,
    });
  const raw = (target.format ?? 'raw') === 'raw';
  const first: CreateRequest = { ...request, size: raw ? 0 : firstSize(target), signal: options.signal };
  let size = 0;
  await createFilled(first, {
    lasting,
    direct,
    fill: async (storage, dataFile, made) => {
      const image = await openImage(storage, {
        format: made.format,
        codec: nodeCodec,
        crypto: nodeCrypto,
        secret: request.encryption?.secret,
        write: true,
        name: request.path,
        ...(dataFile === null
          ? {}
          : { gate: ({ name }) => Promise.resolve({ storage: dataFile, name, id: dataFile.identity }) }),
      });
      try {
        if (!(image instanceof DiskImage)) throw new TypeError('an image that was opened is a DiskImage');
        size = await pour(stream, image, storage, options);
        await image.flush();
      } finally {
        await image.close();
      }
    },
  });
  return { size };
}

/** What one cluster of L1 entries can map, within reason: it need not grow, and the rest is given back. */
function firstSize({ qcow2 }: NewTarget): number {
  const cluster = qcow2?.clusterSize ?? 65_536;
  return Math.min(FIRST_SIZE, cluster * (cluster / 8) * (cluster / 8));
}

async function pour(
  stream: AsyncIterable<Uint8Array>,
  image: DiskImage,
  storage: Storage,
  options: ConvertOptions,
): Promise<number> {
  const raw = image.format === 'raw';
  const { compress, signal, rate } = options;
  const job = new CopyJob(null, image, {
    compress,
    signal,
    rate,
    blank: !raw || storage.can.resize,
    sparse: options.sparse ?? 4096,
  });
  let at = 0;
  let total = 0;
  for await (const bytes of inChunks(stream, signal)) {
    // Only whole clusters are compressed; what the last one has past the end of the disk is cut off below.
    const end = alignUp(at + bytes.length, compress === true ? image.driver.granularity : 512);
    total = alignUp(at + bytes.length, 512);
    if (end > image.size) await image.resize(raw ? end : Math.max(end, image.size * 2));
    const whole = new Uint8Array(end - at);
    whole.set(bytes);
    await job.writeData(bytes.length === whole.length ? bytes : whole, at);
    at = end;
    options.onProgress?.(at, at + CHUNK);
  }
  if (image.size !== total && storage.can.resize) await image.resize(total);
  options.onProgress?.(total, total);
  return total;
}

/** The bytes of a stream in pieces of {@link CHUNK}, the last one shorter. */
async function* inChunks(
  stream: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  let chunk = new Uint8Array(CHUNK);
  let filled = 0;
  for await (const bytes of stream) {
    stopIfAborted(signal);
    for (let done = 0; done < bytes.length;) {
      const part = bytes.subarray(done, done + CHUNK - filled);
      chunk.set(part, filled);
      filled += part.length;
      done += part.length;
      if (filled < CHUNK) continue;
      yield chunk;
      chunk = new Uint8Array(CHUNK);
      filled = 0;
    }
  }
  if (filled > 0) yield chunk.subarray(0, filled);
}
