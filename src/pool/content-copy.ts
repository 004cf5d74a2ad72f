import type { Working } from '../core/working.ts';
import type { Gate } from '../format/gate.ts';
import { convert } from '../op/convert.ts';
import type { VolumeFacts } from './volume-definition.ts';
import type { Volume } from './volume.ts';

/** Copies the disk of a volume into a new volume that is a device; a volume that cannot be filled is removed again. */
export async function fillDevice(
  source: VolumeFacts,
  target: Volume,
  gate: Gate,
  working: Working,
): Promise<void> {
  const { signal, onProgress } = working;
  try {
    await convert(
      [{ path: source.path, format: source.format ?? 'raw', gate }],
      { existing: true, path: target.facts.path, format: 'raw' },
      { signal, onProgress },
    );
  } catch (error) {
    await target.delete().catch(() => undefined);
    throw error;
  }
}
