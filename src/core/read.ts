import type { Storage } from './storage.ts';

/**
 * Fills `into` from `at`; what lies past the end of `storage` reads as zeroes. Formats need this everywhere: a file may
 * end inside a table or a compressed sector.
 */
export async function readPadded(storage: Storage, into: Uint8Array, at: number): Promise<void> {
  const there = Math.max(0, Math.min(into.length, storage.size - at));
  if (there < into.length) into.fill(0, there);
  if (there > 0) await storage.read(there === into.length ? into : into.subarray(0, there), at);
}

/**
 * `length` bytes at `at`, zero-extended like {@link readPadded}, but never more than the storage holds is allocated:
 * the result is shorter where the rest would be all zeroes past the end.
 */
export async function readAvailable(storage: Storage, at: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(Math.max(0, Math.min(length, storage.size - at)));
  if (bytes.length > 0) await storage.read(bytes, at);
  return bytes;
}
