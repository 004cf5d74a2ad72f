import { isSpindleError, SpindleError } from '../../src/core/errors.ts';
import { checkRange, ReadOnlyStorage } from '../../src/core/storage.ts';
import type { Codec } from '../../src/core/codec.ts';
import type { Gate } from '../../src/format/gate.ts';
import type { Image } from '../../src/format/image.ts';
import { openImage } from '../../src/format/open.ts';
import { checkImage } from '../../src/format/qcow2/check/check.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { map } from '../../src/op/map.ts';
import type { Random } from '../tool/random.ts';

/** Bytes in memory, read-only and without copying. */
export class BytesStorage extends ReadOnlyStorage {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    super();
    this.#bytes = bytes;
  }

  get size(): number {
    return this.#bytes.length;
  }

  read(into: Uint8Array, at: number): Promise<void> {
    try {
      checkRange(this.size, at, into.length);
      into.set(this.#bytes.subarray(at, at + into.length));
      return Promise.resolve();
    } catch (error) {
      return Promise.reject(error);
    }
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Map entries and guest bytes that one case looks at, at most. */
const MAX_RUNS = 2000;
const MAX_READ = 256 * 1024;

/** Everything that can be done with an image by reading. Codes of the refusals are counted in `codes`. */
export async function exercise(
  bytes: Uint8Array,
  files: ReadonlyMap<string, Uint8Array>,
  codec: Codec,
  random: Random,
  codes: Map<string, number>,
): Promise<void> {
  const gate: Gate = ({ name, kind }) => {
    const found = files.get(name);
    if (found === undefined) {
      const code = kind === 'backing file' ? 'BACKING_NOT_FOUND' : 'DATA_FILE_NOT_FOUND';
      return Promise.reject(new SpindleError(code, name));
    }
    return Promise.resolve({ storage: new BytesStorage(found), name, id: name });
  };
  const attempt = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work();
      codes.set('ok', (codes.get('ok') ?? 0) + 1);
    } catch (error) {
      if (!isSpindleError(error)) throw error;
      codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
    }
  };
  await attempt(async () => {
    await readMetadata(new BytesStorage(bytes), 'info');
  });
  await attempt(async () => {
    const storage = new BytesStorage(bytes);
    await checkImage(storage, await readMetadata(storage, 'check'));
  });
  let snapshots: readonly { id: string }[] = [];
  await attempt(async () => {
    snapshots = (await readMetadata(new BytesStorage(bytes), 'data')).snapshots.slice(0, 3);
  });
  for (const snapshot of [undefined, ...snapshots.map(({ id }) => id)]) {
    await attempt(async () => {
      const image = await openImage(new BytesStorage(bytes), { format: 'qcow2', codec, gate, snapshot });
      try {
        await attempt(() => readSome(image, random));
        await attempt(async () => {
          let runs = 0;
          for await (const _ of map(image)) if (++runs >= MAX_RUNS) break;
        });
      } finally {
        await image.close();
      }
    });
  }
}

async function readSome(image: Image, random: Random): Promise<void> {
  const buffer = new Uint8Array(MAX_READ);
  const places = [0, random.below(Math.max(1, image.size)), Math.max(0, image.size - MAX_READ)];
  for (const at of places) {
    await image.read(buffer.subarray(0, Math.min(MAX_READ, image.size - at)), at);
  }
}
