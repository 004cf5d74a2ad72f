import type { Storage } from '../core/storage.ts';
import type { FormatDriver, ResizeOptions } from './driver.ts';

/** An image: the disk that a guest sees, with the format and the backing chain behind it. */
export interface Image extends Storage {
  readonly format: string;
  readonly driver: FormatDriver;
  /** The file or other storage that holds the image. */
  readonly storage: Storage;
  /** The image below, or null: none, or not opened. */
  readonly backing: Image | null;
  /** Name under which the image was opened, for messages. */
  readonly name: string | undefined;
  /**
   * Writes all of `from` at `at`, compressed where that makes it smaller: whole clusters of the format, the last of
   * which may end with the disk.
   * @throws SpindleError UNSUPPORTED where the image cannot hold compressed data, BAD_OPTION for parts of clusters
   */
  writeCompressed?(from: Uint8Array, at: number): Promise<void>;
  /** Changes the virtual size; a grown part reads as zeroes. */
  resize(size: number, options?: ResizeOptions): Promise<void>;
}
