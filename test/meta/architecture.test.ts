import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const SRC = join(ROOT, 'src');

function filesBelow(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    if (statSync(path).isDirectory()) return filesBelow(path);
    return path.endsWith('.ts') ? [path] : [];
  });
}

/** Who may import whom, by the longest matching prefix. A room may always import itself and core. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  'core/': [],
  'native/': [],
  'storage/': ['native/'],
  'storage/memory.ts': [],
  'layer/': [],
  'format/': ['layer/window.ts'],
  'format/raw/': ['format/driver.ts'],
  'format/crypto/': [],
  'format/luks/': ['format/driver.ts', 'format/crypto/'],
  'format/qcow2/': ['format/driver.ts', 'format/crypto/'],
  'format/open.ts': ['format/raw/', 'format/luks/', 'format/qcow2/'],
  'op/': ['storage/', 'layer/', 'format/', 'native/'],
  'pool/': ['op/', 'storage/', 'format/', 'native/'],
  'benchmark/': ['op/', 'storage/', 'format/', 'native/'],
  'report/': ['benchmark/'],
  'cli/': ['benchmark/', 'report/', 'op/', 'pool/', 'storage/', 'format/', 'native/'],
  'index.ts': ['storage/', 'layer/', 'format/', 'native/', 'op/', 'pool/', 'benchmark/', 'report/'],
};

/** Rooms whose insides are for themselves alone. */
const PRIVATE = ['format/raw/', 'format/luks/', 'format/qcow2/'];

/** The only places that know the runtime. */
const MAY_USE_NODE = ['native/', 'storage/', 'pool/', 'benchmark/', 'cli/'];
const MAY_NOT_USE_NODE = ['storage/memory.ts'];

interface Import {
  readonly from: string;
  readonly to: string;
  readonly typeOnly: boolean;
}

function importsOf(path: string): Import[] {
  const text = readFileSync(path, 'utf8');
  const found = text.matchAll(
    /^(?:import|export)\s+(type\s)?[^'"]*?from\s+'([^']+)'|^import\s+'([^']+)'|import\('([^']+)'\)/gm,
  );
  return Array.from(found, (match) => ({
    from: relative(SRC, path),
    to: match[2] ?? match[3] ?? match[4] ?? '',
    typeOnly: match[1] !== undefined,
  }));
}

function longest(prefixes: readonly string[], path: string): string | undefined {
  return prefixes.filter((prefix) => path.startsWith(prefix)).sort((a, b) => b.length - a.length)[0];
}

const imports = filesBelow(SRC).flatMap(importsOf);

describe('the rooms', () => {
  it('were read', () => {
    expect(imports.length).toBeGreaterThan(100);
  });

  it('import only whom they may', () => {
    const wrong = imports.flatMap(({ from, to }) => {
      if (!to.startsWith('.')) return [];
      const target = relative(SRC, resolve(join(SRC, from), '..', to));
      const room = longest(Object.keys(MAY_IMPORT), from) ?? '';
      const own = room.endsWith('/') ? room : `${room.split('/')[0] ?? ''}/`;
      const allowed = [...(MAY_IMPORT[room] ?? []), 'core/', own];
      const isAllowed = allowed.some((prefix) => target.startsWith(prefix));
      const closed = PRIVATE.find((prefix) => target.startsWith(prefix) && !from.startsWith(prefix));
      // Closed rooms open to those who name them, and to the rooms above formats.
      const opened =
        closed === undefined ||
        allowed.includes(closed) ||
        (allowed.includes('format/') && !from.startsWith('format/'));
      return isAllowed && opened ? [] : [`${from} -> ${target}`];
    });
    expect(wrong).toEqual([]);
  });

  it('keep away from the runtime, but for those that are there for it', () => {
    const wrong = imports.filter(
      ({ from, to }) =>
        to.startsWith('node:') &&
        (!MAY_USE_NODE.some((prefix) => from.startsWith(prefix)) || MAY_NOT_USE_NODE.includes(from)),
    );
    expect(wrong.map(({ from, to }) => `${from} -> ${to}`)).toEqual([]);
  });

  it('use only packages that package.json declares', () => {
    const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as Record<
      string,
      Record<string, string>
    >;
    const declared = new Set(
      Object.keys({ ...manifest['dependencies'], ...manifest['optionalDependencies'] }),
    );
    const wrong = imports.filter(
      ({ to }) => !to.startsWith('.') && !to.startsWith('node:') && !declared.has(to),
    );
    expect(wrong.map(({ from, to }) => `${from} -> ${to}`)).toEqual([]);
  });

  it('have no circles of imports that run', () => {
    const graph = new Map<string, string[]>();
    for (const { from, to, typeOnly } of imports) {
      if (!to.startsWith('.') || typeOnly) continue;
      const target = relative(SRC, resolve(join(SRC, from), '..', to));
      graph.set(from, [...(graph.get(from) ?? []), target]);
    }
    const circles: string[] = [];
    const done = new Set<string>();
    const visit = (file: string, path: readonly string[]): void => {
      if (path.includes(file)) {
        circles.push([...path.slice(path.indexOf(file)), file].join(' -> '));
        return;
      }
      if (done.has(file)) return;
      for (const next of graph.get(file) ?? []) visit(next, [...path, file]);
      done.add(file);
    };
    for (const file of graph.keys()) visit(file, []);
    expect(circles).toEqual([]);
  });

  it('hold files of one idea: none longer than 500 lines', () => {
    const long = filesBelow(SRC)
      .map((path) => ({ path: relative(ROOT, path), lines: readFileSync(path, 'utf8').split('\n').length }))
      .filter(({ lines }) => lines > 500);
    expect(long).toEqual([]);
  });
});

describe('the top level', () => {
  it('holds what the plan names, documents and dot-files, and nothing else', () => {
    const planned = ['package.json', 'tsconfig.json', 'src', 'native', 'bench', 'test', 'fixtures', 'docs'];
    const made = ['node_modules', 'dist', 'package-lock.json'];
    const other = readdirSync(ROOT).filter(
      (name) =>
        !planned.includes(name) &&
        !made.includes(name) &&
        !name.startsWith('.') &&
        !name.endsWith('.md') &&
        !name.startsWith('LICENSE'),
    );
    expect(other).toEqual([]);
  });
});
