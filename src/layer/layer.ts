import type { Extent, HostExtent } from '../core/extent.ts';
import type { Storage, StorageCan, ZeroOptions } from '../core/storage.ts';

/**
 * Base of a layer: a storage over another that forwards everything. A layer overrides what it changes; closing it
 * closes what is below. `hostExtents` is there exactly when the storage below has it.
 */
export class Layer implements Storage {
  readonly can: StorageCan;
  protected readonly next: Storage;

  constructor(next: Storage, can: StorageCan = next.can) {
    this.next = next;
    this.can = can;
    const hostExtents = next.hostExtents?.bind(next);
    if (hostExtents !== undefined) this.hostExtents = hostExtents;
  }

  get size(): number {
    return this.next.size;
  }

  read(into: Uint8Array, at: number): Promise<void> {
    return this.next.read(into, at);
  }

  write(from: Uint8Array, at: number): Promise<void> {
    return this.next.write(from, at);
  }

  zero(at: number, length: number, how?: ZeroOptions): Promise<void> {
    return this.next.zero(at, length, how);
  }

  discard(at: number, length: number): Promise<void> {
    return this.next.discard(at, length);
  }

  extent(at: number, length: number): Promise<Extent> {
    return this.next.extent(at, length);
  }

  resize(size: number): Promise<void> {
    return this.next.resize(size);
  }

  flush(): Promise<void> {
    return this.next.flush();
  }

  close(): Promise<void> {
    return this.next.close();
  }

  hostExtents?(at: number, length: number): Promise<HostExtent[]>;
}
