import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

const made = new Set<string>();

/** A new directory, removed with all it holds when the tests of this file are over. SPINDLE_TMP says where. */
export function tempDir(): string {
  const path = mkdtempSync(join(process.env['SPINDLE_TMP'] ?? tmpdir(), 'spindle-test-'));
  made.add(path);
  return path;
}

let count = 0;
let shared: string | undefined;

/** A path in a temporary directory where nothing is yet. */
export function tempPath(name = 'file'): string {
  shared ??= tempDir();
  return join(shared, `${String(count++)}-${name}`);
}

function removeAll(): void {
  for (const path of made) rmSync(path, { recursive: true, force: true });
  made.clear();
  shared = undefined;
}

afterAll(removeAll);
process.once('exit', removeAll);

/** The mask that new files of this process get, read without setting it. */
export function umask(): number {
  const status = /^Umask:\s+(\d+)$/m.exec(readFileSync('/proc/self/status', 'utf8'));
  return Number.parseInt(status?.[1] ?? '022', 8);
}
