import { clearFrom } from './clear.ts';
import { cutFile } from './resize.ts';
import type { Qcow2Writer } from './writer.ts';

/**
 * Takes everything out of the disk, so that it shows what is below. Internal snapshots keep all that they hold. Whoever
 * calls it lets nobody else change the image, and reads the metadata anew afterwards, also after a failure.
 *
 * A power cut leaves some of the disk as it was, and the rest empty: call it when what is below reads the same. Space
 * is given back only when no table on disk refers to it any more.
 * @throws SpindleError BAD_ENTRY, CORRUPT
 */
export function emptyDisk(writer: Qcow2Writer): Promise<void> {
  return writer.alone(async (whole) => {
    await clearFrom(writer, whole, 0, null);
    await whole.flush();
    if (whole.external) await whole.data.discard(0, whole.data.size);
    await cutFile(writer, whole);
  });
}
