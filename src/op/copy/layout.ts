import type { DiskImage } from '../../format/disk-image.ts';
import { chunksOf, CHUNK } from './chunks.ts';
import type { SourceDisk } from './source.ts';

/** Plain bytes of the disk that an image holds at an offset of its file. Bytes. */
export interface Piece {
  readonly host: number;
  readonly at: number;
  readonly length: number;
}

/**
 * Lays out the data of `source` in the new, blank image `target`, without reading it but for a last part of a unit:
 * afterwards the storage of `target` holds all tables, and the pieces, in the order of the file, say which part of the
 * disk belongs where. What is known to be zero is left out; zeroes inside data are not looked for.
 */
export async function layOut(
  source: SourceDisk,
  target: DiskImage,
  signal?: AbortSignal,
): Promise<readonly Piece[]> {
  const unit = target.driver.granularity;
  const pieces: Piece[] = [];
  const place = async (at: number, length: number): Promise<void> => {
    for (let done = 0; done < length;) {
      const start = at + done;
      const placed = await target.fillFrom(start, length - done, (_storage, host, part) => {
        pieces.push({ host, at: start, length: part });
        return Promise.resolve(true);
      });
      if (placed === 0) {
        const bytes = new Uint8Array(Math.min(CHUNK, length - done));
        await source.read(bytes, start);
        await target.write(bytes, start);
        done += bytes.length;
      } else done += placed;
    }
  };
  const units = { unit, size: source.size, absent: true };
  for await (const chunks of chunksOf(source.runs(), units, null, signal))
    for (const { at, length, kind } of chunks) if (kind === 'data') await place(at, length);
  return pieces.sort((a, b) => a.host - b.host);
}
