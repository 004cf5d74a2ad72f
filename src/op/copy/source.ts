import { alignDown } from '../../core/align.ts';
import type { Packing } from '../../core/codec.ts';
import { readPadded } from '../../core/read.ts';
import type { Storage } from '../../core/storage.ts';
import type { Streams } from '../../format/driver.ts';
import type { Image } from '../../format/image.ts';
import { blockStatus, layerStatus } from '../../format/status.ts';
import { native } from '../../native/binding.ts';
import { FileStorage } from '../../storage/file.ts';

/** A run of the disk to be copied. Bytes. */
export interface Run {
  readonly at: number;
  readonly length: number;
  /** `absent`: not in the top layer, so that the backing file of an overlay shows through. Only where that was asked. */
  readonly kind: 'data' | 'zero' | 'absent';
  /** Where the plain bytes of the run are; null where only reading the disk gives them. */
  readonly host: { readonly storage: Storage; readonly at: number } | null;
  /** Where the compressed cluster is that the run is, or is a part of. */
  readonly packed?: PackedRun | undefined;
}

/** A compressed cluster in a storage. Bytes. */
export interface PackedRun {
  readonly storage: Storage;
  readonly packing: Packing;
  /** The sectors that its stream lies in. */
  readonly at: number;
  readonly length: number;
  /** Of the cluster, before the run. */
  readonly first: number;
}

/** A disk to copy from. Offsets and lengths are bytes. */
export interface SourceDisk {
  readonly size: number;
  /** Fills `into` from `at`. */
  read(into: Uint8Array, at: number): Promise<void>;
  /** The runs of the disk in ascending order, without gaps, many at a time. Neighbours may be of one kind. */
  runs(): AsyncGenerator<readonly Run[]>;
}

/** The disk of an image with all that it is backed by; with `topOnly`, the runs tell what its top layer holds. */
export function imageSource(image: Image, topOnly = false): SourceDisk {
  return {
    size: image.size,
    read: (into, at) => image.read(into, at),
    runs: () => imageRuns(image, topOnly),
  };
}

/** `length` bytes of the disk of an image from `start` on, which it must have. */
export function imagePart(image: Image, start: number, length: number): SourceDisk {
  return {
    size: length,
    read: (into, at) => image.read(into, start + at),
    async *runs() {
      for await (const runs of imageRuns(image, false, start, start + length)) yield shifted(runs, -start);
    },
  };
}

/** Runs of data that the kernel is asked for at once. */
const AT_ONCE = 4096;

/** Runs that are given at once. */
const LIST = 512;

async function* imageRuns(
  image: Image,
  topOnly: boolean,
  start = 0,
  end = image.size,
): AsyncGenerator<readonly Run[]> {
  const { data } = image.driver;
  if (image.format === 'raw' && image.backing === null && data instanceof FileStorage && data.can.extents) {
    yield* fileRuns(image, data, start, end);
    return;
  }
  const ask = topOnly ? layerStatus : blockStatus;
  let list: Run[] = [];
  for (let at = start; at < end;) {
    if (list.length >= LIST) {
      yield list;
      list = [];
    }
    const answer = ask(image, at, end - at);
    const { length, zero, data, host, layer, compressed } = answer instanceof Promise ? await answer : answer;
    const streams = compressed ? layer.driver.streams : undefined;
    if (streams !== undefined) {
      await addPacked(list, streams, at, length);
      at += length;
      continue;
    }
    const kind = zero ? 'zero' : data ? 'data' : 'absent';
    // What is reserved in a qcow2 image may hold anything; a hole of a raw one is what it reads as.
    const readable = kind === 'data' || (kind === 'zero' && layer.format === 'raw');
    list.push({ at, length, kind, host: readable ? host : null });
    at += length;
  }
  yield list;
}

/** Adds the compressed clusters of a range, one by one. */
async function addPacked(list: Run[], streams: Streams, start: number, length: number): Promise<void> {
  const { packing, storage } = streams;
  const { clusterSize } = packing;
  for (let at = start; at < start + length;) {
    const cluster = alignDown(at, clusterSize);
    const answer = streams.place(cluster);
    const place = answer instanceof Promise ? await answer : answer;
    const packed = { packing, storage, at: place.offset, length: place.length, first: at - cluster };
    const end = Math.min(cluster + clusterSize, start + length);
    list.push({ at, length: end - at, kind: 'data', host: null, packed });
    at = end;
  }
}

/** Disks one after the other, each with its size. */
export function joinedSource(parts: readonly SourceDisk[]): SourceDisk {
  const [only, ...others] = parts;
  if (only !== undefined && others.length === 0) return only;
  const placed: { readonly start: number; readonly disk: SourceDisk }[] = [];
  let size = 0;
  for (const disk of parts) {
    placed.push({ start: size, disk });
    size += disk.size;
  }
  return {
    size,
    async read(into, at) {
      for (const { start, disk } of placed) {
        const from = Math.max(at, start);
        const end = Math.min(at + into.length, start + disk.size);
        if (from < end) await disk.read(into.subarray(from - at, end - at), from - start);
      }
    },
    async *runs() {
      for (const { start, disk } of placed) {
        for await (const runs of disk.runs()) yield shifted(runs, start);
      }
    },
  };
}

/** A disk of another size: cut, or with zeroes behind it. */
export function sizedSource(disk: SourceDisk, size: number): SourceDisk {
  if (size === disk.size) return disk;
  return {
    size,
    read: (into, at) => readPadded(disk as unknown as Storage, into, at),
    async *runs() {
      for await (const runs of disk.runs()) {
        const within = runs.filter(({ at }) => at < size);
        yield within.map((run) => (run.at + run.length <= size ? run : { ...run, length: size - run.at }));
        if (within.length < runs.length) return;
      }
      if (size > disk.size) yield [{ at: disk.size, length: size - disk.size, kind: 'zero', host: null }];
    },
  };
}

function shifted(runs: readonly Run[], by: number): readonly Run[] {
  return by === 0 ? runs : runs.map((run) => ({ ...run, at: run.at + by }));
}

/** The runs of a raw image in a file: many for each question, since a file may be in very many pieces. */
async function* fileRuns(
  image: Image,
  file: FileStorage,
  start: number,
  end: number,
): AsyncGenerator<readonly Run[]> {
  // A raw image may begin somewhere in its file, and end with half a sector that the file does not have.
  const first = start < end ? await image.driver.map(start, 1) : null;
  const shift = first?.kind === 'data' ? first.at - start : 0;
  const host = (at: number): Run['host'] => ({ storage: file, at: at + shift });
  let at = start;
  while (at < end) {
    const there = Math.min(end, file.size - shift);
    const found = there > at ? await native().dataExtents(file.fd, at + shift, there - at, AT_ONCE) : [];
    const list: Run[] = [];
    for (let run = 0; run < found.length; run += 2) {
      const [from, to] = [(found[run] ?? 0) - shift, (found[run + 1] ?? 0) - shift];
      if (from > at) list.push({ at, length: from - at, kind: 'zero', host: host(at) });
      list.push({ at: from, length: to - from, kind: 'data', host: host(from) });
      at = to;
    }
    const last = found.length < AT_ONCE * 2;
    if (last && at < end) list.push({ at, length: end - at, kind: 'zero', host: host(at) });
    yield list;
    if (last) return;
  }
}
