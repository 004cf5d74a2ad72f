import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { copyFixture } from './qemu.ts';

/** The folder of the fixtures. */
export const FIXTURES = fileURLToPath(new URL('../../fixtures/', import.meta.url));

/** What the index of good/ and check/ says of an image. */
export interface Fixture {
  readonly file: string;
  readonly shows: string;
  /** The arguments that name the image to qemu. */
  readonly source: readonly string[];
  readonly commands: readonly string[];
  readonly aux?: readonly string[];
  readonly sparse?: boolean;
}

/** What the index of good/ says besides. */
export interface GoodFixture extends Fixture {
  readonly format: string;
  readonly snapshots?: boolean;
  readonly secret?: string;
}

/** What qemu does with a bad image. */
export type Verdict = 'accepts' | { readonly exit: number | string | null; readonly error: string };

/** What the index of bad/ says of an image. `code` null: strange, but it must work. */
export interface BadFixture {
  readonly file: string;
  readonly code: string | null;
  readonly when: 'open' | 'open-backing' | 'open-write' | 'open-snapshot' | 'read' | 'check';
  readonly why: string;
  readonly read?: { readonly offset: number; readonly length: number };
  readonly qemuCommand: readonly string[];
  readonly qemu: Verdict;
}

/** A JSON file among the fixtures. */
export function fixtureJson<T>(...path: string[]): T {
  return JSON.parse(readFileSync(join(FIXTURES, ...path), 'utf8')) as T;
}

/** A golden of a fixture, such as `info.json`. */
export function golden(section: 'good' | 'check', file: string, suffix: string): unknown {
  return fixtureJson(section, `${file.replace(/\.\w+$/, '')}.${suffix}`);
}

/** Copies all images to a new directory, in the form that their goldens belong to. The caller removes it. */
export async function stageFixtures(sections: readonly ('good' | 'check' | 'bad')[]): Promise<string> {
  const stage = await mkdtemp(join(process.env['SPINDLE_TMP'] ?? tmpdir(), 'spindle-fixtures-'));
  const sparse = new Set(
    fixtureJson<Fixture[]>('good', 'index.json')
      .filter((entry) => entry.sparse === true)
      .map((entry) => entry.file),
  );
  for (const section of sections) {
    await mkdir(join(stage, section));
    for (const file of await readdir(join(FIXTURES, section))) {
      if (/\.(json|sha256)$/.test(file)) continue;
      await copyFixture(
        join(FIXTURES, section, file),
        join(stage, section, file),
        section === 'good' && sparse.has(file),
      );
    }
  }
  return stage;
}
