import type { Storage } from '../core/storage.ts';
import type { FormatDriver } from './driver.ts';

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
}
