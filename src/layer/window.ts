import { SpindleError } from '../core/errors.ts';
import type { Extent, HostExtent } from '../core/extent.ts';
import { checkRange, type Storage, type ZeroOptions } from '../core/storage.ts';
import { Layer } from './layer.ts';

/** Which part of a storage a window shows, in bytes. */
export interface WindowOptions {
  readonly offset: number;
  /** Default: to the end of the storage below, which the window then follows when either is resized. */
  readonly size?: number;
}

/**
 * A part of `next` as a storage of its own. A window of a fixed size cannot be resized.
 * @throws OUT_OF_RANGE when the part does not lie within `next`
 */
export function window(next: Storage, options: WindowOptions): Storage {
  return new Window(next, options);
}

class Window extends Layer {
  readonly #offset: number;
  readonly #size: number | undefined;

  constructor(next: Storage, { offset, size }: WindowOptions) {
    super(next, size === undefined ? next.can : { ...next.can, resize: false });
    checkRange(next.size, offset, size ?? 0);
    this.#offset = offset;
    this.#size = size;
    const below = next.hostExtents?.bind(next);
    if (below !== undefined) {
      this.hostExtents = async (at, length) => {
        const place = this.#place(at, length);
        const extents = await below(place, length);
        return extents.map((extent): HostExtent => ({ ...extent, offset: extent.offset - offset }));
      };
    }
  }

  override get size(): number {
    return this.#size ?? this.next.size - this.#offset;
  }

  override async read(into: Uint8Array, at: number): Promise<void> {
    await this.next.read(into, this.#place(at, into.length));
  }

  override async write(from: Uint8Array, at: number): Promise<void> {
    await this.next.write(from, this.#place(at, from.length));
  }

  override async zero(at: number, length: number, how?: ZeroOptions): Promise<void> {
    await this.next.zero(this.#place(at, length), length, how);
  }

  override async discard(at: number, length: number): Promise<void> {
    await this.next.discard(this.#place(at, length), length);
  }

  override async extent(at: number, length: number): Promise<Extent> {
    const extent = await this.next.extent(this.#place(at, length), length);
    return { ...extent, offset: at };
  }

  override async resize(size: number): Promise<void> {
    if (this.#size === undefined) return this.next.resize(this.#offset + size);
    if (!this.can.write) throw new SpindleError('READ_ONLY', 'opened for reading only');
    throw new SpindleError('UNSUPPORTED', 'a window of a fixed size cannot be resized');
  }

  #place(at: number, length: number): number {
    checkRange(this.size, at, length);
    return this.#offset + at;
  }
}
