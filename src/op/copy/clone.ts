import { isAligned } from '../../core/align.ts';
import { isSpindleError } from '../../core/errors.ts';
import type { Storage } from '../../core/storage.ts';
import { native } from '../../native/binding.ts';
import { FileStorage } from '../../storage/file.ts';

/** Shares blocks of one file with another (reflink), for as long as the file system does it. */
export class Cloner {
  readonly #target: FileStorage;
  #works = true;

  private constructor(target: FileStorage) {
    this.#target = target;
  }

  /** A cloner into `target`; null where blocks cannot be shared with it. */
  static to(target: Storage): Cloner | null {
    return target instanceof FileStorage && !target.isDevice ? new Cloner(target) : null;
  }

  /** Whether sharing has worked so far. */
  get works(): boolean {
    return this.#works;
  }

  /** Whether it may work from there: a file, at the boundary of a block. */
  accepts(host: { readonly storage: Storage; readonly at: number }): boolean {
    return (
      this.#works && host.storage instanceof FileStorage && !host.storage.isDevice && isAligned(host.at, 4096)
    );
  }

  /** Shares `length` bytes at `from`; false where the file system does not. */
  async clone(source: Storage, from: number, target: Storage, to: number, length: number): Promise<boolean> {
    if (!(source instanceof FileStorage) || target !== this.#target) return false;
    try {
      await native().cloneRange(source.fd, from, this.#target.fd, to, length);
      this.#target.changed(to + length);
      return true;
    } catch (error) {
      if (!isSpindleError(error, 'UNSUPPORTED')) throw error;
      this.#works = false;
      return false;
    }
  }
}
