import { alignDown, alignUp } from '../../core/align.ts';
import type { Image } from '../../format/image.ts';
import { blockStatus, layerStatus, type BlockStatus } from '../../format/status.ts';
import { filePart, type FileParts, type Side } from '../compare/files.ts';
import { CHUNK } from '../copy/chunks.ts';

/** A range of the disk. Bytes. */
export interface Range {
  readonly at: number;
  readonly length: number;
}

/** A range that may read otherwise, and where its bytes are, if they lie in files as they are. */
export interface Suspect extends Range {
  readonly files: FileParts | null;
}

/**
 * The parts of a disk that its top layer leaves to what is below, and where that may read otherwise when `next` takes
 * the place of the present backing file. What is known to be the same is left out without reading it: zeroes here and
 * there, and data of the same layer or at the same place of the same file.
 */
export async function* suspects(image: Image, next: Image | null): AsyncGenerator<Suspect> {
  for (let at = 0; at < image.size;) {
    const { length, allocated } = await layerStatus(image, at, image.size - at);
    for (let done = allocated ? length : 0; done < length;) {
      const old = await statusBelow(image.backing, at + done, length - done);
      const other = await statusBelow(next, at + done, old.length);
      if (!surelySame(old, other)) {
        const [start, there] = [at + done, other.length];
        const [one, two] = [old, other].map(({ status }): Side => ({ start, status })) as [Side, Side];
        yield { at: start, length: there, files: filePart(one, two, start, there) };
      }
      done += other.length;
    }
    at += length;
  }
}

/** Null stands for zeroes, which are also what lies past the end of an image. */
interface Below {
  readonly length: number;
  readonly status: BlockStatus | null;
}

async function statusBelow(image: Image | null, at: number, length: number): Promise<Below> {
  if (image === null || at >= image.size) return { length, status: null };
  const status = await blockStatus(image, at, Math.min(length, image.size - at));
  return { length: status.length, status: status.zero ? null : status };
}

function surelySame({ status: a }: Below, { status: b }: Below): boolean {
  if (a === null || b === null) return a === b;
  if (
    a.host !== null &&
    b.host !== null &&
    a.host.at === b.host.at &&
    sameFile(a.host.storage, b.host.storage)
  )
    return true;
  return (
    a.layer.format === b.layer.format &&
    sameFile(a.layer.storage, b.layer.storage) &&
    sameFile(a.layer.driver.data, b.layer.driver.data)
  );
}

function sameFile(a: object, b: object): boolean {
  const [one, other] = [a, b].map((storage) => ('identity' in storage ? storage.identity : undefined));
  return typeof one === 'string' && one === other;
}

/** Widens ranges to whole units, joins them, and cuts them into pieces of at most {@link CHUNK} bytes. */
export async function* piecesOf(
  ranges: AsyncIterable<Range>,
  unit: number,
  size: number,
): AsyncGenerator<Range> {
  let [start, end] = [0, 0];
  for await (const { at, length } of ranges) {
    const from = alignDown(at, unit);
    if (from > end) {
      yield* cut(start, end);
      start = from;
    }
    end = Math.min(size, alignUp(at + length, unit));
    // Whole pieces need not wait for what follows them.
    const whole = alignDown(end, CHUNK);
    yield* cut(start, whole);
    start = Math.max(start, whole);
  }
  yield* cut(start, end);
}

function* cut(start: number, end: number): Generator<Range> {
  for (let at = start; at < end;) {
    const stop = Math.min(end, alignDown(at, CHUNK) + CHUNK);
    yield { at, length: stop - at };
    at = stop;
  }
}
