import { SpindleError } from '../../core/errors.ts';
import type { Image } from '../../format/image.ts';
import { noise } from '../../native/workload.ts';
import { memoryFor } from '../../op/bench.ts';
import { openImageFile } from '../../op/open.ts';
import { errnoOf } from '../../storage/errno.ts';
import { seedOf } from '../random.ts';

/** Bytes that are written at once, and of which all or nothing of a 4 KiB block is expected after a failure. */
export const UNIT = 65536;
const BLOCK = 4096;

/** What failed, as a guest or a caller of the library sees it. */
export interface Failure {
  readonly request: 'create' | 'open' | 'write' | 'flush' | 'close';
  readonly code: string;
  /** Name of the error number below it; null: none is known. */
  readonly errno: string | null;
  readonly message: string;
}

/** Units that were written, and those of them that do not show what they must. */
export interface Kept {
  readonly units: number;
  readonly lost: number;
}

/** What stands before the name of a volume in messages: of no use when the drill is over. */
const NAMES = /\S*\/drill\/(?=\S)/g;

/** The failure in an error. What is none of a host or an image is thrown on. */
export function failureOf(request: Failure['request'], error: unknown): Failure {
  if (!(error instanceof SpindleError) || error.code === 'ABORTED') throw error;
  return {
    ...{ request, code: error.code, errno: errnoIn(error) },
    message: error.message.replaceAll(NAMES, ''),
  };
}

/** The error number that is at the bottom of an error. */
function errnoIn(error: unknown): string | null {
  if (!(error instanceof Error)) return null;
  const own = errnoOf(error);
  const told = /\((E[A-Z0-9]+), errno \d+\)/.exec(error.message)?.[1];
  return errnoIn(error.cause) ?? told ?? (own !== undefined && /^E[A-Z0-9]+$/.test(own) ? own : null);
}

/** A volume that knows what was written to it and must be there. */
export class Volume {
  readonly path: string;
  readonly format: string;
  /** The first failure of a first write; it is not asked again until there is room. */
  failed: { readonly unit: number; readonly failure: Failure } | undefined;
  readonly #seed: number;
  readonly #direct: boolean;
  /** Versions that each block of a unit may show; 0: zeroes. What is not here was never written. */
  readonly #shows = new Map<number, readonly number[]>();
  readonly #unsure = new Map<number, readonly number[]>();
  #image: Image | undefined;
  #memory: Uint8Array | undefined;

  constructor(path: string, format: string, { folder, seed, direct }: Where) {
    this.path = path;
    this.format = format;
    this.#seed = seedOf(seed, path.slice(folder.length));
    this.#direct = direct;
  }

  async open(): Promise<Failure | null> {
    return this.#try('open', async () => {
      const { path, format } = this;
      this.#image = await openImageFile(path, { format, write: true, direct: this.#direct });
      this.#memory = memoryFor(this.#image, UNIT);
    });
  }

  /** Units that hold data of ours for sure. */
  written(): number[] {
    return [...this.#shows].flatMap(([unit, versions]) =>
      versions.length === 1 && versions[0] !== 0 ? [unit] : [],
    );
  }

  /** Writes a unit anew. Until {@link flush} a failure of that may still take it back. */
  async write(unit: number): Promise<Failure | null> {
    const before = this.#shows.get(unit) ?? [0];
    const version = Math.max(...before) + 1;
    const failure = await this.#try('write', async () => {
      const memory = this.#memory;
      if (memory === undefined) throw new TypeError('the volume is not open');
      memory.set(this.#content(unit, version));
      await this.#image?.write(memory, unit * UNIT);
    });
    // What failed half way may show either.
    this.#shows.set(unit, failure === null ? [version] : [...before, version]);
    if (!this.#unsure.has(unit)) this.#unsure.set(unit, before);
    return failure;
  }

  async flush(): Promise<Failure | null> {
    const failure = await this.#try('flush', async () => this.#image?.flush());
    this.#settle(failure);
    return failure;
  }

  async close(): Promise<Failure | null> {
    const image = this.#image;
    this.#image = undefined;
    const failure = await this.#try('close', async () => image?.close());
    this.#settle(failure);
    return failure;
  }

  /** Counts units that do not show what they must; in an image that does not open or read, all of them. */
  async verify(): Promise<Kept> {
    try {
      return await this.#verify();
    } catch (error) {
      failureOf('open', error);
      return { units: this.#shows.size, lost: this.#shows.size };
    }
  }

  async #verify(): Promise<Kept> {
    const image = await openImageFile(this.path, { format: this.format, share: true });
    try {
      const found = new Uint8Array(UNIT);
      let lost = 0;
      for (const [unit, versions] of this.#shows) {
        await image.read(found, unit * UNIT);
        const wanted = versions.map((version) => this.#content(unit, version));
        for (let at = 0; at < UNIT; at += BLOCK) {
          const block = found.subarray(at, at + BLOCK);
          if (wanted.some((content) => Buffer.compare(block, content.subarray(at, at + BLOCK)) === 0))
            continue;
          lost++;
          break;
        }
      }
      return { units: this.#shows.size, lost };
    } finally {
      await image.close();
    }
  }

  #settle(failure: Failure | null): void {
    if (failure !== null)
      for (const [unit, before] of this.#unsure)
        this.#shows.set(unit, [...before, ...(this.#shows.get(unit) ?? [])]);
    this.#unsure.clear();
  }

  #content(unit: number, version: number): Uint8Array {
    return version === 0 ? new Uint8Array(UNIT) : noise(UNIT, seedOf(this.#seed, unit, version));
  }

  async #try(request: Failure['request'], act: () => Promise<unknown>): Promise<Failure | null> {
    try {
      await act();
      return null;
    } catch (error) {
      return failureOf(request, error);
    }
  }
}

/** Where a volume is, and how it is written to. */
export interface Where {
  readonly folder: string;
  readonly seed: number;
  /** Past the page cache. */
  readonly direct: boolean;
}
